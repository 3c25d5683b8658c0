"""Whole training runs: every task of an entry, or a backbone."""

from __future__ import annotations

import itertools
import logging
import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from torch import nn

import zoo
from zoo.backbones import build
from zoo.catalog.entry import Backbone, Entry
from zoo.catalog.recipe import Recipe, differences, load_recipe, settings
from zoo.catalog.registry import Registry
from zoo.catalog.store import SHARED, latents_file
from zoo.catalog.task import Task
from zoo.compression.factors import compress_entry
from zoo.datasets import Splits, benchmark_of, fraction_of, get_benchmark, held_out, some_of
from zoo.errors import DataError, OptionError
from zoo.loader import card, fresh_model, load_shared
from zoo.models.adapted import TaskModel
from zoo.models.multitask import MultiTaskModel
from zoo.storage import resources
from zoo.storage.files import atomic_path, check_writable
from zoo.storage.tensors import read, write
from zoo.training import loop
from zoo.training.batches import seed_of
from zoo.training.beginning import begin_with, begun, check_beginning, teachers_of
from zoo.training.evaluation import measure
from zoo.training.loop import run_identity
from zoo.training.options import RunOptions

log = logging.getLogger(__name__)


def train_entry(
    entry: Entry, registry: Registry, tasks: Sequence[str], out: Path, options: RunOptions,
    planned: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, Path]:  # fmt: skip
    """Train tasks of an entry by its recipe, one after another, each into `out/<task>.safetensors`.

    Tasks with networks of their own are trained together, and what they share goes into `out/shared.safetensors`. A
    task that is finished already is skipped.

    Args:
        planned: steps of each task, where they are known; then the time for all of them is estimated.

    Raises:
        OptionError: a task was finished, or begun, in another way, or begun and neither `resume` nor `overwrite` says
            what to do; or only some are wanted of tasks that are trained together.
        DataError: the images are not as they should be.
    """
    options = replace(options, test_share=entry.test_share)  # the entry's own, for good
    recipe = recipe_of(entry.recipe_source, options).on(card(entry, registry))
    _check_tasks(entry, recipe, tasks)
    check_beginning(entry, options)
    files = {task: resources.within(out, f"{task}.safetensors") for task in tasks}
    check_writable(out)
    accelerator = _accelerator(options, out)
    groups = [list(tasks)] if entry.networks else [[task] for task in tasks]
    options_of = {task: begun(options, group) for group in groups for task in group}
    identities = {task: run_identity(recipe, options_of[task]) for task in tasks}
    unfinished = pending(files, identities, recipe, options, {task: entry.method_of(task) for task in tasks})
    if unfinished and entry.source:
        with PartialState().main_process_first():
            if PartialState().is_main_process:
                _compress_source(entry, registry, out, tasks, options)
    to_do = [group for group in groups if set(group) & set(unfinished)]
    for number, group in enumerate(to_do, 1):
        data = {task: splits_of(entry, task, options) for task in group}
        model = _untrained(entry, registry, data, recipe, out, options)
        own = options_of[group[0]]
        later = sum(planned.get(task, 0) for task in itertools.chain(*to_do[number:]))
        if entry.form:
            metrics = tested(model, {task: given(data[task], task, recipe, own) for task in group}, accelerator, own)
        else:
            teachers = teachers_of(model, group, own, registry)
            metrics = train_and_test(model, data, recipe, files[group[0]], accelerator, own, later, teachers)
        if accelerator.is_main_process:
            _save(model, entry, recipe, metrics, files, own, data)
        accelerator.wait_for_everyone()
    _finish_trackers(accelerator)
    return files


def _check_tasks(entry: Entry, recipe: Recipe, tasks: Sequence[str]) -> None:
    """Raise OptionError where a recipe is for other tasks than an entry's, or some of its tasks cannot be alone."""
    if strange := sorted(set(recipe.tasks) - set(entry.tasks)):
        raise OptionError(f"The recipe {recipe.name} names tasks that {entry.name} lacks: {', '.join(strange)}.")
    if entry.networks and set(tasks) != set(entry.tasks):
        raise OptionError(f"The tasks of {entry.name}, {', '.join(entry.tasks)}, are trained together. Name none.")


