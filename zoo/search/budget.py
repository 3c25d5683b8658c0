"""A rank for each layer and task, of so many parameters in all: what FTN's paper leaves open (under Limitations).

A task is trained at the largest rank, with images held out. What each layer then has is ordered, component by
component, by what dropping it should cost; the cheapest are dropped until the budget is kept, and training goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from zoo.catalog.entry import Entry
from zoo.catalog.options import as_patterns
from zoo.catalog.recipe import Recipe
from zoo.catalog.registry import Registry
from zoo.compression.fine_tuned import form_of
from zoo.compression.forms import FORMS, unfolded
from zoo.compression.layers import deltas, fill_sites, shifts, with_increments
from zoo.compression.ranks import Choice, split
from zoo.datasets import Splits, Transformed
from zoo.errors import OptionError
from zoo.increments.forms import turned
from zoo.kinds import get_kind
from zoo.kinds.base import main_output
from zoo.loader import fresh_model, load_adapters
from zoo.models.adapted import TaskModel
from zoo.models.layers import AdaptedLayer
from zoo.search.ranks import HELD_OUT, family
from zoo.storage.tensors import read
from zoo.training.options import RunOptions
from zoo.training.runs import given, recipe_of, splits_of, train_entry

log = logging.getLogger(__name__)
MEASURES = ("sensitivity", "energy", "adalora")
IMAGES, BATCH = 256, 32  # that gradients are measured on


@dataclass(frozen=True)
class Chosen:
    """What a task was given, and what it does with it.

    Attributes:
        ranks: of the layers, by their paths; 0: nothing.
        parameters: of the factors.
        figure: on the test images, in the unit of the task's metric, once trained on all training images.
    """

    task: str
    ranks: dict[str, int]
    parameters: int
    figure: float


def search(
    entry: Entry, registry: Registry, tasks: Sequence[str], out: Path, options: RunOptions, budget: int,
    by: str = "sensitivity",
) -> list[Chosen]:  # fmt: skip
    """Choose ranks for the layers of all tasks together, and train the tasks with them on all training images.

    What is tried lies in `out/tried/r<rank>/`, what is cut in `out/cut/`; `out/<task>.safetensors` is the result, whose
    header has the ranks.

    Args:
        budget: parameters of all tasks' factors together.
        by: what dropping a component costs. "sensitivity": its singular value squared, times the mean square of the
            loss's gradient by the layer's weight, on held-out images. "energy": its singular value squared. "adalora":
            |w ∂L/∂w| of the value, and the means of its vectors', as AdaLoRA has it (Zhang et al., ICLR 2023).

    Raises:
        OptionError: the method has no rank, or none of `zoo.factorise`'s forms; or the budget is too small.
    """
    if by not in MEASURES:
        raise OptionError(f"The measure is one of {', '.join(MEASURES)}, not {by!r}.")
    if entry.method["name"] not in FORMS.values():
        raise OptionError(
            f"Ranks are chosen for the methods {', '.join(FORMS.values())}, not {entry.method['name']!r}."
        )
    if entry.source:
        raise OptionError(f"{entry.name} begins with what {entry.source} has; ranks are chosen of entries that do not.")
    if options.distil:
        raise OptionError("--distil does not go with --rank auto, which trains from the labels.")
    most = _largest(entry, registry)
    _check_budget(most, registry, tasks, budget)
    tried = train_entry(most, registry, tasks, out / "tried" / f"r{most.rank}", replace(options, hold_out=HELD_OUT))
    recipe = recipe_of(most.recipe_source, options)
    choices: dict[tuple[str, str], list[Choice]] = {}
    for task in tasks:
        model = with_increments(load_adapters(most, registry, {task: tried[task]}, options.backbone_weights))
        splits = given(splits_of(most, task, options), task, recipe, replace(options, hold_out=HELD_OUT))
        costs = component_costs(model, task, splits, by, recipe)
        choices |= {(task, path): _choices(model, path, each) for path, each in costs.items()}
    found = split(choices, budget)
    ranks = {task: {path: rank for (of, path), rank in found.items() if of == task} for task in tasks}
    files = trained_on(entry, registry, ranks, tried, out, options)
    sizes = {key: {c.rank: c.parameters for c in each} for key, each in choices.items()}
    return [
        Chosen(
            task, ranks[task], sum(sizes[task, path][rank] for path, rank in ranks[task].items()),
            float(read(files[task])[1]["metrics"][entry.metric(task).name]),
        )
        for task in tasks
    ]  # fmt: skip


def _largest(entry: Entry, registry: Registry) -> Entry:
    """The entry's relative of the largest rank."""
    return max(family(entry, registry).items())[1]


def _check_budget(entry: Entry, registry: Registry, tasks: Sequence[str], budget: int) -> None:
    """Raise OptionError for a budget that `split` will refuse, before anything is trained."""
    model = fresh_model(entry, registry, pretrained=False)
    assert isinstance(model, TaskModel)
    least = [(_least(model, site), site) for _, site in model.adapted()]
    most = int(model.options["rank"])
    first = [  # as if the first component were all that counts
        [Choice(rank, _size(model, site, rank), -rank) for rank in range(own, min(own + 1, most) + 1)]
        for own, site in least
    ]
    split({(task, number): each for task in tasks for number, each in enumerate(first)}, budget)


