"""What training is fed with: batches of augmented images, in orders that the seed decides, of tasks that take turns."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from zoo.catalog.recipe import Augment, Recipe
from zoo.catalog.task import Preprocessing
from zoo.datasets import Splits, Transformed
from zoo.datasets.base import Numbered
from zoo.datasets.cached import cached
from zoo.datasets.dense import FILL, zoomed
from zoo.errors import OptionError, TrainingError

T = TypeVar("T")


def training_loader(
    data: Splits, task: str, recipe: Recipe, accelerator: Accelerator, workers: int, cache: bool = False,
    numbered: bool = False,
) -> tuple[DataLoader[Any], EpochSampler]:  # fmt: skip
    """Batches of augmented images for each process, and what orders them; decoded once, where a cache is wanted.

    Args:
        numbered: give the images as targets, and their numbers as inputs.
    """
    sampler = EpochSampler(len(data.train), seed_of(recipe.seed, task))  # type: ignore[arg-type]
    images, transform = data.train, recipe.input.transform(augmentations(recipe.augment, recipe.input))
    if cache:
        with accelerator.main_process_first():
            images, transform = cached(images, transform)
    drop_last = _drops_last(len(sampler), recipe.batch, accelerator.num_processes)
    share = per_process(recipe.batch, accelerator)
    ready: Dataset[tuple[Any, Any]] = Transformed(images, transform)
    if numbered:
        ready = Numbered(ready)
    return DataLoader(ready, share, sampler=sampler, num_workers=workers, drop_last=drop_last), sampler


def batches_of(images: int, batch: int, processes: int = 1) -> int:
    """Batches in an epoch of so many images."""
    whole, rest = divmod(images, batch)
    return whole + bool(rest and not _drops_last(images, batch, processes))


def _drops_last(images: int, batch: int, processes: int) -> bool:
    """Whether a batch that is not whole is left out.

    A batch norm cannot be trained on a single image, and processes must take the same number of steps.
    """
    return processes > 1 or images % batch == 1


class Turns:
    """The batches of one task, or of several that take turns, epoch by epoch.

    An epoch is made of rounds, in each of which every task gives one batch. It ends when the task with the most batches
    has given all of them. One that has run out before begins again, in a new order; so tasks with few samples take as
    many steps as the others, and see their samples more often.

    Args:
        data: the tasks' images.
        recipes: by task; its input, augmentation and batch are used.
        cache: decode the images once, and keep them (`zoo.datasets.cached`).
        numbered: the tasks whose images are targets, and their numbers the inputs.

    Raises:
        TrainingError: a task has no full batch.
    """

    def __init__(
        self, data: Mapping[str, Splits], recipes: Mapping[str, Recipe], accelerator: Accelerator, workers: int,
        cache: bool = False, numbered: Collection[str] = (),
    ) -> None:  # fmt: skip
        self.loaders: dict[str, DataLoader[Any]] = {}
        self.samplers = []
        for task, recipe in recipes.items():
            loader, sampler = training_loader(data[task], task, recipe, accelerator, workers, cache, task in numbered)
            if not len(loader):
                raise TrainingError(
                    f"There is no full batch of {task} to train on. Lower the recipe's batch, or add images."
                )
            self.loaders[task] = accelerator.prepare(loader)
            self.samplers.append(sampler)
        self.rounds = max(len(loader) for loader in self.loaders.values())

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.rounds * len(self.loaders)

    def epoch(self, number: int) -> Iterator[tuple[str, Tensor, Tensor]]:
        """The batches of an epoch: task, inputs, targets."""
        for sampler in self.samplers:
            sampler.begin(number)
        streams = [
            loader if len(loader) == self.rounds else _again_and_again(loader) for loader in self.loaders.values()
        ]
        for batches in zip(*streams, strict=False):
            for task, batch in zip(self.loaders, batches, strict=True):
                yield task, *batch


def _again_and_again(loader: Iterable[T]) -> Iterator[T]:
    while True:
        yield from loader


def augmentations(augment: Augment, to: Preprocessing) -> list[Any]:
    """The training transforms of a recipe, from an image of any size to one of the input's size."""
    mode = v2.InterpolationMode(to.interpolation)
    if augment.crop == "random_resized":
        steps: list[Any] = [v2.RandomResizedCrop(to.shape, augment.scale, interpolation=mode, antialias=True)]
    else:
        steps = [v2.Resize(to.resize or to.shape, mode, antialias=True)]
        if augment.zoom:
            steps += zoomed(augment.zoom, to.shape)
        elif augment.crop == "random":
            steps += [v2.RandomCrop(to.shape, padding=augment.padding or None, fill=FILL)]
        else:
            steps += [v2.CenterCrop(to.shape)]
    return [*steps, v2.RandomHorizontalFlip()] if augment.flip else steps


class EpochSampler(Sampler[int]):
    """All indices in an order that depends on the seed, the epoch and how often it has begun in this epoch alone."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """Give the orders of another epoch."""
        self.epoch, self.times = epoch, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        again = (self.times,) if self.times else ()
        self.times += 1
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch, *again))
        return iter(torch.randperm(self.length, generator=generator).tolist())


def seed_of(*parts: object) -> int:
    """A seed made of several things, each of which changes it altogether."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:14], 16)


def per_process(batch: int, accelerator: Accelerator) -> int:
    """The share of a recipe's batch that falls to each process."""
    processes: int = accelerator.num_processes
    share, rest = divmod(batch, processes)
    if rest or not share:
        raise OptionError(f"A batch of {batch} cannot be shared by {processes} processes evenly.")
    return share
