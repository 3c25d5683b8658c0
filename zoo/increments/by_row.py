"""One layer for the rows of several tasks: each row of a batch under its own task's weight, in one pass.

A method says in which of these ways that can be done (`Increment.by_row`), and each layer goes the cheapest. Tensors
of all tasks are stacked, and those of the rows' tasks gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.increments.forms import Convolution, TransposedConvolution, channel_axis

# In multiply-adds of a full convolution, by interleaved timings of single layers (one core, 224 px, batch 8).
GATHER_COST = 25.0  # of copying one number of a row's weight
OUTPUT_COST = 10.0  # of reading and writing one number of the layer's output once more
THIN_COST = 1.5  # of a multiply-add with few channels


class ByRow(nn.Module):
    """A way to run a layer for rows of several tasks."""

    def forward(self, x: Tensor, layer: Any, task: Tensor) -> Tensor:
        """What the layer makes of `x`, (B, …), whose rows are of the tasks of these numbers, (B,).

        Args:
            layer: the frozen one.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Way:
    """What a way to run a layer costs, and how it is made.

    Attributes:
        cost: for one image, in multiply-adds of a full convolution.
        stacked: bytes that it keeps beyond what the tasks' increments have.
        fixes_batch: whether it has a convolution with groups for each row, which no ONNX graph of any batch can have.
    """

    cost: float
    make: Callable[[], ByRow]
    stacked: int = 0
    fixes_batch: bool = False


