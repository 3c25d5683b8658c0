"""Whether an entry is what the registry says: its files, its parameters, its accuracy, and its recipe."""

from __future__ import annotations

import functools
import logging
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from zoo.datasets import get_benchmark
from zoo.errors import WeightsError
from zoo.evaluation import accuracy
from zoo.fetch import fetch
from zoo.loader import adapter_files, load
from zoo.model import TaskModel
from zoo.registry import Entry, Registry
from zoo.runs import RunOptions, train_entry
from zoo.tensors import read

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    task: str
    what: str
    passed: bool
    detail: str


def evaluate(
    entry: Entry, model: TaskModel, data_root: Path | None = None, skip_unreadable: bool = False
) -> dict[str, float]:
    """Top-1 accuracy in per cent of every task of `model` on its test images."""
    benchmark = get_benchmark(entry.benchmark, skip_unreadable)
    root = data_root or (Path(entry.data_root) if entry.data_root else None)
    device = next(model.parameters()).device
    figures = {}
    for task in model.tasks:
        images = benchmark.splits(task, root).test
        network = functools.partial(model, task=task)
        figures[task] = accuracy(network, images, model.task(task).preprocessing, device=device)
        log.info("%s: %.2f %%", task, figures[task])
    return figures


def verify(entry: Entry, registry: Registry, data_root: Path | None = None) -> list[Check]:
    """Check every published file of an entry, its numbers of parameters, and its measured accuracy.

    Raises:
        WeightsError: no weights are published for the entry.
    """
    if not entry.weights:
        raise WeightsError(f"No weights of {entry.name} are published, so there is nothing to verify.")
    checks = []
    for task, file in entry.weights.items():
        try:
            fetch(file, entry.folder)
            checks.append(Check(task, "file", True, f"{file.size} bytes, sha256 {file.sha256[:12]}…"))
        except WeightsError as error:
            checks.append(Check(task, "file", False, str(error)))
    if not all(check.passed for check in checks):
        return checks
    model = load(entry.name, weights="published", registry=registry)
    if entry.parameters:
        counted = {model.count_parameters(task) for task in model.tasks}
        checks.append(Check("all", "parameters", counted == {entry.parameters}, ", ".join(map(str, counted))))
    return checks + _compare(entry, evaluate(entry, model, data_root), "accuracy")


def retrain(entry: Entry, registry: Registry, options: RunOptions) -> list[Check]:
    """Run an entry's recipe again, in a temporary folder, and compare with what is published."""
    published = adapter_files(entry, entry.tasks, "published")
    with tempfile.TemporaryDirectory() as folder:
        files = train_entry(entry, registry, entry.tasks, Path(folder), replace(options, resume=False))
        again = {task: read(file) for task, file in files.items()}
    checks = _compare(entry, {task: header["metrics"]["accuracy"] for task, (_, header) in again.items()}, "retrained")
    for task, (tensors, _) in again.items():
        theirs, _ = read(published[task])
        same = all(torch.equal(tensor, theirs[name]) for name, tensor in tensors.items())
        # Another processor or library version may round otherwise: this is told, and is no failure.
        checks.append(Check(task, "weights", True, "bit for bit the same" if same else "not bit for bit the same"))
    return checks


def _compare(entry: Entry, found: dict[str, float], what: str) -> list[Check]:
    measured = entry.measured or {}
    checks = []
    for task, value in found.items():
        stated = measured.get(task)
        passed = stated is not None and abs(value - stated) <= entry.tolerance
        expected = "nothing" if stated is None else f"{stated:.2f} ± {entry.tolerance}"
        checks.append(Check(task, what, passed, f"{value:.2f} %, the registry states {expected}"))
    return checks
