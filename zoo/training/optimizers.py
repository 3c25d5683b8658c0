"""What moves the weights: optimisers for increments and for the rest, their steps and their schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from zoo.catalog.recipe import Optimizer, Recipe
from zoo.models.multitask import MultiTaskModel

FULL_RATE = "initial_lr"  # what torch's schedules, too, call the rate that they lower
OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def build_optimizers(
    model: MultiTaskModel, tasks: Sequence[str], recipe: Recipe, latents: Iterable[nn.Parameter] = ()
) -> list[torch.optim.Optimizer]:
    """One optimiser for the increments, if the recipe names one, one for everything else that is trained of the model,
    and one for the latents of pictures, if there are any.
    """
    increments = [p for task in tasks for p in model.increment_parameters(task)] if recipe.increments else []
    apart = {id(parameter) for parameter in increments}
    rest = [p for task in tasks for _, p in model.task_parameters(task) if id(p) not in apart]
    rest += [p for p in model.common_parameters() if id(p) not in {id(q) for q in rest}]
    groups = [(increments, recipe.increments), (rest, recipe.rest), (list(latents), recipe.latents)]
    return [_optimizer(parameters, config) for parameters, config in groups if parameters and config]


def _optimizer(parameters: list[nn.Parameter], config: Optimizer) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.name == "sgd":
        options |= {"momentum": config.momentum, "nesterov": config.nesterov}
    optimizer: torch.optim.Optimizer = OPTIMIZERS[config.name](parameters, **options)
    for group in optimizer.param_groups:
        group[FULL_RATE] = config.lr
    return optimizer


def set_learning_rates(optimizers: list[torch.optim.Optimizer], recipe: Recipe, progress: float) -> None:
    """The schedule, as a function of the share of all steps that is done; so a resumed run needs no scheduler state."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault(FULL_RATE, group["lr"]) * schedule(recipe, progress)


def schedule(recipe: Recipe, progress: float) -> float:
    """The factor on the learning rates when a share `progress` of all steps is done."""
    if progress < recipe.warmup:
        return progress / recipe.warmup
    after = (progress - recipe.warmup) / (1 - recipe.warmup)
    if recipe.schedule == "cosine":
        return (1 + math.cos(math.pi * after)) / 2
    return float((1 - after) ** recipe.power) if recipe.schedule == "polynomial" else 1.0


def update(optimizers: Sequence[torch.optim.Optimizer], scaler: torch.amp.GradScaler | None = None) -> None:
    """A step of each optimiser; one scaler serves all, so that all of them undo the scale that the loss was given."""
    for optimizer in optimizers:
        if scaler:
            scaler.step(optimizer)  # none where a gradient has overflowed
        else:
            optimizer.step()
        optimizer.zero_grad()
    if scaler:
        scaler.update()
