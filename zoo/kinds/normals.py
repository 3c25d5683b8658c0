"""The direction that the surface at each pixel faces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.catalog.recipe import Recipe
from zoo.kinds.base import DenseKind, Mean, masked_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _known(targets: Tensor) -> Tensor:
    """Where there is a direction, (B, 1, H, W): the vector is finite and longer than 0."""
    return targets.isfinite().all(1, keepdim=True) & (targets.abs().amax(1, keepdim=True) > 0)


class Normals(DenseKind):
    """Vectors (B, 3, H, W) of any length against unit vectors, unknown where these have no length: L1 between the
    outputs at unit length and the targets, and the mean angle between the two in degrees.
    """

    name = "normals"
    channels = 3
    form = "a map of vectors (3, H, W)"

    def loss(self, outputs: Tensor, targets: Tensor, recipe: Recipe) -> Tensor:
        known = _known(targets)
        return masked_mean((F.normalize(outputs, dim=1) - F.normalize(targets.where(known, 0), dim=1)).abs(), known)

    def answer(self, outputs: Tensor) -> Tensor:
        return F.normalize(outputs, dim=1)

    def meter(self, outputs: int) -> Mean:
        return Mean()

    def compared(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        known = _known(targets)
        angles = angle(outputs.double(), targets.where(known, 0).double())[known[:, 0]]
        return angles, angles.new_ones(())

    def draw(self, axes: Axes, answer: npt.NDArray[Any], classes: tuple[str, ...]) -> None:
        axes.imshow((answer.transpose(1, 2, 0) + 1) / 2, interpolation="nearest")


def angle(a: Tensor, b: Tensor) -> Tensor:
    """The angle in degrees between vectors (B, 3, H, W) of any length, (B, H, W); exact for small ones too."""
    a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    return torch.rad2deg(2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1)))


KIND = Normals()