class Stacked(ByRow):
    """The tasks' own weights, of a Linear layer or a 1×1 convolution: one batched product.

    Args:
        weights: (T, C_out, C_in, …), with nothing but ones behind.
        biases: (T, C_out).
    """

    weights: Tensor
    biases: Tensor | None

    def __init__(self, weights: Tensor, biases: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weights", weights.flatten(2), persistent=False)
        self.register_buffer("biases", biases, persistent=False)

    def forward(self, x: Tensor, layer: Any, task: Tensor) -> Tensor:
        bias = None if self.biases is None else self.biases.index_select(0, task)
        if isinstance(layer, nn.Linear):
            made = _rows(x) @ self.weights.index_select(0, task).mT  # (B, …, C_in) as (B, N, C_in)
            made = made if bias is None else made + bias[:, None]
            return made.view(*x.shape[:-1], -1)
        seen = strided(x, layer)
        made = self.weights.index_select(0, task) @ seen.flatten(2)
        made = made if bias is None else made + bias[:, :, None]
        return torch.unflatten(made, 2, seen.shape[2:])


class StackedConvolution(ByRow):
    """The tasks' own weights, of a convolution of any kernel: one with groups for each row.

    Args:
        weights: (T, C_out, C_in / groups, …).
        biases: (T, C_out).
    """

    weights: Tensor
    biases: Tensor | None

    def __init__(self, weights: Tensor, biases: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weights", weights, persistent=False)
        self.register_buffer("biases", biases, persistent=False)

    def forward(self, x: Tensor, layer: Any, task: Tensor) -> Tensor:
        own = self.weights.index_select(0, task).flatten(0, 1)
        bias = None if self.biases is None else self.biases.index_select(0, task).flatten()
        made = grouped(x.flatten(0, 1)[None], own, bias, layer, len(x) * layer.groups)[0]
        return torch.unflatten(made, 0, (len(x), -1))


class Branch(ByRow):
    """The frozen layer for all rows, and beside it the rows' thin matrices, of a Linear layer or a 1×1 convolution.

    Args:
        ups, downs: (T, C_out, R) and (T, R, C_in); factors of fewer than R are filled up with zeros.
    """

    ups: Tensor
    downs: Tensor

    def __init__(self, ups: Tensor, downs: Tensor) -> None:
        super().__init__()
        self.register_buffer("ups", ups, persistent=False)
        self.register_buffer("downs", downs, persistent=False)

    def forward(self, x: Tensor, layer: Any, task: Tensor) -> Tensor:
        base: Tensor = layer(x)
        if isinstance(layer, nn.Linear):
            beside = _rows(x) @ self.downs.index_select(0, task).mT @ self.ups.index_select(0, task).mT
            return base + beside.view_as(base)
        seen = self.downs.index_select(0, task) @ strided(x, layer).flatten(2)
        return added(base.flatten(2), self.ups.index_select(0, task), seen).view_as(base)


class ConvolutionBranch(ByRow):
    """A frozen Conv2d without groups for all rows, and beside it each row's factors: 1×1, a kernel per channel, 1×1.

    Args:
        outs, ins, spatials: (T, C_out, R), (T, R, C_in) and (T, R, taps).
    """

    outs: Tensor
    ins: Tensor
    spatials: Tensor

    def __init__(self, outs: Tensor, ins: Tensor, spatials: Tensor) -> None:
        super().__init__()
        for name, stack in (("outs", outs), ("ins", ins), ("spatials", spatials)):
            self.register_buffer(name, stack, persistent=False)

    def forward(self, x: Tensor, layer: Any, task: Tensor) -> Tensor:
        base: Tensor = layer(x)
        seen = torch.unflatten(self.ins.index_select(0, task) @ x.flatten(2), 2, x.shape[2:])  # (B, R, H, W)
        taps = self.spatials.index_select(0, task)  # (B, R, k²)
        seen = self._by_taps(seen, taps, layer) if torch.compiler.is_exporting() else self._grouped(seen, taps, layer)
        return added(base.flatten(2), self.outs.index_select(0, task), seen.flatten(2)).view_as(base)

    def _grouped(self, x: Tensor, taps: Tensor, layer: Any) -> Tensor:
        """Each channel of each row under its own kernel, (B, R, H', W')."""
        kernels = taps.reshape(-1, 1, *layer.kernel_size)
        made = grouped(x.reshape(1, -1, *x.shape[2:]), kernels, None, layer, len(kernels))[0]
        return torch.unflatten(made, 0, x.shape[:2])

    def _by_taps(self, x: Tensor, taps: Tensor, layer: Any) -> Tensor:
        """The same, in operations that do not fix the batch: the taps' views of the image, weighed and summed."""
        x = padded(x, layer, always=True)
        views = [view for row in _taps(x, layer, 0) for view in _taps(row, layer, 1)]
        stacked = torch.stack(views, 2)  # (B, R, k², H', W')
        return torch.unflatten(taps[:, :, None] @ stacked.flatten(3), 3, stacked.shape[3:]).squeeze(2)


def _taps(x: Tensor, layer: Any, axis: int) -> list[Tensor]:
    """What each place of a convolution's kernel sees along an axis of a padded input, (…, H, W)."""
    side, step, apart = layer.kernel_size[axis], layer.stride[axis], layer.dilation[axis]
    reach = x.shape[2 + axis] - (side - 1) * apart
    views = [x.narrow(2 + axis, place * apart, reach) for place in range(side)]
    every: Any = (..., slice(None, None, step), *[slice(None)] * (1 - axis))
    return views if step == 1 else [view[every] for view in views]


class Beside(ByRow):
    """The frozen convolution or Linear layer for all rows, and beside it each row's matrix on the pixels it begins at.

    Args:
        matrices: (T, C_out, C_in / groups).
    """

    matrices: Tensor

    def __init__(self, matrices: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrices", matrices, persistent=False)

    def forward(self, x: Tensor, layer: Any, task: Tensor) -> Tensor:
        base: Tensor = layer(x)
        seen = strided(x, layer) if isinstance(layer, Convolution) else x
        return base + channels_mixed(seen, self.matrices.index_select(0, task), layer)


class Behind(ByRow):
    """Each row's matrix on the outputs of the frozen layer.

    Args:
        matrices: (T, C_out, C_out / groups).
    """

    matrices: Tensor

    def __init__(self, matrices: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrices", matrices, persistent=False)

    def forward(self, x: Tensor, layer: Any, task: Tensor) -> Tensor:
        return channels_mixed(layer(x), self.matrices.index_select(0, task), layer)


class Affine(ByRow):
    """Each row's scale and shift of the frozen layer's outputs.

    Args:
        scales: (T, C_out); None: only shifts.
        shifts: (T, C_out).
    """

    scales: Tensor | None
    shifts: Tensor

    def __init__(self, scales: Tensor | None, shifts: Tensor) -> None:
        super().__init__()
        self.register_buffer("scales", scales, persistent=False)
        self.register_buffer("shifts", shifts, persistent=False)

    def forward(self, x: Tensor, layer: Any, task: Tensor) -> Tensor:
        y: Tensor = layer(x)
        axis = channel_axis(layer, y)
        shape = [y.shape[0], *(1 for _ in y.shape[1:axis]), -1, *(1 for _ in y.shape[axis + 1 :])]
        y = y if self.scales is None else y * self.scales.index_select(0, task).view(shape)
        return y + self.shifts.index_select(0, task).view(shape)


def thin_cost(weight: Tensor, own: int, positions: int) -> float:
    """What the frozen layer costs with one matrix of so many numbers for each row before or behind it."""
    return (weight.numel() + own + OUTPUT_COST * len(weight)) * positions + GATHER_COST * own


def stack(tensors: Sequence[Tensor], like: Tensor) -> Tensor:
    """Tensors of all tasks as one, in another's type, apart from any gradient."""
    return torch.stack([tensor.detach().to(like.dtype) for tensor in tensors])


def filled(tensors: Sequence[Tensor], axis: int) -> list[Tensor]:
    """Matrices with zeros behind along an axis, so that all are as long there as the longest."""
    longest = max(tensor.shape[axis] for tensor in tensors)
    found = []
    for tensor in tensors:
        sides = [0, 0] * tensor.ndim
        sides[2 * (tensor.ndim - 1 - axis) + 1] = longest - tensor.shape[axis]
        found.append(F.pad(tensor, sides))
    return found


def is_pointwise(layer: Any) -> bool:
    """Whether a layer is a Linear one, or a 1×1 Conv2d without groups and padding."""
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size == (1, 1) and layer.groups == 1 and layer.padding in ((0, 0), "valid", "same")
    return isinstance(layer, nn.Linear)


def added(base: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`base + a @ b` of batches of matrices, in one step where that exists."""
    return base + a @ b if torch.compiler.is_exporting() else torch.baddbmm(base, a, b)


def strided(x: Tensor, layer: Any) -> Tensor:
    """Of a convolution's input (B, C, …), what stands where each output begins."""
    if all(step == 1 for step in layer.stride):
        return x
    every: Any = (..., *(slice(None, None, step) for step in layer.stride))
    return x[every]


def channels_mixed(x: Tensor, matrices: Tensor, layer: Any) -> Tensor:
    """The channels of each row, (B, C, …) or (B, …, C), mixed by its matrix (B, C', C / groups), group by group."""
    if not isinstance(layer, Convolution):
        return (_rows(x) @ matrices.mT).view(*x.shape[:-1], -1)
    if layer.groups == 1:
        return torch.unflatten(matrices @ x.flatten(2), 2, x.shape[2:])
    by_group = torch.unflatten(x.flatten(2), 1, (layer.groups, -1))  # (B, g, C / g, P)
    made = torch.unflatten(matrices, 1, (layer.groups, -1)) @ by_group
    return torch.unflatten(made.flatten(1, 2), 2, x.shape[2:])


def padded(x: Tensor, layer: Any, always: bool = False) -> Tensor:
    """A convolution's input with its padding, where torch's function would not make it, or always."""
    if layer.padding_mode != "zeros":
        return F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
    return F.pad(x, layer._reversed_padding_repeated_twice) if always else x


def grouped(x: Tensor, weight: Tensor, bias: Tensor | None, layer: Any, groups: int) -> Tensor:
    """A convolution of any dimensions, of the form of a layer, with so many groups."""
    assert not isinstance(layer, TransposedConvolution)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(layer.kernel_size) - 1]
    padding = layer.padding if layer.padding_mode == "zeros" else 0
    return convolve(padded(x, layer), weight, bias, layer.stride, padding, layer.dilation, groups)


def _rows(x: Tensor) -> Tensor:
    """(B, …, C) as (B, N, C)."""
    return x.reshape(x.shape[0], -1, x.shape[-1])
