"""BigGAN's generator (Brock et al. 2019, Appendix B, Table 4): class-conditional norms, latents in chunks, attention.

Spectral norm divides each weight by its largest singular value. In a network that is frozen this is a constant, so the
weights here are divided already: `published` does that to those of BigGAN-PyTorch, the authors' own code.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.backbones.generator import Generator, Prior
from zoo.errors import WeightsError

# Channels of the blocks by the size of the pictures, as multiples of the width; the first is that of the input. Each
# block doubles height and width, from 4×4.
CHANNELS = {32: (4, 4, 4, 4), 64: (16, 16, 8, 4, 2), 128: (16, 16, 8, 4, 2, 1)}
BOTTOM = 4  # pixels, in height and width, of what the first layer makes
ATTENTION = 64  # pixels, in height and width, of the features that attend to each other, where some have so many


class ConditionalNorm(nn.BatchNorm2d):
    """A batch norm whose gain and bias are made of a condition (B, D) by two Linear layers; features (B, C, H, W)."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__(channels, affine=False)
        self.gain = nn.Linear(condition, channels, bias=False)
        self.shift = nn.Linear(condition, channels, bias=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:  # type: ignore[override]
        gain, shift = (made(condition)[:, :, None, None] for made in (self.gain, self.shift))
        normed: Tensor = super().forward(x) * (1 + gain) + shift
        return normed


class Block(nn.Module):
    """Norm, ReLU, twice the size, 3×3 convolution; norm, ReLU, 3×3 convolution; beside a 1×1 convolution."""

    def __init__(self, c_in: int, c_out: int, condition: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_sc = nn.Conv2d(c_in, c_out, 1)
        self.bn1 = ConditionalNorm(c_in, condition)
        self.bn2 = ConditionalNorm(c_out, condition)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        y = self.conv1(_doubled(F.relu(self.bn1(x, condition))))
        y = self.conv2(F.relu(self.bn2(y, condition)))
        added: Tensor = y + _doubled(self.conv_sc(x))  # a 1×1 convolution sees no neighbours: it may come first
        return added


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Attention(nn.Module):
    """Each place adds what it finds at all others, at half their resolution (Zhang et al. 2019)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.phi = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.g = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.o = nn.Conv2d(channels // 2, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        query = self.theta(x).flatten(2)  # (B, C / 8, H · W)
        key = F.max_pool2d(self.phi(x), 2).flatten(2)  # (B, C / 8, H · W / 4)
        value = F.max_pool2d(self.g(x), 2).flatten(2)
        weights = (query.transpose(1, 2) @ key).softmax(-1)
        found = (value @ weights.transpose(1, 2)).unflatten(2, x.shape[2:])
        added: Tensor = x + self.gamma * self.o(found)
        return added


class BigGAN(Generator):
    """The generator at 32, 64 or 128 pixels; biggan128 has 70,433,988 parameters.

    The latents come in chunks, one for the first layer and one for the norms of each block, beside the class.

    Args:
        size: of the pictures, in pixels.
        width: what the channels are multiples of.
        latent_size: Z, a multiple of the number of chunks: of the blocks and one.
        embedding: numbers that a class is described by.
    """

    def __init__(
        self, size: int = 128, width: int = 96, latent_size: int = 120, classes: int = 1000, embedding: int = 128
    ) -> None:
        super().__init__(latent_size, classes, size)
        channels = [width * multiple for multiple in CHANNELS[size]]
        self.chunk, rest = divmod(latent_size, len(channels))
        if rest:
            raise ValueError(f"{latent_size} latents are no multiple of {len(channels)} chunks")
        condition = embedding + self.chunk
        self.shared = nn.Embedding(classes, embedding)
        self.linear = nn.Linear(self.chunk, channels[0] * BOTTOM**2)
        self.blocks = nn.ModuleList()
        for number, (c_in, c_out) in enumerate(itertools.pairwise(channels)):
            block: list[nn.Module] = [Block(c_in, c_out, condition)]
            if BOTTOM * 2 ** (number + 1) == ATTENTION:
                block.append(Attention(c_out))
            self.blocks.append(nn.ModuleList(block))
        last = channels[-1]
        self.output_layer = nn.Sequential(nn.BatchNorm2d(last), nn.ReLU(), nn.Conv2d(last, 3, 3, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding) and not module.weight.is_meta:
                nn.init.orthogonal_(module.weight)

    def forward(self, latents: Tensor, classes: Tensor | None = None) -> Tensor:
        self.check(latents)
        if classes is None:
            classes = latents.new_zeros(latents.shape[0], dtype=torch.int64)  # no len: a graph takes any batch
        described = self.shared(classes)
        first, *chunks = torch.split(latents, self.chunk, 1)
        x = self.linear(first).unflatten(1, (-1, BOTTOM, BOTTOM))
        for blocks, chunk in zip(self.blocks, chunks, strict=True):
            condition = torch.cat([described, chunk], 1)
            for block in blocks:  # type: ignore[attr-defined]  # a ModuleList of the one above
                x = block(x, condition)
        return torch.tanh(self.output_layer(x))


def small(size: int, width: int) -> BigGAN:
    """A narrow one of a single class, with twelve latents in each chunk."""
    return BigGAN(size, width, 12 * len(CHANNELS[size]), 1, 4)


# What BigGAN-PyTorch calls otherwise: ends of names, the longest that fits first.
RENAMED = {
    "output_layer.0.gain": "output_layer.0.weight", ".bias.weight": ".shift.weight", ".stored_mean": ".running_mean",
    ".stored_var": ".running_var",
}  # fmt: skip
SPECTRAL = (".u0", ".sv0")  # what spectral norm keeps beside a weight: a singular vector, and the value when last seen


def is_published(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are a generator of BigGAN-PyTorch's, by its own names."""
    return any(name.endswith(".stored_mean") for name in tensors)


def published(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors of a generator of BigGAN-PyTorch's, by this one's names, about a standard Gaussian of latents.

    Each weight with spectral norm is divided by its largest singular value, found as the authors' code finds it when it
    generates: by one step of the power iteration from the stored vector `u0`.

    Raises:
        WeightsError: a vector is not as long as its weight has rows.
    """
    made = {}
    for name, given in tensors.items():
        tensor, vector = given, tensors.get(f"{name.removesuffix('.weight')}.u0")
        if name.endswith(SPECTRAL):
            continue
        if name.endswith(".weight") and vector is not None and given.ndim > 1:
            tensor = tensor / _largest_singular_value(tensor.flatten(1), vector, f"{source}: {name}")
        ending = next((each for each in RENAMED if name.endswith(each)), "")
        made[name.removesuffix(ending) + RENAMED.get(ending, "")] = tensor
    chunks = 1 + len({name.split(".")[1] for name in made if name.startswith("blocks.")})
    size = chunks * made["linear.weight"].shape[1] if "linear.weight" in made else 0
    return {**made, **{f"prior.{name}": tensor for name, tensor in Prior(size).state_dict().items()}}


def _largest_singular_value(matrix: Tensor, vector: Tensor, what: str) -> Tensor:
    """An estimate of it, of a matrix (M, N), from an estimate of its left singular vector (1, M)."""
    if vector.shape != (1, len(matrix)):
        raise WeightsError(f"{what} has {len(matrix)} rows, and the vector of its spectral norm {vector.numel()}.")
    right = F.normalize(vector @ matrix)
    left = F.normalize(right @ matrix.T)
    return (right @ matrix.T @ left.T).squeeze()
