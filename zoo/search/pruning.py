"""How many layers a task can do without: those with a small ΔW are left as the backbone has them (FTN, Appendix B)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from zoo.catalog.entry import Entry
from zoo.catalog.handover import carried, check_new, put_in
from zoo.catalog.registry import Registry
from zoo.catalog.store import adapter_files
from zoo.catalog.task import GENERATION
from zoo.compression.layers import norms, with_increments
from zoo.datasets import benchmark_of, held_out
from zoo.errors import OptionError
from zoo.loader import described, load, load_adapters
from zoo.models.adapted import TaskModel
from zoo.search.ranks import HELD_OUT
from zoo.storage.tensors import read
from zoo.training.batches import seed_of
from zoo.training.evaluation import measure

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """A task without the layers whose ‖ΔW‖ is below a threshold.

    Attributes:
        layers, parameters: that remain; parameters with the task's norms, without its head.
        figure: on the test images, in the unit of the task's metric.
        chosen_by: the same on training images; None where nothing is to be chosen.
    """

    task: str
    threshold: float
    dropped: tuple[str, ...]
    layers: int
    parameters: int
    figure: float
    chosen_by: float | None


def thresholds(values: Sequence[float], steps: int) -> list[float]:
    """So many thresholds, equally spaced between the smallest value and the largest, both among them."""
    least, most = min(values), max(values)
    return [*(least + (most - least) * step / (steps - 1) for step in range(steps - 1)), most]


def pruned(
    entry: Entry, registry: Registry, task: str, steps: int, data_root: Path | None = None, choosing: bool = False
) -> Iterator[Step]:
    """A task at each of so many thresholds, the first of which drops nothing.

    Args:
        choosing: measure on a fifth of the training images too. Where the adapter was trained on all, on these as well.

    Raises:
        OptionError: fewer than two steps; or the method adds nothing, or has no rank.
    """
    if steps < 2:
        raise OptionError(f"Pruning takes two steps at least, not {steps}.")
    if entry.kind(task) == GENERATION:
        raise OptionError(f"{task} makes pictures, whose latents would be fitted anew at each step: it is not pruned.")
    model = with_increments(load(entry.name, task=task, registry=registry))
    splits = benchmark_of(entry).splits(task, entry.images_root(data_root))
    parts = [splits.test]
    if choosing:
        parts.append(held_out(splits, HELD_OUT, seed_of(0, task, "held out")).test)
    here = {path for path, site in model.adapted() if task in site.tasks}
    sizes = {path: size for path, size in norms(model, task).items() if path in here}
    figures, before = [], None
    for threshold in thresholds(list(sizes.values()), steps):
        dropped = tuple(path for path, size in sizes.items() if size < threshold)
        if dropped != before:
            model.leave(task, dropped)
            known, before = model.task(task), dropped
            figures = [measure(model.answering(task), images, known, device=_device(model)) for images in parts]
        left = len(sizes) - len(dropped)
        log.info("%s: %d layers, %s", task, left, known.metric.text(figures[0]))
        size = model.count_parameters(task).per_task
        yield Step(task, threshold, dropped, left, size, figures[0], figures[1] if choosing else None)


def _device(model: TaskModel) -> torch.device:
    return next(model.backbone_parameters()).device


def smallest(entry: Entry, steps: Sequence[Step], within: float) -> Step:
    """The last of a task's steps before one is worse than the first by more than `within`, on training images."""
    metric, first, found = entry.metric(steps[0].task), steps[0], steps[0]
    for step in steps:
        assert step.chosen_by is not None and first.chosen_by is not None
        if metric.worse(step.chosen_by, first.chosen_by) > within:
            break
        found = step
    return found


def pruned_entry(entry: Entry, registry: Registry, chosen: Mapping[str, Step], out: Path, name: str) -> Entry:
    """A new entry of tasks without the layers that these steps drop, in `out`, listed in `out/registry.yaml`."""
    check_new(name, out, registry)
    tasks = list(chosen)
    sources = adapter_files(entry, tasks)
    model = with_increments(load_adapters(entry, registry, sources))
    files = {}
    for task, step in chosen.items():
        model.leave(task, step.dropped)
        files[task] = out / name / f"{task}.safetensors"
        header = read(sources[task])[1]
        facts: dict[str, Any] = {
            key: header[key] for key in ("backbone", "recipe", "settings", "versions") if key in header
        }
        metric = entry.metric(task)
        facts |= {"entry": name, "source": entry.name, "metrics": {metric.name: step.figure}}
        model.save_adapter(task, files[task], facts)
    measured = {task: entry.metric(task).rounded(step.figure) for task, step in chosen.items()}
    own = carried(entry, out)
    made = replace(
        entry.at(out), name=name, measured=measured, backbone_weights=own, weights=None, shared=None, reported=None,
        baseline="", note="", source="", form="", classes={task: entry.classes[task] for task in tasks},
        kinds={task: kind for task, kind in entry.kinds.items() if task in tasks}, **described(model, entry.placement),
    )  # fmt: skip
    return put_in(out, made, files)
