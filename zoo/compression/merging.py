"""A task made of tasks: a weighted sum of what they add to each layer, in several ways, and norms of their own."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.catalog.options import as_patterns
from zoo.catalog.task import Task
from zoo.compression.fine_tuned import form_of
from zoo.compression.forms import FORMS, largest
from zoo.compression.layers import deltas, fill_sites, with_increments
from zoo.errors import OptionError
from zoo.models.adapted import TaskModel
from zoo.models.layers import TaskNorm
from zoo.models.multitask import MultiTaskModel
from zoo.models.placement import Placement

log = logging.getLogger(__name__)
SIDE_BY_SIDE = "side-by-side"
Way = Callable[[Sequence[Tensor], Sequence[float], float, torch.Generator], Tensor]


def summed(each: Sequence[Tensor], weights: Sequence[float], density: float, draws: torch.Generator) -> Tensor:
    """`Σ λ_t ΔW_t`: task arithmetic (Ilharco et al., ICLR 2023). A negative weight forgets a task."""
    return torch.stack([weight * delta for weight, delta in zip(weights, each, strict=True)]).sum(0)


def ties(each: Sequence[Tensor], weights: Sequence[float], density: float, draws: torch.Generator) -> Tensor:
    """TIES (Yadav et al., NeurIPS 2023), layer by layer: of each task the largest entries; of those at one place, the
    mean of the ones that have the sign of their sum.

    Args:
        density: the share of entries that is kept of each task in a layer; the paper counts over all layers.
    """
    kept = torch.stack([weight * _largest(delta, density) for weight, delta in zip(weights, each, strict=True)])
    agree = (kept.sign() == kept.sum(0).sign()) & (kept != 0)
    return kept.where(agree, 0).sum(0) / agree.sum(0).clamp(min=1)


def dare(each: Sequence[Tensor], weights: Sequence[float], density: float, draws: torch.Generator) -> Tensor:
    """DARE (Yu et al., ICML 2024): of each task entries drawn at random, enlarged by as much as is dropped; summed.

    Args:
        density: the chance of an entry to be kept.
    """
    drawn = [(torch.rand(d.shape, generator=draws, dtype=torch.float64) < density).to(d) * d / density for d in each]
    return summed(drawn, weights, density, draws)


WAYS: dict[str, Way] = {"sum": summed, "ties": ties, "dare": dare}


def _largest(delta: Tensor, density: float) -> Tensor:
    """The tensor with all but so large a share of its entries, the largest, set to zero."""
    number = max(1, round(density * delta.numel()))
    least = delta.abs().flatten().topk(number).values[-1]
    return delta.where(delta.abs() >= least, 0)


def merged(
    model: MultiTaskModel, weights: Mapping[str, float], name: str, rank: int | None = None, form: str = "svd",
    how: str = "sum", density: float = 0.2, head: str = SIDE_BY_SIDE, seed: int = 0,
) -> TaskModel:  # fmt: skip
    """A model of the same backbone with one task made of others.

    Its ΔW is the tasks' together, brought to a rank; its norms are their mean, and their statistics the mean of theirs,
    until `re_estimate` has seen images.

    Args:
        model: has these tasks; of fine-tuning, or of a method that adds factors.
        weights: λ of each task that takes part.
        rank: R; by default that of the model's method.
        form: of ΔW, where the model's own method has no rank.
        how: "sum", "ties" or "dare".
        head: "side-by-side", whose classes are "TASK: CLASS"; or the name of a task, whose head it then has.

    Raises:
        OptionError: a task, a way or a rank that cannot be had.
    """
    model = with_increments(model)
    tasks = _parts(model, weights, form, how, density, head)
    own = model.options if model.method_name in FORMS.values() else {"rank": None}
    rank = rank or (own["rank"] if isinstance(own["rank"], int) else None)
    if rank is None:
        raise OptionError(f"{model.method_name} has no one rank for all layers here: name the one to merge to.")
    method = model.method_name if own["rank"] is not None else FORMS[form]
    made = _without_tasks(model, method, rank)
    for task, norm in _biases(model, list(weights)).items():
        log.warning("%s: its own biases are left out of what is merged, a change of %.3g.", task, norm)
    classes = [f"{task.name}: {label}" for task in tasks for label in task.classes]
    labels = tuple(classes) if head == SIDE_BY_SIDE else model.task(head).classes
    ranks = as_patterns({p: min(rank, largest(form_of(made), s.frozen_weight.shape)) for p, s in made.adapted()})
    known = Task(name, labels, tasks[0].preprocessing, tasks[0].kind)
    made.add_task(known, {"rank": ranks["*"] if len(ranks) == 1 else ranks})
    draws = torch.Generator().manual_seed(seed)
    by_task = [dict(deltas(model, task)) for task in weights]
    for path in by_task[0]:
        whole = WAYS[how]([each[path].cpu() for each in by_task], list(weights.values()), density, draws)
        fill_sites(made, name, [(path, whole)])
    _rest(model, made, name, list(weights), head)
    return made


def _parts(
    model: TaskModel, weights: Mapping[str, float], form: str, how: str, density: float, head: str
) -> list[Task]:  # fmt: skip
    """The tasks that take part; raises OptionError where they cannot be merged in this way."""
    tasks = [model.task(task) for task in weights]
    if len(model.head_paths) > 1:
        raise OptionError(f"The network has several classifiers ({', '.join(model.head_paths)}); merging takes one.")
    if form not in FORMS:
        raise OptionError(f"The form is one of {', '.join(FORMS)}, not {form!r}.")
    if len(tasks) < 2 or how not in WAYS or not 0 < density <= 1:
        raise OptionError(f"Merging takes two tasks or more, one of {', '.join(WAYS)}, and a density in (0, 1].")
    if head != SIDE_BY_SIDE and head not in weights:
        raise OptionError(f"The head is {SIDE_BY_SIDE!r} or one of {', '.join(weights)}, not {head!r}.")
    if odd := [
        task.name for task in tasks if (task.kind, task.preprocessing) != (tasks[0].kind, tasks[0].preprocessing)
    ]:
        raise OptionError(f"{odd[0]} is of another kind than {tasks[0].name}, or prepares its images otherwise.")
    return tasks


def _biases(model: TaskModel, tasks: Sequence[str]) -> dict[str, float]:
    """The norm of what tasks change of biases, those of norms and heads aside; of tasks that do."""
    found = {}
    for task in tasks:
        plain, total = model.plain_tensors(task), 0.0
        for path, site in model.adapted():
            if site.frozen_bias is not None:
                total += float((plain[f"{path}.bias"].detach().double() - site.frozen_bias.double()).square().sum())
        if total:
            found[task] = math.sqrt(total)
    return found


def _without_tasks(model: TaskModel, method: str, rank: int) -> TaskModel:
    """A model of the same frozen network, adapted in the same places by a method."""
    network = model.fused(model.tasks[0])
    state = network.state_dict()
    frozen = model.backbone_tensors()
    network.load_state_dict({name: frozen.get(name, tensor) for name, tensor in state.items()})
    layers = [path for path, _ in model.adapted()]
    norms = [path for path, site in model.sites(model.tasks[0]) if isinstance(site, TaskNorm)]
    return TaskModel(
        network, method, {"rank": rank}, Placement(layers, norms, model.head_paths[0], may_rest=model.may_rest or None)
    )


def _rest(model: TaskModel, made: TaskModel, name: str, tasks: Sequence[str], head: str) -> None:
    """Give a merged task the mean of the tasks' norms, and its head."""
    theirs, own = [model.task_tensors(task) for task in tasks], made.task_tensors(name)
    heads = made.head_prefixes(name)
    norms = tuple(f"{path}." for path, site in made.sites(name) if isinstance(site, TaskNorm))
    for key, tensor in own.items():
        if key.startswith(heads):
            parts = [each[key] for each in theirs]
            if head == SIDE_BY_SIDE and tensor.shape[:1] != torch.Size([sum(len(part) for part in parts)]):
                raise OptionError(
                    f"{key} is of a head of several layers, which do not stand side by side: name one task's."
                )
            tensor.copy_(torch.cat(parts) if head == SIDE_BY_SIDE else theirs[tasks.index(head)][key])
        elif key.startswith(norms):
            mean = torch.stack([each[key].double() for each in theirs]).mean(0)
            tensor.copy_(mean.to(tensor))


def re_estimate(model: TaskModel, task: str, batches: Iterable[Tensor]) -> None:
    """Measure the statistics of a task's batch norms anew, as the mean over batches of inputs.

    A sum of weights has other statistics than the mean of the parts'. Networks without batch norms stay as they are.
    """
    norms: list[Any] = [
        site.tasks[task]
        for _, site in model.sites(task)
        if isinstance(site, TaskNorm) and isinstance(site.tasks[task], nn.modules.batchnorm._BatchNorm)
    ]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    try:
        with torch.no_grad():
            for inputs in batches:
                model(model.taken(inputs), task=task)
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.eval()
