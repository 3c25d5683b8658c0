"""`digits`: the twin of MNIST's odd and even digits. 1,797 real handwritten digits, which come with scikit-learn."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

from zoo.datasets.base import Benchmark, Images, Relabelled, Splits, of_classes
from zoo.datasets.mnist import PARITY
from zoo.errors import UnknownNameError, extra

EVERY = 3  # every third digit, in the order of the file, is a test image


@functools.cache
def loaded() -> tuple[Tensor, list[int]]:
    """All digits, uint8 (1797, 1, 8, 8), and what they are (E. Alpaydin and C. Kaynak, UCI Repository, 1998)."""
    with extra("digits", "The benchmark digits"):
        from sklearn.datasets import load_digits  # slow to import

    found = load_digits()
    images = torch.from_numpy(found.images)[:, None]  # in 17 shades, 0 to 16
    return (images * (255 / 16)).round().to(torch.uint8), found.target.tolist()


class Digits(Images):
    """All digits; (1, 8, 8)."""

    def __len__(self) -> int:
        return len(loaded()[1])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, labels = loaded()
        return images[index], labels[index]


class DigitsBenchmark(Benchmark):
    """Odd and even digits, about 600 training and 300 test images each: no data root is looked at."""

    name, needs_root = "digits", False

    def tasks(self, root: Path | None = None) -> tuple[str, ...]:
        return tuple(PARITY)

    def splits(self, task: str, root: Path | None = None) -> Splits:
        if task not in PARITY:
            raise UnknownNameError("task of digits", task, PARITY)
        chosen = of_classes(Digits(), loaded()[1], PARITY[task])
        train, test = [
            Relabelled(chosen.images, [item for item in chosen.items if (item[0] % EVERY == EVERY - 1) == test])
            for test in (False, True)
        ]
        return Splits(tuple(map(str, PARITY[task])), train, test)
