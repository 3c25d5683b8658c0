"""A weight of the task's own: fine-tuning, the upper baseline of the papers, and pre-training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from zoo.increments.base import Increment, Method
from zoo.increments.by_row import Way
from zoo.increments.forms import weight_of


class Dense(Increment):
    """A task's own weight and bias of full size, which start as the frozen layer's.

    It keeps W_t and not ΔW, so that weight decay pulls to zero what plain fine-tuning would pull to zero.
    Parameters of the backbone that belong to no convolution, linear layer or norm (position embeddings,
    say) stay frozen.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_of(layer).detach().clone())
        bias = layer._parameters["bias"]
        self.bias = nn.Parameter(bias.detach().clone()) if isinstance(bias, Tensor) else None

    def delta(self, weight: Tensor) -> Tensor:
        return self.weight.to(weight.dtype) - weight

    def applied(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.weight.to(weight.dtype), bias if self.bias is None else self.bias.to(weight.dtype)

    @classmethod
    def by_row(cls, increments: Sequence[Dense], layer: Any, positions: int) -> list[Way]:
        return []  # to gather whole weights for each row costs more than to take the rows of one task together


METHODS = [
    Method("finetune", "every weight is the task's own", increment=Dense, stem=True),
    Method("scratch", "the backbone itself is trained", norms=False, trains_backbone=True),
]
