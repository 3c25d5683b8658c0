"""Residual adapters in parallel and in series (Rebuffi, Bilen, Vedaldi, CVPR 2018, Section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import OptionError
from zoo.increments.base import FrozenLayer, Increment, Method, role_of
from zoo.increments.by_row import Behind, Beside, Way, stack, thin_cost
from zoo.increments.forms import Convolution, TransposedConvolution, channel_axis, weight_of


class Parallel(Increment):
    """`y = f * x + diag_1(α) * x`: a 1×1 filter bank beside each filter bank, ΔW = diag_L(α) (Section 3.1.2).

    α (C_out, C_in / groups) starts at zero, where the network is the backbone.

    Args:
        rank: K of the low-rank form α = β γᵀ (Section 3.4), β (C_out, K) and γ (C_in / groups, K); None: α itself.
        dropout: probability of dropping a channel of the adapter's input, in the second convolution of each block only
            (Section 3.3).

    Raises:
        OptionError: the kernel has an even side, and so no centre; or an option out of range.
    """

    def __init__(self, layer: nn.Module, rank: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        weight = weight_of(layer)
        if any(side % 2 == 0 for side in weight.shape[2:]):
            sides = "×".join(map(str, weight.shape[2:]))
            raise OptionError(f"A parallel adapter sits on the centre of a kernel; one of {sides} has none.")
        if not 0 <= dropout < 1 or (rank is not None and rank < 1):
            raise OptionError(f"Parallel adapters need rank >= 1 and 0 <= dropout < 1, not {rank} and {dropout}.")
        self.dropout = dropout if role_of(layer).second_of_block else 0.0
        if self.dropout and isinstance(layer, TransposedConvolution):
            raise OptionError("A parallel adapter drops no channels of a transposed convolution.")
        c_out, c_in = weight.shape[:2]
        self.alpha = nn.Parameter(torch.zeros(c_out, c_in)) if rank is None else None
        self.beta = None if rank is None else nn.Parameter(torch.zeros(c_out, rank))
        self.gamma = None if rank is None else nn.Parameter(torch.empty(c_in, rank))
        if self.gamma is not None:
            nn.init.xavier_uniform_(self.gamma)

    def matrix(self) -> Tensor:
        """α, (C_out, C_in / groups)."""
        if self.alpha is not None:
            return self.alpha
        assert self.beta is not None
        assert self.gamma is not None
        return self.beta @ self.gamma.T

    def delta(self, weight: Tensor) -> Tensor:
        alpha = self.matrix().to(weight.dtype)
        if weight.ndim == 2:
            return alpha
        delta = torch.zeros_like(weight)
        centre: tuple[Any, ...] = tuple(side // 2 for side in weight.shape[2:])
        delta[(slice(None), slice(None), *centre)] = alpha
        return delta

    def forward(self, x: Tensor, layer: FrozenLayer) -> Tensor:
        if not layer.has_standard_forward or (isinstance(layer, Convolution) and not _keeps_its_centre(layer)):
            return super().forward(x, layer)
        alpha = self.matrix().to(x.dtype)
        if not isinstance(layer, Convolution):
            return layer.run(x) + F.linear(x, alpha)
        steps: tuple[Any, ...] = tuple(slice(None, None, step) for step in layer.stride)
        seen = x[(..., *steps)]  # the pixels that the centre meets
        if self.dropout:
            dropped = DROPOUTS[len(layer.kernel_size) - 1](
                seen.view(-1, *seen.shape[channel_axis(layer, seen) :]), self.dropout, self.training
            )
            seen = dropped.view_as(seen)
        return layer.run(x) + pointwise(seen, alpha, layer)

    @classmethod
    def by_row(cls, increments: Sequence[Parallel], layer: Any, positions: int) -> list[Way]:
        if isinstance(layer, Convolution) and not _keeps_its_centre(layer):
            return super().by_row(increments, layer, positions)
        cost = thin_cost(layer.weight, increments[0].matrix().numel(), positions)
        return [Way(cost, lambda: Beside(stack([each.matrix() for each in increments], layer.weight)))]


DROPOUTS = (F.dropout1d, F.dropout2d, F.dropout3d)  # of whole channels


def pointwise(x: Tensor, matrix: Tensor, layer: Convolution) -> Tensor:
    """The channels of `x`, (B, C, …), mixed at each point as a convolution of one tap in `layer.groups` does."""
    dimensions = len(layer.kernel_size)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[dimensions - 1]
    return convolve(x, matrix.view(*matrix.shape, *[1] * dimensions), groups=layer.groups)


def _keeps_its_centre(layer: Convolution) -> bool:
    """Whether the kernel's centre meets the input's pixels from the first on, so that a 1×1 convolution is aligned."""
    if isinstance(layer, TransposedConvolution):
        return False
    if isinstance(layer.padding, str):
        return layer.padding == "same" or math.prod(layer.kernel_size) == 1
    sides = zip(layer.kernel_size, layer.dilation, layer.padding, strict=True)
    return all(padding == dilation * (side - 1) // 2 for side, dilation, padding in sides)


class Series(Increment):
    """`z = BN(y) + diag_1(α) * BN(y)` of the filter bank's output y (Section 3.1.1, Fig. 2a).

    α (C_out, C_out / groups) starts at zero; mixing stays within a group, so that a grouped filter bank stays one. The
    adapter's own batch norm scales each channel by its deviation and a learnt factor, and does not shift: the norm that
    follows would undo any shift. In evaluation mode the whole is the filter bank `(I + α) diag(s) f`, without
    inverting anything, and at the start, where α = 0 and s = 1, it is f bit for bit.
    """

    normalises = True
    variance: Tensor

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        if not getattr(layer, "has_standard_forward", True):
            raise OptionError(
                "A series adapter needs a layer whose weight is used as it is; this one has its own forward."
            )
        c_out = len(weight_of(layer))
        self.groups = getattr(layer, "groups", 1)
        self.alpha = nn.Parameter(torch.zeros(c_out, c_out // self.groups))
        self.scale = nn.Parameter(torch.ones(c_out))
        self.register_buffer("variance", torch.ones(c_out))  # running, of the filter bank's output
        self.momentum, self.eps = 0.1, 1e-5

    def delta(self, weight: Tensor) -> Tensor:
        return self.applied(weight, None)[0] - weight

    def applied(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        factor = self._factor(self.variance).to(weight.dtype)
        own = self._mixed(factor.view(-1, *[1] * (weight.ndim - 1)) * weight)
        return own, None if bias is None else self._mixed(factor * bias)

    def forward(self, x: Tensor, layer: FrozenLayer) -> Tensor:
        if not self.training:
            return super().forward(x, layer)
        y = layer.run(x)  # (B, C, H, W) or (…, C)
        channel = channel_axis(layer, y)
        shape = [-1 if axis == channel else 1 for axis in range(y.ndim)]
        variance = y.float().var([axis for axis in range(y.ndim) if axis != channel], correction=0)
        with torch.no_grad():
            self.variance.lerp_(variance.detach().to(self.variance.dtype), self.momentum)
        y = y * self._factor(variance).to(y.dtype).view(shape)
        alpha = self.alpha.to(y.dtype)
        return y + (pointwise(y, alpha, layer) if isinstance(layer, Convolution) else F.linear(y, alpha))

    @classmethod
    def by_row(cls, increments: Sequence[Series], layer: Any, positions: int) -> list[Way]:
        cost = thin_cost(layer.weight, increments[0].alpha.numel(), positions)
        return [Way(cost, lambda: Behind(stack([each._matrix() for each in increments], layer.weight)))]

    def _matrix(self) -> Tensor:
        """(I + α) diag(s), (C, C / groups): what evaluation mode makes of the filter bank's output."""
        across = self.alpha.shape[1]
        whole = self.alpha + torch.eye(across).to(self.alpha).repeat(self.groups, 1)
        by_group = torch.unflatten(whole, 0, (self.groups, -1)) * self._factor(self.variance).view(self.groups, 1, -1)
        return by_group.flatten(0, 1)

    def _factor(self, variance: Tensor) -> Tensor:
        return self.scale / variance.clamp(min=self.eps).sqrt()

    def _mixed(self, value: Tensor) -> Tensor:
        """(I + α) applied to the first dimension, group by group."""
        grouped = value.reshape(self.groups, -1, value[0].numel())  # (g, C / g, n)
        alpha = self.alpha.to(value.dtype).view(self.groups, -1, self.alpha.shape[1])  # (g, C / g, C / g)
        return value + (alpha @ grouped).view_as(value)


