"""The distance of what each pixel shows, in metres."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy.typing as npt
from torch import Tensor

from zoo.catalog.recipe import Recipe
from zoo.errors import extra
from zoo.kinds.base import DenseKind, Meter, masked_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _known(targets: Tensor) -> Tensor:
    """Where a depth has been measured: above 0, and finite."""
    return (targets > 0) & targets.isfinite()


class Depth(DenseKind):
    """Metres (B, 1, H, W) against metres, unknown where they are not above 0 and finite: L1, and the root of the mean
    squared error over all known pixels of the test set.
    """

    name = "depth"
    channels = 1
    form = "a map of metres (1, H, W)"

    def loss(self, outputs: Tensor, targets: Tensor, recipe: Recipe) -> Tensor:
        known = _known(targets)
        return masked_mean((outputs - targets.where(known, 0)).abs(), known)

    def answer(self, outputs: Tensor) -> Tensor:
        return outputs[:, 0]

    def meter(self, outputs: int) -> Meter:
        with extra("dense", "The figure of depth"):
            from torchmetrics import MeanSquaredError

        return MeanSquaredError(squared=False)

    def compared(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        known = _known(targets)
        return outputs[known], targets[known]

    def draw(self, axes: Axes, answer: npt.NDArray[Any], classes: tuple[str, ...]) -> None:
        drawn = axes.imshow(answer, cmap="viridis_r", interpolation="nearest")
        axes.figure.colorbar(drawn, ax=axes, label="metres")


KIND = Depth()
