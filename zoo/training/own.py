"""`zoo.train` and `zoo.evaluate`: an adapted network of one's own, on images of one's own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from zoo.catalog.changes import Changes
from zoo.catalog.recipe import Recipe, load_recipe
from zoo.catalog.registry import default_registry
from zoo.catalog.task import CLASSIFICATION
from zoo.datasets import Splits, get_benchmark
from zoo.errors import DataError, OptionError
from zoo.models.adapted import TaskModel
from zoo.storage import resources
from zoo.storage.tensors import read
from zoo.training.beginning import begin_with, begun, teachers_of
from zoo.training.evaluation import measure
from zoo.training.loop import make_accelerator, run_identity
from zoo.training.options import RunOptions
from zoo.training.runs import amounts_of, checkpoint_of, pending, provenance, train_and_test

Pair = tuple[Dataset[Any], Dataset[Any]]
# Arguments of its own, or of entries alone.
ELSEWHERE = {"recipe", "resume", "data_root", "backbone_weights", "source_weights", "changes"}
CHANGES = {field.name for field in fields(Changes)}  # of the recipe
OPTIONS = CHANGES | {field.name for field in fields(RunOptions)} - ELSEWHERE - {"begun_with"}


def train(
    model: TaskModel,
    data: str | Path | Pair,
    *,
    recipe: str | Path | Recipe | None = None,
    task: str | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    **options: Any,
) -> dict[str, dict[str, float]]:
    """Train tasks of an adapted network, and test them, as `zoo train` does.

    Args:
        model: as `zoo.adapt` gives it. Its tasks end trained, in evaluation mode; what is frozen keeps every bit.
        data: a folder `<task>/{train,test}/<class>/*`, of which every task is trained; or, with `task`, the training
            and the test images as a pair of torch datasets. Their items are an image (PIL, or a uint8 tensor (C, H, W),
            which the recipe augments and the preprocessing normalises; a float tensor is taken as it is) and a target.
        recipe: a recipe, its name or its file; by default `folder/METHOD`. What it says of the input becomes the tasks'
            preprocessing; the rest they keep.
        task: this one alone.
        out: a folder for `<task>.safetensors`, and for checkpoints after each epoch.
        resume: go on from the last checkpoint in `out`, and take finished tasks from there.
        options: settings in place of the recipe's, `epochs`, `lr`, `batch_size`, `image_size` or others as
            `set=["rest.momentum=0.8"]`; and those of `zoo.training.RunOptions`, such as `precision="bf16"`, `seed=1`,
            `begin="DIR"` (with adapter files to begin with), `distil=True` (from the networks that those are made of),
            `test_share=0.2` (of images that have no split, to test on), `overwrite=True` or `quiet=True`.

    Returns:
        For each task its metric on the test images, and `train_loss` and the like of the last epoch.

    Raises:
        OptionError: the model lacks a task; or what a task adds cannot act (see `TaskModel.prove`).
        DataError: the images are not as they should be, or of other classes than the model's.
        TrainingError: the training diverged.
    """
    splits = _splits(model, data, task, bool(options.get("skip_unreadable")), options.get("test_share"))
    if resume and out is None:
        raise OptionError("resume needs out, the folder where the training was begun.")
    if options.get("distil") and not options.get("begin"):
        raise OptionError("distil needs begin, a folder of what `zoo factorise` made.")
    if strange := sorted(set(options) - OPTIONS):
        raise OptionError(f"zoo.train has no option {strange[0]!r}; it takes {', '.join(sorted(OPTIONS))}.")
    changes = Changes(**{name: options.pop(name) for name in CHANGES & set(options)})
    chosen, run = _recipe(model, recipe, splits, changes), RunOptions(resume=resume, **options)
    if run.seed is not None:
        chosen = replace(chosen, seed=run.seed)
    with tempfile.TemporaryDirectory() as nowhere:
        folder = Path(nowhere) if out is None else Path(out)
        files = {name: resources.within(folder, f"{name}.safetensors") for name in splits}
        methods = {name: {"name": model.method_name, **model.task_options(name)} for name in splits}
        run = begun(run, list(splits))
        identity, figures = run_identity(chosen, run), {}
        for name, file in files.items():
            if pending({name: file}, {name: identity}, chosen, run, methods):
                figures[name] = _trained(model, name, splits[name], chosen, run, None if out is None else file)
            else:
                _check_same_images(file, splits[name], resume)
                model.begin_task(name, file)
                figures[name] = dict(read(file)[1].get("metrics", {}))
    return figures


def _trained(
    model: TaskModel, task: str, splits: Splits, recipe: Recipe, run: RunOptions, file: Path | None
) -> dict[str, float]:  # fmt: skip
    """Train one task, and keep it in a file, if there is to be one; its figures."""
    if run.begin:
        begin_with(model, [task], Path(run.begin))
    accelerator = make_accelerator(run.precision, run.cpu, run.tracker, file.parent if file else None)
    own, teachers = {task: splits}, teachers_of(model, [task], run, default_registry())
    figures = train_and_test(model, own, recipe, file, accelerator, run, teachers=teachers)[task]
    if file and accelerator.is_main_process:
        facts = amounts_of(own, recipe, run)[task] | {"images": _counts(splits)}
        model.save_adapter(task, file, facts | provenance(task, recipe, figures, run))
        checkpoint_of(file).unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return figures


def evaluate(
    model: TaskModel, data: str | Path | Dataset[Any], task: str | None = None, *, test_share: float | None = None
) -> dict[str, float]:
    """How well an adapted network does its tasks, in the unit of each one's metric: accuracy in per cent, for example.

    Args:
        model: ends in evaluation mode.
        data: a folder as for `train`, of which the test images are taken; or, with `task`, a torch dataset.
        test_share: as for `train`, where the folder has no images to test on.
    """
    given: Any = data if isinstance(data, str | Path) else (data, data)
    device = next((p.device for p in model.parameters()), "cpu")
    model.eval()  # and so it stays
    return {
        name: measure(model.answering(name), splits.test, model.task(name), device=device)
        for name, splits in _splits(model, given, task, test_share=test_share).items()
    }


def _counts(splits: Splits) -> list[int]:
    """The number of training and of test images."""
    return [len(splits.train), len(splits.test)]  # type: ignore[arg-type]


def _check_same_images(file: Path, splits: Splits, resume: bool) -> None:
    """Raise OptionError unless a finished file is to be taken, and was made of as many images."""
    if not resume:
        raise OptionError(f"{file} is finished. resume=True takes it, overwrite=True trains anew; or name another out.")
    made = read(file)[1].get("images")
    if made != _counts(splits):
        raise OptionError(f"{file} was made of {made} images to train and to test on, not {_counts(splits)}.")


def _splits(
    model: TaskModel, data: str | Path | Pair, task: str | None, skip_unreadable: bool = False,
    test_share: float | None = None,
) -> dict[str, Splits]:  # fmt: skip
    """The images of each task, whose classes the model is given."""
    if not isinstance(model, TaskModel):
        raise OptionError(f"An adapted network is needed, as zoo.adapt gives it, not a {type(model).__name__}.")
    if not isinstance(data, str | Path):
        if task is None:
            raise OptionError("Datasets are one task's: name it with task=….")
        _check_pair(model, task, data)
        return {task: Splits(model.task(task).classes, *data)}
    benchmark, root = get_benchmark("folder", skip_unreadable, test_share), Path(data)
    found = {name: benchmark.splits(name, root) for name in ([task] if task else benchmark.tasks(root))}
    for name, splits in found.items():
        _check_classes(model, name, splits, root)
    return found


def _check_pair(model: TaskModel, task: str, pair: Any) -> None:
    """Raise DataError unless data are two datasets whose first items can be a task's."""
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(hasattr(each, "__len__") for each in pair):
        raise DataError("data has to be a folder, or a pair of datasets that know their length: (training, test).")
    known = model.task(task)
    for each in pair:
        item = each[0] if len(each) else None
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"An item of a dataset has to be an image and its target, not {type(item).__name__}.")
        label = item[1]
        if known.kind == CLASSIFICATION and not 0 <= int(label) < len(known.classes):
            raise DataError(f"The label {label} is none of the {len(known.classes)} classes of {task}.")


