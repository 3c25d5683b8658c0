"""DMTRL with Tucker's factorisation (Yang & Hospedales, ICLR 2017)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zoo.errors import extra
from zoo.joint.stacked import Array, Factors, Size, Stacked, bounded


class Tucker(Factors):
    """`W_t = S ×_1 U_1 ×_2 U_2 … · u_t`: a core S, a matrix U_k (d_k, R_k) for each mode, a vector for each task."""

    def __init__(self, size: Size, tasks: int, rank: int) -> None:
        super().__init__(size, tasks, rank)
        *ranks, last = bounded(rank, [*size, tasks])
        self.ranks = ranks
        self.core = nn.Parameter(torch.empty(math.prod(ranks), last))
        self.matrices = nn.ParameterList(torch.empty(d, r) for d, r in zip(size, ranks, strict=True))

    @property
    def own_length(self) -> int:
        return self.core.shape[-1]

    def close(self, own: Tensor) -> Tensor:
        weight = (self.core @ own).view(self.ranks)
        for matrix in self.matrices:  # the first mode is taken off, and its product put last
            weight = torch.tensordot(weight, matrix, ([0], [1]))
        return weight

    def fill(self, stack: Array) -> Array:
        with extra("rings", "Beginning with factors of trained networks"):
            import tensorly
            from tensorly.decomposition import tucker

        with tensorly.backend_context("numpy", local_threadsafe=True):
            core, matrices = tucker(stack, [*self.ranks, self.own_length])
        for own, found in zip([self.core, *self.matrices], [core, *matrices[:-1]], strict=True):
            own.data.copy_(torch.from_numpy(found.copy()).view_as(own))
        vectors: Array = matrices[-1]
        return vectors

    def reset(self, variance: float) -> float:
        parts = len(self.size) + 2
        deviation = math.sqrt((variance / self.core.numel()) ** (1 / parts))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=deviation)
        return deviation


class DMTRLTucker(Stacked):
    """The stacked weights in Tucker's form; all but a vector per layer is shared."""

    name, summary = "dmtrl_tucker", "stacked weights in Tucker's form, a vector per layer and task"
    factors = Tucker


SHARING = DMTRLTucker
