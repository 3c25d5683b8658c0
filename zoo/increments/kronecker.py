"""KAdaptation: ΔW as a sum of Kronecker products (He et al., AAAI 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.catalog.options import check_rank
from zoo.errors import OptionError
from zoo.increments.base import Increment, Method, RowIncrement
from zoo.increments.forms import weight_of


class Slow(nn.Module):
    """The K matrices A_i of K×K that all layers of a task have in common."""

    def __init__(self, products: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(products, products, products) / products)


class Fast(nn.Module):
    """The K low-rank matrices u_i v_iᵀ of one weight: u (K, rows / K, R), and v (K, columns / K, R) from zero."""

    def __init__(self, rows: int, columns: int, products: int, rank: int) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.randn(products, rows // products, rank) / rank**0.5)
        self.v = nn.Parameter(torch.zeros(products, columns // products, rank))


class Kronecker(RowIncrement):
    """`ΔW = Σ_i A_i ⊗ (u_i v_iᵀ)`, i = 1 … K, on each projection of attention that is adapted, or on a whole layer.

    The slow factors A_i are one set for each kind of projection, shared by all layers of a task and kept with the first
    of them; the fast ones are each weight's own. For L weights of d×d that is `2 L R d + K³` parameters for each kind.

    Args:
        rank: R of the fast factors.
        products: K; it divides the rows and the columns of what is adapted.
        peers: the task's increments to the layers before this one.
    """

    def __init__(self, layer: nn.Module, rank: int, products: int = 4, *, peers: Sequence[Increment] = ()) -> None:
        super().__init__(layer)
        rank, products = check_rank("rank", rank), check_rank("number of products", products)
        weight = weight_of(layer)
        self.fast, self.slow = nn.ModuleDict(), nn.ModuleDict()
        self._slow: dict[str, nn.Module] = {}  # of all kinds; a peer's are no part of this increment
        for kind, rows in self.rows.items():
            height, width = rows.stop - rows.start, weight[0].numel()
            if height % products or width % products:
                raise OptionError(
                    f"{products} products need rows and columns that they divide, not {height} × {width}."
                )
            self.fast[kind] = Fast(height, width, products, rank)
            known = [p._slow[kind] for p in peers if isinstance(p, Kronecker) and kind in p._slow]
            if not known:
                self.slow[kind] = Slow(products)
            self._slow[kind] = known[0] if known else self.slow[kind]

    def part(self, kind: str) -> Tensor:
        fast = self.fast[kind]
        blocks = torch.einsum("iab,ipr,iqr->apbq", self._slow[kind].a, fast.u, fast.v)
        return blocks.flatten(2).flatten(0, 1)


METHODS = [
    Method("kadaptation", "sums of Kronecker products on query and value weights, or on any layers",
           increment=Kronecker, norms=False, projections=("query", "value")),
]  # fmt: skip
