"""`shapes2`: the shapes as two tasks, the twin of CIFAR-10 as three."""

from __future__ import annotations

from pathlib import Path

from zoo.datasets.base import Benchmark, Splits, of_classes
from zoo.datasets.twins.shapes import CLASSES, SOURCE_PER_CLASS, TEST_PER_CLASS, ShapesImages
from zoo.errors import UnknownNameError

HALVES = {  # of the classes, as two tasks
    "angular": ("arrow", "cross", "ell", "hexagon", "square", "star", "triangle"),
    "round": ("circle", "crescent", "heart", "ring", "semicircle"),
}


class ShapesInTwoBenchmark(Benchmark):
    """The shapes of the domain `clipart` as two tasks, angular and round ones, 400 training images of each shape.

    The twin of CIFAR-10 as three tasks, for networks that take images of different sizes or channels.
    """

    name, needs_root = "shapes2", False

    def tasks(self, root: Path | None = None) -> tuple[str, ...]:
        return tuple(HALVES)

    def splits(self, task: str, root: Path | None = None) -> Splits:
        if task not in HALVES:
            raise UnknownNameError("task of shapes2", task, HALVES)
        wanted = [CLASSES.index(name) for name in HALVES[task]]
        sizes = {"train": SOURCE_PER_CLASS, "test": TEST_PER_CLASS}
        whole = {split: ShapesImages("clipart", split, size) for split, size in sizes.items()}
        labels = [i % len(CLASSES) for i in range(max(map(len, whole.values())))]
        train, test = (of_classes(images, labels[: len(images)], wanted) for images in whole.values())
        return Splits(HALVES[task], train, test)
