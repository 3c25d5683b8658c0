"""FTN: ΔW as a sum of R rank-1 tensors (the CP form of the FTN paper, Eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.catalog.options import check_rank
from zoo.errors import OptionError
from zoo.increments import pointwise
from zoo.increments.base import FrozenLayer, Increment, Method, folded
from zoo.increments.by_row import (
    GATHER_COST,
    OUTPUT_COST,
    THIN_COST,
    ByRow,
    ConvolutionBranch,
    Way,
    filled,
    is_pointwise,
    stack,
)
from zoo.increments.forms import weight_of

ROUTES = ("auto", "folded", "factored", "thin")
STARTS = ("xavier", "zero")


class CP(Increment):
    """`ΔW[o, c, :] = Σ_r out[o, r] · in[r, c] · spatial[r, :]` for a convolution or a Linear layer.

    It has `R (C_out + C_in / groups + k²)` parameters, with k or k³ taps in one or three dimensions; a Linear layer
    counts as a 1×1 convolution.
    Each factor starts Xavier-uniform, so that ΔW starts near zero (FTN, Section 3.1). In a depthwise convolution, whose
    factors are short, that is not near: with `start="zero"`, out starts as zeros, as LoRA's B does, and so does ΔW.

    Three routes compute the same output. *Folded* runs the layer under `W + ΔW`. *Factored* adds to the
    frozen layer's output a branch of R channels, 1×1 → depthwise k×k → 1×1, and so spares the gradient
    of the whole filter bank. *Thin* runs folded, and makes the gradients of the factors without it (`pointwise.py`).
    A task with a bias of its own, which `bias` gives it in layers that have one, runs folded. `route` forces one of
    them; "auto" takes the cheapest, by `cheapest_route`. Only Conv2d and Linear layers have
    the factored route, and only Linear layers and 1×1 convolutions the thin one; others run folded.
    """

    def __init__(
        self, layer: nn.Module, rank: int, route: str = "auto", start: str = "xavier", bias: bool = False
    ) -> None:
        super().__init__()
        check_rank("rank of FTN", rank)
        if start not in STARTS:
            raise OptionError(f"The start of FTN must be one of {', '.join(STARTS)}, not {start!r}.")
        if route not in ROUTES:
            raise OptionError(f"The route of FTN must be one of {', '.join(ROUTES)}, not {route!r}.")
        weight = weight_of(layer)
        c_out, c_in, taps = weight.shape[0], weight.shape[1], weight[0, 0].numel()
        self.rank, self.route = rank, route
        self.out_factor = nn.Parameter(torch.empty(c_out, rank))  # w3: output channels
        self.in_factor = nn.Parameter(torch.empty(rank, c_in))  # w2: input channels of a group
        self.spatial_factor = nn.Parameter(torch.empty(rank, taps))  # w1: taps of the kernel, row by row
        for factor in (self.out_factor, self.in_factor, self.spatial_factor):
            nn.init.xavier_uniform_(factor)
        if start == "zero":
            nn.init.zeros_(self.out_factor)
        self.own_bias(layer, bias)

    def delta(self, weight: Tensor) -> Tensor:
        up, down = self.low_rank(weight)
        return (up @ down).view_as(weight)

    def low_rank(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        out, in_, spatial = self._factors(weight)
        return out, (in_.unsqueeze(2) * spatial.unsqueeze(1)).flatten(1)

    def forward(self, x: Tensor, layer: FrozenLayer) -> Tensor:
        route = self._route(x, layer)
        if route == "thin":
            return self._thin(x, layer)
        if route == "folded":
            return super().forward(x, layer)
        if isinstance(layer, nn.Conv2d):
            return layer.run(x) + self._conv_branch(x, layer)
        return layer.run(x) + self._linear_branch(x)

    @staticmethod
    def together(increments: Sequence[CP], x: Tensor, layer: FrozenLayer, shared: bool) -> Tensor:
        """One run of the frozen layer for all tasks, and their branches as batched products, where that is cheaper."""
        first, tasks = increments[0], len(increments)
        one = x if shared else x[: len(x) // tasks]  # what one task alone would be given
        alike = len({(each.rank, each.route, each.own_shift is None) for each in increments}) == 1
        if not alike or not isinstance(layer, nn.Conv2d) or not first._stacks(one, layer, tasks):
            return Increment.together(increments, x, layer, shared)
        base, factors = layer.run(x), zip(*(each._factors(x) for each in increments), strict=True)
        out, in_, spatial = (torch.stack(each) for each in factors)  # (T, C_out, R), (T, R, C_in), (T, R, k²)
        (batch, _, *size), (kh, kw) = one.shape, layer.kernel_size
        x = x.permute(0, 2, 3, 1).reshape(1 if shared else tasks, -1, x.shape[1])  # (T, BHW, C_in): channels last
        x = (x @ in_.mT).view(tasks, batch, -1, first.rank).mT.reshape(1, -1, *size)  # (1, TBR, H, W)
        x = _depthwise(x, spatial[:, None].expand(-1, batch, -1, -1).reshape(-1, 1, kh, kw), layer)  # (1, TBR, H', W')
        x = x.reshape(tasks, batch, first.rank, -1).mT.flatten(1, 2)  # (T, BH'W', R)
        rows = base.permute(0, 2, 3, 1).reshape(1 if shared else tasks, -1, base.shape[1])
        summed = torch.baddbmm(rows.expand(tasks, -1, -1), x, out.mT)  # (T, BH'W', C_out)
        return summed.view(tasks * batch, *base.shape[2:], -1).permute(0, 3, 1, 2)

    @classmethod
    def by_row(cls, increments: Sequence[CP], layer: Any, positions: int) -> list[Way]:
        ways = super().by_row(increments, layer, positions)
        own_bias = any(each.own_shift is not None for each in increments)
        if own_bias or not isinstance(layer, nn.Conv2d) or layer.groups > 1 or is_pointwise(layer):
            return ways
        weight, (c_out, c_in), taps = layer.weight, layer.weight.shape[:2], layer.weight[0, 0].numel()
        rank, before = max(each.rank for each in increments), positions * layer.stride[0] * layer.stride[1]
        thin = THIN_COST * rank * (c_in * before + c_out * positions) + GATHER_COST * rank * (c_in + c_out + taps)
        cost = layer.weight.numel() * positions + thin + OUTPUT_COST * (c_out + rank * taps) * positions

        def make() -> ByRow:
            outs, ins, spatials = zip(*(each._factors(weight) for each in increments), strict=True)
            return ConvolutionBranch(
                *(stack(filled(f, axis), weight) for f, axis in ((outs, 1), (ins, 0), (spatials, 0)))
            )

        return [*ways, Way(cost, make)]

    def _stacks(self, x: Tensor, layer: FrozenLayer, tasks: int) -> bool:
        """Whether the branches of so many tasks are cheaper, or were asked for, than a convolution for each."""
        if (
            not isinstance(layer, nn.Conv2d)
            or layer.groups > 1
            or not layer.has_standard_forward
            or self.route == "folded"
            or self.own_shift is not None
        ):
            return False
        if self.route == "factored":
            return True
        positions = x.numel() // x.shape[1] // (layer.stride[0] * layer.stride[1])
        c_out, c_in, taps = len(self.out_factor), self.in_factor.shape[1], self.spatial_factor.shape[1]
        build = BUILD_COST * self.rank * c_out * c_in * taps
        return tasks * branch_cost(c_out, c_in, taps, self.rank, 1, positions) + 3 * CALL_COST <= tasks * (
            build + CALL_COST
        )

    def extra_repr(self) -> str:
        return f"rank={self.rank}, route={self.route}"

    def _factors(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.out_factor.to(like.dtype), self.in_factor.to(like.dtype), self.spatial_factor.to(like.dtype)

    def _route(self, x: Tensor, layer: FrozenLayer) -> str:
        """By which way this layer is run for this input."""
        plain = layer.has_standard_forward and isinstance(layer, nn.Conv2d | nn.Linear)
        if not plain or self.own_shift is not None:
            return "folded"  # as is a subclass with a forward of its own (padding, weight standardisation)
        suited = pointwise.suits(layer, x)
        if self.route != "auto":
            return "folded" if self.route == "thin" and not suited else self.route
        if isinstance(layer, nn.Conv2d):
            positions = x.numel() // x.shape[-3] // (layer.stride[0] * layer.stride[1])
            groups = layer.groups
        else:
            positions, groups = x.numel() // x.shape[-1], 1
        c_out, c_in, taps = len(self.out_factor), self.in_factor.shape[1], self.spatial_factor.shape[1]
        return cheapest_route(c_out, c_in, taps, self.rank, groups, positions, torch.is_grad_enabled(), suited)

    def _thin(self, x: Tensor, layer: FrozenLayer) -> Tensor:
        with torch.no_grad():
            weight, bias = folded(self, layer.frozen_weight, layer.frozen_bias)
        out, in_, spatial = self._factors(x)
        return pointwise.pointwise(x, layer, weight, bias, out, in_ * spatial)

    def _conv_branch(self, x: Tensor, layer: nn.Conv2d) -> Tensor:
        out, in_, spatial = self._factors(x)
        g, (kh, kw) = layer.groups, layer.kernel_size
        if kh * kw == 1 and layer.padding in ((0, 0), "valid"):  # the one tap only scales: two convolutions do
            x = F.conv2d(x, _pointwise(in_ * spatial, g), stride=layer.stride, groups=g)  # (B, gR, H', W')
        else:
            x = F.conv2d(x, _pointwise(in_, g), groups=g)  # (B, gR, H, W)
            x = _depthwise(x, spatial.repeat(g, 1).view(-1, 1, kh, kw), layer)  # (B, gR, H', W')
        return F.conv2d(x, out[:, :, None, None], groups=g)  # (B, C_out, H', W')

    def _linear_branch(self, x: Tensor) -> Tensor:
        out, in_, spatial = self._factors(x)
        return F.linear(F.linear(x, in_ * spatial), out)


def _pointwise(factor: Tensor, groups: int) -> Tensor:
    """The `(R, C_in / groups)` factor as the 1×1 filters of every group, `(gR, C_in / groups, 1, 1)`."""
    return factor.repeat(groups, 1)[:, :, None, None]


def _depthwise(x: Tensor, taps: Tensor, layer: nn.Conv2d) -> Tensor:
    """Convolve each channel of x with its own k×k taps, with the stride, dilation and padding of `layer`."""
    padding: str | tuple[int, ...] = layer.padding
    if layer.padding_mode != "zeros":
        x, padding = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), (0, 0)
    return F.conv2d(x, taps, None, layer.stride, padding, layer.dilation, groups=x.shape[1])


# What one multiply-add of a thin operation costs, against one of a full convolution. Fitted to interleaved
# timings of single layers (benchmarks/cost_model.py), where memory traffic and not arithmetic rules.
POINTWISE_COST, DEPTHWISE_COST, BUILD_COST = 1.5, 16.0, 1.5
READ_COST, PRODUCT_COST = 10.0, 2.2  # of the thin route's products, for each number of x and of the output's gradient
CALL_COST = 1.2e6  # of calling one more operation, in the same unit


def cheapest_route(
    c_out: int, c_in: int, taps: int, rank: int, groups: int, positions: int, training: bool, suited: bool = False
) -> str:
    """ "folded", "factored" or "thin": the route with the fewest weighted multiply-adds for one layer and one batch.

    Args:
        c_out, c_in, taps, rank: the layer's size; `c_in` per group, `taps` = k².
        positions: output positions of the batch, B·H'·W'.
        training: whether gradients are wanted. Then an operation is run once forward and once or twice
            backward: only the folded route needs the gradient of the filter bank.
        suited: whether the layer has the thin route, which is for training.
    """
    full = c_out * c_in * taps * positions
    build = BUILD_COST * rank * c_out * c_in * taps
    branch = branch_cost(c_out, c_in, taps, rank, groups, positions)
    if not training:
        return "folded" if full + build <= full + branch else "factored"
    folded, factored = 3 * (full + build), 2 * full + 3 * branch
    if not suited:
        return "folded" if folded <= factored else "factored"
    factored += branch + 6 * CALL_COST  # two convolutions of few channels more, there and back
    thin = 2 * full + build + (READ_COST + PRODUCT_COST * rank) * (c_in + c_out) * positions + 6 * CALL_COST
    if folded <= factored and folded <= thin:  # plain comparisons: torch.compile takes no min() of symbolic sizes
        return "folded"
    return "factored" if factored <= thin else "thin"


def branch_cost(c_out: int, c_in: int, taps: int, rank: int, groups: int, positions: int) -> float:
    """Weighted multiply-adds of the branch of the factored route; the arguments are those of `cheapest_route`."""
    pointwise = POINTWISE_COST * rank * (c_in * groups + c_out) * positions
    return pointwise + (DEPTHWISE_COST * rank * groups * taps * positions if taps > 1 else 0)


METHODS = [
    Method("ftn", "rank-R factors on every convolution but the stem, task norms and head", increment=CP),
]
