"""The layers that have a weight to add to, and the one form in which an increment sees any of these weights.

Torch stores the weight of a convolution as (C_out, C_in / groups, …), that of a transposed one the other way round, as
(C_in, C_out / groups, …). An increment is always given the first form: (C_out, C_in / groups, …), or (C_out, C_in) of a
Linear layer.
"""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
WEIGHTED = (*CONVOLUTIONS, nn.Linear)
Convolution: TypeAlias = _ConvNd  # torch's own bases of these
TransposedConvolution: TypeAlias = _ConvTransposeNd


def form_of(kind: type[nn.Module]) -> type[nn.Module]:
    """Torch's own class that a class of layers is, or descends from."""
    return next(form for form in WEIGHTED if issubclass(kind, form))


def has_standard_forward(kind: type[nn.Module]) -> bool:
    """Whether a class of layers computes what torch's own does."""
    own = ("forward", "_conv_forward", "_output_padding")
    return all(getattr(kind, name, None) is getattr(form_of(kind), name, None) for name in own)


def weight_of(layer: nn.Module) -> Tensor:
    """A layer's own weight, (C_out, C_in / groups, …); a view of it, or the weight itself."""
    stored = layer._parameters["weight"]
    assert stored is not None
    return turned(stored, layer)


def turned(weight: Tensor, layer: nn.Module) -> Tensor:
    """The weight of a layer from the form that torch stores to the one that increments see, or back."""
    if not isinstance(layer, TransposedConvolution):
        return weight
    rows, columns, *taps = weight.shape
    grouped = weight.reshape(layer.groups, rows // layer.groups, columns, *taps)
    return grouped.transpose(1, 2).reshape(layer.groups * columns, rows // layer.groups, *taps)


def channel_axis(layer: object, y: Tensor) -> int:
    """The dimension of a layer's output that holds its channels."""
    return y.ndim - len(layer.kernel_size) - 1 if isinstance(layer, Convolution) else y.ndim - 1
