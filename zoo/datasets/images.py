"""Image files: listed with their labels, left out where they do not decode."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image
from torch.utils.data import Subset

from zoo.datasets.base import Benchmark, Images, Splits
from zoo.errors import DataError
from zoo.storage.pictures import Box, open_image, raw_image

__all__ = ["Box", "ListedImages", "Readable", "below", "open_image", "raw_image", "read_lines", "readable", "require"]


class ListedImages(Images):
    """Image files with their labels, decoded as they are taken.

    Attributes:
        classes: their names, in the order of the labels.
        items: path and label of each image.
        open: what decodes a file: `raw_image`, or `open_image`.
    """

    def __init__(
        self,
        classes: Sequence[str],
        items: Sequence[tuple[Path, int]],
        transform: Callable[[Any], Any] | None = None,
        boxes: Sequence[Box] | None = None,
        opener: Callable[..., Image.Image] = raw_image,
    ) -> None:
        self.classes, self.items, self.transform, self.boxes = tuple(classes), list(items), transform, boxes
        self.open = opener

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.items[index]
        image = self.open(path, self.boxes[index]) if self.boxes else self.open(path)
        return (self.transform(image) if self.transform else image), label


class Readable(Benchmark):
    """Another benchmark without the images that do not decode; each is named in a warning."""

    def __init__(self, benchmark: Benchmark) -> None:
        self.benchmark, self.name, self.needs_root = benchmark, benchmark.name, benchmark.needs_root

    def tasks(self, root: Path | None) -> tuple[str, ...]:
        return self.benchmark.tasks(root)

    def splits(self, task: str, root: Path | None) -> Splits:
        splits = self.benchmark.splits(task, root)
        parts = {name: readable(images) for name, images in splits.parts.items()}
        return Splits(splits.classes, readable(splits.train), readable(splits.test), parts)


def readable(images: Images) -> Images:
    """Those of the images that decode. Every one is decoded to find out."""
    good = []
    for index in range(len(images)):  # type: ignore[arg-type]
        try:
            images[index]
        except DataError as error:
            warnings.warn(f"skipped: {error}", stacklevel=2)
        else:
            good.append(index)
    return Subset(images, good)


def require(path: Path, layout: str) -> Path:
    """`path`, if it is there; raises DataError with the expected layout if not."""
    if not path.exists():
        raise DataError(f"There is no {path}.\n{layout}")
    return path


def below(root: Path, relative: str) -> Path:
    """`root / relative`; raises DataError where a list names a path outside its folder. Quick: lists are long."""
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"The path {relative!r} of a list leaves the folder {root}; use paths below it.")
    return root / path


def read_lines(path: Path, fields: int, layout: str) -> list[list[str]]:
    """The lines of a list file, each split at white space into so many fields; the last may be any number of words.

    Raises:
        DataError: there is no such file, or a line has fewer fields; it is named.
    """
    lines = []
    for number, line in enumerate(require(path, layout).read_text(encoding="utf-8").splitlines(), 1):
        words = line.split(maxsplit=fields - 1)
        if words and len(words) < fields:
            raise DataError(f"{path}, line {number}: {line!r} has not the {fields} fields that it should.\n{layout}")
        if words:
            lines.append(words)
    return lines
