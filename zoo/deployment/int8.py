"""A task's graph in eight bits, and what that gives and costs: bytes, time, and how well it does on the test images."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from zoo.catalog.task import GENERATION, Task
from zoo.datasets import Images, Splits, Transformed, some_of
from zoo.errors import CheckFailed, OptionError
from zoo.export import run, session, to_int8
from zoo.training.evaluation import measure
from zoo.verification.timing import interleaved, ratio

log = logging.getLogger(__name__)
CALIBRATION = 128  # training images
BATCHES = 1, 8  # that both graphs are timed on
ROUNDS = 15
MAX_DROP = 1.0  # points


def export_int8(
    graph: Path, file: Path, task: Task, splits: Splits, preprocess: bool | str = False, max_drop: float = MAX_DROP
) -> dict[str, Any]:
    """Write a task's graph in int8, calibrated on its training images and tried on its test images.

    Figures and times are those of ONNX Runtime on the CPU.

    Args:
        graph: the same in float32, without preprocessing.
        preprocess: what of it is to be in the new one, as of `zoo.export.to_onnx`.
        max_drop: points that it may do worse than in float32; per cent, where the metric is an error.

    Returns:
        What is kept in the graph's metadata: the task's figure in float32 and int8, bytes of both networks, and the
        ratio of their times for some sizes of a batch.

    Raises:
        CheckFailed: it does worse than that; no file is written then.
        OptionError: the task makes pictures.
    """
    if task.kind == GENERATION:
        raise OptionError(f"{task.name} makes pictures; graphs in int8 are of networks that take them.")
    found: dict[str, Any] = {}

    def judged(whole: Path, small: Path) -> dict[str, Any]:
        found.update(_compared(whole, small, task, splits.test))
        lost = task.metric.worse(found["int8"], found["float32"])
        if lost > max_drop:
            unit = "points" if task.metric.unit == "%" else "per cent"
            raise CheckFailed(
                f"{file} is not written: in int8 {task.name} does {lost:.2f} {unit} worse "
                f"({told(found, task)}), and {max_drop:g} are allowed. Allow more with --max-drop."
            )
        return {"int8": found}

    to_int8(graph, file, _calibration(splits, task), preprocess=preprocess, judged=judged)
    return found


def told(found: Mapping[str, Any], task: Task) -> str:
    """The figure before and after, with its metric."""
    before, after = (task.metric.text(found[kind]) for kind in ("float32", "int8"))
    return f"{task.metric.name} {before} in float32, {after} in int8"


def _calibration(splits: Splits, task: Task) -> Iterator[Tensor]:
    """Batches of training images, the same each time."""
    count = min(CALIBRATION, len(splits.train))  # type: ignore[arg-type]
    log.info("%s: calibrating on %d training images.", task.name, count)
    some = Transformed(some_of(splits, count, seed=0).train, task.preprocessing.transform())
    for images, _ in DataLoader(some, 8):
        yield images


def _answers(graph: ort.InferenceSession, images: Tensor) -> Tensor:
    return torch.from_numpy(run(graph, images.numpy()))


def _compared(whole: Path, small: Path, task: Task, test: Images) -> dict[str, Any]:
    """What two graphs of a task's network take and do."""
    found: dict[str, Any] = {"metric": task.metric.name, "images": len(test)}  # type: ignore[arg-type]
    graphs = {"float32": whole, "int8": small}
    ready = {kind: session(file, spinning=False) for kind, file in graphs.items()}
    for kind, each in ready.items():
        figure = measure(partial(_answers, each), test, task)
        found |= {kind: task.metric.rounded(figure), f"bytes_{kind}": graphs[kind].stat().st_size}
    log.info("%s: %s.", task.name, told(found, task))
    latency = {}
    for batch in BATCHES:
        images = torch.randn(batch, *task.preprocessing.input_size).numpy()
        calls = {kind: partial(run, each, images) for kind, each in ready.items()}
        latency[str(batch)] = round(ratio(interleaved(calls, ROUNDS), "int8", "float32"), 3)
    return {**found, "latency": latency}
