"""`clip5`: the five image classifications that CLIP's transformer is adapted to (FTN, Section 4.1.2).

STL10, FER2013 and DTD are read by torchvision. Its readers of CIFAR open pickles, which the zoo never does: the binary
version of CIFAR's makers holds the same images, and is read here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image
from torch.utils.data import ConcatDataset
from torchvision.datasets import DTD, FER2013, STL10

from zoo.datasets.base import Counts, Images, PublishedBenchmark, Splits
from zoo.datasets.images import open_image, read_lines, require
from zoo.errors import DataError

LAYOUT = """Expected layout:
  {root}/
    cifar-10-batches-bin/data_batch_{{1…5}}.bin, test_batch.bin, batches.meta.txt
    cifar-100-binary/train.bin, test.bin, fine_label_names.txt
        (CIFAR-10 and CIFAR-100 binary version, https://www.cs.toronto.edu/~kriz/cifar.html)
    dtd/dtd/images/, labels/                    (https://www.robots.ox.ac.uk/~vgg/data/dtd)
    stl10_binary/train_X.bin, train_y.bin, test_X.bin, test_y.bin, class_names.txt
        (https://cs.stanford.edu/~acoates/stl10)
    fer2013/fer2013.csv or icml_face_data.csv
        (Kaggle, challenges-in-representation-learning-facial-expression-recognition-challenge)"""
EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
SIDE = 32  # of CIFAR's images, in pixels


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


class LabelledSTL10(STL10):  # type: ignore[misc]  # torchvision has no types
    """STL10 without its 100,000 images that have no label, which need not be there."""

    train_list: ClassVar = STL10.train_list[:2]


class Clip5Benchmark(PublishedBenchmark):
    """The official splits; DTD is trained on the training and validation images of its first split."""

    name, layout = "clip5", LAYOUT
    published: ClassVar = {"official": {
        "cifar10": Counts(10, 50000, 10000), "cifar100": Counts(100, 50000, 10000), "dtd": Counts(47, 3760, 1880),
        "stl10": Counts(10, 5000, 8000), "fer2013": Counts(7, 28709, 7178),
    }}  # fmt: skip

    def read(self, task: str, root: Path, layout: str) -> Splits:
        if task.startswith("cifar"):
            return _cifar(task, root, layout)
        try:
            return {"dtd": _dtd, "stl10": _stl10, "fer2013": _fer2013}[task](root, layout)
        except (RuntimeError, OSError) as error:  # torchvision's word for what is missing or has a wrong checksum
            raise DataError(f"{task} in {root} is missing, altered or cut short: {error}\n{layout}") from error


def _cifar(task: str, root: Path, layout: str) -> Splits:
    if task == "cifar10":
        folder, labels, names = root / "cifar-10-batches-bin", 1, "batches.meta.txt"
        train, test = [f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin"
    else:
        folder, labels, names = root / "cifar-100-binary", 2, "fine_label_names.txt"
        train, test = ["train.bin"], "test.bin"
    classes = tuple(words[0] for words in read_lines(folder / names, 1, layout))
    images = [Cifar([folder / file for file in split], labels, len(classes), layout) for split in (train, [test])]
    return Splits(classes, images[0], images[1])


def _dtd(root: Path, layout: str) -> Splits:
    require(root / "dtd" / "dtd", layout)
    train, val, test = (DTD(root, split, loader=open_image) for split in ("train", "val", "test"))
    return Splits(tuple(train.classes), ConcatDataset([train, val]), test)


def _stl10(root: Path, layout: str) -> Splits:
    for file in ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "class_names.txt"):
        require(root / "stl10_binary" / file, layout)
    train, test = (LabelledSTL10(root, split) for split in ("train", "test"))
    return Splits(tuple(train.classes), train, test)


def _fer2013(root: Path, layout: str) -> Splits:
    if not any((root / "fer2013" / name).exists() for name in ("fer2013.csv", "icml_face_data.csv")):
        require(root / "fer2013" / "fer2013.csv", layout)  # train.csv and test.csv name no emotion of a test image
    train, test = (FER2013(root, split) for split in ("train", "test"))
    return Splits(EMOTIONS, train, test)
