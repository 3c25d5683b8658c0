"""What a training of tasks that make pictures has beside the others: a table of latents for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from zoo.catalog.recipe import Augment, Recipe
from zoo.catalog.task import GENERATION
from zoo.datasets import Splits
from zoo.errors import OptionError
from zoo.models.latents import Latents
from zoo.models.multitask import MultiTaskModel
from zoo.training.batches import seed_of
from zoo.training.evaluation import measure

BATCH = 100  # training pictures that are looked at once more together, after the last step


def latent_tables(
    model: MultiTaskModel, data: Mapping[str, Splits], recipes: Mapping[str, Recipe], accelerator: Accelerator
) -> dict[str, nn.Module]:
    """For each task that makes pictures, the latents of its training pictures, to be trained.

    They go on from those that the model has, if it has as many.

    Raises:
        OptionError: the network makes no pictures, or the recipe does not say how, or would change them from epoch to
            epoch.
    """
    made = {}
    for task in data:
        if model.task(task).kind != GENERATION:
            continue
        recipe = recipes[task]
        if recipe.latents is None:
            raise OptionError(f"The recipe {recipe.name} has no `latents:`, which tasks need that make pictures.")
        if recipe.augment != Augment():
            raise OptionError(f"{task} makes pictures, each of a latent of its own: leave out the recipe's `augment:`.")
        prior = model.prior(task)
        count: int = len(data[task].train)  # type: ignore[arg-type]
        known = model.latents.get(task)
        if known is not None and len(known) == count:
            table = Latents(known.clone())
        else:
            table = Latents.near(prior, count, seed_of(recipe.seed, task, "latents"))
        made[task] = accelerator.prepare(table.to(accelerator.device))
    return made


def settle(
    model: MultiTaskModel, tables: Mapping[str, nn.Module], data: Mapping[str, Splits], accelerator: Accelerator,
    workers: int,
) -> dict[str, float]:  # fmt: skip
    """Give tasks that make pictures what is known of their latents, after a training; how near the training pictures
    come, in the unit of their metric.
    """
    figures = {}
    for task, table in tables.items():
        own, known = accelerator.unwrap_model(table).weight.detach(), model.task(task)
        model.prior(task).fit(own)
        model.latents[task] = own.cpu()
        answers = _answers(model, task, own[accelerator.process_index :: accelerator.num_processes])
        figures[known.metric.name] = measure(
            lambda _, answers=answers: next(answers), data[task].train, known, batch=BATCH,  # type: ignore[misc]
            device=accelerator.device, workers=workers, accelerator=accelerator,
        )  # fmt: skip
    return figures


def _answers(model: MultiTaskModel, task: str, latents: Tensor) -> Iterator[Tensor]:
    """What a task makes of latents, batch by batch."""
    for part in torch.split(latents, BATCH):
        yield model(model.taken(part), task=task)
