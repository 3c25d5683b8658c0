"""A fine-tuned copy of a network as a small file: each layer's ΔW brought into a form of low rank (FTN, Appendix E)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from zoo.catalog.task import Preprocessing, Task
from zoo.errors import OptionError, WeightsError, extra
from zoo.increments.base import Increment
from zoo.increments.cp import CP
from zoo.increments.decomposed import TensorTrain, Tucker, Unfolded
from zoo.increments.forms import turned
from zoo.loader import adapt
from zoo.models.adapted import TaskModel
from zoo.models.layers import AdaptedLayer

log = logging.getLogger(__name__)
FORMS = {"cp": "ftn", "tt": "tt", "svd": "svd", "tucker": "tucker"}  # and the methods whose increments have them
PREFIXES = "module.", "_orig_mod."  # of names that DataParallel and torch.compile write
STARTS, ITERATIONS, TOLERANCE = 3, 300, 1e-8  # of ALS; it ends where the relative error changes by less
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Layer:
    """What became of the ΔW of one layer."""

    path: str
    parameters: int  # of the factors
    norm: float  # ‖ΔW‖
    error: float  # ‖ΔW − factors‖ / ‖ΔW‖


@dataclass(frozen=True)
class Factorised:
    """A fine-tuned network on its backbone.

    Attributes:
        model: with the one task, whose norms and head are the fine-tuned network's own.
        layers: what was brought into the form.
        left: the norm of each further change, which is left out: of the stem, of biases, of other parameters.
    """

    model: TaskModel
    layers: list[Layer]
    left: dict[str, float]

    @property
    def error(self) -> float:
        """‖ΔW − factors‖ / ‖ΔW‖ over all layers."""
        whole = sum(layer.norm**2 for layer in self.layers)
        return (sum((layer.norm * layer.error) ** 2 for layer in self.layers) / whole) ** 0.5 if whole else 0.0


def factorise(
    tuned: nn.Module | Mapping[str, Tensor], base: nn.Module | str, form: str = "cp", rank: int = 8, *,
    task: str = "task", classes: list[str] | None = None, preprocessing: Preprocessing | None = None, **options: Any,
) -> Factorised:  # fmt: skip
    """Bring a fine-tuned copy of a network to its backbone and a small file, without training.

    ΔW = W_tuned − W_base of each adapted layer becomes factors of a rank: by "svd", of the unfolded weight, and "tt" as
    the singular values have it; by "tucker" and "cp" in iterations, "cp" from several starts. Layers of a 1×1 kernel
    and Linear ones are matrices, and "cp" has those exactly. Training goes on from there like any other.

    Args:
        tuned: the fine-tuned network, or its state dict.
        base: the network that it was fine-tuned from, which stays as it is; or its name, as of `zoo.adapt`.
        form: "cp" (FTN's), "tt", "svd" or "tucker".
        rank: R, at least 1; a layer takes as much of it as it has.
        classes: their names; by default their numbers, of as many as the tuned head has.
        preprocessing: by default the network's own, as of `zoo.adapt`.
        options: `layers`, `norms`, `head` and `placement`, as of `zoo.adapt`.

    Raises:
        OptionError: there is no such form, or the rank or an option is none.
        WeightsError: the two are not of one architecture, or a tensor holds a value that is not finite.
    """
    if form not in FORMS:
        raise OptionError(f"The form is one of {', '.join(FORMS)}, not {form!r}.")
    given = _state(tuned)
    model = adapt(base, {}, FORMS[form], rank=rank, **options)
    model.backbone_among(given, "The fine-tuned network")
    if missing := [f"{head}weight" for head in model.left_aside if f"{head}weight" not in given]:
        raise WeightsError(f"The fine-tuned network has no classifier: {', '.join(missing)} is missing.")
    number = len(given[f"{model.left_aside[0]}weight"])
    model.add_task(Task.of(task, classes or number, preprocessing or Preprocessing.of(model.backbone)))
    own = {name: given[name] for name in model.task_tensors(task) if name in given}
    layers, factors = [], dict[str, Tensor]()
    for path, site in model.sites(task):
        if not isinstance(site, AdaptedLayer):
            continue
        increment = site.tasks[task]
        assert isinstance(increment, Increment)
        frozen = site.frozen_weight
        delta = (turned(given[f"{path}.weight"].to(frozen), site) - frozen).double()
        layers.append(Layer(path, sum(p.numel() for p in increment.parameters()), *fill(increment, delta)))
        log.info("%s: relative error %.3f", path, layers[-1].error)
        factors |= {f"{path}.{name}": tensor for name, tensor in increment.state_dict().items()}
    model.load_task_tensors(task, {**model.task_tensors(task), **own, **factors}, "the fine-tuned network")
    return Factorised(model, layers, _left(model, given, {f"{layer.path}.weight" for layer in layers}))


def fill(increment: Increment, delta: Tensor) -> tuple[float, float]:
    """Set the factors of an increment to what comes near to ΔW (C_out, C_in, …), in double precision.

    Returns:
        ‖ΔW‖, and ‖ΔW − factors‖ / ‖ΔW‖.
    """
    whole = delta.reshape(*delta.shape[:2], -1)  # (C_out, C_in, k²)
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
    for name, factor in found.items():
        increment.get_parameter(name).data.copy_(factor)
    with torch.no_grad():
        missed = delta - increment.delta(delta)
    norm = float(delta.norm())
    return norm, float(missed.norm()) / norm if norm else 0.0


def _unfolded(increment: Unfolded, whole: Tensor) -> dict[str, Tensor]:
    split = whole.view(increment.c_out, increment.c_in, increment.high, increment.wide)
    up, down = _matrix(split.transpose(1, 2).reshape(len(increment.out_factor), -1), increment.in_factor.shape[0])
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
        return {"out_factor": up, "in_factor": down, "spatial_factor": torch.ones(rank, 1)}
    with extra("rings", "FTN's form of a ΔW"):
        import tensorly
        from tensorly.decomposition import parafac

    best, least = None, np.inf
    modes = _modes(whole)
    with tensorly.backend_context("numpy", local_threadsafe=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a rank is above a mode's size, which tensorly then fills at random
        for start in range(STARTS if np.any(modes) else 0):
            (_, factors), errors = parafac(
                modes, rank, n_iter_max=ITERATIONS, tol=TOLERANCE, init="random" if start else "svd",
                random_state=start, return_errors=True,
            )  # fmt: skip
            if errors[-1] < least:
                best, least = factors, errors[-1]
    if best is None:  # nothing changed
        return {"out_factor": torch.zeros(whole.shape[0], rank)}
    taps, out, in_ = _balanced([torch.from_numpy(np.array(factor)) for factor in best])
    return {"out_factor": out, "in_factor": in_.T, "spatial_factor": taps.T}


def _balanced(factors: list[Tensor]) -> list[Tensor]:
    """The same outer products, the three vectors of each of one length: none is huge beside another."""
    norms = torch.stack([factor.norm(dim=0).clamp(min=1e-30) for factor in factors])
    return [factor / norm * norms.prod(0) ** (1 / 3) for factor, norm in zip(factors, norms, strict=True)]


def _modes(whole: Tensor) -> Array:
    """(k², C_out, C_in), the order of the paper."""
    return whole.permute(2, 0, 1).cpu().numpy()


def _state(tuned: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a network by their names in it; raises WeightsError where one is not finite."""
    found = dict(tuned.state_dict() if isinstance(tuned, nn.Module) else tuned)
    while prefix := next((p for p in PREFIXES if found and all(name.startswith(p) for name in found)), None):
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    for name, tensor in found.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise WeightsError(f"The fine-tuned network's {name} holds a value that is not finite.")
    return found


def _left(model: TaskModel, given: Mapping[str, Tensor], taken: set[str]) -> dict[str, float]:
    """The norms of the changes that no task's tensor holds, the largest first."""
    norms = {
        name: float((given[name].to(tensor) - tensor).norm())
        for name, tensor in model.backbone_tensors().items()
        if tensor.is_floating_point() and name in given and name not in taken
    }
    own = {name for task in model.tasks for name in model.task_tensors(task)}
    changed = {name: norm for name, norm in norms.items() if norm and name not in own}
    return dict(sorted(changed.items(), key=lambda item: -item[1]))