def _untrained(
    entry: Entry, registry: Registry, data: Mapping[str, Splits], recipe: Recipe, out: Path, options: RunOptions
) -> MultiTaskModel:  # fmt: skip
    """A model with these tasks as training begins: fresh, or with what they are compressed from or begin with."""
    torch.manual_seed(seed_of(recipe.seed, *data, "init"))
    model = fresh_model(entry, registry, backbone_file=options.backbone_weights)
    _begin_compressed(model, entry, list(data), out)
    for task, images in data.items():
        if task not in model.tasks:
            known = Task.of(task, images.classes, recipe.of(task).input, entry.kind(task))
            model.add_task(known, entry.task_methods.get(task))
        model.rename(replace(model.task(task), preprocessing=recipe.of(task).input))  # of one that was compressed
    if options.begin:
        begin_with(model, list(data), options.begin)
    return model


def splits_of(entry: Entry, task: str, options: RunOptions) -> Splits:
    """A task's images; raises DataError where they have other classes than the entry was made for."""
    root = entry.images_root(options.data_root)
    data = benchmark_of(entry, options.skip_unreadable).splits(task, root)
    if len(data.classes) != entry.classes[task]:
        raise DataError(
            f"{task} has {len(data.classes)} classes in {root}; {entry.name} was made for {entry.classes[task]}."
        )
    return data


def _save(
    model: MultiTaskModel, entry: Entry, recipe: Recipe, metrics: dict[str, dict[str, float]], files: dict[str, Path],
    options: RunOptions, data: Mapping[str, Splits],
) -> None:  # fmt: skip
    """Write the files of tasks that have just been trained and, if it was trained with them, what they share."""
    facts = {key: value for key in ("backbone", "source", "form") if (value := getattr(entry, key))}
    facts |= {"entry": entry.name}
    if entry.networks and (shared := model.shared_tensors()):
        write(next(iter(files.values())).parent / SHARED, shared, facts | provenance(entry.name, recipe, {}, options))
    amounts = amounts_of(data, recipe, options)
    for task, figures in metrics.items():
        early = {"epochs": int(figures.pop("train_epochs"))} if "train_epochs" in figures else {}
        made = facts | amounts[task] | early | provenance(entry.name, recipe, figures, options)
        _save_latents(model, task, files[task])  # first: a task counts as trained when its adapter is there
        model.save_adapter(task, files[task], made)
        checkpoint_of(files[task]).unlink(missing_ok=True)


def _save_latents(model: MultiTaskModel, task: str, file: Path) -> None:
    """Write the latents of a task's training pictures, if it makes such, beside its adapter file, whose prior has their
    mean.
    """
    if task in model.latents:
        write(latents_file(file), {"latents": model.latents[task]}, {"format": 1, "task": task})


def amounts_of(data: Mapping[str, Splits], recipe: Recipe, options: RunOptions) -> dict[str, dict[str, Any]]:
    """For each task of a training the numbers of its training and test images, and of epochs."""
    used = {task: given(splits, task, recipe, options) for task, splits in data.items()}
    counts = {task: [len(splits.train), len(splits.test)] for task, splits in used.items()}  # type: ignore[arg-type]
    epochs = loop.planned(recipe, {task: count[0] for task, count in counts.items()}, options).epochs
    return {task: {"images": count, "epochs": epochs} for task, count in counts.items()}


