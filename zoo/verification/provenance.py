"""How entries were made, as far as their files say: what a comparison of them rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.catalog.entry import Entry
from zoo.catalog.recipe import load_recipe, settings
from zoo.catalog.store import stored_adapter
from zoo.datasets import get_benchmark
from zoo.storage.fetch import fetch
from zoo.storage.tensors import read

# Settings that methods have good reason to differ in; all others are the same in a fair comparison.
OF_THE_METHOD = ("increments", "rest", "statistics", "warmup", "schedule", "power", "summary", "tasks")


@dataclass(frozen=True)
class Made:
    """How one task of an entry was made."""

    recipe: str
    epochs: int
    settings: Mapping[str, Any]
    tested: int | None  # images; None where neither the file nor the benchmark tells
    trained: int | None


def made(entry: Entry, task: str) -> Made:
    """How a task was made: as its adapter's file says, where that is on this machine, else as the registry does."""
    header = _header(entry, task)
    recipe = load_recipe(entry.recipe_source).of(task)
    stated: Mapping[str, Any] = header.get("settings") or settings(recipe)
    train, test = header.get("images") or _published(entry, task)
    return Made(
        header.get("recipe", {}).get("name", recipe.name), header.get("epochs", stated.get("epochs", recipe.epochs)),
        stated, test, train,
    )  # fmt: skip


def differences(entries: Sequence[Entry], task: str) -> list[str]:
    """What, beside the method, entries differ in from the first at a task, in sentences."""
    first, *others = entries
    known, told = made(first, task), []
    for entry in others:
        own = made(entry, task)
        keys = [
            k for k in known.settings if k in own.settings and k.partition(".")[0] not in (*OF_THE_METHOD, "epochs")
        ]
        odd = {key: (own.settings.get(key), known.settings.get(key)) for key in keys}
        odd |= {"epochs": (own.epochs, known.epochs), "training images": (own.trained, known.trained)}
        odd |= {"test images": (own.tested, known.tested), "data": (_data(entry), _data(first))}
        words = [f"{key} {mine}, not {theirs}" for key, (mine, theirs) in odd.items() if mine != theirs]
        if words:
            told.append(f"{entry.name} was made otherwise than {first.name}: {'; '.join(words)}.")
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
    return sum(half**2 for half in halves) ** 0.5 / len(halves)


def _header(entry: Entry, task: str) -> dict[str, Any]:
    """What the adapter's file says, if it is on this machine."""
    file = stored_adapter(entry.name, task)
    published = (entry.weights or {}).get(task)
    if file.is_file():
        return read(file)[1]
    if published and published.uri.partition(":")[0] in ("package", "file"):
        return read(fetch(published, entry.folder))[1]
    return {}


def _published(entry: Entry, task: str) -> tuple[int | None, int | None]:
    """The training and test images of a benchmark, as its authors count them."""
    counted = [counts[task] for counts in get_benchmark(entry.benchmark).published.values() if task in counts]
    return (counted[0].train, counted[0].test) if len(counted) == 1 else (None, None)


def _data(entry: Entry) -> str:
    share = f", {entry.test_share:.0%} of it to test on" if entry.test_share else ""
    root = entry.images_root()
    return f"{root.resolve() if root else entry.benchmark}{share}"
