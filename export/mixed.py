"""All tasks in one graph, each image by its own: `images` and, for each of them, the number of its `task`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from zoo.export.files import written
from zoo.export.form import Form, Further, check_alike, describe, latent_shape, real_images, with_backbone
from zoo.export.parity import TASK, Parity, outputs, session

from zoo.errors import ExportError, OptionError
from zoo.models.adapted import TaskModel
from zoo.models.mixing import Mixed
from zoo.models.multitask import MultiTaskModel
from zoo.models.row_layers import by_task, widened


def to_mixed(
    model: MultiTaskModel, path: str | Path, *, tasks: Sequence[str] | None = None, stack_limit: int | None = None,
    preprocess: bool | str = False, images: Mapping[str, Tensor | Sequence[Tensor]] | None = None,
    provider: str = "cpu", metadata: Mapping[str, Any] | None = None,
) -> Parity:  # fmt: skip
    """Write one graph of several tasks, whose batches mix them.

    Its inputs are `images` and `task`, int64 (B,); its output has as many classes as the largest task, and -inf beyond
    a task's own. It is one tensor, and not one for each number of classes, because a batch has rows of all tasks.

    Args:
        model: one with a frozen backbone.
        tasks: their names, in the order of their numbers; all by default.
        stack_limit: bytes of weights that may be kept whole for each task, see `TaskModel.mixed`.
        preprocess, provider, metadata: as of `to_onnx`.
        images: by task, batches of real inputs in the graph's form, to compare on beside random ones.

    Returns:
        The largest difference between a row and what the fused network of its task gives.

    Raises:
        ExportError: the tasks' images differ in size, or in what is in the graph of their preprocessing; or as of
            `to_onnx`. No file is written then.
    """
    model = with_backbone(model)
    path, names = Path(path), list(model.tasks if tasks is None else tasks)
    known, real = [model.task(name) for name in names], real_images(images, names)
    check_alike(known, preprocess)
    some = real.get(names[0]) or next(iter(real.values()), None)
    form = Form(known[0], preprocess, some, latent_shape(model, names[0]))
    example = form.around(nn.Identity())(form.batches[0][:1])  # what the network itself is given
    form.pair(_batches(form, names, real), real=sum(len(batch) for each in real.values() for batch in each))
    source = form.around(_Rows(model, names))
    outputs(source, *form.batches[0])
    network = form.around(_mixed(model, names, stack_limit, example))
    exported = form.exported(network, path, [Further(TASK, torch.arange(2) % len(names), {0: "batch"})])
    describe(exported, {**form.facts_of(known), **(metadata or {})})
    with written(exported, path) as temporary:
        del exported  # as large as the network
        return form.parity(source, session(temporary, provider), path)


def _mixed(model: TaskModel, names: Sequence[str], stack_limit: int | None, example: Tensor) -> Mixed:
    try:
        return model.mixed(names, stack_limit=stack_limit, example=example, exported=True)
    except OptionError as error:
        raise ExportError(str(error)) from error


class _Rows(nn.Module):
    """The fused networks of several tasks, each for its rows: what a mixed graph is compared with."""

    def __init__(self, model: TaskModel, names: Sequence[str]) -> None:
        super().__init__()
        self.fused = nn.ModuleList([model.fuse(name) for name in names])
        self.widest = max(len(model.task(name).classes) for name in names)

    def forward(self, images: Tensor, task: Tensor) -> Tensor:
        return by_task(lambda number, own: widened(self.fused[number](own), self.widest, -torch.inf), images, task)


def _batches(form: Form, names: Sequence[str], images: Mapping[str, Sequence[Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Batches with the numbers of their tasks: random ones with rows of every task, and real ones of their own."""
    found = []
    for batch in form.random:
        rows = max(len(batch), len(names))
        repeated = batch.repeat(-(-rows // len(batch)), *[1] * (batch.ndim - 1))[:rows]
        found.append((repeated, torch.arange(rows).flip(0) % len(names)))
    found.append((form.batches[0], torch.tensor([len(names) - 1])))
    for name, batches in images.items():
        found += [(batch, torch.full((len(batch),), names.index(name))) for batch in batches]
    return found
