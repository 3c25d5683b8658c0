"""A benchmark: tasks, their classes, and the images to train and test them on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch.utils.data import Dataset, Subset

from zoo.errors import DataError, UnknownNameError

# Items: a PIL image or a uint8 tensor (C, H, W), and its target: the index of its class, or for dense tasks a map of
# the same height and width as one of torchvision's tv_tensors (`zoo.datasets.dense`).
Images = Dataset[tuple[Any, Any]]


@dataclass(frozen=True)
class Splits:
    """The data of one task."""

    classes: tuple[str, ...]
    train: Images
    test: Images
    parts: Mapping[str, Images] = field(default_factory=dict)  # of the test images, to be told of beside the whole


class Counts(NamedTuple):
    """How many classes and images a task has."""

    classes: int
    train: int
    test: int


class Benchmark(ABC):
    """Where a task's data come from.

    Attributes:
        name: as the registry writes it.
        needs_root: whether the data lie in a folder that the user must have.
        layout: what that folder holds and where the data are had; `{root}` stands for it.
        published: for each version of the data, what its authors say that each task holds.
    """

    name: str
    needs_root: bool = True
    layout: str = ""
    published: ClassVar[Mapping[str, Mapping[str, Counts]]] = {}

    @abstractmethod
    def tasks(self, root: Path | None) -> tuple[str, ...]:
        """The names of the tasks."""

    @abstractmethod
    def splits(self, task: str, root: Path | None) -> Splits:
        """The classes and images of a task.

        Raises:
            UnknownNameError: there is no such task.
            DataError: `root` does not hold what it should; the message shows the expected layout.
        """

    def folder(self, root: Path | None) -> Path:
        """`root`, if it is a folder; raises DataError with the expected layout if not."""
        if root is None:
            raise DataError(
                f"The benchmark {self.name!r} needs its images: name their folder with --data-root DIR.\n"
                + self.layout.format(root="DIR")
            )
        if not Path(root).is_dir():
            raise DataError(f"There is no folder {root}.\n{self.layout.format(root=root)}")
        return Path(root)


class PublishedBenchmark(Benchmark):
    """A benchmark whose tasks are the same for everybody.

    Attributes:
        names: of its tasks, where their authors state no counts of them.
    """

    names: tuple[str, ...] = ()

    def tasks(self, root: Path | None = None) -> tuple[str, ...]:
        return self.names or tuple(next(iter(self.published.values())))

    def splits(self, task: str, root: Path | None) -> Splits:
        if task not in self.tasks():
            raise UnknownNameError(f"task of {self.name}", task, self.tasks())
        folder = self.folder(root)
        return self.read(task, folder, self.layout.format(root=folder))

    @abstractmethod
    def read(self, task: str, root: Path, layout: str) -> Splits:
        """The classes and images of a task that exists, in a folder that exists."""


class Relabelled(Images):
    """Some of the images, with labels of their own."""

    def __init__(self, images: Images, items: Sequence[tuple[int, int]]) -> None:
        self.images, self.items = images, list(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        place, label = self.items[index]
        return self.images[place][0], label


def of_classes(images: Images, labels: Sequence[int], wanted: Sequence[int]) -> Relabelled:
    """The images of some classes alone, which are counted anew in the order in which they are wanted.

    Args:
        labels: of all images.
    """
    new = {label: number for number, label in enumerate(wanted)}
    return Relabelled(images, [(place, new[label]) for place, label in enumerate(labels) if label in new])


def held_out(data: Splits, share: float, seed: int) -> Splits:
    """The same with a share of the training images, drawn at random, in place of the test images.

    Raises:
        DataError: nothing would be left to train or to test on.
    """
    count: int = len(data.train)  # type: ignore[arg-type]
    size = round(share * count)
    if not 0 < size < count:
        raise DataError(f"A share of {share} of {count} training images leaves none to train or none to test on.")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return Splits(data.classes, Subset(data.train, sorted(order[size:])), Subset(data.train, sorted(order[:size])))


def fraction_of(data: Splits, fraction: float, seed: int) -> Splits:
    """The same with so much of the training images, drawn at random; a smaller fraction is part of a larger one.

    Raises:
        DataError: fewer than two would be left.
    """
    count: int = len(data.train)  # type: ignore[arg-type]
    if not 0 < fraction <= 1 or (size := round(fraction * count)) < 2:
        raise DataError(f"A fraction of {fraction} of {count} training images leaves none to train on.")
    return some_of(data, size, seed)


def some_of(data: Splits, size: int, seed: int) -> Splits:
    """The same with so many of the training images, drawn at random; fewer are part of more.

    Raises:
        DataError: there are not so many.
    """
    count: int = len(data.train)  # type: ignore[arg-type]
    if size > count:
        raise DataError(f"{size} training images are asked for, and there are {count}.")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return Splits(data.classes, Subset(data.train, sorted(order[:size])), data.test, data.parts)


class Transformed(Dataset[tuple[Any, Any]]):
    """Images, each passed through a transform as it is taken, together with its target.

    An image that is a float tensor is ready, and passed on as it is.
    """

    def __init__(self, images: Images, transform: Callable[..., Any]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, target = self.images[index]
        if not (isinstance(image, torch.Tensor) and image.is_floating_point()):
            image, target = self.transform(image, target)
        return image, target


class Numbered(Dataset[tuple[Any, Any]]):
    """Images that are to be made: of each its number, and the image itself as the target."""

    def __init__(self, images: Dataset[tuple[Any, Any]]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.images[index][0]
