"""NYUD: edges, segmentation, normals and depth of 1,449 indoor photographs (Silberman et al., ECCV 2012).

Read as the multi-task release NYUD-MT of Maninis et al. (*Attentive Single-Tasking of Multiple Tasks*, CVPR 2019) lays
it out, or as it was converted later to .npy and .png files. Of the 40 classes of Gupta et al. (CVPR 2013), 0 in a file
means a pixel without one, which is ignored here; Maninis et al. count it as a class of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from zoo.datasets.base import Counts, Images, PublishedBenchmark, Splits
from zoo.datasets.dense import target_map
from zoo.datasets.images import below, raw_image, read_lines, require
from zoo.errors import DataError, extra
from zoo.kinds import IGNORE

LAYOUT = """Expected layout:
  {root}/                                       (https://data.vision.ee.ethz.ch/kmaninis/share/MTL/NYUD_MT.tgz)
    gt_sets/train.txt, val.txt                  the names of 795 and 654 images, a line each
    images/<name>.jpg
    edge/<name>.png                             or .npy: an edge is 255, or 1
    segmentation/<name>.mat                     or .png: 0 for no class, 1 to 40
    normals/<name>.jpg                          or .npy: unit vectors (H, W, 3), in a .jpg as 255 (v + 1) / 2
    depth/<name>.mat                            or .npy: metres"""
CLASSES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling", "books",
    "refrigerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand",
    "toilet", "sink", "lamp", "bathtub", "bag", "other structure", "other furniture", "other prop",
)  # fmt: skip
TASKS = {"edge": ("edge",), "semseg": CLASSES, "normals": ("x", "y", "z"), "depth": ("metres",)}
KINDS = {"edge": "edges", "semseg": "segmentation", "normals": "normals", "depth": "depth"}
FILES = {
    "edge": ("edge", ".png", ".npy"), "semseg": ("segmentation", ".mat", ".png"),
    "normals": ("normals", ".jpg", ".npy"), "depth": ("depth", ".mat", ".npy"),
}  # fmt: skip
SHORT = 0.5  # a vector of less than this length stands for no normal: zero, and what JPEG makes of it


class NYUDImages(Images):
    """Photographs with one task's target each."""

    def __init__(self, task: str, root: Path, split: str, layout: str) -> None:
        self.task = task
        names = [line[0] for line in read_lines(root / "gt_sets" / f"{split}.txt", 1, layout)]
        folder, *suffixes = FILES[task]
        self.items = [
            (require(below(root / "images", f"{name}.jpg"), layout), _either(root / folder, name, suffixes, layout))
            for name in names
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, torch.Tensor]:
        path, target = self.items[index]
        image = raw_image(path)
        values = torch.from_numpy(np.ascontiguousarray(READ[self.task](target)))
        return image, target_map(values, KINDS[self.task], len(TASKS[self.task]), image.size[::-1], target)


def _either(folder: Path, name: str, suffixes: list[str], layout: str) -> Path:
    """The file of that name with the first of the suffixes that there is; raises DataError if there is none."""
    found = [path for suffix in suffixes if (path := below(folder, name + suffix)).exists()]
    return found[0] if found else require(below(folder, name + suffixes[0]), layout)


def _values(path: Path) -> npt.NDArray[Any]:
    """What a file holds: an array, the one variable of a .mat file, or a picture's pixels."""
    if path.suffix == ".mat":
        with extra("dense", "Reading NYUD's .mat files"):
            from scipy.io import loadmat
    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        if path.suffix == ".mat":
            return np.asarray(loadmat(path)[{"segmentation": "segmentation", "depth": "depth"}[path.parent.name]])
        from PIL import Image

        with Image.open(path) as image:
            return np.asarray(image)
    except Exception as error:  # scipy and PIL raise classes of many kinds for a damaged file
        raise DataError(
            f"{path} cannot be read ({error!r}). Fetch it again, or go on with --skip-unreadable."
        ) from error


def _edge(path: Path) -> npt.NDArray[Any]:
    values = _values(path)
    return np.asarray(values > (127 if values.max(initial=0) > 1 else 0.5), np.int64)  # up to 255, or up to 1


def _semseg(path: Path) -> npt.NDArray[Any]:
    labels = _values(path).astype(np.int64)
    return np.where(labels == 0, IGNORE, labels - 1)


def _normals(path: Path) -> npt.NDArray[Any]:
    vectors = _values(path)
    if vectors.ndim != 3 or vectors.shape[-1] != 3:
        raise DataError(f"{path} has the shape {vectors.shape}, where vectors (H, W, 3) are needed.")
    vectors = 2 * vectors.astype(np.float32) / 255 - 1 if vectors.dtype == np.uint8 else vectors.astype(np.float32)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    known = np.isfinite(length) & (length >= SHORT)
    return np.moveaxis(np.where(known, vectors / np.where(known, length, 1), 0), -1, 0)


def _depth(path: Path) -> npt.NDArray[Any]:
    metres = _values(path)
    if not np.issubdtype(metres.dtype, np.floating):
        raise DataError(
            f"{path} holds whole numbers, {metres.dtype}, where metres as floating-point numbers are needed."
        )
    return metres.astype(np.float32).squeeze()[None]


READ = {"edge": _edge, "semseg": _semseg, "normals": _normals, "depth": _depth}


class NYUDBenchmark(PublishedBenchmark):
    """The four dense tasks of the FTN paper's Section 4.2."""

    name, layout = "nyud", LAYOUT
    published: ClassVar = {"NYUD-MT": {task: Counts(len(classes), 795, 654) for task, classes in TASKS.items()}}

    def read(self, task: str, root: Path, layout: str) -> Splits:
        train, test = (NYUDImages(task, root, split, layout) for split in ("train", "val"))
        return Splits(TASKS[task], train, test)
