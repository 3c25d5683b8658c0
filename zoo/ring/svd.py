"""Dense layers brought into tensor-ring format (TR-SVD: Zhao et al., *Tensor Ring Decomposition*, 2016)."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import OptionError, extra
from zoo.models.composed import LAYERS, weight_of
from zoo.ring.cores import Shape
from zoo.ring.layers import Modes, RingLayer, chosen_modes


def ring_svd(matrix: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    """Cores of these shapes whose ring approximates `matrix` (∏M_k, ∏N_k), by successive truncated SVDs.

    The first unfolding bounds R_1 R_2 by M_1 N_1. Where the shapes ask for more, smaller ranks are taken and the cores
    filled up with zeros: R_1 the one with which R_1 R_2 is largest.
    """
    with extra("rings", "Bringing a layer into tensor-ring format"):
        import tensorly  # slow to import
        from tensorly.decomposition import tensor_ring

    sizes = [m * n for _, m, n, _ in shapes]
    if len(shapes) == 1:
        raise OptionError("A ring of one core holds a whole matrix; TR-SVD needs two cores at least.")
    count = len(shapes)
    tensor = matrix.detach().double().cpu().reshape([m for _, m, _, _ in shapes] + [n for _, _, n, _ in shapes])
    paired = tensor.permute([axis for k in range(count) for axis in (k, count + k)])  # M_1, N_1, M_2, N_2, …
    wanted = [shape[0] for shape in shapes]
    most = min(sizes[0], math.prod(sizes[1:]))
    first = max(range(1, min(wanted[0], most) + 1), key=lambda r: (r * min(wanted[1], most // r), -abs(r * r - most)))
    ranks = [first, min(wanted[1], most // first), *wanted[2:], first]
    with tensorly.backend_context("numpy", local_threadsafe=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorly's doubts about rings of two cores
        factors = tensor_ring(paired.reshape(sizes).numpy(), ranks)
    found = [torch.from_numpy(factor.copy()) for factor in factors]
    return [_filled_up(core, shape).float() for core, shape in zip(found, shapes, strict=True)]


def _filled_up(core: Tensor, shape: Shape) -> Tensor:
    """A core (r, M N, r') as (R, M, N, R'), zeros in what it lacks."""
    left, _, right = core.shape
    return F.pad(core, (0, shape[3] - right, 0, 0, 0, shape[0] - left)).view(shape)


def to_ring(
    layer: nn.Module, ranks: int | Sequence[int], modes: Modes | None = None, cores: int = 4
) -> tuple[RingLayer, float]:
    """A trained Linear, Conv2d or LSTM layer in tensor-ring format, and the relative error ‖W − ring‖ / ‖W‖.

    Args:
        modes: of inputs and outputs; by default balanced ones for so many `cores`.

    Raises:
        OptionError: the modes do not come to the layer's size, or the layer cannot be brought into the format.
    """
    weight = weight_of(layer).detach()
    made = RingLayer.kind(layer).like(layer, modes or chosen_modes(layer, cores), ranks)
    for own, found in zip(made.ring.own.values(), ring_svd(_matrix(weight), made.ring.shapes), strict=True):
        own.data.copy_(found.view_as(own))
    error = (weight - made.weight().detach()).norm() / weight.norm().clamp(min=1e-12)
    return copy.deepcopy(made), float(error)


def _matrix(weight: Tensor) -> Tensor:
    """A weight in torch's layout as the matrix of a ring: (h·i, w·o) of a kernel."""
    if weight.ndim == 2:
        return weight.T
    return weight.permute(2, 1, 3, 0).reshape(weight.shape[2] * weight.shape[1], -1)


def convert(
    network: nn.Module, ranks: int | Sequence[int], cores: int = 4, modes: Mapping[str, Modes] | None = None
) -> tuple[nn.Module, dict[str, float]]:
    """A copy of a network with its layers in tensor-ring format, and the relative error of each by its path.

    Args:
        modes: by path, of the layers to convert. By default all Linear, Conv2d and LSTM layers but the first
            convolution, if there is one, and the last layer, with balanced modes.
    """
    made, errors = copy.deepcopy(network), {}
    layers = {path: layer for path, layer in made.named_modules() if type(layer) in LAYERS}
    stem = [path for path, layer in layers.items() if isinstance(layer, nn.Conv2d)][:1]
    chosen = [path for path in list(layers)[:-1] if path not in stem] if modes is None else list(modes)
    for path in chosen:
        if path not in layers:
            raise OptionError(f"{path!r} is no Linear, Conv2d or LSTM layer; such are {', '.join(layers)}.")
        ring, errors[path] = to_ring(layers[path], ranks, (modes or {}).get(path), cores)
        made.set_submodule(path, ring)
    return made, errors
