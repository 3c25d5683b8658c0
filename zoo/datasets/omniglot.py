"""Omniglot's alphabets, by torchvision's reader: `omniglot5`, and `omniglot_mnist` (TRMTL, Sections 4.2.3 and 4.3.1).

The classes are alphabets: ten for each task, as the paper's networks have ten outputs (its Tables 3 and 8). The paper
states no split: of the 20 drawings of a character the last two are for testing, so that 90 % are the most to train on.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torchvision.datasets import Omniglot

from zoo.datasets import mnist
from zoo.datasets.base import Counts, PublishedBenchmark, Splits
from zoo.datasets.images import ListedImages, require
from zoo.errors import DataError

LAYOUT = """Expected layout:
  {root}/omniglot-py/
    images_background.zip, images_evaluation.zip      (https://github.com/brendenlake/omniglot, folder python)
    images_background/<alphabet>/<character>/*.png, images_evaluation/…      (both archives unpacked)"""
ALPHABETS = 10  # of each task
TESTED = 2  # drawings of each character


def alphabets(root: Path, layout: str) -> list[Path]:
    """The folders of the 50 alphabets: those of the background set in alphabetic order, then the evaluation set's.

    Raises:
        DataError: something is missing, or was altered.
    """
    found = []
    for background in (True, False):
        part = "images_background" if background else "images_evaluation"
        require(root / "omniglot-py" / part, layout)
        try:
            images = Omniglot(root, background=background)
        except RuntimeError as error:
            raise DataError(f"{part}.zip in {root / 'omniglot-py'} is missing or altered: {error}\n{layout}") from error
        found += [Path(images.target_folder) / name for name in sorted(images._alphabets)]
    return found


def read_alphabets(folders: list[Path]) -> Splits:
    """The drawings in some alphabets, each of which is a class."""
    names = [folder.name for folder in folders]
    parts: list[list[tuple[Path, int]]] = [[], []]
    for label, folder in enumerate(folders):
        for character in sorted(path for path in folder.iterdir() if path.is_dir()):
            drawings = [(path, label) for path in sorted(character.glob("*.png"))]
            parts[0] += drawings[:-TESTED]
            parts[1] += drawings[-TESTED:]
    train, test = (ListedImages(names, items) for items in parts)
    return Splits(tuple(names), train, test)


class Omniglot5Benchmark(PublishedBenchmark):
    """Five tasks of ten alphabets each."""

    name, layout, names = "omniglot5", LAYOUT, ("a", "b", "c", "d", "e")

    def read(self, task: str, root: Path, layout: str) -> Splits:
        start = ALPHABETS * self.names.index(task)
        return read_alphabets(alphabets(root, layout)[start : start + ALPHABETS])


class OmniglotMnistBenchmark(PublishedBenchmark):
    """The first ten alphabets of Omniglot, and MNIST's ten digits."""

    name, names = "omniglot_mnist", ("omniglot", "mnist")
    layout = f"{LAYOUT}\n{mnist.LAYOUT.partition(chr(10))[2]}"
    published: ClassVar = {"official": {"mnist": Counts(10, 60000, 10000)}}

    def read(self, task: str, root: Path, layout: str) -> Splits:
        if task == "omniglot":
            return read_alphabets(alphabets(root, layout)[:ALPHABETS])
        return Splits(tuple(map(str, range(10))), *mnist.mnist(root, layout))
