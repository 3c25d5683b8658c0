"""A fine-tuned copy of a network as a small file: each layer's ΔW brought into a form of low rank (FTN, Appendix E)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.backbones.generator import Generator
from zoo.catalog.options import as_patterns, whole_number
from zoo.catalog.registry import default_registry
from zoo.catalog.task import CLASSIFICATION, Preprocessing, Task
from zoo.compression.forms import FORMS, fill, largest
from zoo.compression.layers import shifts
from zoo.compression.ranks import Choice, Curve, split
from zoo.errors import OptionError, WeightsError
from zoo.increments.base import Increment
from zoo.increments.forms import CONVOLUTIONS, WEIGHTED, turned
from zoo.loader import pretrained_network
from zoo.models.adapted import TaskModel
from zoo.models.frozen import copy_of
from zoo.models.layers import AdaptedLayer
from zoo.models.placement import Placement, heads_of
from zoo.storage.tensors import counters

log = logging.getLogger(__name__)
PREFIXES = "module.", "_orig_mod."  # of names that DataParallel and torch.compile write


@dataclass(frozen=True)
class Layer:
    """What became of the ΔW of one layer."""

    path: str
    rank: int
    parameters: int  # of the factors, and of a bias of the task's own
    norm: float  # ‖ΔW‖
    error: float  # ‖ΔW − factors‖ / ‖ΔW‖


@dataclass(frozen=True)
class Factorised:
    """A fine-tuned network on its backbone.

    Attributes:
        model: with the task, whose norms and head are the fine-tuned network's own.
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
    tuned: nn.Module | Mapping[str, Tensor], base: nn.Module | str, form: str = "cp", rank: int | float = 8, *,
    budget: int | None = None, keep_rest: bool = False, task: str = "task", classes: list[str] | None = None,
    preprocessing: Preprocessing | None = None, **options: Any,
) -> Factorised:  # fmt: skip
    """Bring a fine-tuned copy of a network to its backbone and a small file, without training.

    ΔW = W_tuned − W_base of each adapted layer becomes factors of a rank: by "svd", of the unfolded weight, and "tt" as
    the singular values have it; by "tucker" and "cp" in iterations, "cp" from several starts. Layers of a 1×1 kernel
    and Linear ones are matrices, and "cp" has those exactly. Training goes on from there like any other.

    Args:
        tuned: the fine-tuned network, or its state dict.
        base: the network that it was fine-tuned from, which stays as it is; or its name, as of `zoo.adapt`.
        form: "cp" (FTN's), "tt", "svd" or "tucker".
        rank: R, at least 1, of which a layer takes as much as it has; or a number below 1: the smallest rank in each
            layer that keeps that share of ‖ΔW‖².
        budget: parameters in all; each layer's rank is then what makes the most of them, and `rank` is not asked.
        keep_rest: adapt the stem too, exactly, and keep the layers' own biases; a `budget` is for these too.
        classes: their names; by default their numbers, of as many as the tuned head has.
        preprocessing: by default the network's own, as of `zoo.adapt`.
        options: `layers`, `norms`, `head` and `placement`, as of `zoo.adapt`.

    Raises:
        OptionError: there is no such form, or the rank, the budget or an option is none.
        WeightsError: the two are not of one architecture, or a tensor holds a value that is not finite.
    """
    check_size(rank, budget)
    network = pretrained_network(base, default_registry()) if isinstance(base, str) else copy_of(base)
    model = without_tasks(network, form, keep_rest, **options)
    given = fitting(model, tuned)
    return add_fine_tuned(model, given, ranks_for(model, given, rank, budget, keep_rest), task, classes, preprocessing)


def without_tasks(network: nn.Module, form: str, keep_rest: bool = False, **options: Any) -> TaskModel:
    """A model around a network, for tasks of a form; the arguments are those of `factorise`."""
    if form not in FORMS:
        raise OptionError(f"The form is one of {', '.join(FORMS)}, not {form!r}.")
    if isinstance(network, Generator):
        raise OptionError(f"{type(network).__name__} makes pictures; factorising is for networks with a classifier.")
    if keep_rest:
        if options.get("layers") is not None:
            raise OptionError("keep_rest names all layers itself; leave out layers=….")
        options["layers"] = _all_layers(network, options.get("head"))
    biased = keep_rest and any(network.get_submodule(path).bias is not None for path in options["layers"])
    own = {"rank": 1, "bias": True} if biased else {"rank": 1}
    return TaskModel(network, FORMS[form], own, Placement(**options))


