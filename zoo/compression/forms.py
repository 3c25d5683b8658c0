"""A given ΔW brought into a form: the factors of an increment that come near to it (FTN, Appendix E)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from zoo.errors import OptionError, extra
from zoo.increments.base import Increment
from zoo.increments.cp import CP
from zoo.increments.decomposed import TensorTrain, Tucker, Unfolded

FORMS = {"cp": "ftn", "tt": "tt", "svd": "svd", "tucker": "tucker"}  # and the methods whose increments have them
STARTS, ITERATIONS, TOLERANCE = 3, 300, 1e-8  # of ALS; it ends where the relative error changes by less
IDLE = 1e-6  # of what the largest component adds: less is rounding
OUTWARD: dict[type, str] = {TensorTrain: "middle"}  # the factor of output channels, where it is called otherwise
Array = npt.NDArray[np.float64]


def fill(increment: Increment, delta: Tensor) -> tuple[float, float]:
    """Set the factors of an increment to what comes near to ΔW (C_out, C_in, …), in double precision.

    Returns:
        ‖ΔW‖, and ‖ΔW − factors‖ / ‖ΔW‖.
    """
    whole = delta.double().reshape(*delta.shape[:2], -1)  # (C_out, C_in, k²)
    if not whole.any():  # the factors stay such as training can begin with
        increment.get_parameter(OUTWARD.get(type(increment), "out_factor")).data.zero_()
        return 0.0, 0.0
    if isinstance(increment, CP):
        found = _cp(whole, increment.rank)
    elif isinstance(increment, Unfolded):
        found = _unfolded(increment, whole)
    elif isinstance(increment, TensorTrain):
        found = _train(increment, whole)
    elif isinstance(increment, Tucker):
        found = _tucker(increment, whole)
    else:
        raise OptionError(f"No ΔW can be brought into the form of {type(increment).__name__}.")
    if isinstance(increment, CP | Unfolded):
        _begin(increment, found)
    for name, factor in found.items():
        increment.get_parameter(name).data.copy_(factor)
    with torch.no_grad():
        missed = whole - increment.delta(delta.double()).reshape(whole.shape)
    norm = float(whole.norm())
    return norm, float(missed.norm()) / norm


def _begin(increment: Increment, found: dict[str, Tensor]) -> None:
    """Let components that add nothing be such as training can begin with: zero at the output channels alone."""
    sizes = torch.stack([each.norm(dim=0 if name == "out_factor" else 1) for name, each in found.items()]).prod(0)
    idle = sizes <= IDLE * sizes.max()
    for name, factor in found.items():
        if name == "out_factor":
            factor[:, idle] = 0
        else:
            factor[idle] = increment.get_parameter(name).detach()[idle].to(factor)


def largest(form: str, shape: Sequence[int]) -> int:
    """The rank at which a form has any ΔW (C_out, C_in, …) exactly."""
    c_out, c_in, *kernel = shape
    taps, high = math.prod(kernel), kernel[0] if kernel else 1
    if form == "svd":
        return min(c_out * high, c_in * taps // high)
    if form == "tt":
        return max(min(taps, c_out * c_in), min(c_in, taps * c_out))
    if form == "tucker":
        return max(min(own, taps * c_out * c_in // own) for own in (taps, c_out, c_in))
    return min(c_out * c_in, c_out * taps, c_in * taps)


def unfolded(delta: Tensor) -> Tensor:
    """ΔW (C_out, C_in, …) as the matrix of "svd": C_out by the kernel's first side, C_in by its others."""
    c_out, c_in, *kernel = delta.shape
    split = delta.reshape(c_out, c_in, kernel[0] if kernel else 1, -1)
    return split.transpose(1, 2).reshape(c_out * split.shape[2], -1)


def matrix_of(form: str, delta: Tensor) -> Tensor | None:
    """ΔW (C_out, C_in, …) as the matrix whose singular values say what a form loses at each rank; None if none does."""
    c_out, c_in, taps = len(delta), delta.shape[1], delta[0, 0].numel()
    if form == "svd":
        return unfolded(delta)
    return delta.reshape(c_out, -1) if taps == 1 or (form == "cp" and c_in == 1) else None


def _unfolded(increment: Unfolded, whole: Tensor) -> dict[str, Tensor]:
    matrix = unfolded(whole.view(increment.c_out, increment.c_in, *increment.kernel))
    up, down = _matrix(matrix, increment.in_factor.shape[0])
    return {"out_factor": up, "in_factor": down}


