"""Training one task of a model by a recipe, from the first step to the adapter's last."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from torchvision.transforms import v2

from zoo import checkpoint
from zoo.datasets import Splits, Transformed
from zoo.datasets.dense import FILL, zoomed
from zoo.errors import OptionError, TrainingError
from zoo.kinds import get_kind
from zoo.model import TaskModel
from zoo.progress import Reporter
from zoo.recipe import Augment, Optimizer, Recipe
from zoo.task import Preprocessing

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@dataclass(frozen=True)
class Execution:
    """How steps are carried out. Each of these changes the weights that a run ends with, be it in their last digits."""

    precision: str = "no"  # or mixed: "bf16" or "fp16"
    channels_last: bool = True  # the memory layout that convolutions are fastest in
    compile: bool = False  # have torch.compile translate the network first
    workers: int = 0  # processes that load images; each draws augmentations of its own
    max_steps: int | None = None  # per epoch, for a quick try
    fraction: float = 1.0  # of the training images, drawn at random
    hold_out: float = 0.0  # share of the training images to test on, in place of the test images


def train_task(
    model: TaskModel,
    task: str,
    data: Splits,
    recipe: Recipe,
    *,
    accelerator: Accelerator | None = None,
    checkpoint_file: Path | None = None,
    resume: bool = False,
    execution: Execution | None = None,
    quiet: bool = False,
) -> dict[str, float]:
    """Train what `task` owns in `model` (and the backbone, where the method trains it) on `data.train`.

    Everything random is drawn from the recipe's seed, the task's name and the epoch, so that a run which is
    stopped and resumed from `checkpoint_file`, written after each epoch, ends with the same weights.

    Returns:
        The mean training loss of the last epoch and, of answers that are right or wrong, the training accuracy in per
        cent.

    Raises:
        WeightsError: the checkpoint belongs to another run.
        TrainingError: there is no full batch, or the loss is no longer finite.
    """
    execution, recipe = execution or Execution(), recipe.of(task)
    accelerator = accelerator or make_accelerator(execution.precision)
    layout = torch.channels_last if execution.channels_last else torch.contiguous_format
    model.to(memory_format=layout)
    loader, sampler = training_loader(data, task, recipe, accelerator, execution.workers)
    optimizers, scaler = build_optimizers(model, task, recipe), accelerator.scaler
    run = {"task": task, "recipe": run_identity(recipe, execution)}
    start, figures = 0, {"loss": math.nan}
    if resume and checkpoint_file and checkpoint_file.exists():
        saved = checkpoint.load(checkpoint_file, trained_tensors(model, task), optimizers, run)
        start, figures = saved["epochs_done"], saved["figures"]
        if scaler:
            scaler.load_state_dict(saved["scaler"])

    network, loader = accelerator.prepare(model, loader)
    kind = get_kind(model.task(task).kind)
    if kind.name == "depth" and recipe.augment.crop == "random_resized":
        raise OptionError(
            "A random_resized crop enlarges an image and leaves its depths; use zoom, which divides them."
        )
    total = recipe.epochs * len(loader)

    def step(number: int, inputs: Tensor, targets: Tensor) -> tuple[float, int, int]:
        set_learning_rates(optimizers, recipe, number / total)
        outputs = network(inputs.to(memory_format=layout), task)  # (B, classes) or (B, channels, H, W)
        loss = recipe.loss_weight * kind.loss(outputs, targets, recipe)
        accelerator.backward(loss)
        update(optimizers, scaler)
        return loss.item(), *kind.right(outputs.detach(), targets)

    silent = quiet or not accelerator.is_main_process
    reporter = Reporter(task, recipe.epochs, len(loader), start, silent)
    with deterministic(recipe.threads), compiled(model, execution.compile), reporter as report:
        for epoch in range(start, recipe.epochs):
            sampler.epoch = epoch
            torch.manual_seed(seed_of(recipe.seed, task, epoch, accelerator.process_index))
            network.train()
            steps = itertools.islice(enumerate(loader, epoch * len(loader)), execution.max_steps)
            figures = run_epoch(steps, step, functools.partial(report.step, epoch), accelerator)
            report.epoch(epoch, figures)
            accelerator.log({f"{task}/{key}": value for key, value in figures.items()}, step=epoch)
            if checkpoint_file and accelerator.is_main_process:
                state = {**run, "epochs_done": epoch + 1, "figures": figures}
                state |= {"scaler": scaler.state_dict()} if scaler else {}
                checkpoint.save(checkpoint_file, trained_tensors(model, task), optimizers, state)
    model.eval()
    return figures


def run_epoch(
    batches: Iterable[tuple[int, tuple[Tensor, Tensor]]],
    step: Callable[[int, Tensor, Tensor], tuple[float, int, int]],
    report: Callable[[dict[str, float]], None],
    accelerator: Accelerator,
) -> dict[str, float]:
    """Take a step on each numbered batch; the mean loss over all of them and, where there is one, the accuracy.

    What is reported on the way is of this process, what is returned of all processes together.

    Raises:
        TrainingError: there is no batch, or the loss is no longer finite.
    """
    losses, seen, right, answers = 0.0, 0, 0, 0
    for number, (inputs, targets) in batches:
        loss, *counts = step(number, inputs, targets)
        losses, seen = losses + loss * len(targets), seen + len(targets)
        right, answers = right + counts[0], answers + counts[1]
        report(_means(losses, seen, right, answers))
    sums = torch.tensor([losses, seen, right, answers], dtype=torch.float64, device=accelerator.device)
    losses, seen, right, answers = accelerator.reduce(sums).tolist()
    if not seen:
        raise TrainingError("There is no full batch to train on. Lower the recipe's batch, or add images.")
    if not math.isfinite(losses):
        raise TrainingError(
            f"The loss is {losses / seen}: the training has diverged. Lower the recipe's learning rates."
        )
    return _means(losses, seen, right, answers)


def _means(losses: float, seen: float, right: float, answers: float) -> dict[str, float]:
    return {"loss": losses / seen, **({"accuracy": 100 * right / answers} if answers else {})}


def training_loader(
    data: Splits, task: str, recipe: Recipe, accelerator: Accelerator, workers: int
) -> tuple[DataLoader[Any], EpochSampler]:
    """Batches of augmented images for each process, and what orders them."""
    sampler = EpochSampler(len(data.train), seed_of(recipe.seed, task))  # type: ignore[arg-type]
    images = Transformed(data.train, recipe.input.transform(augmentations(recipe.augment, recipe.input)))
    # A batch norm cannot be trained on a single image, and processes must take the same number of steps.
    drop_last = accelerator.num_processes > 1 or len(sampler) % recipe.batch == 1
    share = per_process(recipe.batch, accelerator)
    return DataLoader(images, share, sampler=sampler, num_workers=workers, drop_last=drop_last), sampler


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


def run_identity(recipe: Recipe, execution: Execution) -> dict[str, Any]:
    """What, beside the data and the machine, decides which weights a run ends with; defaults are left out."""
    chosen = {f.name: (getattr(execution, f.name), f.default) for f in dataclasses.fields(Execution)}
    changed = {name: value for name, (value, default) in chosen.items() if value != default}
    return {"name": recipe.name, "sha256": recipe.sha256, "seed": recipe.seed, **changed}


def trained_tensors(model: TaskModel, task: str) -> dict[str, Tensor]:
    """What training changes: the task's tensors, and the backbone's where the method trains it."""
    return {**model.task_tensors(task), **(model.backbone_tensors() if model.method.trains_backbone else {})}


def make_accelerator(
    precision: str = "no", cpu: bool = False, tracker: str | None = None, folder: Path | None = None
) -> Accelerator:
    """An accelerator for the devices at hand.

    Args:
        precision: "no" for float32; "bf16" or "fp16" for mixed precision.
        tracker: "tensorboard" or "wandb", if what is logged shall be kept below `folder`.
    """
    if tracker and importlib.util.find_spec(tracker) is None:
        raise OptionError(f"The tracker {tracker!r} is not installed here: pip install {tracker}.")
    try:
        accelerator = Accelerator(
            mixed_precision=precision, cpu=cpu, log_with=tracker, project_dir=folder,
            dataloader_config=DataLoaderConfiguration(even_batches=False),
        )  # fmt: skip
    except ValueError as error:  # a precision that the device lacks
        raise OptionError(f"The precision {precision!r} cannot be had here: {error}") from error
    if tracker:
        accelerator.init_trackers("ftn-zoo")
    return accelerator


def build_optimizers(model: TaskModel, task: str, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """One optimiser for the increments, if the recipe names one, and one for everything else that is trained."""
    increments = list(model.increment_parameters(task)) if recipe.increments else []
    apart = {id(parameter) for parameter in increments}
    rest = [p for _, p in model.task_parameters(task) if id(p) not in apart]
    if model.method.trains_backbone:
        rest += [p for p in model.backbone.parameters() if id(p) not in {id(q) for q in rest}]
    groups = [(increments, recipe.increments), (rest, recipe.rest)]
    return [_optimizer(parameters, config) for parameters, config in groups if parameters and config]


def _optimizer(parameters: list[nn.Parameter], config: Optimizer) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.name == "sgd":
        options |= {"momentum": config.momentum, "nesterov": config.nesterov}
    optimizer: torch.optim.Optimizer = OPTIMIZERS[config.name](parameters, **options)
    return optimizer


def set_learning_rates(optimizers: list[torch.optim.Optimizer], recipe: Recipe, progress: float) -> None:
    """The schedule, as a function of the share of all steps that is done; so a resumed run needs no scheduler state."""
    configs = [recipe.increments, recipe.rest] if len(optimizers) == 2 else [recipe.rest]
    for optimizer, config in zip(optimizers, configs, strict=True):
        assert config is not None
        for group in optimizer.param_groups:
            group["lr"] = config.lr * schedule(recipe, progress)


def schedule(recipe: Recipe, progress: float) -> float:
    """The factor on the learning rates when a share `progress` of all steps is done."""
    if progress < recipe.warmup:
        return progress / recipe.warmup
    after = (progress - recipe.warmup) / (1 - recipe.warmup)
    if recipe.schedule == "cosine":
        return (1 + math.cos(math.pi * after)) / 2
    return float((1 - after) ** recipe.power) if recipe.schedule == "polynomial" else 1.0


def augmentations(augment: Augment, to: Preprocessing) -> list[Any]:
    """The training transforms of a recipe, from an image of any size to one of the input's size."""
    if augment.crop == "random_resized":
        steps: list[Any] = [v2.RandomResizedCrop(to.shape, scale=augment.scale, antialias=True)]
    else:
        steps = [v2.Resize(to.resize or to.shape, antialias=True)]
        if augment.zoom:
            steps += zoomed(augment.zoom, to.shape)
        elif augment.crop == "random":
            steps += [v2.RandomCrop(to.shape, padding=augment.padding or None, fill=FILL)]
        else:
            steps += [v2.CenterCrop(to.shape)]
    return [*steps, v2.RandomHorizontalFlip()] if augment.flip else steps


class EpochSampler(Sampler[int]):
    """All indices in an order that depends on the seed and the epoch alone."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
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


@contextlib.contextmanager
def compiled(model: TaskModel, wanted: bool) -> Iterator[None]:
    """Have torch.compile translate the network, if wanted, until the block ends; a task at a time, as it comes."""
    if wanted:
        model.backbone.compile()
    try:
        yield
    finally:
        model.backbone._compiled_call_impl = None


@contextlib.contextmanager
def deterministic(threads: int | None = None) -> Iterator[None]:
    """Have torch take deterministic algorithms where it has them, on so many CPU threads, until the block ends."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    threads_before = torch.get_num_threads()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(threads or threads_before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.set_num_threads(threads_before)
