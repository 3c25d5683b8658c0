"""Entries on the same tasks side by side: how good, how large, how fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.catalog.entry import Entry
from zoo.catalog.registry import Registry
from zoo.errors import OptionError
from zoo.loader import load
from zoo.models.multitask import MultiTaskModel
from zoo.training.optimizers import update
from zoo.verification.provenance import half_interval, made
from zoo.verification.timing import interleaved, medians

BATCH = 32


def common_tasks(entries: Sequence[Entry], task: str | None = None) -> list[str]:
    """The tasks that all the entries have, or just the one that is asked for.

    Raises:
        OptionError: the entries are of several benchmarks, or have no such task in common.
    """
    if len({entry.benchmark for entry in entries}) > 1:
        raise OptionError(
            f"These entries are of several benchmarks: {', '.join(sorted({e.benchmark for e in entries}))}."
        )
    return tasks_of_all(entries, task)


def tasks_of_all(entries: Sequence[Entry], task: str | None = None) -> list[str]:
    """The same, whatever their benchmarks; raises OptionError if there are none."""
    shared = [name for name in entries[0].tasks if all(name in entry.tasks for entry in entries)]
    if task is not None:
        shared = [name for name in shared if name == task]
    if not shared:
        raise OptionError("These entries have no task in common" + (f" called {task!r}." if task else "."))
    return shared


def compare(
    entries: Sequence[Entry], registry: Registry, task: str | None = None, rounds: int = 10
) -> list[dict[str, Any]]:
    """A row for each entry, by rising mean accuracy over the tasks that all of them have.

    Figures are what the registry states, each in its metric's unit; a mean is of those in one unit, and ± is half the
    95 % interval that so many test images leave open. Parameters are of one task, head left out, with its share of what
    tasks have in common; kB are of its published file likewise. Recipe, epochs and images are of the first task.
    Milliseconds are medians at batch 32, all entries in turn in one process, on the CPU: of a training step (forward,
    backward, SGD), and of inference, fused and not.

    Args:
        rounds: of the timings; 0 leaves them out.
    """
    tasks = common_tasks(entries, task)
    rows = {entry.name: _row(entry, tasks) for entry in entries}
    if rounds:
        models = {e.name: load(e.name, task=tasks[0], weights=None, registry=registry) for e in entries}
        inputs = {
            name: _channels_last(torch.randn(BATCH, *model.input_shape(tasks[0]))) for name, model in models.items()
        }
        timings: dict[str, Callable[[MultiTaskModel, str, Tensor], Callable[[], object]]] = {
            "ms per training step": _training_step, "ms fused": _fused, "ms unfused": _unfused,
        }  # fmt: skip
        for what, candidate in timings.items():
            calls = {name: candidate(model, tasks[0], inputs[name]) for name, model in models.items()}
            seconds = medians(interleaved(calls, rounds))
            for name, value in seconds.items():
                rows[name][what] = round(1000 * value, 1)
    return sorted(rows.values(), key=lambda row: row["mean %"] or 0.0)


def _channels_last(x: Tensor) -> Tensor:
    """The batch in the layout that training takes; a clip as it is."""
    return x.to(memory_format=torch.channels_last) if x.ndim == 4 else x


def _row(entry: Entry, tasks: list[str]) -> dict[str, Any]:
    measured, counted, how = entry.measured or {}, entry.parameters, made(entry, tasks[0])
    own = {task: measured[task] for task in tasks if task in measured}
    mean = entry.mean(own) if len(own) == len(tasks) else None
    half = None if mean is None else half_interval(entry, own)
    parameters = share = None
    if counted:
        parameters = counted.per_task + counted.shared // len(entry.tasks)
        share = round(100 * parameters / counted.backbone, 2) if counted.backbone else None
    sizes = [file.size for file in (entry.weights or {}).values()]
    common = entry.shared.size if entry.shared else 0
    return {
        "model": entry.name,
        **{f"{task} {entry.metric(task).unit}": measured.get(task) for task in tasks},
        "mean %": mean,
        "±": half and round(half, 1),
        "parameters": parameters,
        "% of backbone": share,
        "kB": round((sum(sizes) + common) / len(sizes) / 1000) if sizes else None,
        "method": entry.method["name"],
        "recipe": how.recipe,
        "epochs": how.epochs,
        "training images": how.trained,
        "test images": how.tested,
    }


def _training_step(model: MultiTaskModel, task: str, images: Tensor) -> Callable[[], object]:
    optimizers = [torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)]
    model.to(memory_format=torch.channels_last)

    def run() -> None:
        model.train()
        loss = model(images, task=task).square().mean()  # as good as any to be timed
        loss.backward()
        update(optimizers)
        model.eval()

    return run


def _unfused(model: MultiTaskModel, task: str, images: Tensor) -> Callable[[], object]:

    def run() -> None:
        with torch.no_grad():
            model(images, task=task)

    return run


def _fused(model: MultiTaskModel, task: str, images: Tensor) -> Callable[[], object]:
    plain = model.fuse(task).to(memory_format=torch.channels_last)

    def run() -> None:
        with torch.no_grad():
            plain(images)

    return run
