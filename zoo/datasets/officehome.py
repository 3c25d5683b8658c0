"""`officehome`: 65 things in offices and at home, in four domains (TRMTL, Section 4.3.1)."""

from __future__ import annotations

from pathlib import Path

from zoo.datasets.base import PublishedBenchmark, Splits
from zoo.datasets.folder import class_folders, images_below
from zoo.datasets.images import ListedImages, require

LAYOUT = """Expected layout:
  {root}/OfficeHomeDataset_10072016/
    Art/<class>/*.jpg, Clipart/…, Product/…, Real World/…      (https://www.hemanthdv.org/officeHomeDataset.html)"""
FOLDERS = {"art": "Art", "clipart": "Clipart", "product": "Product", "real_world": "Real World"}
EVERY = 5  # every fifth image of a class is a test image


class OfficeHomeBenchmark(PublishedBenchmark):
    """Four domains. No split is published: every fifth image is for testing, so that 80 % are the most to train on."""

    name, layout, names = "officehome", LAYOUT, tuple(FOLDERS)

    def read(self, task: str, root: Path, layout: str) -> Splits:
        folder = require(root / "OfficeHomeDataset_10072016" / FOLDERS[task], layout)
        classes = class_folders(folder, layout)
        parts: list[list[tuple[Path, int]]] = [[], []]
        place = dict.fromkeys(range(len(classes)), 0)
        for path, label in images_below(folder, classes).items:
            parts[place[label] % EVERY == EVERY - 1].append((path, label))
            place[label] += 1
        train, test = (ListedImages(classes, items) for items in parts)
        return Splits(classes, train, test)
