"""A benchmark: tasks, their classes, and the images to train and test them on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

Images = Dataset[tuple[Any, int]]  # items: a PIL image or a uint8 tensor (C, H, W), and the index of its class


@dataclass(frozen=True)
class Splits:
    """The data of one task."""

    classes: tuple[str, ...]
    train: Images
    test: Images


class Benchmark(ABC):
    """Where a task's data come from.

    Attributes:
        name: as the registry writes it.
        needs_root: whether the data lie in a folder that the user must have.
    """

    name: str
    needs_root: bool = True

    @abstractmethod
    def tasks(self, root: Path | None) -> tuple[str, ...]:
        """The names of the tasks."""

    @abstractmethod
    def splits(self, task: str, root: Path | None) -> Splits:
        """The classes and images of a task.

        Raises:
            DataError: `root` does not hold what it should; the message shows the expected layout.
        """


class Transformed(Dataset[tuple[Any, int]]):
    """Images, each passed through a transform as it is taken."""

    def __init__(self, images: Images, transform: Callable[[Any], Any]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.images[index]
        return self.transform(image), label