class Basis(nn.Module):
    """β of Eq. 1, (C_out, K), which the domains of a layer share.

    Args:
        rank: K, or the layer's output channels where they are fewer; None: half of them.
    """

    def __init__(self, layer: nn.Module, rank: int | None = None) -> None:
        super().__init__()
        c_out = len(weight_of(layer))
        rank = max(1, c_out // 2) if rank is None else rank
        if rank < 1:
            raise OptionError(f"The rank must be at least 1, not {rank}.")
        self.beta = nn.Parameter(torch.zeros(c_out, min(rank, c_out)))


class SharedParallel(Parallel):
    """A parallel adapter α_t = β γ_tᵀ whose β the domains share; γ_t (C_in / groups, K) is the task's own (Eq. 1).

    γ starts at zero, so that a further domain begins as the backbone. `zoo.compression` makes β and γ of trained
    adapters.
    """

    def __init__(self, layer: nn.Module, rank: int | None = None) -> None:
        super().__init__(layer)
        basis = layer.get_submodule("shared")
        assert isinstance(basis, Basis)
        self.alpha = None
        self.gamma = nn.Parameter(torch.zeros(weight_of(layer).shape[1], basis.beta.shape[1]))
        self._basis = [basis]  # in a list, for it is no part of the task

    def matrix(self) -> Tensor:
        assert self.gamma is not None
        return self._basis[0].beta @ self.gamma.T


METHODS = [
    Method("parallel", "a 1×1 filter bank beside each convolution", increment=Parallel, linear=False),
    Method("series", "a 1×1 filter bank and a norm behind each convolution", increment=Series, linear=False),
    Method("parallel_svd", "parallel adapters in a basis that all tasks share", increment=SharedParallel,
           linear=False, shared=Basis),
]  # fmt: skip
