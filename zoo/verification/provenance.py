"""How entries were made, as far as their files say: what a comparison of them rests on."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.catalog.entry import Entry
from zoo.catalog.recipe import load_recipe
from zoo.catalog.store import stored_adapter
from zoo.datasets import get_benchmark
from zoo.errors import WeightsError
from zoo.storage.fetch import fetch
from zoo.storage.tensors import read_header

# Settings that methods have good reason to differ in; all others are the same in a fair comparison.
OF_THE_METHOD = ("increments", "rest", "statistics", "warmup", "schedule", "power", "summary", "epochs", "min_steps")


@dataclass(frozen=True)
class Made:
    """How one task of an entry was made; None and {} where neither its file nor the registry tells."""

    recipe: str
    epochs: int | None
    trained: int | None  # images
    tested: int | None
    settings: Mapping[str, Any]


def made(entry: Entry, task: str) -> Made:
    """How a task was made: as its adapter's file says, where that is on this machine, else as the registry does."""
    header, recipe = _header(entry, task), load_recipe(entry.recipe_source).of(task)
    train, test = header.get("images") or _published(entry, task)
    epochs = header.get("epochs", None if recipe.min_steps else recipe.epochs)
    return Made(header.get("recipe", {}).get("name", recipe.name), epochs, train, test, _settings(header, task))


def differences(entries: Sequence[Entry], task: str) -> list[str]:
    """What, beside the method, entries are known to differ in from the first at a task, in sentences."""
    first, *others = entries
    known, told = made(first, task), []
    for entry in others:
        own = made(entry, task)
        pairs = {key: (own.settings[key], known.settings[key]) for key in own.settings if key in known.settings}
        pairs |= {"epochs": (own.epochs, known.epochs), "training images": (own.trained, known.trained)}
        pairs |= {"test images": (own.tested, known.tested), "data": (_data(entry), _data(first))}
        odd = {key: pair for key, pair in pairs.items() if pair[0] != pair[1] and None not in pair}
        if odd:
            words = "; ".join(f"{key} {mine}, not {theirs}" for key, (mine, theirs) in odd.items())
            told.append(f"{entry.name} was made otherwise than {first.name}: {words}.")
    return told


def half_interval(entry: Entry, figures: Mapping[str, float]) -> float | None:
    """By how much a mean of accuracies in per cent may be off, for want of test images: half of its 95 % interval."""
    halves = []
    for task, value in figures.items():
        tested = made(entry, task).tested
        half = None if tested is None else entry.metric(task).half_interval(value, tested)
        if half is None:
            return None
        halves.append(half)
    return math.sqrt(sum(half**2 for half in halves)) / len(halves)


def _header(entry: Entry, task: str) -> dict[str, Any]:
    """What the file says that the registry's figure is of, if it is on this machine."""
    stated, metric = (entry.measured or {}).get(task), entry.metric(task)
    files = [stored_adapter(entry.name, task)]
    published = (entry.weights or {}).get(task)
    if published and published.uri.partition(":")[0] in ("package", "file"):
        with contextlib.suppress(WeightsError):  # which loading it tells
            files.insert(0, fetch(published, entry.folder))
    for file in files:
        header = read_header(file) if file.is_file() else {}
        figure = header.get("metrics", {}).get(metric.name)
        if header and (stated is None or (figure is not None and metric.rounded(figure) == metric.rounded(stated))):
            return header
    return {}


def _settings(header: Mapping[str, Any], task: str) -> dict[str, Any]:
    """The settings that a task was trained with, but for those of the method."""
    stated, own = header.get("settings", {}), f"tasks.{task}."
    found = {key: value for key, value in stated.items() if not key.startswith("tasks")}
    found |= {key.removeprefix(own): value for key, value in stated.items() if key.startswith(own)}
    return {key: value for key, value in found.items() if key.partition(".")[0] not in OF_THE_METHOD}


def _published(entry: Entry, task: str) -> tuple[int | None, int | None]:
    """The training and test images of a benchmark, as its authors count them."""
    counted = [counts[task] for counts in get_benchmark(entry.benchmark).published.values() if task in counts]
    return (counted[0].train, counted[0].test) if len(counted) == 1 else (None, None)


def _data(entry: Entry) -> str:
    share = f", {entry.test_share:.0%} of it to test on" if entry.test_share else ""
    root = entry.images_root()
    return f"{root.resolve() if root else entry.benchmark}{share}"
