"""`adience_celeba`: age groups of faces in the wild, and 40 attributes of aligned faces (TRMTL, Section 4.3.2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchvision.datasets import CelebA

from zoo.datasets.base import Counts, Images, PublishedBenchmark, Splits
from zoo.datasets.images import ListedImages, raw_image, require
from zoo.errors import DataError

LAYOUT = """Expected layout:
  {root}/
    adience/fold_{{0…4}}_data.txt, faces/<user>/coarse_tilt_aligned_face.<face>.<image>
        (https://talhassner.github.io/home/projects/Adience/Adience-data.html)
    celeba/img_align_celeba/*.jpg, list_attr_celeba.txt, list_eval_partition.txt, identity_CelebA.txt,
        list_bbox_celeba.txt, list_landmarks_align_celeba.txt      (https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html)"""
AGES = ("(0, 2)", "(4, 6)", "(8, 12)", "(15, 20)", "(25, 32)", "(38, 43)", "(48, 53)", "(60, 100)")
FOLDS, TESTED = 5, 4  # the last fold is for testing


class AttributedFaces(Images):
    """CelebA's images, each with its 40 attributes, 0 or 1."""

    def __init__(self, faces: CelebA) -> None:
        self.names, self.attributes = faces.filename, faces.attr
        self.folder = Path(faces.root) / faces.base_folder / "img_align_celeba"

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        return raw_image(self.folder / self.names[index]), self.attributes[index].to(torch.float32)


class FacesBenchmark(PublishedBenchmark):
    """Adience's four training folds and its last; CelebA's training and test images.

    Of Adience, faces without one of the eight age groups are left out.
    """

    name, layout, names = "adience_celeba", LAYOUT, ("adience", "celeba")
    published: ClassVar = {"official": {"celeba": Counts(40, 162770, 19962)}}

    def read(self, task: str, root: Path, layout: str) -> Splits:
        return _adience(root / "adience", layout) if task == "adience" else _celeba(root, layout)


def _adience(root: Path, layout: str) -> Splits:
    parts: list[list[tuple[Path, int]]] = [[], []]
    for fold in range(FOLDS):
        list_file = require(root / f"fold_{fold}_data.txt", layout)
        for number, line in enumerate(list_file.read_text(encoding="utf-8").splitlines()[1:], 2):
            fields = line.split("\t")
            if len(fields) < 4:
                raise DataError(
                    f"{list_file}, line {number}: {line!r} has not the fields user, image, face, age.\n{layout}"
                )
            user, image, face, age = fields[:4]
            if any("/" in part or part.startswith(".") for part in (user, image, face)):
                raise DataError(f"{list_file}, line {number}: {line!r} names a path outside of its folder.")
            if age in AGES:
                path = root / "faces" / user / f"coarse_tilt_aligned_face.{face}.{image}"
                parts[fold == TESTED].append((path, AGES.index(age)))
    train, test = (ListedImages(AGES, items) for items in parts)
    return Splits(AGES, train, test)


def _celeba(root: Path, layout: str) -> Splits:
    require(root / "celeba" / "img_align_celeba", layout)
    try:
        train, test = (CelebA(root, split) for split in ("train", "test"))
    except (RuntimeError, OSError) as error:
        raise DataError(f"A list in {root / 'celeba'} is missing or altered: {error}\n{layout}") from error
    names = tuple(name for name in train.attr_names if name)
    return Splits(names, AttributedFaces(train), AttributedFaces(test))
