"""DMTRL with the tensor-train factorisation (Yang & Hospedales, ICLR 2017)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zoo.errors import extra
from zoo.joint.stacked import Array, Factors, Size, Stacked


class Train(Factors):
    """`W_t[i_1, i_2, …] = G_1[i_1] G_2[i_2] … g_t`: cores G_k (R_k, d_k, R_{k+1}), R_1 = 1, a vector for each task."""

    def __init__(self, size: Size, tasks: int, rank: int) -> None:
        super().__init__(size, tasks, rank)
        whole = [*size, tasks]
        sides = [(math.prod(whole[:k]), math.prod(whole[k:])) for k in range(len(whole) + 1)]
        self.ranks = [min(rank, *pair) for pair in sides]  # 1 at both ends
        shapes = zip(self.ranks, size, self.ranks[1:], strict=False)
        self.cores = nn.ParameterList(torch.empty(shape) for shape in shapes)

    @property
    def own_length(self) -> int:
        return self.ranks[-2]

    def close(self, own: Tensor) -> Tensor:
        weight = own  # from the end to the beginning: the products stay small
        for core in reversed(list(self.cores)):
            weight = torch.tensordot(core, weight, 1)
        return weight[0]

    def fill(self, stack: Array) -> Array:
        with extra("rings", "Beginning with factors of trained networks"):
            import tensorly
            from tensorly.decomposition import tensor_train

        with tensorly.backend_context("numpy", local_threadsafe=True):
            found = list(tensor_train(stack, self.ranks))
        for core, given in zip(self.cores, found, strict=False):
            core.data.copy_(torch.from_numpy(given.copy()))
        vectors: Array = found[-1][:, :, 0].T  # (tasks, R_D)
        return vectors

    def reset(self, variance: float) -> float:
        deviation = math.sqrt((variance / math.prod(self.ranks)) ** (1 / (len(self.size) + 1)))
        for core in self.cores:
            nn.init.normal_(core, std=deviation)
        return deviation


class DMTRLTT(Stacked):
    """The stacked weights as a tensor train; all but its last core's vectors is shared."""

    name, summary = "dmtrl_tt", "stacked weights as a tensor train, a vector per layer and task"
    factors = Train


SHARING = DMTRLTT
