"""ΔW of low matrix rank: LoRA, and FTN on the projections of attention (FTN, Section 3.2)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.catalog.options import check_rank
from zoo.errors import OptionError
from zoo.increments.base import FrozenLayer, Method, RowIncrement, role_of
from zoo.increments.forms import weight_of


class Factors(nn.Module):
    """The factors of one part of a layer's weight, as a matrix `up @ down`."""

    def matrices(self) -> tuple[Tensor, Tensor]:
        """up (rows, R) and down (R, columns)."""
        raise NotImplementedError


class LowRank(RowIncrement):
    """`ΔW = α/R · up @ down` on the weight (C_out, C_in k²), or on each of some blocks of its rows.

    A plain layer computes `α/R · up(down(x))` beside the frozen output.

    Args:
        rank: R, at least 1.
        alpha: α; None: R, so that the factor is 1.
    """

    def __init__(self, layer: nn.Module, rank: int, alpha: float | None = None) -> None:
        super().__init__(layer)
        check_rank("rank", rank)
        number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
        if alpha is not None and not (number and 0 < alpha < math.inf):
            raise OptionError(f"alpha must be a finite number greater than 0, not {alpha!r}.")
        self.scale = 1.0 if alpha is None else alpha / rank
        self.parts = nn.ModuleDict({kind: self.make(layer, kind, rows, rank) for kind, rows in self.rows.items()})

    def make(self, layer: nn.Module, kind: str, rows: slice, rank: int) -> Factors:
        """Fresh factors for some rows of the layer's weight."""
        raise NotImplementedError

    def part(self, kind: str) -> Tensor:
        up, down = self._of(kind)
        return self.scale * up @ down

    def low_rank(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The parts together: each has R columns of `up`, zero outside its rows, and R rows of `down`."""
        rows = len(weight)
        ups, downs = zip(*(self._of(kind) for kind in self.rows), strict=True)
        padded = [
            up if len(up) == rows else F.pad(up, (0, 0, part.start, rows - part.stop))
            for up, part in zip(ups, self.rows.values(), strict=True)
        ]
        return self.scale * torch.cat(padded, 1), torch.cat(downs)

    def forward(self, x: Tensor, layer: FrozenLayer) -> Tensor:
        beside = layer.groups == 1 if isinstance(layer, nn.Conv2d) else isinstance(layer, nn.Linear) and x.ndim > 1
        if not layer.has_standard_forward or not beside:
            return super().forward(x, layer)
        up, down = (matrix.to(x.dtype) for matrix in self.low_rank(layer.frozen_weight))
        if isinstance(layer, nn.Conv2d):
            seen = layer.run(x, down.view(-1, *layer.frozen_weight.shape[1:]))  # (B, parts·R, H', W')
            return layer.run(x) + F.conv2d(seen, up[:, :, None, None])
        seen, outputs = F.linear(x, down), layer.run(x)  # (…, parts·R), (…, C_out)
        return torch.addmm(outputs.flatten(0, -2), seen.flatten(0, -2), up.T).view_as(outputs)

    def _of(self, kind: str) -> tuple[Tensor, Tensor]:
        factors = self.parts[kind]
        assert isinstance(factors, Factors)
        return factors.matrices()


class Pair(Factors):
    """LoRA's `B @ A` (Hu et al., ICLR 2022): A (R, columns) starts as torch's layers do, B (rows, R) at zero."""

    def __init__(self, rows: int, columns: int, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, columns))
        self.b = nn.Parameter(torch.zeros(rows, rank))
        nn.init.kaiming_uniform_(self.a, a=5**0.5)

    def matrices(self) -> tuple[Tensor, Tensor]:
        return self.b, self.a


class LoRA(LowRank):
    """`ΔW = α/R · B A` on the query and value weights, or on any whole layers."""

    def make(self, layer: nn.Module, kind: str, rows: slice, rank: int) -> Factors:
        return Pair(rows.stop - rows.start, weight_of(layer)[0].numel(), rank)


class HeadFactors(Factors):
    """A projection as a tensor (d_model, d, n) in CP form, `Σ_r model_r ⊗ dim_r ⊗ head_r` (FTN, Section 3.2).

    It has `R (d_model + d + n)` parameters, which start as N(0, 0.05²). As a matrix it has rank R at most: the (n·d, R)
    matrix of the products `head_r[h] · dim_r[j]`, times `modelᵀ`.

    Args:
        model, dim, heads: d_model, d and n.
        output: whether the heads are the columns of the weight, as the output projection has it, not the rows.
    """

    def __init__(self, model: int, dim: int, heads: int, rank: int, output: bool) -> None:
        super().__init__()
        self.model = nn.Parameter(torch.empty(model, rank))
        self.dim = nn.Parameter(torch.empty(dim, rank))
        self.head = nn.Parameter(torch.empty(heads, rank))
        self.output = output
        for factor in self.parameters():
            nn.init.normal_(factor, std=0.05)

    def matrices(self) -> tuple[Tensor, Tensor]:
        heads = (self.head[:, None] * self.dim).flatten(0, 1)  # (n·d, R)
        return (self.model, heads.T) if self.output else (heads, self.model.T)


class HeadCP(LowRank):
    """FTN on projections of attention: one CP increment of rank R for each, scaled by α/R."""

    def make(self, layer: nn.Module, kind: str, rows: slice, rank: int) -> Factors:
        height, width, heads = rows.stop - rows.start, weight_of(layer).shape[1], role_of(layer).heads
        output = kind == "output"
        inner, model = (width, height) if output else (height, width)
        if heads < 1 or inner % heads:
            raise OptionError(
                f"{inner} dimensions of the {kind} projection are no whole number for each of {heads} heads."
            )
        return HeadFactors(model, inner // heads, heads, rank, output)


class QueryValueCP(HeadCP):
    """FTN(Q&V) of Table 3: α is 10."""

    def __init__(self, layer: nn.Module, rank: int, alpha: float = 10.0) -> None:
        super().__init__(layer, rank, alpha)


class OutputCP(HeadCP):
    """FTN(O) of Table 3: α is 100."""

    def __init__(self, layer: nn.Module, rank: int, alpha: float = 100.0) -> None:
        super().__init__(layer, rank, alpha)


METHODS = [
    Method("ftn_qv", "rank-R factors over the heads of each query and value weight", increment=QueryValueCP,
           norms=False, projections=("query", "value"), whole=False),
    Method("ftn_o", "rank-R factors over the heads of each output projection of attention", increment=OutputCP,
           norms=False, projections=("output",), whole=False),
    Method("lora", "low-rank matrices on query and value weights, or on any layers", increment=LoRA,
           norms=False, projections=("query", "value")),
]  # fmt: skip