def check_size(rank: Any, budget: int | None) -> None:
    """Raise OptionError unless `rank` is a rank or a share, and `budget` a number of parameters."""
    if budget is not None:
        whole_number("budget", budget)
    elif not isinstance(rank, float):
        whole_number("rank", rank)
    elif not 0 < rank < 1:
        raise OptionError(f"The rank must be a whole number of at least 1, or a share between 0 and 1, not {rank!r}.")


def _all_layers(network: nn.Module, head: str | None = None) -> list[str]:
    """The paths of all layers that can be adapted, the stem among them, the classifier left out."""
    heads = tuple(f"{path}." for path in ([head] if head else heads_of(network)))
    found = [path for path, module in network.named_modules() if isinstance(module, WEIGHTED)]
    return [path for path in found if not f"{path}.".startswith(heads)]


def _stem(model: TaskModel) -> list[str]:
    """The first convolution, which methods leave as it is unless they are told otherwise; none in a network without."""
    return [path for path, site in model.adapted() if issubclass(site.frozen_class, CONVOLUTIONS)][:1]


def add_fine_tuned(
    model: TaskModel, given: Mapping[str, Tensor], ranks: int | Mapping[str, int], task: str,
    classes: list[str] | None = None, preprocessing: Preprocessing | None = None, kind: str = CLASSIFICATION,
) -> Factorised:  # fmt: skip
    """Give a model `without_tasks` one of a fine-tuned copy of its backbone, at one rank or at each layer's.

    Args:
        given: what `fitting` made of the copy.
    """
    number = len(given[f"{model.left_aside[0]}weight"])
    known = Task.of(task, classes or number, preprocessing or Preprocessing.of(model.backbone), kind)
    model.add_task(known, {"rank": ranks})
    try:
        layers = _filled(model, given, task)
        tensors = model.task_tensors(task)
        increments = tuple(f"{path}." for path, _ in model.adapted())
        rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(increments)}
        own = {name: given[name] for name in rest if name in given}
        factors = {name: tensor for name, tensor in tensors.items() if name.startswith(increments)}
        model.load_task_tensors(task, {**counters(rest), **own, **factors}, "the fine-tuned network")
    except BaseException:
        model.remove_task(task)
        raise
    return Factorised(model, layers, _left(model, given, task))


def ranks_for(
    model: TaskModel, given: Mapping[str, Tensor], rank: float, budget: int | None, keep_rest: bool
) -> int | dict[str, int]:
    """The rank of all layers, or each one's as patterns; the arguments are those of `factorise` and `add_fine_tuned`.

    Raises:
        OptionError: the budget is not enough for what is kept in any case, or for a single component.
    """
    sites = dict(model.adapted())
    # A bias of the task's own is part of an increment, which has a component then.
    biased = bool(model.options.get("bias"))
    least = {path: int(biased and bool(_shift(path, site, given).any())) for path, site in sites.items()}
    exact = {}
    for path in _stem(model) if keep_rest else []:
        changed = bool(_change(path, sites[path], given).any())
        exact[path] = _most(model, sites[path]) if changed else least[path]
    if budget is not None:
        found = split(_all_choices(model, given, budget, least, exact), budget)
    elif isinstance(rank, int):
        found = {path: min(rank, _most(model, site)) for path, site in sites.items()}
        if small := [path for path, own in found.items() if own < rank and path not in exact]:
            log.info("Too small for a rank of %s, and kept whole: %s", rank, ", ".join(small))
    else:
        found = {}
        for path, site, delta in changes(model, given):
            found[path] = exact[path] if path in exact else _curve(model, site, delta).smallest(rank)
            log.info("%s: rank %d", path, found[path])
    ranks = as_patterns({path: max(least[path], own) for path, own in (found | exact).items()})
    return ranks["*"] if len(ranks) == 1 and ranks["*"] else ranks


def _all_choices(
    model: TaskModel, given: Mapping[str, Tensor], budget: int, least: Mapping[str, int], exact: Mapping[str, int]
) -> dict[str, list[Choice]]:  # fmt: skip
    """What each layer may have of a budget: from a least rank on, or the one rank that keeps it exactly."""
    found = {}
    for path, site, delta in changes(model, given):
        if path in exact:
            size = model.method.size(site, {**model.options, "rank": exact[path]})
            found[path] = [Choice(exact[path], size, 0.0)]
        else:
            found[path] = _curve(model, site, delta).choices(budget, least[path])
    return found


