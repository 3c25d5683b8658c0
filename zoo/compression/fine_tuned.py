"""A fine-tuned copy of a network as a small file: each layer's ΔW brought into a form of low rank (FTN, Appendix E)."""

from __future__ import annotations

import functools
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
from zoo.compression.ranks import Curve, split
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
    parameters: int  # of the factors
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
        keep_rest: adapt the stem too, exactly.
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
    return add_fine_tuned(model, tuned, ranks_for(model, tuned, rank, budget, keep_rest), task, classes, preprocessing)


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
    return TaskModel(network, FORMS[form], {"rank": 1}, Placement(**options))


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


def _stem(model: TaskModel) -> str | None:
    """The first convolution, which methods leave as it is unless they are told otherwise."""
    return next((path for path, site in model.adapted() if issubclass(site.frozen_class, CONVOLUTIONS)), None)


def add_fine_tuned(
    model: TaskModel, tuned: nn.Module | Mapping[str, Tensor], ranks: int | Mapping[str, int], task: str,
    classes: list[str] | None = None, preprocessing: Preprocessing | None = None, kind: str = CLASSIFICATION,
) -> Factorised:  # fmt: skip
    """Give a model `without_tasks` one of a fine-tuned copy of its backbone, at one rank or at each layer's."""
    given = _fitting(model, tuned)
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
    return Factorised(model, layers, _left(model, given, [layer.path for layer in layers]))


def ranks_for(
    model: TaskModel, tuned: nn.Module | Mapping[str, Tensor], rank: float, budget: int | None, keep_rest: bool
) -> int | dict[str, int]:
    """The rank of all layers, or each one's as patterns; the arguments are those of `factorise`.

    Raises:
        OptionError: the budget is not enough for a single component.
    """
    form, given = form_of(model), _fitting(model, tuned)
    exact = _stem(model) if keep_rest else None
    found, choices, left = dict[str, int](), {}, budget or 0
    for path, site, delta in changes(model, given):
        most = largest(form, delta.shape)
        if path == exact:
            found[path] = most if delta.any() else 0
            left -= sum(p.numel() for p in _increment(model, site, most).parameters()) if delta.any() else 0
        elif isinstance(rank, int) and budget is None:
            found[path] = min(rank, most)
        else:
            curve = Curve(form, functools.partial(_increment, model, site), delta)
            if budget is None:
                found[path] = curve.smallest(rank)
                log.info("%s: rank %d", path, found[path])
            else:
                choices[path] = curve.choices(budget)
    if budget is not None:
        if left < 1 or not any(len(each) > 1 for each in choices.values()):
            of = " beside the stem, which is kept" if exact else ""
            raise OptionError(f"{budget:,} parameters are too few for a single component of any layer{of}.")
        found |= split(choices, left)
    elif small := [path for path, own in found.items() if isinstance(rank, int) and path != exact and own < rank]:
        log.info("Too small for a rank of %s, and kept whole: %s", rank, ", ".join(small))
    ranks = as_patterns(found)
    return ranks["*"] if len(ranks) == 1 and ranks["*"] else ranks


def changes(model: TaskModel, given: Mapping[str, Tensor]) -> Iterator[tuple[str, AdaptedLayer, Tensor]]:
    """What fine-tuning changed of each layer that a model adapts, (C_out, C_in, …), in double precision."""
    for path, site in model.adapted():
        frozen = site.frozen_weight
        yield path, site, turned(given[f"{path}.weight"].to(frozen.device, torch.float64), site) - frozen.double()


def _fitting(model: TaskModel, tuned: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
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
        rank = int(increment.rank)  # type: ignore[arg-type]
        layers.append(Layer(path, rank, sum(p.numel() for p in increment.parameters()), *fill(increment, delta)))
        done = sum(layer.rank > 0 for layer in layers)
        log.info("%s, layer %d of %d: %s, relative error %.3f", task, done, number, path, layers[-1].error)
    return layers


def _increment(model: TaskModel, site: AdaptedLayer, rank: int) -> Increment:
    return model.method.build(site, {"rank": rank})


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


def _left(model: TaskModel, given: Mapping[str, Tensor], taken: list[str]) -> dict[str, float]:
    """The norms of the changes that no task's tensor holds, the largest first."""
    weights = {f"{path}.weight" for path in taken}
    norms = {
        name: float((given[name].to(tensor.device, torch.float64) - tensor.double()).norm())
        for name, tensor in model.backbone_tensors().items()
        if tensor.is_floating_point() and name in given and name not in weights
    }
    own = {name for task in model.tasks for name in model.task_tensors(task)}
    changed = {name: norm for name, norm in norms.items() if norm and name not in own}
    return dict(sorted(changed.items(), key=lambda item: -item[1]))
