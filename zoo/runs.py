"""Whole training runs: every task of an entry, a backbone, or domains of the user's own; and publishing them."""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import zoo
from zoo import resources, training
from zoo.backbones import build
from zoo.datasets import Splits, get_benchmark
from zoo.errors import DataError, OptionError, WeightsError
from zoo.evaluation import accuracy
from zoo.files import sha256
from zoo.increments import get_method
from zoo.loader import fresh_model, stored_adapter
from zoo.model import TaskModel
from zoo.recipe import Recipe, load_recipe
from zoo.registry import Backbone, Entry, Parameters, Registry, WeightsFile
from zoo.task import Task
from zoo.tensors import read, write


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out; nothing here is part of what it reproduces, but `seed` and `max_steps`."""

    data_root: Path | None = None
    resume: bool = False  # go on from the last epoch's checkpoint, skip finished tasks
    overwrite: bool = False  # train finished tasks anew
    recipe: str | None = None  # a recipe's name or file, in place of the entry's
    seed: int | None = None  # in place of the recipe's
    backbone_weights: Path | None = None  # a safetensors file, in place of the published ones
    skip_unreadable: bool = False
    precision: str = "no"  # "no", "bf16" or "fp16"
    cpu: bool = False
    workers: int = 0  # processes that load images
    tracker: str | None = None  # "tensorboard" or "wandb"
    max_steps: int | None = None
    quiet: bool = False


def train_entry(
    entry: Entry, registry: Registry, tasks: Sequence[str], out: Path, options: RunOptions
) -> dict[str, Path]:
    """Train tasks of an entry by its recipe, one after another, each into `out/<task>.safetensors`.

    Raises:
        OptionError: a task is finished already and neither `resume` nor `overwrite` says what to do.
        DataError: the images are not as they should be.
    """
    recipe = _recipe(entry.recipe, options)
    benchmark = get_benchmark(entry.benchmark, options.skip_unreadable)
    root = options.data_root or (Path(entry.data_root) if entry.data_root else None)
    files = {task: resources.within(out, f"{task}.safetensors") for task in tasks}
    for task in _pending(files, recipe, options):
        data = benchmark.splits(task, root)
        if len(data.classes) != entry.classes[task]:
            raise DataError(
                f"{task} has {len(data.classes)} classes in {root}; {entry.name} was made for {entry.classes[task]}."
            )
        torch.manual_seed(training.seed_of(recipe.seed, task, "init"))
        model = fresh_model(entry, registry, backbone_file=options.backbone_weights)
        model.add_task(Task.of(task, data.classes, recipe.input))
        metrics = _train(model, task, data, recipe, files[task], options)
        if metrics is not None:
            provenance = {"entry": entry.name, "backbone": entry.backbone, **_provenance(entry.name, recipe, metrics)}
            model.save_adapter(task, files[task], provenance)
            _checkpoint(files[task]).unlink(missing_ok=True)
    return files


def train_backbone(backbone: Backbone, file: Path, options: RunOptions) -> Path:
    """Pre-train a backbone of the zoo by its recipe, from random weights, into a safetensors file."""
    recipe = _recipe(backbone.recipe, options)
    if _pending({backbone.task: file}, recipe, options):
        data = get_benchmark(backbone.benchmark, options.skip_unreadable).splits(backbone.task, options.data_root)
        torch.manual_seed(training.seed_of(recipe.seed, backbone.task, "init"))
        model = TaskModel(build(backbone.name), "scratch")
        model.add_task(Task.of(backbone.task, data.classes, recipe.input))
        metrics = _train(model, backbone.task, data, recipe, file, options)
        if metrics is not None:
            header = {"backbone": backbone.name, "classes": list(data.classes)}
            write(
                file,
                {**model.backbone_tensors(), **model.task_tensors(backbone.task)},
                header | _provenance(backbone.name, recipe, metrics),
            )
            _checkpoint(file).unlink(missing_ok=True)
    return file


def train_own(
    backbone: str, data: Path, method: dict[str, Any], out: Path, registry: Registry, options: RunOptions
) -> tuple[Entry, Path]:
    """Adapt a backbone to the user's own domains, `<data>/<domain>/{train,test}/<class>/*`.

    Returns:
        The new entry, and the registry file in `out` that now lists it.
    """
    get_method(method["name"])  # a wrong name is an error before any image is looked at
    benchmark = get_benchmark("folder", options.skip_unreadable)
    classes = {task: len(benchmark.splits(task, data).classes) for task in benchmark.tasks(data)}
    name = "-".join([_word(backbone.rpartition("/")[2]), method["name"], *_rank(method), _word(data.resolve().name)])
    entry = Entry(backbone, method, "folder", classes, options.recipe or f"folder/{method['name']}",
                  data_root=str(data.resolve()), name=name, folder=out)  # fmt: skip
    registry_file = out / "registry.yaml"
    if options.backbone_weights:
        copy = out / name / "backbone.safetensors"
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists() or sha256(copy) != sha256(options.backbone_weights):
            shutil.copyfile(options.backbone_weights, copy)
        entry = replace(entry, backbone_weights=_weights_file(copy, f"file:{name}/{copy.name}"))
    files = train_entry(entry, registry, entry.tasks, out / name, options)
    own = Registry.read(registry_file) if registry_file.exists() else Registry()
    published = publish(entry, files, f"file:{name}/")
    own.update(published)
    own.write(registry_file)
    return published, registry_file


def publish(entry: Entry, files: dict[str, Path], uri: str) -> Entry:
    """The entry, naming these files by task, with their hashes and sizes, and the accuracy that they state.

    Args:
        uri: where the files lie; their names are added to it.
    """
    return replace(
        entry,
        weights={task: _weights_file(file, f"{uri}{file.name}") for task, file in files.items()},
        measured={task: _stated_accuracy(file) for task, file in files.items()},
        parameters=entry.parameters or _count(entry),
    )


def pack(name: str, registry: Registry) -> None:
    """Move what the local store holds of an entry or backbone to the packaged weights, and record it in `registry`."""
    backbone = registry.backbone(name)
    if backbone is not None:
        file = _move({backbone.task: backbone_file(name)}, resources.packaged_weights_dir(), name)[backbone.task]
        weights, measured = _weights_file(file, f"package:{file.name}"), {backbone.task: _stated_accuracy(file)}
        registry.update(replace(backbone, weights=weights, measured=measured))
    else:
        entry = registry.entry(name)
        made = {task: stored_adapter(name, task) for task in entry.tasks}
        files = _move(made, resources.packaged_weights_dir() / name, name)
        registry.update(publish(entry, files, f"package:{name}/"))


def _move(files: dict[str, Path], folder: Path, name: str) -> dict[str, Path]:
    missing = [task for task, file in files.items() if not file.exists()]
    if missing:
        raise WeightsError(f"The local store lacks {', '.join(missing)} of {name}. Train it first: `zoo train {name}`.")
    folder.mkdir(parents=True, exist_ok=True)
    return {task: Path(shutil.move(file, folder / file.name)) for task, file in files.items()}


def backbone_file(name: str) -> Path:
    """Where the local store keeps what `zoo train` makes of a backbone."""
    return resources.store_dir() / "backbones" / f"{_word(name)}.safetensors"


def _train(
    model: TaskModel, task: str, data: Splits, recipe: Recipe, file: Path, options: RunOptions
) -> dict[str, float] | None:
    """Train and test one task; the metrics, or None on every process but the main one."""
    accelerator = training.make_accelerator(options.precision, options.cpu, options.tracker, file.parent)
    model.to(memory_format=torch.channels_last)  # the layout that convolutions are fastest in
    figures = training.train_task(
        model, task, data, recipe, accelerator=accelerator, checkpoint_file=_checkpoint(file), resume=options.resume,
        workers=options.workers, max_steps=options.max_steps, quiet=options.quiet,
    )  # fmt: skip
    accelerator.end_training()
    if not accelerator.is_main_process:
        return None
    model.eval()
    tested = accuracy(
        lambda x: model(x, task), data.test, recipe.input, device=accelerator.device, workers=options.workers
    )
    return {"accuracy": tested, "train_accuracy": figures["accuracy"], "train_loss": figures["loss"]}


def _recipe(name: str, options: RunOptions) -> Recipe:
    recipe = load_recipe(options.recipe or name)
    return recipe if options.seed is None else replace(recipe, seed=options.seed)


def _pending(files: dict[str, Path], recipe: Recipe, options: RunOptions) -> list[str]:
    """The tasks that are still to be trained."""
    done = [task for task, file in files.items() if file.exists() and not options.overwrite]
    for task in done:
        if not options.resume:
            raise OptionError(
                f"{files[task]} has been trained already. --resume keeps finished tasks, --overwrite trains anew."
            )
        made = read(files[task])[1].get("recipe", {})
        if (made.get("sha256"), made.get("seed")) != (recipe.sha256, recipe.seed):
            raise OptionError(
                f"{files[task]} was trained by another recipe or seed ({made.get('name')}, {made.get('seed')}). "
                "Use --overwrite to train anew, or another --out."
            )
    return [task for task in files if task not in done]


def _checkpoint(file: Path) -> Path:
    return file.with_name(f".{file.stem}.checkpoint")


def _provenance(name: str, recipe: Recipe, metrics: dict[str, float]) -> dict[str, Any]:
    return {
        "format": 1,
        "command": f"zoo train {name}",
        "recipe": {"name": recipe.name, "sha256": recipe.sha256, "seed": recipe.seed},
        "metrics": metrics,
        "versions": {"ftn-zoo": zoo.__version__, "torch": torch.__version__, "machine": platform.machine()},
    }


def _weights_file(file: Path, uri: str) -> WeightsFile:
    return WeightsFile(uri, sha256(file), file.stat().st_size)


def _stated_accuracy(file: Path) -> float:
    return round(float(read(file)[1]["metrics"]["accuracy"]), 2)


def _count(entry: Entry) -> Parameters:
    """The entry's numbers of parameters, from one of its tasks, without classifiers."""
    model = fresh_model(entry, Registry(), pretrained=False)
    task = entry.tasks[0]
    model.add_task(Task.of(task, entry.classes[task]))
    return model.count_parameters(task)


def _rank(method: dict[str, Any]) -> list[str]:
    return [f"r{method['rank']}"] if "rank" in method else []


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_").lower()
