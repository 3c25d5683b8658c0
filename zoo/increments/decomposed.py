"""ΔW in other forms than FTN's: tensor train, SVD of the unfolding, Tucker (FTN paper, Appendix E).

A weight is seen as (k², C_out, C_in), with the input channels of one group and all taps of the kernel; a Linear layer
counts as a 1×1 convolution. A rank that a layer is too small for is the largest that it has.
Each starts where it adds nothing: what belongs to the output channels is zero, and the rest Xavier-uniform.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zoo.catalog.options import check_rank
from zoo.increments.base import Increment, Method
from zoo.increments.forms import weight_of


def _fresh(*shape: int) -> nn.Parameter:
    factor = nn.Parameter(torch.empty(shape))
    nn.init.xavier_uniform_(factor.data.flatten(1))
    return factor


def _zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


class Decomposed(Increment):
    """What the three have in common: a rank, and the layer's size.

    Args:
        rank: R, at least 1.
        bias: give the task a bias of its own in layers that have one.
    """

    def __init__(self, layer: nn.Module, rank: int, bias: bool = False) -> None:
        super().__init__()
        check_rank("rank", rank)
        weight = weight_of(layer)
        self.rank = rank
        self.c_out, self.c_in, *self.kernel = weight.shape
        self.taps = math.prod(self.kernel)
        self.own_bias(layer, bias)

    def extra_repr(self) -> str:
        return f"rank={self.rank}"


class TensorTrain(Decomposed):
    """`ΔW[k, o, c] = Σ_pq first[k, p] · middle[p, o, q] · last[q, c]`: a train of three cores, p and q up to R."""

    def __init__(self, layer: nn.Module, rank: int, bias: bool = False) -> None:
        super().__init__(layer, rank, bias)
        p = min(rank, self.taps, self.c_out * self.c_in)
        q = min(rank, self.c_in, self.taps * self.c_out)
        self.first, self.middle, self.last = _fresh(self.taps, p), _zeros(p, self.c_out, q), _fresh(q, self.c_in)

    def delta(self, weight: Tensor) -> Tensor:
        first, middle, last = (core.to(weight.dtype) for core in (self.first, self.middle, self.last))
        return torch.einsum("kp,poq,qc->ock", first, middle, last).reshape(weight.shape)

    def low_rank(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.taps > 1:
            return None
        return self.middle[0].to(weight.dtype), (self.first * self.last).to(weight.dtype)


class Unfolded(Decomposed):
    """`ΔW[(o, i), (c, j)] = Σ_r out[(o, i), r] · in[r, (c, j)]` for a tap in row i and column j: of rank R as a matrix.

    Its rows are output channels by the kernel's first dimension, its columns input channels by the others.
    """

    def __init__(self, layer: nn.Module, rank: int, bias: bool = False) -> None:
        super().__init__(layer, rank, bias)
        self.high = self.kernel[0] if self.kernel else 1
        self.wide = self.taps // self.high
        rows, columns = self.c_out * self.high, self.c_in * self.wide
        r = min(rank, rows, columns)
        self.out_factor, self.in_factor = _zeros(rows, r), _fresh(r, columns)

    def delta(self, weight: Tensor) -> Tensor:
        matrix = self.out_factor.to(weight.dtype) @ self.in_factor.to(weight.dtype)
        return matrix.view(self.c_out, self.high, self.c_in, self.wide).transpose(1, 2).reshape(weight.shape)

    def low_rank(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.taps > 1:
            return None
        return self.out_factor.to(weight.dtype), self.in_factor.to(weight.dtype)


class Tucker(Decomposed):
    """`ΔW[k, o, c] = Σ_pqr core[p, q, r] · taps[k, p] · out[o, q] · in[c, r]`, with p, q and r up to R."""

    def __init__(self, layer: nn.Module, rank: int, bias: bool = False) -> None:
        super().__init__(layer, rank, bias)
        sizes = self.taps, self.c_out, self.c_in
        ranks = [min(rank, size) for size in sizes]
        ranks = [min(own, math.prod(ranks) // own) for own in ranks]  # no mode has more than the others together
        p, q, r = ranks
        self.core = _fresh(p, q, r)
        self.taps_factor, self.out_factor = _fresh(self.taps, p), _zeros(self.c_out, q)
        self.in_factor = _fresh(self.c_in, r)

    def delta(self, weight: Tensor) -> Tensor:
        up, down = self.low_rank(weight)
        return (up @ down).view_as(weight)

    def low_rank(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        core, taps, in_ = (each.to(weight.dtype) for each in (self.core, self.taps_factor, self.in_factor))
        down = torch.einsum("pqr,kp,cr->qck", core, taps, in_).flatten(1)
        return self.out_factor.to(weight.dtype), down


METHODS = [
    Method("tt", "a tensor train of three cores on every convolution but the stem, task norms and head", TensorTrain),
    Method("svd", "a low rank of the unfolded weight of every convolution but the stem, task norms and head", Unfolded),
    Method("tucker", "a core and three factors on every convolution but the stem, task norms and head", Tucker),
]
