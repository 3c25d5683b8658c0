"""CIFAR-10 and CIFAR-100 in the binary version of their makers; and `cifar10_3`, CIFAR-10 as three tasks.

torchvision's readers of CIFAR open pickles, which the zoo never does; the binary version holds the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from zoo.datasets.base import Counts, Images, PublishedBenchmark, Splits, of_classes
from zoo.datasets.images import read_lines, require
from zoo.errors import DataError

LAYOUT = """Expected layout:
  {root}/
    cifar-10-batches-bin/data_batch_{{1…5}}.bin, test_batch.bin, batches.meta.txt
        (CIFAR-10 binary version, https://www.cs.toronto.edu/~kriz/cifar.html)"""
SIDE = 32  # of CIFAR's images, in pixels
TASKS = {  # TRMTL, Appendix B.1.2: what is no animal; cats, dogs, deer and horses; the two other animals
    "objects": ("airplane", "automobile", "ship", "truck"),
    "mammals": ("cat", "deer", "dog", "horse"),
    "others": ("bird", "frog"),
}


class Cifar(Images):
    """CIFAR's binary version: in each record the label bytes, of which the last counts, and 3×32×32 pixels."""

    def __init__(self, files: Sequence[Path], labels: int, classes: int, layout: str) -> None:
        size = labels + 3 * SIDE * SIDE
        records = []
        for file in files:
            content = np.fromfile(require(file, layout), np.uint8)
            if not len(content) or len(content) % size:
                raise DataError(f"{file} has {len(content)} bytes, no whole number of records of {size}.\n{layout}")
            records.append(content.reshape(-1, size))
        data = np.concatenate(records)
        self.labels, self.pixels = data[:, labels - 1].tolist(), data[:, labels:].reshape(-1, 3, SIDE, SIDE)
        if max(self.labels) >= classes:
            raise DataError(f"{files[0].parent} holds the label {max(self.labels)}; there are {classes} classes.")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pixels[index].transpose(1, 2, 0)), self.labels[index]


def cifar(task: str, root: Path, layout: str) -> Splits:
    """`cifar10` or `cifar100`; raises DataError, with the layout, where a file is missing or damaged."""
    if task == "cifar10":
        folder, labels, names = root / "cifar-10-batches-bin", 1, "batches.meta.txt"
        train, test = [f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin"
    else:
        folder, labels, names = root / "cifar-100-binary", 2, "fine_label_names.txt"
        train, test = ["train.bin"], "test.bin"
    classes = tuple(words[0] for words in read_lines(folder / names, 1, layout))
    images = [Cifar([folder / file for file in split], labels, len(classes), layout) for split in (train, [test])]
    return Splits(classes, images[0], images[1])


class Cifar10In3Benchmark(PublishedBenchmark):
    """The ten classes of CIFAR-10 in three tasks."""

    name, layout = "cifar10_3", LAYOUT
    published: ClassVar = {"official": {
        task: Counts(len(classes), 5000 * len(classes), 1000 * len(classes)) for task, classes in TASKS.items()
    }}  # fmt: skip

    def read(self, task: str, root: Path, layout: str) -> Splits:
        whole = cifar("cifar10", root, layout)
        if missing := [name for name in TASKS[task] if name not in whole.classes]:
            raise DataError(f"{root} names no class {', '.join(missing)} in its batches.meta.txt.\n{layout}")
        wanted = [whole.classes.index(name) for name in TASKS[task]]
        train, test = (
            of_classes(images, images.labels, wanted)
            for images in (whole.train, whole.test)
            if isinstance(images, Cifar)
        )
        return Splits(TASKS[task], train, test)