def _matrix(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest product (rows, R) by (R, columns), each with its share of the singular values; zeros beyond them."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values, missing = values[:rank].sqrt(), max(0, rank - len(values))
    up, down = left[:, :rank] * values, values[:, None] * right[:rank]
    return nn.functional.pad(up, (0, missing)), nn.functional.pad(down, (0, 0, 0, missing))


def _train(increment: TensorTrain, whole: Tensor) -> dict[str, Tensor]:
    with extra("rings", "A tensor train"):
        import tensorly
        from tensorly.decomposition import tensor_train

    ranks = [1, increment.first.shape[1], increment.last.shape[0], 1]
    with tensorly.backend_context("numpy", local_threadsafe=True):
        cores = tensor_train(_modes(whole), ranks).factors
    first, middle, last = (torch.from_numpy(np.array(core)) for core in cores)
    return {"first": first[0], "middle": middle, "last": last[..., 0]}


def _tucker(increment: Tucker, whole: Tensor) -> dict[str, Tensor]:
    with extra("rings", "Tucker's form"):
        import tensorly
        from tensorly.decomposition import tucker

    with tensorly.backend_context("numpy", local_threadsafe=True):
        core, factors = tucker(_modes(whole), list(increment.core.shape), n_iter_max=ITERATIONS, tol=TOLERANCE)
    taps, out, in_ = (torch.from_numpy(np.array(factor)) for factor in factors)
    return {"core": torch.from_numpy(np.array(core)), "taps_factor": taps, "out_factor": out, "in_factor": in_}


def _cp(whole: Tensor, rank: int) -> dict[str, Tensor]:
    if whole.shape[2] == 1:
        up, down = _matrix(whole[..., 0], rank)
        return {"out_factor": up, "in_factor": down, "spatial_factor": whole.new_ones(rank, 1)}
    if whole.shape[1] == 1:  # a depthwise convolution's
        up, down = _matrix(whole[:, 0], rank)
        return {"out_factor": up, "in_factor": whole.new_ones(rank, 1), "spatial_factor": down}
    modes = _modes(whole)
    taps, out, in_ = _exactly(modes, rank) or _alternating(modes, rank)
    return {"out_factor": out, "in_factor": in_.T, "spatial_factor": taps.T}


def _exactly(modes: Array, rank: int) -> list[Tensor] | None:
    """The factors of a tensor that has no more fibres along its longest mode than there are components."""
    longest = int(np.argmax(modes.shape))
    others = [size for mode, size in enumerate(modes.shape) if mode != longest]
    if math.prod(others) > rank:
        return None
    fibres = torch.from_numpy(np.moveaxis(modes, longest, 0).reshape(modes.shape[longest], -1).copy())
    places = [torch.eye(others[0]).repeat_interleave(others[1], 1), torch.eye(others[1]).repeat(1, others[0])]
    places.insert(longest, fibres)
    return _balanced([nn.functional.pad(each.double(), (0, rank - each.shape[1])) for each in places])


def _alternating(modes: Array, rank: int) -> list[Tensor]:
    """The best of several runs of alternating least squares."""
    with extra("rings", "FTN's form of a ΔW"):
        import tensorly
        from tensorly.decomposition import parafac

    best: list[Array] = []
    least = np.inf
    with tensorly.backend_context("numpy", local_threadsafe=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a rank is above a mode's size, which tensorly then fills at random
        for start in range(STARTS):
            try:
                (_, factors), errors = parafac(
                    modes, rank, n_iter_max=ITERATIONS, tol=TOLERANCE, init="random" if start else "svd",
                    random_state=start, return_errors=True,
                )  # fmt: skip
            except np.linalg.LinAlgError:  # two components that are one
                continue
            if errors[-1] < least:
                best, least = factors, errors[-1]
    if not best:  # of no start: the ΔW has fewer components
        return [nn.functional.pad(each, (0, 1)) for each in _alternating(modes, rank - 1)]
    return _balanced([torch.from_numpy(np.array(factor)) for factor in best])


def _balanced(factors: list[Tensor]) -> list[Tensor]:
    """The same outer products, the three vectors of each of one length: none is huge beside another."""
    norms = torch.stack([factor.norm(dim=0) for factor in factors])
    return [f / norm.clamp(min=1e-30) * norms.prod(0) ** (1 / 3) for f, norm in zip(factors, norms, strict=True)]


def _modes(whole: Tensor) -> Array:
    """(k², C_out, C_in), the order of the paper."""
    return whole.permute(2, 0, 1).cpu().numpy()
