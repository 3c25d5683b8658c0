"""The rank that a task needs: the smallest whose validation accuracy is close to the largest's.

FTN's point (Section 4.1.1) is that not every task needs the same rank. Which one it needs is found here on training
images that are held out; the test images have no part in it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zoo.catalog.entry import Entry
from zoo.catalog.registry import Registry
from zoo.errors import OptionError
from zoo.loader import counted_parameters
from zoo.storage.tensors import read
from zoo.training.options import RunOptions
from zoo.training.runs import train_entry

log = logging.getLogger(__name__)
HELD_OUT = 0.2  # share of the training images that ranks are compared on


@dataclass(frozen=True)
class Choice:
    """The rank that one task was given.

    Attributes:
        tried: validation accuracy in per cent of each rank that was trained.
        parameters, largest_parameters: of the task at that rank and at the largest, head left out.
        accuracy: on the test images, in per cent, once trained on all training images.
    """

    task: str
    rank: int
    tried: dict[int, float]
    parameters: int
    largest_parameters: int
    accuracy: float


def family(entry: Entry, registry: Registry) -> dict[int, Entry]:
    """The entries that differ from `entry` in their rank alone, by rank, smallest first.

    Raises:
        OptionError: the entry has no rank, or no other has another.
    """

    def but_rank(other: Entry) -> object:
        method = {**other.method, "rank": None}
        images = other.benchmark, other.classes, other.data_root and (other.folder / other.data_root).resolve()
        return other.backbone, other.backbone_weights, method, images, other.recipe_source

    alike = [other for name in registry.names() if but_rank(other := registry.entry(name)) == but_rank(entry)]
    found = {other.rank: other for other in alike if other.rank}
    if len(found) < 2:
        raise OptionError(f"{entry.name} has no relatives of other ranks to choose among.")
    return dict(sorted(found.items()))


def choose(accuracies: Iterator[tuple[int, float]], largest: float, margin: float) -> tuple[int, dict[int, float]]:
    """The first rank whose accuracy is at most `margin` points below the largest's, and all that were looked at.

    Args:
        accuracies: of the ranks, smallest first; no more are asked for than are needed.
    """
    seen = {}
    for rank, accuracy in accuracies:
        seen[rank] = accuracy
        if accuracy >= largest - margin:
            break
    return rank, seen


def search(
    entry: Entry, registry: Registry, tasks: Sequence[str], out: Path, options: RunOptions, margin: float
) -> Iterator[Choice]:
    """Choose a rank for each task in turn, and train the task with it on all training images.

    For each task, the largest rank of the entry's family is trained with a fifth of the training images held out, then
    the others from the smallest on, until one is at most `margin` points worse on the held-out images. What is tried
    lies in `out/tried/r<rank>/`, and is not trained twice; `out/<task>.safetensors` is the result.
    """
    ranks = family(entry, registry)
    if odd := [task for task in tasks if entry.metric(task).unit != "%"]:
        raise OptionError(
            f"{odd[0]} is measured in {entry.metric(odd[0]).unit}; a rank is chosen by points of a percentage. "
            "Name the other tasks with --task, or choose a rank yourself."
        )
    trial = replace(options, hold_out=HELD_OUT)

    def validated(task: str, rank: int) -> float:
        files = train_entry(ranks[rank], registry, [task], out / "tried" / f"r{rank}", trial)
        accuracy = float(read(files[task])[1]["metrics"][entry.metric(task).name])
        log.info("%s: rank %d has %.2f %% on held-out images", task, rank, accuracy)
        return accuracy

    for task in tasks:
        most = max(ranks)
        best = validated(task, most)
        rank, tried = choose(((r, best if r == most else validated(task, r)) for r in ranks), best, margin)
        files = train_entry(ranks[rank], registry, [task], out, options)
        sizes = [counted_parameters(ranks[r], registry).per_task for r in (rank, most)]
        accuracy = float(read(files[task])[1]["metrics"][entry.metric(task).name])
        yield Choice(task, rank, {**tried, most: best}, sizes[0], sizes[1], accuracy)
