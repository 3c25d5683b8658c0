"""Training tasks of a model by a recipe, one or several together, from the first step to the last."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import Tensor, nn

from zoo import checkpoint
from zoo.batches import Turns, seed_of
from zoo.catalog.recipe import Optimizer, Recipe
from zoo.datasets import Splits
from zoo.errors import OptionError, TrainingError
from zoo.evaluation import measure
from zoo.kinds import get_kind
from zoo.kinds.base import Kind
from zoo.models.multitask import MultiTaskModel
from zoo.progress.reporter import Reporter

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


def train_tasks(
    model: MultiTaskModel,
    data: Mapping[str, Splits],
    recipe: Recipe,
    *,
    accelerator: Accelerator | None = None,
    checkpoint_file: Path | None = None,
    resume: bool = False,
    execution: Execution | None = None,
    quiet: bool = False,
) -> dict[str, float]:
    """Train what tasks own in `model`, and what is trained beside it, on their training images: one task, or several.

    Several tasks take turns, a batch each (`take_turns`); what they share is trained by all of them. Epochs, schedule
    and optimisers are then the recipe's; inputs, augmentation, batches, samples and losses may be each task's own.

    Everything random is drawn from the recipe's seed, the tasks' names and the epoch, so that a run which is
    stopped and resumed from `checkpoint_file`, written after each epoch, ends with the same weights.

    Returns:
        The mean training loss of the last epoch and, of answers that are right or wrong, the training accuracy in per
        cent; of several tasks, also each by itself, as `<task>/loss` and `<task>/accuracy`, and `<task>/validation` on
        images that were held out.

    Raises:
        WeightsError: the checkpoint belongs to another run.
        TrainingError: there is no full batch, or the loss is no longer finite.
    """
    execution = execution or Execution()
    recipes = {task: recipe.of(task) for task in data}
    recipe = recipe if len(data) > 1 else recipes[next(iter(data))]
    accelerator = accelerator or make_accelerator(execution.precision)
    if len(data) > 1 and accelerator.num_processes > 1:
        raise OptionError("Tasks that share weights are trained by one process; start it without torchrun.")
    layout = torch.channels_last if execution.channels_last else torch.contiguous_format
    model.to(memory_format=layout)
    kinds = {task: _kind(model, task, own) for task, own in recipes.items()}
    optimizers, scaler = build_optimizers(model, list(data), recipe), accelerator.scaler
    trained, name = trained_tensors(model, list(data)), "+".join(data)
    run = {"task": name, "recipe": run_identity(recipe, execution)}
    start, figures = 0, {"loss": math.nan}
    if resume and checkpoint_file and checkpoint_file.exists():
        saved = checkpoint.load(checkpoint_file, trained, optimizers, run)
        start, figures = saved["epochs_done"], saved["figures"]
        if scaler:
            scaler.load_state_dict(saved["scaler"])
    network, feed = accelerator.prepare(model), Turns(data, recipes, accelerator, execution.workers)
    total = recipe.epochs * len(feed)

    def step(number: int, task: str, inputs: Tensor, targets: Tensor) -> tuple[float, int, int]:
        set_learning_rates(optimizers, recipe, number / total)
        outputs = network(inputs.to(memory_format=layout) if inputs.ndim == 4 else inputs, task)
        loss = recipes[task].loss_weight * kinds[task].loss(outputs, targets, recipes[task])
        penalty = model.penalty(task)
        accelerator.backward(loss if penalty is None else loss + penalty)
        update(optimizers, scaler)
        return loss.item(), *kinds[task].right(outputs.detach(), targets)

    silent = quiet or not accelerator.is_main_process
    reporter = Reporter(name, recipe.epochs, len(feed), start, silent)
    with deterministic(recipe.threads), compiled(model, execution.compile), reporter as report:
        for epoch in range(start, recipe.epochs):
            torch.manual_seed(seed_of(recipe.seed, name, epoch, accelerator.process_index))
            network.train()
            steps = itertools.islice(enumerate(feed.epoch(epoch), epoch * len(feed)), execution.max_steps)
            figures = run_epoch(steps, step, functools.partial(report.step, epoch), accelerator)
            model.end_epoch()
            if len(data) > 1 and execution.hold_out:
                figures |= validated(model, data, accelerator)
            report.epoch(epoch, figures)
            accelerator.log({f"{name}/{key}": value for key, value in figures.items()}, step=epoch)
            if checkpoint_file and accelerator.is_main_process:
                state = {**run, "epochs_done": epoch + 1, "figures": figures}
                state |= {"scaler": scaler.state_dict()} if scaler else {}
                checkpoint.save(checkpoint_file, trained, optimizers, state)
    model.eval()
    return figures


def validated(model: MultiTaskModel, data: Mapping[str, Splits], accelerator: Accelerator) -> dict[str, float]:
    """How well each task is done on the images that were held out, as `<task>/validation`."""
    model.eval()
    return {
        f"{task}/validation": measure(
            functools.partial(model, task=task), splits.test, model.task(task), device=accelerator.device
        )
        for task, splits in data.items()
    }


def _kind(model: MultiTaskModel, task: str, recipe: Recipe) -> Kind:
    kind = get_kind(model.task(task).kind)
    if kind.name == "depth" and recipe.augment.crop == "random_resized":
        raise OptionError(
            "A random_resized crop enlarges an image and leaves its depths; use zoom, which divides them."
        )
    return kind


def run_epoch(
    batches: Iterable[tuple[int, tuple[str, Tensor, Tensor]]],
    step: Callable[[int, str, Tensor, Tensor], tuple[float, int, int]],
    report: Callable[[dict[str, float]], None],
    accelerator: Accelerator,
) -> dict[str, float]:
    """Take a step on each numbered batch; the mean loss over all of them and, where there is one, the accuracy.

    What is reported on the way is of this process, what is returned of all processes together.

    Raises:
        TrainingError: the loss is no longer finite.
    """
    sums: dict[str, Tensor] = {}  # by task: loss, samples, right answers, answers
    for number, (task, inputs, targets) in batches:
        loss, *counts = step(number, task, inputs, targets)
        found = torch.tensor([loss * len(targets), len(targets), *counts], dtype=torch.float64)
        sums[task] = sums.get(task, torch.zeros(4, dtype=torch.float64)) + found
        report(_means(*sums.values()))
    reduced = {task: accelerator.reduce(each.to(accelerator.device)) for task, each in sums.items()}
    figures = _means(*reduced.values())
    if not math.isfinite(figures["loss"]):
        raise TrainingError(
            f"The loss is {figures['loss']}: the training has diverged. Lower the recipe's learning rates."
        )
    if len(sums) > 1:
        figures |= {f"{task}/{key}": value for task, each in reduced.items() for key, value in _means(each).items()}
    return figures


def _means(*sums: Tensor) -> dict[str, float]:
    loss, seen, right, answers = torch.stack(sums).sum(0).tolist()
    return {"loss": loss / seen, **({"accuracy": 100 * right / answers} if answers else {})}


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


def trained_tensors(model: MultiTaskModel, tasks: Sequence[str]) -> dict[str, Tensor]:
    """What training changes: the tasks' tensors, and those that are trained beside them; of several tasks, by task."""
    if len(tasks) == 1:
        return {**model.task_tensors(tasks[0]), **model.common_tensors()}
    own = {f"{task}/{name}": tensor for task in tasks for name, tensor in model.task_tensors(task).items()}
    return {**own, **model.common_tensors()}


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


def build_optimizers(model: MultiTaskModel, tasks: Sequence[str], recipe: Recipe) -> list[torch.optim.Optimizer]:
    """One optimiser for the increments, if the recipe names one, and one for everything else that is trained."""
    increments = [p for task in tasks for p in model.increment_parameters(task)] if recipe.increments else []
    apart = {id(parameter) for parameter in increments}
    rest = [p for task in tasks for _, p in model.task_parameters(task) if id(p) not in apart]
    rest += [p for p in model.common_parameters() if id(p) not in {id(q) for q in rest}]
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


@contextlib.contextmanager
def compiled(model: MultiTaskModel, wanted: bool) -> Iterator[None]:
    """Have torch.compile translate the network, if wanted, until the block ends; a task at a time, as it comes."""
    networks = model.networks()
    for network in networks if wanted else ():
        network.compile()
    try:
        yield
    finally:
        for network in networks:
            network._compiled_call_impl = None


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
