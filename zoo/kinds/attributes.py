"""Several properties of each image, each of which holds or does not."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from zoo.catalog.recipe import Recipe
from zoo.kinds.base import LabelKind, Mean


class Attributes(LabelKind):
    """Logits (B, K) against 0 and 1 (B, K): binary cross-entropy, and the share of right answers over all of them."""

    name = "attributes"

    def loss(self, outputs: Tensor, targets: Tensor, recipe: Recipe) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))

    def meter(self, outputs: int) -> Mean:
        return Mean()

    def compared(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        right = ((outputs > 0) == (targets > 0)).double()
        return right, right.new_ones(())

    def right(self, outputs: Tensor, targets: Tensor) -> tuple[int, int]:
        return int(((outputs > 0) == (targets > 0)).sum()), targets.numel()

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()


KIND = Attributes()
