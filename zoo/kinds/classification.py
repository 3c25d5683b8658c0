"""One label for each image."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from zoo.catalog.recipe import Recipe
from zoo.kinds.base import LabelKind, Mean


class Classification(LabelKind):
    """Logits (B, K) against labels (B,): cross-entropy, and top-1 accuracy."""

    name = "classification"

    def loss(self, outputs: Tensor, targets: Tensor, recipe: Recipe) -> Tensor:
        return F.cross_entropy(outputs, targets, label_smoothing=recipe.label_smoothing)

    def meter(self, outputs: int) -> Mean:
        return Mean()

    def compared(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        right = (outputs.argmax(1) == targets).double()
        return right, right.new_ones(())

    def right(self, outputs: Tensor, targets: Tensor) -> tuple[int, int]:
        return int((outputs.argmax(1) == targets).sum()), len(targets)

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)


KIND = Classification()