def _compress_source(entry: Entry, registry: Registry, out: Path, tasks: Sequence[str], options: RunOptions) -> None:
    """Put the source's adapters, compressed to the entry's form, into `out/compressed`, unless they are there already.

    Raises:
        OptionError: `out` holds finished tasks that share something else.
    """
    begun = out / "compressed"
    found = [read(file)[1] for file in begun.glob("[!.]*.safetensors") if file.name != SHARED]
    fits = all((h["method"], h.get("source")) == (entry.method_of(h["task"]), entry.source) for h in found)
    if found and fits and not options.overwrite:
        return
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        fresh = Path(folder) / "compressed"
        compress_entry(entry, registry, fresh, options.source_weights, options.backbone_weights)
        others = [out / f"{task}.safetensors" for task in entry.tasks if not (options.overwrite and task in tasks)]
        made = {read(file)[1].get("shared_sha256") for file in fresh.glob("[!.]*.safetensors") if file.name != SHARED}
        odd = [str(file) for file in others if file.exists() and read(file)[1].get("shared_sha256") not in made]
        if odd and not entry.networks:
            raise OptionError(f"{odd[0]} was trained on another basis. --overwrite all tasks, or name another --out.")
        if (fresh / SHARED).exists() and not entry.networks:  # else it is trained further
            with atomic_path(out / SHARED) as temporary:
                shutil.copyfile(fresh / SHARED, temporary)
        shutil.rmtree(begun, ignore_errors=True)
        fresh.rename(begun)  # last: where it is, the rest is too


def _begin_compressed(model: MultiTaskModel, entry: Entry, tasks: Sequence[str], out: Path) -> None:
    """Give a model what its tasks share and, if the entry's source has the tasks, those in compressed form."""
    if model.shared_tensors() and (entry.source or not entry.networks):
        load_shared(model, entry, out / "compressed" if entry.networks else out)
    for task in tasks if entry.source else ():
        file = out / "compressed" / f"{task}.safetensors"
        if file.exists():
            model.load_adapter(file)


def train_backbone(backbone: Backbone, file: Path, options: RunOptions) -> Path:
    """Pre-train a backbone of the zoo by its recipe, from random weights, into a safetensors file."""
    recipe = recipe_of(backbone.recipe, options)
    check_writable(file.parent)
    accelerator = _accelerator(options, file.parent)
    if pending({backbone.task: file}, {backbone.task: run_identity(recipe, options)}, recipe, options):
        data = get_benchmark(backbone.benchmark, options.skip_unreadable).splits(backbone.task, options.data_root)
        torch.manual_seed(seed_of(recipe.seed, backbone.task, "init"))
        model = TaskModel(build(backbone.name), "scratch")
        model.add_task(Task.of(backbone.task, data.classes, recipe.of(backbone.task).input, backbone.kind))
        metrics = train_and_test(model, {backbone.task: data}, recipe, file, accelerator, options)[backbone.task]
        if accelerator.is_main_process:
            header = {"backbone": backbone.name, "classes": list(data.classes)}
            header |= provenance(backbone.name, recipe, metrics, options)
            _save_latents(model, backbone.task, file)
            write(file, {**model.backbone_tensors(), **model.task_tensors(backbone.task)}, header)
            checkpoint_of(file).unlink(missing_ok=True)
    _finish_trackers(accelerator)
    return file


def _finish_trackers(accelerator: Accelerator) -> None:
    """Close the logs. The processes stay joined: another training may follow."""
    for tracker in accelerator.trackers:
        tracker.finish()


def end_processes() -> None:
    """Part the processes that torchrun started, once all training is done."""
    PartialState().destroy_process_group()


def _accelerator(options: RunOptions, out: Path) -> Accelerator:
    return loop.make_accelerator(options.precision, options.cpu, options.tracker, out)


