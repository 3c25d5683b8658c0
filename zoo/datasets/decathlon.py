"""`decathlon`: nine tasks of the Visual Decathlon (Rebuffi et al., NIPS 2017) at 72 pixels, and its ImageNet apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from zoo.datasets.base import Counts, PublishedBenchmark, Splits
from zoo.datasets.images import ListedImages, below, require
from zoo.errors import DataError

LAYOUT = """Expected layout:
  {root}/
    annotations/<task>_train.json, <task>_val.json      (decathlon-1.0-devkit.tar.gz)
    data/<task>/{{train,val}}/<class>/*.jpg               (decathlon-1.0-data.tar.gz, and the archives in it)
  with the tasks aircraft, cifar100, daimlerpedcls, dtd, gtsrb, vgg-flowers, omniglot, svhn, ucf101; and imagenet12,
  of an archive of its own, to pre-train on
  from https://www.robots.ox.ac.uk/~vgg/decathlon"""


class Decathlon(ListedImages):
    """One split of one task, by the challenge's annotations, which are written as COCO's are.

    Args:
        root: the folder that holds annotations/ and data/.
        split: "train" or "val"; the labels of the test images are not published.
    """

    def __init__(
        self,
        root: Path,
        task: str,
        split: str = "train",
        transform: Callable[[Any], Any] | None = None,
        layout: str = LAYOUT,
    ) -> None:
        file = require(Path(root) / "annotations" / f"{task}_{split}.json", layout)
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            names = {int(category["id"]): str(category["name"]) for category in data["categories"]}
            category = {marked["image_id"]: int(marked["category_id"]) for marked in data["annotations"]}
            labels = {key: label for label, key in enumerate(sorted(names))}
            items = [
                (_below(root, task, str(image["file_name"]), layout), labels[category[image["id"]]])
                for image in data["images"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{file} is not a COCO annotation of classes: {error!r}.\n{layout}") from error
        super().__init__(_unlike(names), items, transform)


def _below(root: Path, task: str, name: str, layout: str) -> Path:
    """Where an image lies: the devkit's paths start at folders of its makers', so only what follows the task counts."""
    parts = PurePosixPath(name).parts
    if task not in parts:
        raise DataError(f"The image {name!r} of an annotation lies in no folder {task!r}.\n{layout}")
    return below(Path(root) / "data", "/".join(parts[parts.index(task) :]))


def _unlike(names: dict[int, str]) -> list[str]:
    """The names in the order of the labels; one that stands twice is told apart by its number."""
    ordered = [names[key] for key in sorted(names)]
    return [n if ordered.count(n) == 1 else f"{n} ({key})" for key, n in zip(sorted(names), ordered, strict=True)]


class DecathlonImageNetBenchmark(PublishedBenchmark):
    """The tenth, ImageNet at 72 pixels, to pre-train backbones on."""

    name, layout = "decathlon_imagenet", LAYOUT
    published: ClassVar = {"version 1.0": {"imagenet12": Counts(1000, 1232167, 49000)}}

    def read(self, task: str, root: Path, layout: str) -> Splits:
        return DecathlonBenchmark().read(task, root, layout)


class DecathlonBenchmark(PublishedBenchmark):
    """The nine; what is called test here are the challenge's validation images."""

    name, layout = "decathlon", LAYOUT
    published: ClassVar = {
        "version 1.0": {
            "aircraft": Counts(100, 3334, 3333),
            "cifar100": Counts(100, 40000, 10000),
            "daimlerpedcls": Counts(2, 23520, 5880),
            "dtd": Counts(47, 1880, 1880),
            "gtsrb": Counts(43, 31367, 7842),
            "vgg-flowers": Counts(102, 1020, 1020),
            "omniglot": Counts(1623, 17853, 6492),
            "svhn": Counts(10, 47217, 26040),
            "ucf101": Counts(101, 7585, 1952),
        }
    }

    def read(self, task: str, root: Path, layout: str) -> Splits:
        train, val = (Decathlon(root, task, split, layout=layout) for split in ("train", "val"))
        if train.classes != val.classes:
            odd = sorted(set(train.classes) ^ set(val.classes))
            raise DataError(f"{task}_train.json and {task}_val.json have other categories: {', '.join(odd)}.\n{layout}")
        return Splits(train.classes, train, val)
