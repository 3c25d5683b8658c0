"""Networks that make pictures of latents, and where their latents lie."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from zoo.catalog.options import whole_number
from zoo.errors import OptionError


class Prior(nn.Module):
    """Where a generator's latents lie: a Gaussian, of the latents that its training pictures were given.

    Attributes:
        mean: (Z,).
        covariance: (Z, Z); the identity, about a mean of 0, as long as nothing is known.
    """

    mean: Tensor
    covariance: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("covariance", torch.eye(size))

    def fit(self, latents: Tensor) -> None:
        """Take the mean and the covariance of latents (N, Z); of a single one, no spread."""
        latents = latents.detach().cpu().double()
        self.mean.copy_(latents.mean(0))
        self.covariance.copy_(torch.cov(latents.T, correction=min(1, len(latents) - 1)))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """So many latents, (count, Z), drawn on the CPU; fewer are the first of more.

        Args:
            generator: of random numbers, on whose state alone they depend.

        Raises:
            OptionError: the count is none.
        """
        whole_number("count", count)
        mean, covariance = self.mean.cpu().double(), self.covariance.cpu().double()
        values, directions = torch.linalg.eigh(covariance)  # it may lack full rank
        root = (directions * values.clamp(min=0).sqrt()) @ directions.T  # does not hang on which directions were found
        # One by one: what torch draws depends on how much it draws at once.
        each = [torch.randn(len(values), generator=generator, dtype=torch.float64) for _ in range(count)]
        drawn: Tensor = (mean + torch.stack(each) @ root).to(self.mean)
        return drawn


class Generator(nn.Module):
    """A network from latents (B, Z), and classes (B,) if it has several, to pictures (B, 3, S, S) in [−1, 1].

    Attributes:
        latent_size: Z.
        classes: how many it was trained on; without being told one, it takes the first.
        pretrained_cfg: the size of its pictures and their scale, in timm's words.
    """

    latent_size: int
    classes: int
    prior: Prior
    pretrained_cfg: dict[str, object]
    channels: ClassVar[tuple[str, ...]] = ("red", "green", "blue")

    def __init__(self, latent_size: int, classes: int, size: int) -> None:
        super().__init__()
        self.latent_size, self.classes = latent_size, classes
        self.prior = Prior(latent_size)
        half = (0.5, 0.5, 0.5)
        self.pretrained_cfg = {"input_size": (3, size, size), "mean": half, "std": half}

    def check(self, latents: Tensor) -> None:
        """Raise OptionError unless these are latents (B, Z)."""
        if latents.ndim != 2 or latents.shape[1] != self.latent_size:
            raise OptionError(
                f"A generator takes latents (B, {self.latent_size}), not {tuple(latents.shape)}; "
                "model.prior(task).draw(count, generator) makes some."
            )
