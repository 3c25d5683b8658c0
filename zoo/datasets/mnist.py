"""`mnist_odd_even`: MNIST as two tasks, its odd and its even digits (TRMTL, Section 4.2.1), by torchvision's reader."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torchvision.datasets import MNIST

from zoo.datasets.base import Counts, PublishedBenchmark, Splits, of_classes
from zoo.datasets.images import require
from zoo.errors import DataError

LAYOUT = """Expected layout:
  {root}/MNIST/raw/
    train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte
      (http://yann.lecun.com/exdb/mnist; unpacked)"""
PARITY = {"odd": (1, 3, 5, 7, 9), "even": (0, 2, 4, 6, 8)}


class RawMNIST(MNIST):  # type: ignore[misc]  # torchvision has no types
    """MNIST as its makers publish it; an older torchvision's processed copy beside it is not looked at."""

    def _check_legacy_exist(self) -> bool:
        return False

    @property
    def raw_folder(self) -> str:
        return str(Path(self.root, "MNIST", "raw"))


def mnist(root: Path, layout: str) -> tuple[RawMNIST, RawMNIST]:
    """The training and the test images; raises DataError, with the layout, where a file is missing or damaged."""
    for split in ("train", "t10k"):
        for part in ("images-idx3", "labels-idx1"):
            require(root / "MNIST" / "raw" / f"{split}-{part}-ubyte", layout)
    try:
        return RawMNIST(root, train=True), RawMNIST(root, train=False)
    except (RuntimeError, AssertionError, IndexError, ValueError) as error:
        raise DataError(f"A file in {root / 'MNIST' / 'raw'} is damaged: {error}\n{layout}") from error


class OddEvenBenchmark(PublishedBenchmark):
    """Five digits each."""

    name, layout = "mnist_odd_even", LAYOUT
    published: ClassVar = {"official": {"odd": Counts(5, 30508, 5074), "even": Counts(5, 29492, 4926)}}

    def read(self, task: str, root: Path, layout: str) -> Splits:
        train, test = [of_classes(images, images.targets.tolist(), PARITY[task]) for images in mnist(root, layout)]
        return Splits(tuple(map(str, PARITY[task])), train, test)
