"""`places`: scenes of 365 kinds, for transfer with few images (residual adapters, Section 4.2).

The paper uses Places 205, which is no longer handed out; this is its successor, by torchvision's reader.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torchvision.datasets import Places365

from zoo.datasets.base import Counts, PublishedBenchmark, Splits
from zoo.datasets.images import raw_image, require
from zoo.errors import DataError

LAYOUT = """Expected layout:
  {root}/
    categories_places365.txt, places365_train_standard.txt, places365_val.txt
    data_256_standard/, val_256/
  from http://places2.csail.mit.edu: the small images (256 × 256) of Places365-Standard, and its lists"""


class PlacesBenchmark(PublishedBenchmark):
    """One task; what is called test here are the validation images."""

    name, layout = "places", LAYOUT
    published: ClassVar = {"Places365-Standard": {"places365": Counts(365, 1803460, 36500)}}

    def read(self, task: str, root: Path, layout: str) -> Splits:
        for part in ("categories_places365.txt", "places365_train_standard.txt", "places365_val.txt",
                     "data_256_standard", "val_256"):  # fmt: skip
            require(root / part, layout)
        try:
            train, val = (Places365(root, split, small=True, loader=raw_image) for split in ("train-standard", "val"))
        except RuntimeError as error:  # torchvision's word for a wrong checksum
            raise DataError(f"A list in {root} was altered or cut short: {error}\n{layout}") from error
        return Splits(tuple(train.classes), train, val)
