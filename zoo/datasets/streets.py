"""`streets`: what each pixel of a drive through a town shows, and where that changes (CamVid: Brostow et al. 2009).

The frames, 11 classes and splits are those of SegNet (Badrinarayanan et al. 2017), whose frames for validation are not
read. Edges are made of the labels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from zoo.datasets.base import Counts, Images, PublishedBenchmark, Splits
from zoo.datasets.dense import target_map
from zoo.datasets.images import below, raw_image, require
from zoo.errors import DataError
from zoo.kinds import IGNORE

LAYOUT = """Expected layout:
  {root}/                                 (http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid)
    {{train,test}}/images/<name>.jpg        or .png: 367 and 233 frames
    {{train,test}}/labels/<name>.png        a pixel's value is its class, 0 to 10; 11 where it has none
  docs/pictures.md says more."""
CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
UNLABELLED = len(CLASSES)
TASKS = {"semseg": CLASSES, "edge": ("edge",)}
KINDS = {"semseg": "segmentation", "edge": "edges"}


class StreetsImages(Images):
    """Frames with one task's target each."""

    def __init__(self, task: str, folder: Path, layout: str) -> None:
        self.task = task
        images = require(folder / "images", layout)
        found = sorted(path for path in images.iterdir() if path.suffix in (".jpg", ".png"))
        if not found:
            raise DataError(f"{images} holds no image.\n{layout}")
        self.items = [(path, require(below(folder / "labels", f"{path.stem}.png"), layout)) for path in found]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, torch.Tensor]:
        path, labels = self.items[index]
        image, values = raw_image(path), _labels(labels)
        target = torch.from_numpy(values if self.task == "semseg" else edges(values))
        return image, target_map(target, KINDS[self.task], len(TASKS[self.task]), image.size[::-1], labels)


def _labels(path: Path) -> npt.NDArray[np.int64]:
    try:
        with Image.open(path) as image:
            values = np.asarray(image, np.int64)
    except Exception as error:  # PIL raises classes of many kinds for a damaged file
        raise DataError(
            f"{path} cannot be read ({error!r}). Fetch it again, or go on with --skip-unreadable."
        ) from error
    if values.ndim != 2:
        raise DataError(f"{path} is a picture in colours, where one number for each pixel is needed, its class.")
    if (most := values.max(initial=0)) > UNLABELLED:
        raise DataError(f"{path} holds the label {most}; there are {UNLABELLED} classes, and {UNLABELLED} for none.")
    return np.where(values == UNLABELLED, IGNORE, values)


def edges(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Edges of labels (H, W): 1 where the next pixel to the right or below has another class, 0 where it has not, and
    IGNORE where that cannot be said because one of the pixels has no class.
    """
    known = labels != IGNORE
    edge, doubt = np.zeros(labels.shape, bool), ~known
    for here, there in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        edge[here] |= known[here] & known[there] & (labels[here] != labels[there])
        doubt[here] |= ~known[there]
    return np.where(edge, 1, np.where(doubt, IGNORE, 0))


class StreetsBenchmark(PublishedBenchmark):
    """Two dense tasks on the same frames."""

    name, layout = "streets", LAYOUT
    published: ClassVar = {"SegNet's split": {task: Counts(len(classes), 367, 233) for task, classes in TASKS.items()}}

    def read(self, task: str, root: Path, layout: str) -> Splits:
        train, test = (StreetsImages(task, root / split, layout) for split in ("train", "test"))
        return Splits(TASKS[task], train, test)
