"""Pictures that a network makes of latents; each training picture has a latent of its own, found with the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.catalog.recipe import Recipe
from zoo.catalog.task import GENERATION
from zoo.kinds.base import Kind, Mean

RANGE = 2.0  # from black to white: pictures lie in [−1, 1]


def psnr(made: Tensor, wanted: Tensor) -> Tensor:
    """Of each picture (B, C, H, W) in [−1, 1] its peak signal-to-noise ratio in decibels, (B,)."""
    error = (made - wanted).square().flatten(1).mean(1)
    return 10 * torch.log10(RANGE**2 / error.clamp(min=1e-12))


class Generation(Kind):
    """Pictures (B, 3, H, W) in [−1, 1] against pictures: `‖x − G(z)‖_p^p` (FTN, Appendix F), by pixel and channel, with
    the recipe's exponent p; and the mean of the pictures' PSNR.
    """

    name = GENERATION

    def loss(self, outputs: Tensor, targets: Tensor, recipe: Recipe) -> Tensor:
        return (outputs - targets).abs().pow(recipe.exponent).mean()

    def meter(self, outputs: int) -> Mean:
        return Mean()

    def compared(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        found = psnr(outputs, targets)
        return found, found.new_ones(())

    def held_against(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return inputs


KIND = Generation()
