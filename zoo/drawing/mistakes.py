"""What a classifier mixes up: its confusion matrix, and a sheet of the pictures that it got wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from zoo.drawing.plots import pyplot, save, save_png

NAMED, COUNTED = 60, 25  # classes, up to which each is named, and each count written
COLUMNS = 6


class Mistake(NamedTuple):
    """An image that was answered wrongly."""

    image: Image.Image
    truth: str
    answer: str
    share: float  # the answer's probability


def draw_confusion(counts: npt.NDArray[np.int64], classes: Sequence[str], stem: Path, title: str) -> list[Path]:
    """Draw how many images of each class (a row) were taken for each (a column), as `<stem>.png` and `<stem>.svg`.

    Args:
        counts: (K, K).
    """
    size = min(14.0, 3.5 + 0.35 * len(classes))
    figure, axes = pyplot().subplots(figsize=(size + 1, size), layout="constrained")
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(shown, ax=axes, shrink=0.8, label="% of the class")
    if len(classes) <= NAMED:
        axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=8)
        axes.set_yticks(range(len(classes)), classes, fontsize=8)
    if len(classes) <= COUNTED:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                dark = shares[row, column] > 50
                axes.text(column, row, count, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axes.set(xlabel="answer", ylabel="class", title=title)
    return save(figure, stem)


def draw_mistakes(mistakes: Sequence[Mistake], file: Path, wrong: int, of: int) -> Path:
    """Draw images with the answer for each and what would have been right, as one PNG.

    Args:
        wrong: how many images were answered wrongly in all, of `of`.
    """
    columns = min(COLUMNS, len(mistakes))
    rows = math.ceil(len(mistakes) / columns)
    figure, grid = pyplot().subplots(
        rows, columns, figsize=(2.2 * columns, 2.6 * rows + 0.4), layout="constrained", squeeze=False
    )
    for axes, mistake in zip(grid.flat, mistakes, strict=False):
        axes.imshow(mistake.image)
        axes.set_title(f"{mistake.answer} {mistake.share:.0%}\nis {mistake.truth}", fontsize=8)
    for axes in grid.flat:
        axes.axis("off")
    some = "" if len(mistakes) == wrong else f"; the {len(mistakes)} most certain"
    figure.suptitle(f"{wrong} of {of:,} wrong{some}", fontsize=10)
    return save_png(figure, file, dpi=110)
