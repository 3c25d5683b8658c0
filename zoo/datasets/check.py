"""Whether a folder holds what a benchmark's authors published."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from zoo.datasets import BENCHMARKS, Counts, Splits
from zoo.errors import DataError, UnknownNameError, ZooError


@dataclass(frozen=True)
class Found:
    """What was found of one task.

    Attributes:
        version: of the published data, that the counts are those of; "" if of none.
        problems: what is wrong, a sentence each.
    """

    task: str
    counts: Counts | None
    version: str
    problems: tuple[str, ...]


def check(name: str, root: Path | None, decode: bool = False) -> Iterator[Found]:
    """Look at each task of a benchmark in turn: its layout, its counts and, if asked for, every image.

    Raises:
        DataError: `root` is no folder.
    """
    if name not in BENCHMARKS:
        raise UnknownNameError("benchmark", name, BENCHMARKS)
    benchmark = BENCHMARKS[name]
    if benchmark.needs_root:
        benchmark.folder(root)
    for task in benchmark.tasks(root):
        try:
            splits = benchmark.splits(task, root)
        except ZooError as error:
            yield Found(task, None, "", (str(error),))
            continue
        counts = Counts(len(splits.classes), len(splits.train), len(splits.test))  # type: ignore[arg-type]
        published = {version: tasks[task] for version, tasks in benchmark.published.items() if task in tasks}
        version = next((version for version, stated in published.items() if stated == counts), "")
        expected = " or ".join(f"{', '.join(map(str, stated))} ({version})" for version, stated in published.items())
        problems = [] if version or not published else [f"classes, train, test should be {expected}"]
        yield Found(task, counts, version, (*problems, *(_unreadable(splits) if decode else ())))


def _unreadable(splits: Splits) -> list[str]:
    """What is wrong with each image that does not decode."""

    def attempt(place: tuple[object, int]) -> str:
        images, index = place
        try:
            images[index]  # type: ignore[index]
        except DataError as error:
            return str(error)
        return ""

    places = [(images, index) for images in (splits.train, splits.test) for index in range(len(images))]  # type: ignore[arg-type]
    with ThreadPoolExecutor() as pool:
        return [problem for problem in pool.map(attempt, places) if problem]
