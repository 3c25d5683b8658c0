"""Training tasks of a model by a recipe, one or several together, from the first step to the last."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DataLoaderConfiguration
from torch import Tensor, nn

from zoo.catalog.recipe import Recipe, settings
from zoo.datasets import Splits, Transformed
from zoo.errors import OptionError, TrainingError
from zoo.kinds import get_kind
from zoo.kinds.base import Kind, LabelKind, main_output
from zoo.models.multitask import MultiTaskModel
from zoo.progress.reporter import Reporter
from zoo.training import checkpoint
from zoo.training.batches import Turns, batches_of, seed_of
from zoo.training.evaluation import measure
from zoo.training.generation import latent_tables, settle
from zoo.training.optimizers import build_optimizers, set_learning_rates, update
from zoo.training.probe import fit_head

log = logging.getLogger(__name__)
LOWER = 1e-3  # share of the lowest loss so far by which a loss is lower, for a recipe's patience
MOST = 5  # times the epochs of a recipe, at most, are taken for the sake of `min_steps`


@dataclass(frozen=True)
class Execution:
    """How steps are carried out. Each of these changes the weights that a run ends with, be it in their last digits."""

    precision: str = "no"  # or mixed: "bf16" or "fp16"
    channels_last: bool = True  # the memory layout that convolutions are fastest in
    compile: bool = False  # have torch.compile translate the network first
    workers: int = 0  # processes that load images; each draws augmentations of its own
    max_steps: int | None = None  # in all, of which the schedule is made
    steps_per_epoch: int | None = None  # for a quick try
    fraction: float = 1.0  # of the training images, drawn at random
    test_share: float | None = None  # of images of one's own without a split, to test on
    hold_out: float = 0.0  # share of the training images to test on, in place of the test images
    begun_with: str = ""  # the SHA-256 of the adapter files that tasks begin with, in place of fresh ones
    distil: bool = False  # learn what the fine-tuned networks answer that those files were made of, not the labels


def train_tasks(
    model: MultiTaskModel, data: Mapping[str, Splits], recipe: Recipe, *, accelerator: Accelerator | None = None,
    checkpoint_file: Path | None = None, resume: bool = False, execution: Execution | None = None, quiet: bool = False,
    cache: bool = False, later: int = 0, teachers: Mapping[str, nn.Module] = MappingProxyType({}),
) -> dict[str, float]:  # fmt: skip
    """Train what tasks own in `model`, and what is trained beside it, on their training images: one task, or several.

    Several tasks take turns, a batch each (`Turns`); what they share is trained by all of them. Epochs, schedule and
    optimisers are then the recipe's; inputs, augmentation, batches, samples and losses may be each task's own.

    Everything random is drawn from the recipe's seed, the tasks' names and the epoch, so that a run which is
    stopped and resumed from `checkpoint_file`, written after each epoch, ends with the same weights.

    Args:
        later: steps of other trainings that follow, for an estimate of the whole time.
        teachers: by task, a network whose answers are to be learnt, in place of the labels.

    Returns:
        The mean training loss of the last epoch and, of answers that are right or wrong, the training accuracy in per
        cent; the epochs, where the recipe's patience ended it early; of several tasks, also each by itself, as
        `<task>/loss` and `<task>/accuracy`, and `<task>/validation` on images that were held out.

    Raises:
        WeightsError: the checkpoint belongs to another run.
        TrainingError: there is no full batch, or the loss is no longer finite.
    """
    execution = execution or Execution()
    run = _Run(model, data, recipe, accelerator or make_accelerator(execution.precision), execution, cache, teachers)
    done, figures = 0, {"loss": math.nan}
    if resume and checkpoint_file and checkpoint_file.exists():
        done, figures = run.resume(checkpoint_file)
    else:
        with deterministic(run.recipe.threads):
            run.begin()
    silent = quiet or not run.accelerator.is_main_process
    reporter = Reporter(run.name, run.epochs, run.per_epoch, done, silent, later)
    with deterministic(run.recipe.threads), compiled(model, execution.compile), reporter as report:
        while done < run.epochs and not run.is_over():
            figures = run.epoch(done, report)
            report.epoch(done, figures)
            run.accelerator.log({f"{run.name}/{key}": value for key, value in figures.items()}, step=done)
            done += 1
            if checkpoint_file and run.accelerator.is_main_process:
                run.save(checkpoint_file, done, figures)
        model.eval()
        figures = figures | settle(model, run.latents, data, run.accelerator, run.execution.workers)
    return figures | ({"epochs": done} if done < run.epochs else {})


class Plan(NamedTuple):
    """How long a training is."""

    epochs: int
    per_epoch: int  # steps
    steps: int  # in all


def planned(recipe: Recipe, images: Mapping[str, int], execution: Execution) -> Plan:
    """How long a training of tasks is that have so many training images."""
    processes = PartialState().num_processes
    rounds = max(batches_of(count, recipe.of(task).batch, processes) for task, count in images.items())
    own = recipe if len(images) > 1 else recipe.of(next(iter(images)))
    return plan(own, max(1, rounds) * len(images), execution)


def plan(recipe: Recipe, batches: int, execution: Execution) -> Plan:
    """How long a training is on so many batches of images an epoch."""
    per_epoch = min(batches, execution.steps_per_epoch or batches)
    epochs = max(recipe.epochs, min(MOST * recipe.epochs, math.ceil(recipe.min_steps / per_epoch)))
    steps = min(epochs * per_epoch, execution.max_steps or epochs * per_epoch)
    return Plan(math.ceil(steps / per_epoch), per_epoch, steps)


class _Run:
    """One training: what it moves, what it is fed with, and how far it is."""

    def __init__(
        self, model: MultiTaskModel, data: Mapping[str, Splits], recipe: Recipe, accelerator: Accelerator,
        execution: Execution, cache: bool = False, teachers: Mapping[str, nn.Module] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        if len(data) > 1 and accelerator.num_processes > 1:
            raise OptionError("Tasks that share weights are trained by one process; start it without torchrun.")
        self.model, self.data, self.accelerator, self.execution = model, data, accelerator, execution
        self.recipes = {task: recipe.of(task) for task in data}
        self.fresh = {task for task in data if model.has_fresh_head(task)}
        self.recipe = recipe if len(data) > 1 else next(iter(self.recipes.values()))
        self.name = "+".join(data)
        self.identity = {"task": self.name, "recipe": run_identity(self.recipe, execution)}
        frozen = not model.common_tensors()
        self.foundation: dict[str, Any] = {"backbone_sha256": model.backbone_sha256()} if frozen else {}
        self.layout = torch.channels_last if execution.channels_last else torch.contiguous_format
        model.to(memory_format=self.layout)
        self.kinds = {task: _kind(model, task, own) for task, own in self.recipes.items()}
        self.latents = latent_tables(model, data, self.recipes, accelerator)
        self.teachers = {task: teacher.to(accelerator.device).eval() for task, teacher in teachers.items()}
        if odd := [task for task in self.teachers if not isinstance(self.kinds[task], LabelKind)]:
            raise OptionError(f"{odd[0]} does not label images; --distil is for tasks that do.")
        found = [parameter for each in self.latents.values() for parameter in each.parameters()]
        self.optimizers, self.scaler = build_optimizers(model, list(data), self.recipe, found), accelerator.scaler
        self.network = accelerator.prepare(model)
        self.feed = Turns(data, self.recipes, accelerator, execution.workers, cache, list(self.latents))
        self.best, self.since = math.inf, 0  # the lowest loss of an epoch, and how many have been since
        self.epochs, self.per_epoch, self.steps = plan(self.recipe, len(self.feed), execution)
        for task, own in self.recipes.items():
            if own.statistics == "frozen":
                model.rest_norms(task)  # what forbids that is told before any work
        for task, splits in data.items():
            if task in self.latents:
                inputs = self.latents[task](torch.arange(min(2, len(splits.train)))).detach()  # type: ignore[arg-type]
            else:
                inputs = _some_inputs(splits, self.recipes[task])
            model.prove(task, model.taken(inputs.to(accelerator.device)))

    def begin(self) -> None:
        """Give the heads what they begin with, unless the tasks come from elsewhere."""
        for task, recipe in self.recipes.items():
            if recipe.head == "fresh" or task not in self.fresh:
                continue
            try:
                fit_head(self.model, task, self.data[task].train, self.accelerator, workers=self.execution.workers)
            except OptionError as error:
                if recipe.head == "probe":
                    raise
                log.info("%s: its head begins at random: %s", task, error)

    def epoch(self, number: int, report: Reporter) -> dict[str, float]:
        """Train for an epoch; its figures."""
        torch.manual_seed(seed_of(self.recipe.seed, self.name, number, self.accelerator.process_index))
        self.network.train()
        for task, recipe in self.recipes.items():
            if recipe.statistics == "frozen":
                self.model.rest_norms(task)
        begun = number * self.per_epoch
        wanted = int(min(self.per_epoch, self.steps - begun))
        steps = itertools.islice(enumerate(self.feed.epoch(number), begun), wanted)
        figures = run_epoch(steps, self.step, functools.partial(report.step, number), self.accelerator)
        self.model.end_epoch()
        if figures["loss"] < (1 - LOWER) * self.best:
            self.best, self.since = figures["loss"], 0
        else:
            self.since += 1
        if len(self.data) > 1 and self.execution.hold_out:
            figures |= validated(self.model, self.data, self.accelerator)
        return figures

    def is_over(self) -> bool:
        """Whether the loss has not become lower for as long as the recipe is patient."""
        return 0 < self.recipe.patience <= self.since

    def step(self, number: int, task: str, inputs: Tensor, targets: Tensor) -> tuple[float, int, int]:
        """Step `number` of the training, on a batch of one task: its loss, right answers, answers."""
        kind, recipe = self.kinds[task], self.recipes[task]
        set_learning_rates(self.optimizers, self.recipe, number / self.steps)
        inputs = self.latents[task](inputs) if task in self.latents else inputs
        inputs = self.model.taken(inputs.to(memory_format=self.layout) if inputs.ndim == 4 else inputs)
        outputs = main_output(self.network(inputs, task=task))
        loss = recipe.loss_weight * kind.loss(outputs, self._wanted(task, inputs, targets), recipe)
        penalty = self.model.penalty(task)
        self.accelerator.backward(loss if penalty is None else loss + penalty)
        update(self.optimizers, self.scaler)
        return loss.item(), *kind.right(outputs.detach(), targets)

    def _wanted(self, task: str, inputs: Tensor, targets: Tensor) -> Tensor:
        """What the outputs are to be: the labels, or a teacher's probabilities of them."""
        kind = self.kinds[task]
        if task not in self.teachers or not isinstance(kind, LabelKind):
            return targets
        with torch.no_grad():
            return kind.probabilities(main_output(self.teachers[task](inputs)))

    def save(self, file: Path, epochs_done: int, figures: Mapping[str, float]) -> None:
        """Write all that the rest of the training depends on."""
        state = {**self.identity, **self.foundation, "settings": settings(self.recipe)}
        state |= {"epochs_done": epochs_done, "figures": dict(figures)}
        state |= {"best": self.best, "since": self.since} if self.recipe.patience else {}
        state |= {"scaler": self.scaler.state_dict()} if self.scaler else {}
        checkpoint.save(file, self._trained(), self.optimizers, state)

    def resume(self, file: Path) -> tuple[int, dict[str, float]]:
        """Read back what `save` wrote: the epochs that are done, and the figures of the last."""
        found = {**self.identity, **self.foundation}
        saved = checkpoint.load(file, self._trained(), self.optimizers, found, settings(self.recipe))
        self.best, self.since = saved.get("best", math.inf), saved.get("since", 0)
        if self.scaler:
            self.scaler.load_state_dict(saved["scaler"])
        return saved["epochs_done"], saved["figures"]

    def _trained(self) -> dict[str, Tensor]:
        """All that the training changes, by name."""
        tables = {task: self.accelerator.unwrap_model(each) for task, each in self.latents.items()}
        own = {f"latents/{task}/{name}": t for task, each in tables.items() for name, t in each.state_dict().items()}
        return {**trained_tensors(self.model, list(self.data)), **own}