def trained_on(
    entry: Entry, registry: Registry, ranks: Mapping[str, Mapping[str, int]], tried: Mapping[str, Path], out: Path,
    options: RunOptions,
) -> dict[str, Path]:  # fmt: skip
    """Cut adapters of an entry's largest relative to ranks for each layer, and train them further, into `out`.

    Args:
        ranks: by task and layer.
        tried: the adapter file of each task.
    """
    most = _largest(entry, registry)
    methods = {task: {"rank": as_patterns(own)} for task, own in ranks.items()}
    made = replace(entry, task_methods=methods, weights=None, measured=None)
    for task, own in ranks.items():
        log.info("%s: %s", task, ", ".join(f"{path} {rank}" for path, rank in own.items()))
        _cut(made, most, registry, task, tried[task], out / "cut" / f"{task}.safetensors", options)
    return train_entry(made, registry, list(ranks), out, replace(options, begin=out / "cut"))


def component_costs(model: TaskModel, task: str, splits: Splits, by: str, recipe: Recipe) -> dict[str, Tensor]:
    """What dropping each component of each layer's ΔW should cost, the dearest first, by the layer's path.

    The components are those of ΔW as a matrix: of "svd" that of its unfolding, of others (C_out, C_in k²).

    Args:
        splits: with held-out images in place of the test images.
        recipe: of which the loss is.
    """
    spectra = {
        path: torch.linalg.svd(_matrix(model, delta).cpu(), full_matrices=False) for path, delta in deltas(model, task)
    }
    if by == "energy":
        return {path: values.square() for path, (_, values, _) in spectra.items()}
    sums, number = {path: torch.zeros_like(values) for path, (_, values, _) in spectra.items()}, 0
    for gradients in _gradients(model, task, splits, recipe):
        number += 1
        for path, gradient in gradients.items():
            left, values, right = spectra[path]
            if by == "sensitivity":
                sums[path] += gradient.square().mean() * values.square()
                continue
            across, along = gradient @ right.T, gradient.T @ left  # ∂L/∂u and ∂L/∂v, but for σ
            own = (left * across).sum(0) * values
            sums[path] += own.abs() + (left * across * values).abs().mean(0) + (right.T * along * values).abs().mean(0)
    return {path: (total / number).sort(descending=True).values for path, total in sums.items()}


def _gradients(model: TaskModel, task: str, splits: Splits, recipe: Recipe) -> Iterator[dict[str, Tensor]]:
    """Of the loss by each layer's weight, (C_out, C_in k²), for batch after batch of held-out images."""
    known, network = model.task(task), model.fused(task)
    kind = get_kind(known.kind)
    weights: dict[str, Tensor] = {path: network.get_parameter(f"{path}.weight") for path, _ in model.adapted()}
    for parameter in network.parameters():
        parameter.requires_grad_(any(parameter is weight for weight in weights.values()))
    count: int = len(splits.test)  # type: ignore[arg-type]
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(recipe.seed))[:IMAGES].tolist()
    images = Transformed(Subset(splits.test, chosen), known.preprocessing.transform())
    for inputs, targets in DataLoader(images, BATCH):
        loss = kind.loss(main_output(network(model.taken(inputs))), targets, recipe.of(task))
        gradients = torch.autograd.grad(loss, list(weights.values()))
        yield {
            path: _matrix(model, turned(gradient.double(), site)).cpu()
            for (path, site), gradient in zip(model.adapted(), gradients, strict=True)
        }


def _matrix(model: TaskModel, delta: Tensor) -> Tensor:
    """ΔW (C_out, C_in, …), or a gradient of that form, as the matrix whose components are ordered."""
    return unfolded(delta) if form_of(model) == "svd" else delta.flatten(1)


def _choices(model: TaskModel, path: str, costs: Tensor) -> list[Choice]:
    """The ranks that a layer may be given: what each needs, and what the components beyond it cost."""
    site = model.backbone.get_submodule(path)
    assert isinstance(site, AdaptedLayer)
    most = min(int(model.options["rank"]), len(costs))
    return [
        Choice(rank, _size(model, site, rank), float(costs[rank:].sum()))
        for rank in range(_least(model, site), most + 1)
    ]


def _least(model: TaskModel, site: AdaptedLayer) -> int:
    """The rank that a layer has for certain: 1 where tasks have a bias of their own, which is part of an increment."""
    return int(bool(model.options.get("bias")) and site.frozen_bias is not None)


def _size(model: TaskModel, site: AdaptedLayer, rank: int) -> int:
    return model.method.size(site, {**model.options, "rank": rank})


def _cut(
    made: Entry, most: Entry, registry: Registry, task: str, source: Path, file: Path, options: RunOptions
) -> None:  # fmt: skip
    """Write a task's adapter brought to its ranks: each layer's ΔW factorised, norms and head as they were."""
    whole = with_increments(load_adapters(most, registry, {task: source}, options.backbone_weights))
    model = fresh_model(made, registry, backbone_file=options.backbone_weights)
    assert isinstance(model, TaskModel)
    model.add_task(whole.task(task), made.task_methods[task])
    theirs = whole.task_tensors(task)
    fill_sites(model, task, deltas(whole, task))
    biases = shifts(whole, task)  # no part of ΔW
    for path, shift in shifts(model, task).items():
        shift.data.copy_(biases[path])
    increments = tuple(f"{path}." for path, _ in model.adapted())
    for name, tensor in model.task_tensors(task).items():
        if not name.startswith(increments):
            tensor.copy_(theirs[name])
    header = read(source)[1]
    model.save_adapter(task, file, {key: header[key] for key in ("entry", "backbone", "recipe") if key in header})
