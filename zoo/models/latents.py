"""The latents of pictures: a training finds them together with the weights, a test with the weights frozen."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from zoo.backbones.generator import Prior

STEPS, RATE = 100, 0.05  # of Adam, in fitting latents to pictures; the rate falls to 0 by a cosine
SPREAD = 0.1  # of what latents are drawn from at first, about its mean


class Latents(nn.Module):
    """One latent for each of some pictures, to be trained: numbers of pictures (B,) to latents (B, Z)."""

    def __init__(self, begin: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(begin)

    @classmethod
    def near(cls, prior: Prior, pictures: int, seed: int) -> Latents:
        """For so many pictures, near the mean of what their weights come with."""
        drawn = prior.draw(pictures, torch.Generator().manual_seed(seed))
        return cls(prior.mean + SPREAD * (drawn - prior.mean))

    def forward(self, numbers: Tensor) -> Tensor:
        return self.weight[numbers]


def fit(answer: Callable[[Tensor], Tensor], pictures: Tensor, prior: Prior) -> Tensor:
    """The latents (B, Z) of which a network makes these pictures (B, 3, S, S), as nearly as STEPS steps find them.

    Each picture's are found by itself, from the mean of the prior; the network does not change.
    """
    with torch.inference_mode(False), torch.enable_grad():
        latents = prior.mean.float().repeat(len(pictures), 1).requires_grad_()  # steps are lost in fewer bits
        optimizer = torch.optim.Adam([latents], lr=RATE)
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * step / STEPS)) / 2
            error = (answer(latents.to(prior.mean)) - pictures).float().square().sum()  # as for each alone
            (latents.grad,) = torch.autograd.grad(error, [latents])
            optimizer.step()
    return latents.detach().to(prior.mean)