def _check_classes(model: TaskModel, task: str, splits: Splits, root: Path) -> None:
    """Give a task the names of its classes where it knows only their number; DataError where it knows others."""
    if task not in model.tasks:
        raise OptionError(
            f"{root} holds images of {task}, which the model has not; its tasks are {', '.join(model.tasks)}. Give it "
            f"one: model.add_task(zoo.Task.of({task!r}, {len(splits.classes)})); or name the one to train: task=…."
        )
    known = model.task(task)
    if known.classes == tuple(map(str, range(len(splits.classes)))):
        model.rename(replace(known, classes=splits.classes))
    elif known.classes != splits.classes:
        raise DataError(
            f"{root / task} has the classes {', '.join(splits.classes)}; the model's {task} has "
            f"{', '.join(known.classes)}."
        )


def _recipe(
    model: TaskModel, recipe: str | Path | Recipe | None, splits: Mapping[str, Splits], changes: Changes
) -> Recipe:
    """The recipe of a training, and the model's tasks prepared as it says."""
    name = f"folder/{model.method_name}" if recipe is None else str(recipe)
    if isinstance(recipe, Recipe):
        if changes != Changes():
            raise OptionError("epochs, lr and the like change recipe files; change a Recipe by dataclasses.replace.")
        # Perhaps a changed copy of a file's, whose hash would be that of the file
        chosen = replace(recipe, name=recipe.name or "one's own", sha256=recipe.fingerprint())
    else:
        chosen = load_recipe(name, changes)
    inputs = {model.task(name).preprocessing for name in splits}
    if len(inputs) > 1 and chosen.leaves_open():
        raise OptionError("The tasks are prepared in several ways; train them one by one: task=….")
    chosen = chosen.on(inputs.pop())
    for name in splits:
        model.rename(replace(model.task(name), preprocessing=chosen.of(name).input))
    return chosen
