"""Whether each pixel lies on the edge of something."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor

from zoo.catalog.recipe import Recipe
from zoo.errors import DataError, extra
from zoo.kinds.base import IGNORE, DenseKind, Meter, masked_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Edges(DenseKind):
    """Logits (B, 1, H, W) against maps (B, H, W) of 1 on an edge, 0 off it, 255 where unknown: cross-entropy in which
    an edge counts `recipe.positive_weight` and its absence the rest of 1, and odsF (`zoo.kinds._boundaries`).
    """

    name = "edges"
    form = "a map of 0 and 1 (H, W)"

    def loss(self, outputs: Tensor, targets: Tensor, recipe: Recipe) -> Tensor:
        edge, known = (targets == 1).unsqueeze(1), (targets != IGNORE).unsqueeze(1)
        weight = edge * recipe.positive_weight + ~edge * (1 - recipe.positive_weight)
        each = F.binary_cross_entropy_with_logits(outputs, edge.to(outputs.dtype), weight, reduction="none")
        return masked_mean(each, known)

    def answer(self, outputs: Tensor) -> Tensor:
        return outputs[:, 0].sigmoid()

    def meter(self, outputs: int) -> Meter:
        with extra("dense", "The figure of edges"):
            from zoo.kinds._boundaries import ODSF

        return ODSF()

    def compared(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return self.answer(outputs), targets

    def check(self, target: Tensor, outputs: int) -> None:
        super().check(target, outputs)
        wrong = target[functools.reduce(Tensor.logical_and, [target != value for value in (0, 1, IGNORE)])]
        if len(wrong):
            raise DataError(f"has the value {wrong[0]:g}, where 0, 1 (an edge) and {IGNORE} (unknown) are known")

    def draw(self, axes: Axes, answer: npt.NDArray[Any], classes: tuple[str, ...]) -> None:
        axes.imshow(answer, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")


KIND = Edges()
