"""`clip5`: the five image classifications that CLIP's transformer is adapted to (FTN, Section 4.1.2).

STL10, FER2013 and DTD are read by torchvision, CIFAR by `zoo.datasets.cifar`.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torch.utils.data import ConcatDataset
from torchvision.datasets import DTD, FER2013, STL10

from zoo.datasets.base import Counts, PublishedBenchmark, Splits
from zoo.datasets.cifar import cifar
from zoo.datasets.images import raw_image, require
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
            return cifar(task, root, layout)
        try:
            return {"dtd": _dtd, "stl10": _stl10, "fer2013": _fer2013}[task](root, layout)
        except (RuntimeError, OSError) as error:  # torchvision's word for what is missing or has a wrong checksum
            raise DataError(f"{task} in {root} is missing, altered or cut short: {error}\n{layout}") from error


def _dtd(root: Path, layout: str) -> Splits:
    require(root / "dtd" / "dtd", layout)
    train, val, test = (DTD(root, split, loader=raw_image) for split in ("train", "val", "test"))
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
