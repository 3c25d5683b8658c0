"""Pictures of what the dense tasks of a model see in an image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from zoo.catalog.task import Task, is_dense
from zoo.datasets import open_image
from zoo.drawing.plots import pyplot, save_png
from zoo.errors import OptionError
from zoo.kinds import get_kind
from zoo.kinds.base import DenseKind
from zoo.models.multitask import MultiTaskModel

INCHES = 3.2  # of one picture's width in a sheet


def dense_tasks(model: MultiTaskModel) -> dict[str, Task]:
    """A model's tasks whose answers are maps; raises OptionError if there are none."""
    found = {name: model.task(name) for name in model.tasks if is_dense(model.task(name).kind)}
    if not found:
        raise OptionError("None of these tasks answers with a map, so there is nothing to draw. Leave out -o.")
    return found


def answers(model: MultiTaskModel, image: Image.Image) -> dict[str, npt.NDArray[Any]]:
    """What each dense task of a model says of an image, at the size of its input, all in one pass where that is one."""
    tasks = dense_tasks(model)
    inputs = {name: model.transforms(name)(image)[None] for name in tasks}
    first = next(iter(inputs.values()))
    with torch.no_grad():
        alike = len(tasks) == len(model.tasks) and all(torch.equal(each, first) for each in inputs.values())
        outputs = model(first) if alike else {name: model(each, task=name) for name, each in inputs.items()}
    return {name: _kind(task).answer(outputs[name])[0].numpy() for name, task in tasks.items()}


def draw_answers(model: MultiTaskModel, path: Path, folder: Path) -> list[Path]:
    """Write a picture of each dense task's answer for the image at `path`, and a sheet of all of them.

    Returns:
        The files, `<folder>/<image>_<task>.png` and `<folder>/<image>_overview.png`.

    Raises:
        DataError: the image does not decode.
        OptionError: no task is dense.
        MissingExtraError: matplotlib is not installed.
    """
    image, tasks = open_image(path), dense_tasks(model)
    found = answers(model, image)
    files = []
    for name, task in tasks.items():
        files.append(draw_answer(task, found[name], folder / f"{path.stem}_{name}.png"))
    return [*files, save_png(_sheet(image, tasks, found), folder / f"{path.stem}_overview.png")]


def draw_answer(task: Task, answer: npt.NDArray[Any], file: Path) -> Path:
    """Write the picture of one dense task's answer, a map as `answers` gives it."""
    figure, axes = pyplot().subplots(figsize=(1.6 * INCHES, INCHES), layout="constrained")
    _panel(axes, task.name, task, answer)
    return save_png(figure, file)


def draw_overview(model: MultiTaskModel, image: Image.Image, file: Path, truth: Mapping[str, Tensor]) -> Path:
    """Write the sheet of an image and every dense answer, and of what is true for some of the tasks.

    Args:
        truth: targets by task, (H, W) or (channels, H, W).
    """
    return save_png(_sheet(image, dense_tasks(model), answers(model, image), truth), file)


def _sheet(
    image: Image.Image, tasks: Mapping[str, Task], found: Mapping[str, npt.NDArray[Any]],
    truth: Mapping[str, Tensor] = MappingProxyType({}),
) -> Any:  # fmt: skip
    """The image and every answer beside each other, and what is known to be true."""
    count = 1 + len(tasks) + len(truth)
    columns = min(3, count)
    rows = math.ceil(count / columns)
    figure, grid = pyplot().subplots(
        rows, columns, figsize=(1.4 * INCHES * columns, INCHES * rows), layout="compressed", squeeze=False
    )
    panels = list(grid.flat)
    panels[0].imshow(image)
    panels[0].set_title("image")
    for axes, (name, task) in zip(panels[1:], tasks.items(), strict=False):
        _panel(axes, name, task, found[name])
    for axes, (name, target) in zip(panels[1 + len(tasks) :], truth.items(), strict=False):
        _panel(axes, f"{name}, the truth", tasks[name], target.numpy())
    for axes in panels:
        axes.axis("off")
    return figure


def _kind(task: Task) -> DenseKind:
    kind = get_kind(task.kind)
    assert isinstance(kind, DenseKind)
    return kind


def _panel(axes: Any, name: str, task: Task, answer: npt.NDArray[Any]) -> None:
    _kind(task).draw(axes, answer, task.classes)
    axes.set_title(name)
    axes.axis("off")
