"""What a classifier gets wrong: its accuracy by class, the classes that it mixes up, and the pictures themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as images_of

from zoo.catalog.task import CLASSIFICATION, Task
from zoo.datasets import Images
from zoo.drawing.mistakes import Mistake, draw_confusion, draw_mistakes
from zoo.errors import OptionError

SIDE = 256  # pixels of the longer side of a picture in a sheet
SHOWN = 48  # pictures in a sheet, those that the classifier was most certain of


class Answers:
    """What a classifier said of each test image, gathered in the order of the images while it is measured.

    Raises:
        OptionError: the task has no classes of which one is right.
    """

    def __init__(self, task: Task) -> None:
        if task.kind != CLASSIFICATION:
            raise OptionError(f"{task.name} is a task of {task.kind}; --confusion and --errors are for classifiers.")
        self.classes = task.classes
        self._truth: list[Tensor] = []
        self._given: list[Tensor] = []
        self._shares: list[Tensor] = []

    def take(self, outputs: Tensor, targets: Tensor) -> None:
        """Take logits (B, K) and labels (B,)."""
        shares, given = outputs.float().softmax(1).max(1)
        self._truth.append(targets.cpu())
        self._given.append(given.cpu())
        self._shares.append(shares.cpu())

    def confusion(self) -> Tensor:
        """How many images of each class (a row) were taken for each class (a column), (K, K)."""
        count = len(self.classes)
        places = torch.cat(self._truth) * count + torch.cat(self._given)
        return torch.bincount(places, minlength=count**2).view(count, count)

    def by_class(self) -> list[dict[str, Any]]:
        """A row for each class, the worst first: its images, how many were right, what others were taken for."""
        rows = []
        for name, counts, label in zip(self.classes, self.confusion(), range(len(self.classes)), strict=True):
            total, right = int(counts.sum()), int(counts[label])
            others = [(int(n), self.classes[i]) for i, n in enumerate(counts) if i != label and n]
            called = ", ".join(f"{other} {n}" for n, other in sorted(others, key=lambda pair: -pair[0])[:3])
            accuracy = round(100 * right / total, 1) if total else None
            rows.append({"class": name, "images": total, "right %": accuracy, "taken for": called or None})
        return sorted(rows, key=lambda row: 101.0 if row["right %"] is None else row["right %"])

    def worst_pairs(self, most: int = 10) -> list[dict[str, Any]]:
        """The classes that are mixed up most often."""
        confusion = self.confusion()
        pairs: list[dict[str, Any]] = [
            {"class": self.classes[i], "taken for": self.classes[j], "images": int(n), "of": int(counts.sum())}
            for i, counts in enumerate(confusion)
            for j, n in enumerate(counts)
            if i != j and n
        ]
        return sorted(pairs, key=lambda pair: -pair["images"])[:most]

    def draw_confusion(self, stem: Path, title: str) -> list[Path]:
        """Draw the confusion of classes; the files."""
        return draw_confusion(self.confusion().numpy(), self.classes, stem, title)

    def draw_mistakes(self, images: Images, file: Path, shown: int = SHOWN) -> str:
        """Draw the images that were answered wrongly, the most certain answers first; in words, what was drawn where.

        Args:
            images: those that the answers were given for, in the same order.
        """
        truth, given, shares = (torch.cat(each) for each in (self._truth, self._given, self._shares))
        places = (truth != given).nonzero().flatten()
        wrong: list[int] = places[shares[places].argsort(descending=True, stable=True)].tolist()
        mistakes = []
        for place in wrong[:shown]:
            image = images[place][0]
            if isinstance(image, Tensor):  # of a clip the frame in the middle
                image = images_of.to_pil_image(image[len(image) // 2] if image.ndim == 4 else image)
            picture = image.convert("RGB")
            picture.thumbnail((SIDE, SIDE))
            names = self.classes[int(truth[place])], self.classes[int(given[place])]
            mistakes.append(Mistake(picture, *names, float(shares[place])))
        if not mistakes:
            return f"none of {len(truth):,} images is wrong; nothing is drawn"
        return f"{draw_mistakes(mistakes, file, len(wrong), len(truth))}: {len(mistakes)} of {len(wrong)} wrong answers"
