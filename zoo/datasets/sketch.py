"""`sketch`: ImageNet-to-Sketch, five fine-grained tasks, each in the layout of its own publisher.

Splits are those of Piggyback (Mallya et al., ECCV 2018, Table 1), which FTN and the methods it is compared with use:
flowers are trained on their training and validation images, cars and birds are cropped to their bounding boxes.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from torch.utils.data import ConcatDataset
from torchvision.datasets import Flowers102, StanfordCars

from zoo.datasets.base import Counts, Images, PublishedBenchmark, Splits
from zoo.datasets.folder import class_folders, images_below
from zoo.datasets.images import Box, ListedImages, below, raw_image, read_lines, require
from zoo.errors import DataError, extra

Transform = Callable[[Any], Any] | None

LAYOUT = """Expected layout:
  {root}/
    flowers-102/{{jpg/,imagelabels.mat,setid.mat}}
        from https://www.robots.ox.ac.uk/~vgg/data/flowers/102
    stanford_cars/{{cars_train/,cars_test/,cars_test_annos_withlabels.mat,devkit/}}
        from https://ai.stanford.edu/~jkrause/cars/car_dataset.html; devkit/ has cars_meta.mat and cars_train_annos.mat
    tu_berlin/png/<class>/<number>.png
        sketches_png.zip from https://cybertron.cg.tu-berlin.de/eitz/projects/classifysketch;
        or tu_berlin/{{train,test}}/<class>/*.png as in Piggyback's copy, whose split is then used
    CUB_200_2011/{{images/,images.txt,image_class_labels.txt,train_test_split.txt,classes.txt,bounding_boxes.txt}}
        from https://www.vision.caltech.edu/datasets/cub_200_2011
    wikiart/{{train,test}}/<class>/*.jpg
        the 195 classes of https://github.com/arunmallya/piggyback"""


class CUB200(ListedImages):
    """Caltech-UCSD Birds-200-2011, cropped to the birds.

    Args:
        root: the folder that holds CUB_200_2011/.
        split: "train" or "test", as train_test_split.txt has it.
    """

    def __init__(self, root: Path, split: str = "train", transform: Transform = None, layout: str = LAYOUT) -> None:
        folder = require(Path(root) / "CUB_200_2011", layout)
        names, labels, training, boxes = (
            {line[0]: line[1:] for line in read_lines(folder / f"{name}.txt", fields, layout)}
            for name, fields in (
                ("images", 2), ("image_class_labels", 2), ("train_test_split", 2), ("bounding_boxes", 5)
            )
        )  # fmt: skip
        classes = [line[1] for line in read_lines(folder / "classes.txt", 2, layout)]
        chosen = [key for key, (flag,) in training.items() if (flag == "1") == (split == "train")]
        try:
            numbers = [range(1, len(classes) + 1).index(int(labels[key][0])) for key in chosen]
            corners = [_corners(*map(float, boxes[key])) for key in chosen]
            paths = [below(folder / "images", names[key][0]) for key in chosen]
        except (KeyError, ValueError) as error:
            raise DataError(f"The lists in {folder} do not fit each other: {error!r}.\n{layout}") from error
        super().__init__(classes, list(zip(paths, numbers, strict=True)), transform, corners)


def _corners(x: float, y: float, width: float, height: float) -> Box:
    return int(x), int(y), int(x + width), int(y + height)


class TUBerlin(ListedImages):
    """The sketches of Eitz et al. (SIGGRAPH 2012): 250 classes of 80.

    The authors publish no training and test sets. Piggyback's copy has them, as folders `train` and `test`, of 64 and
    16 of each class; where there is only the authors' `png`, every fifth sketch of a class, in the order of their
    numbers, is a test image.

    Args:
        root: the folder that holds tu_berlin/.
        split: "train" or "test".
    """

    def __init__(self, root: Path, split: str = "train", transform: Transform = None, layout: str = LAYOUT) -> None:
        folder = require(Path(root) / "tu_berlin", layout)
        if (folder / "train").is_dir():
            listed = _by_split(folder, split, layout)
            super().__init__(listed.classes, listed.items, transform)
            return
        classes = class_folders(require(folder / "png", layout), layout)
        by_class: dict[int, list[Path]] = defaultdict(list)
        for path, label in images_below(folder / "png", classes).items:
            by_class[label].append(path)
        items = [
            (path, label)
            for label, paths in by_class.items()
            for place, path in enumerate(sorted(paths, key=lambda p: (len(p.stem), p.stem)))
            if (place % 5 == 4) == (split == "test")
        ]
        super().__init__(classes, items, transform)


class WikiArt(ListedImages):
    """Paintings by 195 artists, in Piggyback's folders.

    Args:
        root: the folder that holds wikiart/.
        split: "train" or "test".
    """

    def __init__(self, root: Path, split: str = "train", transform: Transform = None, layout: str = LAYOUT) -> None:
        listed = _by_split(Path(root) / "wikiart", split, layout)
        super().__init__(listed.classes, listed.items, transform)


def _by_split(folder: Path, split: str, layout: str) -> ListedImages:
    """The images of `<folder>/{train,test}/<class>/`; the classes are those of train."""
    folders = {name: require(folder / name, layout) for name in ("train", "test")}
    classes = class_folders(folders["train"], layout)
    if strange := sorted(set(class_folders(folders["test"], layout)) - set(classes)):
        raise DataError(f"{folders['test']} has classes that train lacks: {', '.join(strange)}.\n{layout}")
    return images_below(folders[split], classes)


def _loadmat() -> Callable[..., Any]:
    """scipy's reader of .mat files, which torchvision's Flowers102 and StanfordCars use too."""
    with extra("sketch", "Reading the .mat files of flowers and cars"):
        from scipy.io import loadmat

    return loadmat  # type: ignore[no-any-return]


def cars(root: Path, split: str = "train", transform: Transform = None, layout: str = LAYOUT) -> StanfordCars:
    """torchvision's StanfordCars, cropped to the cars."""
    folder = Path(root) / "stanford_cars"
    marks = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}[split]
    for part in ("devkit/cars_meta.mat", marks, f"cars_{split}"):
        require(folder / part, layout)
    read_mat = _loadmat()
    try:
        boxes: dict[str, Box] = {
            str(mark["fname"]): (int(mark["bbox_x1"]), int(mark["bbox_y1"]), int(mark["bbox_x2"]), int(mark["bbox_y2"]))
            for mark in read_mat(folder / marks, squeeze_me=True)["annotations"]
        }
        loader = functools.partial(_open_cropped, boxes)
        return StanfordCars(root, split, transform, target_transform=int, loader=loader)
    except Exception as error:  # scipy has errors of its own for each way in which a file can be damaged
        raise DataError(f"A .mat file of {folder} cannot be read: {error!r}. Fetch it again.\n{layout}") from error


def _open_cropped(boxes: dict[str, Box], path: str) -> Image.Image:
    return raw_image(path, boxes[Path(path).name])


def flowers(root: Path, split: str = "train", transform: Transform = None, layout: str = LAYOUT) -> Images:
    """torchvision's Flowers102, its training and validation images together."""
    for part in ("jpg", "imagelabels.mat", "setid.mat"):
        require(Path(root) / "flowers-102" / part, layout)
    parts = {"train": ("train", "val"), "test": ("test",)}[split]
    _loadmat()
    try:
        return ConcatDataset([Flowers102(root, part, transform, loader=raw_image) for part in parts])
    except RuntimeError as error:  # torchvision's word for a wrong checksum
        raise DataError(f"A .mat file of {Path(root) / 'flowers-102'} was altered or cut short.\n{layout}") from error


class SketchBenchmark(PublishedBenchmark):
    """ImageNet-to-Sketch."""

    name, layout = "sketch", LAYOUT
    published: ClassVar = {
        "Piggyback's": {
            "flowers": Counts(102, 2040, 6149),
            "wikiart": Counts(195, 42129, 10628),
            "sketch": Counts(250, 16000, 4000),
            "cars": Counts(196, 8144, 8041),
            "cub": Counts(200, 5994, 5794),
        }
    }

    def read(self, task: str, root: Path, layout: str) -> Splits:
        if task == "flowers":
            made = flowers(root, "train", layout=layout), flowers(root, "test", layout=layout)
            return Splits(tuple(Flowers102.classes), *made)
        if task == "cars":
            train, test = (cars(root, split, layout=layout) for split in ("train", "test"))
            return Splits(tuple(train.classes), train, test)
        kind = {"wikiart": WikiArt, "sketch": TUBerlin, "cub": CUB200}[task]
        listed = kind(root, "train", layout=layout)
        return Splits(listed.classes, listed, kind(root, "test", layout=layout))
