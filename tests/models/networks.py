"""Small networks of every kind of layer, drawn at random: what people's own networks are made of."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
COMPUTED: list[Any] = [
    parametrizations.spectral_norm, nn.utils.spectral_norm, parametrizations.weight_norm,
    lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
]  # fmt: skip
WIDTH, SIDE = 4, 5


class Reader(nn.Module):
    """Computes with its layer's weight and bias itself."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.inner = layer

    def forward(self, x: Tensor) -> Tensor:
        convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[x.ndim - 2]
        made: Tensor = convolve(x, self.inner.weight, self.inner.bias, padding=1)
        return made


class Attention(nn.Module):
    """Attention over the positions, its projections called, or read as torch's own attention does."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.num_heads = 2
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.reads = reads

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x.flatten(2).mT)  # (B, N, C)
        packed = F.linear(tokens, self.qkv.weight, self.qkv.bias) if self.reads else self.qkv(tokens)
        heads = packed.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        out = F.linear(mixed, self.proj.weight, self.proj.bias) if self.reads else self.proj(mixed)
        return x + out.mT.reshape(x.shape)


class Torchs(nn.Module):
    """torch's own attention, which reads the weights of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).mT
        return x + self.attention(tokens, tokens, tokens)[0].mT.reshape(x.shape)


class Twice(nn.Module):
    """One module in two places."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first = layer
        self.second = layer

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.second(self.first(x).relu())
        return made


class Idle(nn.Module):
    """A layer that is never called, beside one that is."""

    def __init__(self, layer: nn.Module, idle: nn.Module) -> None:
        super().__init__()
        self.inner, self.idle = layer, idle

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.inner(x)
        return made


class Detached(nn.Module):
    """A layer that no gradient passes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.inner = layer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x).detach()


class Counting(nn.Module):
    """Keeps a running mean of its own, and counts."""

    mean: Tensor
    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        if self.training:
            self.mean.lerp_(x.detach().mean(), 0.1)
        return x - self.mean


class Network(nn.Module):
    """A stem, blocks, pooling over the positions, and a classifier."""

    def __init__(self, stem: nn.Module, blocks: list[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = stem, nn.Sequential(*blocks), head

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x)).flatten(2).mean(2)
        made: Tensor = self.head(x)
        return made


def convolution(draw: random.Random, dimensions: int, side: int | None = None) -> nn.Module:
    """A convolution of any form that keeps the number of channels, and nearly the size."""
    groups = draw.choice([1, 1, 2, WIDTH])
    if draw.random() < 0.3:
        return TRANSPOSED[dimensions](WIDTH, WIDTH, 3, padding=1, groups=groups, bias=draw.random() < 0.5)
    options: dict[str, Any] = {"groups": groups, "bias": draw.random() < 0.5}
    options["padding_mode"] = draw.choice(["zeros", "zeros", "circular", "replicate"])
    return CONVOLUTIONS[dimensions](
        WIDTH, WIDTH, side or draw.choice([1, 3]), padding=1, stride=draw.choice([1, 1, 2]), **options
    )


def block(draw: random.Random, dimensions: int) -> nn.Module:
    """Something that takes and gives (B, WIDTH, …)."""
    plain = CONVOLUTIONS[dimensions](WIDTH, WIDTH, 3, padding=1)
    kind = draw.choice(
        ["convolution"] * 6 + ["norm", "norm", "group norm", "instance norm", "attention", "reading attention",
        "torch's attention", "reader", "twice", "computed", "counting", "dropout", "idle",
        "detached"]
    )  # fmt: skip
    made: dict[str, Any] = {
        "convolution": lambda: nn.Sequential(convolution(draw, dimensions), nn.ReLU()),
        "norm": lambda: NORMS[dimensions](WIDTH),
        "group norm": lambda: nn.GroupNorm(2, WIDTH),
        "instance norm": lambda: [nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d][dimensions - 1](
            WIDTH, affine=True
        ),
        "attention": lambda: Attention(reads=False),
        "reading attention": lambda: Attention(reads=True),
        "torch's attention": Torchs,
        "reader": lambda: Reader(plain),
        "twice": lambda: Twice(plain),
        "computed": lambda: draw.choice(COMPUTED)(plain),
        "counting": Counting,
        "dropout": nn.Dropout,
        "idle": lambda: Idle(plain, CONVOLUTIONS[dimensions](WIDTH, WIDTH, 1)),
        "detached": lambda: Detached(plain),
    }
    found: nn.Module = made[kind]()
    return found


def network(draw: random.Random) -> tuple[nn.Module, Tensor]:
    """A network, and a batch of four that it takes."""
    torch.manual_seed(draw.randint(0, 2**31))
    dimensions = draw.choice([1, 2, 2, 2, 3])
    stem = CONVOLUTIONS[dimensions](3, WIDTH, 3, padding=1)
    blocks = [block(draw, dimensions) for _ in range(draw.randint(0, 3))]
    blocks.insert(draw.randint(0, len(blocks)), convolution(draw, dimensions, side=3))
    made = Network(stem, blocks, nn.Linear(WIDTH, 6)).eval()
    x = torch.randn(4, 3, *[SIDE] * dimensions)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1.5)
    kind = draw.choice(["float32"] * 5 + ["float64", "bfloat16", "mixed"])
    if kind == "float64":
        return made.double(), x.double()
    if kind in ("bfloat16", "mixed"):
        made.bfloat16()
        for part in made.modules() if kind == "mixed" else ():
            if isinstance(part, tuple(NORMS.values())):
                part.float()
        return made, x.bfloat16()
    return made, x