def _most(model: TaskModel, site: AdaptedLayer) -> int:
    return largest(form_of(model), site.frozen_weight.shape)


def _curve(model: TaskModel, site: AdaptedLayer, delta: Tensor) -> Curve:
    return Curve(form_of(model), lambda rank: model.method.build(site, {**model.options, "rank": rank}), delta)


def changes(model: TaskModel, given: Mapping[str, Tensor]) -> Iterator[tuple[str, AdaptedLayer, Tensor]]:
    """What fine-tuning changed of each layer that a model adapts, (C_out, C_in, …), in double precision."""
    for path, site in model.adapted():
        yield path, site, _change(path, site, given)


def _change(path: str, site: AdaptedLayer, given: Mapping[str, Tensor]) -> Tensor:
    frozen = site.frozen_weight
    return turned(given[f"{path}.weight"].to(frozen.device, torch.float64), site) - frozen.double()


def _shift(path: str, site: AdaptedLayer, given: Mapping[str, Tensor]) -> Tensor:
    """What fine-tuning changed of a layer's bias; empty where it has none."""
    frozen = site.frozen_bias
    return torch.empty(0) if frozen is None else given[f"{path}.bias"].to(frozen) - frozen


def fitting(model: TaskModel, tuned: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a fine-tuned copy of the model's backbone; raises WeightsError where it is none."""
    given = tensors_of(tuned)
    model.backbone_among(given, "The fine-tuned network")
    for head in model.left_aside:
        if any(name.startswith(head) for name in given) and f"{head}weight" not in given:
            raise WeightsError(f"The fine-tuned network's {head[:-1]} is no single layer: decoders are not factorised.")
        if f"{head}weight" not in given:
            raise WeightsError(f"The fine-tuned network has no classifier: {head}weight is missing.")
        if given[f"{head}weight"].ndim < 2:
            raise WeightsError(f"The fine-tuned network's {head}weight is no classifier's.")
    return given


def _filled(model: TaskModel, given: Mapping[str, Tensor], task: str) -> list[Layer]:
    """Bring each layer's change into its form; what became of each."""
    layers = []
    number = sum(task in site.tasks for _, site in model.adapted())
    for path, site, delta in changes(model, given):
        if task not in site.tasks:
            layers.append(Layer(path, 0, 0, float(delta.norm()), 1.0 if delta.any() else 0.0))
            continue
        increment = site.tasks[task]
        assert isinstance(increment, Increment)
        if increment.own_shift is not None:
            increment.own_shift.data.copy_(_shift(path, site, given))
        rank = int(increment.rank)  # type: ignore[arg-type]
        layers.append(Layer(path, rank, sum(p.numel() for p in increment.parameters()), *fill(increment, delta)))
        done = sum(layer.rank > 0 for layer in layers)
        log.info("%s, layer %d of %d: %s, relative error %.3f", task, done, number, path, layers[-1].error)
    return layers


def form_of(model: TaskModel) -> str:
    """The form of a model's increments."""
    return next(form for form, method in FORMS.items() if method == model.method_name)


def tensors_of(tuned: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a fine-tuned network by their names in it; raises WeightsError where one is not finite."""
    found = dict(tuned.state_dict() if isinstance(tuned, nn.Module) else tuned)
    while prefix := next((p for p in PREFIXES if found and all(name.startswith(p) for name in found)), None):
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor):
            raise WeightsError(f"The fine-tuned network's {name} is no tensor, but {type(tensor).__name__}.")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise WeightsError(f"The fine-tuned network's {name} holds a value that is not finite.")
    return found


def _left(model: TaskModel, given: Mapping[str, Tensor], task: str) -> dict[str, float]:
    """The norms of the changes that no tensor of a task's holds, the largest first."""
    tensors = model.task_tensors(task)
    own = {*tensors, *(f"{path}.weight" for path, _ in model.adapted())}
    own |= {f"{path}.bias" for path in shifts(model, task)}
    norms = {
        name: float((given[name].to(tensor.device, torch.float64) - tensor.double()).norm())
        for name, tensor in model.backbone_tensors().items()
        if tensor.is_floating_point() and name in given and name not in own
    }
    return dict(sorted(((name, norm) for name, norm in norms.items() if norm), key=lambda item: -item[1]))