def train_and_test(
    model: MultiTaskModel, data: Mapping[str, Splits], recipe: Recipe, file: Path | None, accelerator: Accelerator,
    options: RunOptions, later: int = 0, teachers: Mapping[str, nn.Module] = MappingProxyType({}),
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Train one task, or several together, and test each; the metrics by task.

    Args:
        file: what the training is for, beside which its checkpoint is kept; None keeps none.
        later: steps of other trainings that follow, for an estimate of the whole time.
        teachers: see `loop.train_tasks`.
    """
    used = {task: given(splits, task, recipe, options) for task, splits in data.items()}
    figures = loop.train_tasks(
        model, used, recipe, accelerator=accelerator, checkpoint_file=checkpoint_of(file) if file else None,
        resume=options.resume, execution=options, quiet=options.quiet, cache=options.cache, later=later,
        teachers=teachers,
    )  # fmt: skip
    metrics = tested(model, used, accelerator, options)
    for task, found in metrics.items():
        own = f"{task}/" if len(used) > 1 else ""
        trained = {f"train_{key.removeprefix(own)}": value for key, value in figures.items() if key.startswith(own)}
        metrics[task] = trained | found
    return metrics


def tested(
    model: MultiTaskModel, data: Mapping[str, Splits], accelerator: Accelerator, options: RunOptions
) -> dict[str, dict[str, float]]:
    """How well each task is done on its test images."""
    metrics = {}
    model.to(accelerator.device)
    for task, splits in data.items():
        known = model.task(task)
        value = measure(
            model.answering(task), splits.test, known, device=accelerator.device, workers=options.workers,
            accelerator=accelerator,
        )  # fmt: skip
        metrics[task] = {known.metric.name: value}
        log.info("%s: test %s", task, known.metric.told(value, len(splits.test)))  # type: ignore[arg-type]
    return metrics


def given(data: Splits, task: str, recipe: Recipe, options: RunOptions) -> Splits:
    """What a task is trained and tested on: all, or so much of it as is asked for."""
    if options.fraction != 1:
        data = fraction_of(data, options.fraction, seed_of(recipe.seed, task, "fraction"))
    if samples := recipe.of(task).samples:
        data = some_of(data, samples, seed_of(recipe.seed, task, "fraction"))
    if options.hold_out:
        data = held_out(data, options.hold_out, seed_of(recipe.seed, task, "held out"))
    return data


def recipe_of(name: str, options: RunOptions) -> Recipe:
    """The recipe of a name, as the options change it."""
    recipe = load_recipe(options.recipe or name, options.changes)
    return recipe if options.seed is None else replace(recipe, seed=options.seed)


def pending(
    files: Mapping[str, Path], identities: Mapping[str, dict[str, Any]], recipe: Recipe, options: RunOptions,
    methods: Mapping[str, dict[str, Any]] = MappingProxyType({}),
) -> list[str]:  # fmt: skip
    """The tasks that are still to be trained; raises OptionError where what is there was made otherwise."""
    for file in files.values():
        if options.overwrite:
            for old in (file, checkpoint_of(file), latents_file(file)):
                old.unlink(missing_ok=True)
    done = [task for task, file in files.items() if file.exists()]
    for task in done:
        header, wanted = read(files[task])[1], {**identities[task], "method": methods.get(task)}
        made = {**header.get("recipe", {}), "method": header.get("method")}
        if made != wanted:
            changed = differences(header.get("settings"), settings(recipe))
            other = [
                f"{k} {made.get(k)}, not {wanted.get(k)}"
                for k in {**made, **wanted}
                if made.get(k) != wanted.get(k) and not (changed and k in ("sha256", "seed"))
            ]
            raise OptionError(
                f"{files[task]} is of another run ({'; '.join([changed, *other] if changed else other)}). --overwrite "
                f"trains anew; to begin with what is there, name another --out, and --from {files[task].parent}."
            )
        figures = ", ".join(f"{key} {value:.4g}" for key, value in header.get("metrics", {}).items())
        log.info("%s is trained already, and skipped: %s (%s)", task, files[task], figures)
    left = [task for task in files if task not in done]
    begun = [str(files[task]) for task in left if checkpoint_of(files[task]).exists()]
    if begun and not options.resume:
        raise OptionError(f"{begun[0]} has been begun already. --resume goes on with it, --overwrite trains anew.")
    return left


def checkpoint_of(file: Path) -> Path:
    """Where the training that makes a file keeps how far it is."""
    return file.with_name(f".{file.stem}.checkpoint")


def provenance(name: str, recipe: Recipe, metrics: dict[str, float], options: RunOptions) -> dict[str, Any]:
    """What an adapter file says of the training that made it."""
    device = {"device": torch.cuda.get_device_name()} if torch.cuda.is_available() and not options.cpu else {}
    return {
        "format": 1,
        "command": f"zoo train {name}",
        "recipe": run_identity(recipe, options),
        "settings": settings(recipe),
        "metrics": metrics,
        "versions": {"ftn-zoo": zoo.__version__, "torch": torch.__version__, "machine": platform.machine(), **device},
    }
