"""What tasks begin with: fresh tensors, or those of adapter files, whose fine-tuned networks may be learnt from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from zoo.catalog.changes import Changes
from zoo.catalog.entry import Entry
from zoo.catalog.registry import Registry
from zoo.catalog.store import SHARED, latents_file
from zoo.compression.small_files import teacher
from zoo.errors import OptionError
from zoo.models.multitask import MultiTaskModel
from zoo.storage.files import sha256
from zoo.storage.tensors import read
from zoo.training.options import RunOptions


def check_beginning(entry: Entry, options: RunOptions) -> None:
    """Raise OptionError for options of how tasks begin that do not go together, before anything is discarded."""
    if options.distil and options.begin is None:
        raise OptionError("--distil needs --from, a folder of what `zoo factorise` made.")
    if entry.source and options.begin:
        raise OptionError(f"{entry.name} begins with what {entry.source} has, compressed; it takes no --from.")
    if entry.form and options.changes != Changes():
        raise OptionError(f"{entry.name} is {entry.source} factorised; it has no training whose settings could change.")


def begun(options: RunOptions, group: Sequence[str]) -> RunOptions:
    """The options of a group of tasks, which name the files that these begin with by their hash."""
    if options.begin is None:
        return options
    files = [Path(options.begin) / f"{task}.safetensors" for task in group]
    latents = [file for file in map(latents_file, files) if file.is_file()]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise OptionError(f"There is no adapter file {missing[0]} to begin with.")
    return replace(options, begun_with=hashlib.sha256("".join(map(sha256, files + latents)).encode()).hexdigest())


def begin_with(model: MultiTaskModel, tasks: Sequence[str], folder: Path) -> None:
    """Give tasks that a model has the tensors of adapter files in a folder, and the model what these share."""
    if model.shared_tensors() and model.common_tensors():
        model.load_shared_tensors(read(folder / SHARED)[0], str(folder / SHARED))
    for task in tasks:
        file = folder / f"{task}.safetensors"
        model.begin_task(task, file)
        if latents_file(file).is_file():
            model.latents[task] = read(latents_file(file))[0]["latents"]


def teachers_of(
    model: MultiTaskModel, tasks: Sequence[str], options: RunOptions, registry: Registry
) -> dict[str, nn.Module]:
    """The fine-tuned networks that the files were made of which tasks begin with, where these are to be learnt from."""
    if not options.distil:
        return {}
    assert options.begin is not None  # `check_beginning` has seen to it
    return {task: teacher(model, task, Path(options.begin) / f"{task}.safetensors", registry) for task in tasks}
