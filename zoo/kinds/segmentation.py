"""A class for each pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor

from zoo.catalog.recipe import Recipe
from zoo.errors import DataError, extra
from zoo.kinds.base import IGNORE, NOTHING, DenseKind, Meter

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Segmentation(DenseKind):
    """Logits (B, K, H, W) against labels (B, H, W), 255 where unknown: cross-entropy, and the mean over the classes
    of intersection over union, each counted over the whole test set; a class that neither has is left out.
    """

    name = "segmentation"
    form = "a map of labels (H, W)"

    def loss(self, outputs: Tensor, targets: Tensor, recipe: Recipe) -> Tensor:
        total = F.cross_entropy(
            outputs, targets, ignore_index=IGNORE, label_smoothing=recipe.label_smoothing, reduction="sum"
        )
        return total / (targets != IGNORE).sum().clamp(min=1)

    def answer(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1)

    def meter(self, outputs: int) -> Meter:
        with extra("dense", "The figure of segmentation"):
            from torchmetrics.classification import MulticlassJaccardIndex

        return MulticlassJaccardIndex(outputs, average="macro", ignore_index=IGNORE, validate_args=False)

    def figure(self, meter: Any) -> float:
        counted: Any = meter.confmat
        if not counted.any():
            raise DataError(NOTHING)
        return super().figure(meter)

    def compared(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return self.answer(outputs), targets

    def right(self, outputs: Tensor, targets: Tensor) -> tuple[int, int]:
        return int((outputs.argmax(1) == targets).sum()), int((targets != IGNORE).sum())

    def check(self, target: Tensor, outputs: int) -> None:
        super().check(target, outputs)
        wrong = target[(target != IGNORE) & ((target < 0) | (target >= outputs))]
        if len(wrong):
            raise DataError(f"has the label {int(wrong[0])}, where 0 to {outputs - 1} and {IGNORE} (unknown) are known")

    def draw(self, axes: Axes, answer: npt.NDArray[Any], classes: tuple[str, ...]) -> None:
        from matplotlib import color_sequences
        from matplotlib.patches import Patch

        colors = [color for name in ("tab10", "tab20b", "tab20c") for color in color_sequences[name]]
        palette = [colors[i % len(colors)] for i in range(len(classes))]
        axes.imshow([[palette[label] for label in row] for row in answer], interpolation="nearest")
        patches = [Patch(color=palette[label], label=classes[label]) for label in sorted(set(answer.flat))]
        axes.legend(handles=patches, loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small", frameon=False)


KIND = Segmentation()
