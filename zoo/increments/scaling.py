"""What only scales and shifts a layer's outputs: SSF (Lian et al., NeurIPS 2022), and biases alone (BitFit)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import OptionError
from zoo.increments.base import FrozenLayer, Increment, Method
from zoo.increments.by_row import Affine, Way, stack, thin_cost
from zoo.increments.forms import channel_axis, weight_of


class ScaleShift(Increment):
    """`γ ⊙ y + β` of a layer's outputs y, from γ = 1 and β = 0, where the network is the backbone.

    Folded, it is the weight `diag(γ) W` and the bias `γ ⊙ b + β`. A norm's scale and shift are the task's own norm.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        if not getattr(layer, "has_standard_forward", True):
            raise OptionError("Scales need a layer whose weight is used as it is; this one has its own forward.")
        channels = len(weight_of(layer))
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def delta(self, weight: Tensor) -> Tensor:
        return self.applied(weight, None)[0] - weight

    def applied(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        scale, shift = self.scale.to(weight.dtype), self.shift.to(weight.dtype)
        return weight * scale.view(-1, *[1] * (weight.ndim - 1)), shift if bias is None else scale * bias + shift

    def forward(self, x: Tensor, layer: FrozenLayer) -> Tensor:
        y = layer.run(x)
        shape = (-1,) + (1,) * (y.ndim - 1 - channel_axis(layer, y))
        return y * self.scale.to(y.dtype).view(shape) + self.shift.to(y.dtype).view(shape)

    @classmethod
    def by_row(cls, increments: Sequence[ScaleShift], layer: Any, positions: int) -> list[Way]:
        scales, shifts = [each.scale for each in increments], [each.shift for each in increments]
        cost = thin_cost(layer.weight, 0, positions)
        return [Way(cost, lambda: Affine(stack(scales, layer.weight), stack(shifts, layer.weight)))]


class Shift(Increment):
    """A bias of the task's own, as a difference to the layer's; a layer without one gets one."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(len(weight_of(layer))))

    def delta(self, weight: Tensor) -> Tensor:
        return torch.zeros_like(weight)

    def applied(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight, self.shifted(bias)

    @classmethod
    def by_row(cls, increments: Sequence[Shift], layer: Any, positions: int) -> list[Way]:
        shifts = [each.shift for each in increments]
        return [Way(thin_cost(layer.weight, 0, positions), lambda: Affine(None, stack(shifts, layer.weight)))]


METHODS = [
    Method("ssf", "a scale and a shift behind every layer, and task norms", increment=ScaleShift, stem=True),
    Method("bitfit", "a bias for every layer, and task norms", increment=Shift, stem=True),
]
