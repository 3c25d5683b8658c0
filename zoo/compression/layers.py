"""What tasks add to each layer, in numbers: norms of ΔW, and how alike those of two tasks are (FTN, Appendix C)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor

from zoo.compression.forms import fill
from zoo.errors import OptionError
from zoo.increments.base import Increment, folded
from zoo.models.adapted import TaskModel
from zoo.models.multitask import MultiTaskModel

Measure = Literal["cosine", "angle"]
LEADING = 8  # singular vectors, at most, that span what a layer's ΔW mostly is


def with_increments(model: MultiTaskModel) -> TaskModel:
    """The model, if its tasks add something to the weights of one network; else raises OptionError."""
    if not isinstance(model, TaskModel) or model.method.increment is None:
        raise OptionError(f"The method {model.method_name!r} adds nothing to any weight, so there is no ΔW to look at.")
    return model


def deltas(model: TaskModel, task: str) -> Iterator[tuple[str, Tensor]]:
    """ΔW (C_out, C_in, …) of each adapted layer, in double precision, by the layer's path; zeros where it has none."""
    model.task(task)  # which says if there is none
    for path, site in model.adapted():
        frozen = site.frozen_weight.detach()
        if task not in site.tasks:
            yield path, torch.zeros_like(frozen, dtype=torch.float64)
            continue
        increment = site.tasks[task]
        assert isinstance(increment, Increment)
        with torch.no_grad():
            bias = site.frozen_bias
            own, _ = folded(increment, frozen.double(), None if bias is None else bias.double())
        yield path, own.detach() - frozen.double()


def shifts(model: TaskModel, task: str) -> dict[str, Tensor]:
    """What a task adds to a layer's bias, (C_out,), by the layer's path; of those where it has a bias of its own."""
    found = {path: site.tasks[task] for path, site in model.adapted() if task in site.tasks}
    return {
        path: each.own_shift
        for path, each in found.items()
        if isinstance(each, Increment) and each.own_shift is not None
    }


def fill_sites(model: TaskModel, task: str, given: Iterable[tuple[str, Tensor]]) -> None:
    """Bring ΔW of layers into the form of a task's increments; those of layers where it has none are passed over."""
    sites = dict(model.adapted())
    for path, delta in given:
        if task in sites[path].tasks:
            increment = sites[path].tasks[task]
            assert isinstance(increment, Increment)
            fill(increment, delta.to(sites[path].frozen_weight.device))


def norms(model: MultiTaskModel, task: str) -> dict[str, float]:
    """‖ΔW‖ of each adapted layer."""
    return {path: float(delta.norm()) for path, delta in deltas(with_increments(model), task)}


def factor_norms(model: MultiTaskModel, task: str) -> dict[str, float]:
    """The norm of what each layer's increment has for parameters, all together: √Σ‖factor‖²."""
    model = with_increments(model)
    model.task(task)
    found = {}
    for path, site in model.adapted():
        own = site.tasks[task].parameters() if task in site.tasks else ()
        found[path] = math.sqrt(sum(float(factor.detach().double().square().sum()) for factor in own))
    return found


def scaled(values: dict[str, float]) -> dict[str, float]:
    """The values of one network brought to [0, 1], its least to 0 and its largest to 1."""
    least, most = min(values.values()), max(values.values())
    return {path: (value - least) / (most - least) if most > least else 0.0 for path, value in values.items()}


def similarity(model: MultiTaskModel, measure: Measure = "cosine") -> dict[str, Tensor]:
    """How alike the ΔW of a model's tasks are, (tasks, tasks), for each adapted layer and, as "all", over all of them.

    Args:
        measure: "cosine": of the two ΔW as vectors. "angle": between the spaces of output channels that they mostly
            write to, in degrees: of the angles between the leading left singular vectors, at most LEADING of each,
            the root mean square of their cosines. "all" is their mean.

    Raises:
        OptionError: fewer than two tasks, or they add nothing to any weight.
    """
    model = with_increments(model)
    if len(model.tasks) < 2:
        raise OptionError("Two tasks at least are needed to compare what they add to a layer.")
    by_task = [dict(deltas(model, task)) for task in model.tasks]
    paths = list(by_task[0])
    if measure == "angle":
        found = {path: _angles([each[path] for each in by_task]) for path in paths}
        return {"all": torch.stack(list(found.values())).nanmean(0), **found}
    vectors = {path: torch.stack([each[path].flatten() for each in by_task]) for path in paths}
    whole = torch.cat(list(vectors.values()), 1)
    return {"all": _cosines(whole), **{path: _cosines(each) for path, each in vectors.items()}}


def _cosines(vectors: Tensor) -> Tensor:
    """(tasks, tasks); not a number where a task adds nothing."""
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    found: Tensor = unit @ unit.T
    return found


def _angles(each: list[Tensor]) -> Tensor:
    """(tasks, tasks), in degrees; not a number where a task adds nothing."""
    spaces = [_leading(delta.flatten(1)) for delta in each]
    found = torch.full((len(each), len(each)), math.nan, dtype=torch.float64)
    for row, a in enumerate(spaces):
        for column, b in enumerate(spaces):
            number = min(a.shape[1], b.shape[1])
            if number:
                mean = (a[:, :number].T @ b[:, :number]).square().sum() / number
                found[row, column] = math.degrees(math.acos(min(1.0, math.sqrt(float(mean)))))
    return found


def _leading(matrix: Tensor) -> Tensor:
    """The leading left singular vectors of a matrix, (rows, LEADING) or fewer: those that are more than rounding."""
    left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    number = int((values > 1e-5 * values[0]).sum()) if values[0] > 0 else 0
    found: Tensor = left[:, : min(number, LEADING)]
    return found
