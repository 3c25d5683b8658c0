"""A 1×1 layer under `W + U V`, whose thin factors get their gradients without that of the whole weight.

With x as rows (N, C_in) and the output's gradient as rows G (N, C_out), autograd makes `dW = Gᵀ x`, and of it
`dU = dW Vᵀ` and `dV = Uᵀ dW`. The same are `dU = Gᵀ (x Vᵀ)` and `dV = (G U)ᵀ x`: four products with R columns, in
place of one of C_in C_out N multiply-adds.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Stride = tuple[int, int] | None  # of a convolution; None: a Linear layer


def suits(layer: Any, x: Tensor) -> bool:
    """Whether a layer is a Linear one, or a 1×1 convolution of a batch without groups and padding."""
    if x.is_meta:
        return False
    if isinstance(layer, nn.Conv2d):
        alone = layer.kernel_size == (1, 1) and layer.groups == 1 and layer.padding in ((0, 0), "valid", "same")
        return alone and x.ndim == 4
    return isinstance(layer, nn.Linear)


def pointwise(x: Tensor, layer: Any, weight: Tensor, bias: Tensor | None, up: Tensor, down: Tensor) -> Tensor:
    """What a layer that suits makes of `x`; gradients go to `x`, `up` and `down` alone, and there are no second ones.

    Args:
        weight: the layer's own plus `up @ down`, in the shape that the layer stores.
        up, down: (C_out, R) and (R, C_in).
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:  # which autocast leaves alone
        narrow = torch.get_autocast_dtype(kind)
        x, weight, up, down = (each.to(narrow) for each in (x, weight, up, down))
        bias = None if bias is None else bias.to(narrow)
    stride = layer.stride if isinstance(layer, nn.Conv2d) else None
    given = x.reshape(-1, x.shape[-1]) if stride is None else x
    with torch.autocast(kind, enabled=False):
        made: Tensor = _Pointwise.apply(given, weight, bias, up, down, stride)
    return made.view(*x.shape[:-1], -1) if stride is None else made


class _Pointwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, up: Tensor, down: Tensor, stride: Stride
    ) -> Tensor:
        ctx.save_for_backward(x, weight, up, down)
        ctx.stride = stride
        return F.linear(x, weight, bias) if stride is None else F.conv2d(x, weight, bias, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, up, down = ctx.saved_tensors
        stride, kind, to_x = ctx.stride, grad.device.type, None
        seen = x if stride in (None, (1, 1)) else x[:, :, :: stride[0], :: stride[1]]
        planes = stride is not None and not seen.is_contiguous(memory_format=torch.channels_last)
        with torch.autocast(kind, enabled=False):
            if ctx.needs_input_grad[0]:
                to_x = grad @ weight if stride is None else _to_input(grad, x, weight, stride)
            if planes:
                to_up, to_down = _of_planes(seen.flatten(2), grad.flatten(2), up, down)
            else:
                to_up, to_down = _of_rows(_rows(seen, stride), _rows(grad, stride), up, down)
        return to_x, None, None, to_up, to_down, None


def _to_input(grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int]) -> Tensor:
    wanted = [True, False, False]  # of the input, the weight and the bias
    found: Tensor = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, (0, 0), (1, 1), False, (0, 0), 1, wanted
    )[0]
    return found


def _rows(x: Tensor, stride: Stride) -> Tensor:
    """The vectors at all places, as rows: a view, where channels lie last."""
    return (x if stride is None else x.permute(0, 2, 3, 1)).reshape(-1, x.shape[-1 if stride is None else 1])


def _of_rows(x: Tensor, grad: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of up and down, from rows (N, C_in) and (N, C_out); products with R rows are the quick ones."""
    return ((down @ x.T) @ grad).T, (up.T @ grad.T) @ x


def _of_planes(x: Tensor, grad: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same from images (B, C_in, P) and (B, C_out, P), whose channels do not lie last."""
    return ((down @ x) @ grad.mT).sum(0).T, ((up.T @ grad) @ x.mT).sum(0)