def _some_inputs(data: Splits, recipe: Recipe) -> Tensor:
    """The first images of a task as the network takes them."""
    count: int = len(data.train)  # type: ignore[arg-type]
    images = Transformed(data.train, recipe.input.transform())
    return torch.stack([images[index][0] for index in range(min(2, count))])


def validated(model: MultiTaskModel, data: Mapping[str, Splits], accelerator: Accelerator) -> dict[str, float]:
    """How well each task is done on the images that were held out, as `<task>/validation`."""
    model.eval()
    return {
        f"{task}/validation": measure(model.answering(task), splits.test, model.task(task), device=accelerator.device)
        for task, splits in data.items()
    }


def _kind(model: MultiTaskModel, task: str, recipe: Recipe) -> Kind:
    kind = get_kind(model.task(task).kind)
    kind.meter(len(model.task(task).classes))  # where this needs what is not installed, it is told before the training
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


def device_words(cpu: bool = False, threads: int | None = None) -> str:
    """What a training will run on, of a recipe that asks for so many threads of a CPU."""
    if torch.cuda.is_available() and not cpu:
        return torch.cuda.get_device_name()
    if torch.backends.mps.is_available() and not cpu:
        return "Apple's GPU"
    return f"the CPU ({threads or torch.get_num_threads()} threads)"


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
