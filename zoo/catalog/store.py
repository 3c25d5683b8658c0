"""Where files lie: an entry's adapters and what they share, and backbones; in the local store or as published."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from zoo.catalog.entry import Entry
from zoo.catalog.task import SHARED_NAME
from zoo.errors import WeightsError
from zoo.storage import resources
from zoo.storage.fetch import fetch
from zoo.storage.files import weights_file

log = logging.getLogger(__name__)
SHARED = f"{SHARED_NAME}.safetensors"  # beside the adapter files, what an entry's tasks share


def adapter_files(entry: Entry, tasks: Sequence[str], weights: str | Path = "auto") -> dict[str, Path]:
    """The adapter file of each task, fetched where need be; `weights` as `zoo.load` takes them.

    Raises:
        WeightsError: there is none for some of the tasks; the message says how to get them.
    """
    if weights not in ("auto", "published"):
        return _files_at(Path(weights), tasks)
    files = {task: stored_adapter(entry.name, task) for task in tasks} if _looks_in_store(entry, weights) else {}
    files = {task: file for task, file in files.items() if file.is_file()}
    for file in files.values():
        log.info("from the local store: %s", file)
    published = entry.weights or {}
    missing = [task for task in tasks if task not in files and task not in published]
    if missing:
        raise WeightsError(
            f"No weights of {entry.name} are published or in the local store for {', '.join(missing)}. "
            f"Train them with `zoo train {entry.name}`, "
            f"or build the model without them: zoo.load({entry.name!r}, weights=None)."
        )
    return {task: files.get(task) or fetch(published[task], entry.folder) for task in tasks}


def at_hand(entry: Entry, weights: str | Path = "auto") -> list[str]:
    """The tasks of an entry that there are adapters for; `weights` as `zoo.load` takes them."""
    if weights not in ("auto", "published"):
        folder = Path(weights)
        return [task for task in entry.tasks if not folder.is_dir() or (folder / f"{task}.safetensors").is_file()]
    in_store = _looks_in_store(entry, weights)
    stored = [task for task in entry.tasks if in_store and stored_adapter(entry.name, task).is_file()]
    return [task for task in entry.tasks if task in stored or task in (entry.weights or {})]


def _looks_in_store(entry: Entry, weights: str | Path) -> bool:
    """Whether the local store comes first: not for an entry of a repository or a bundle, whose files are meant."""
    return weights == "auto" and not entry.origin


def _files_at(path: Path, tasks: Sequence[str]) -> dict[str, Path]:
    """The adapter files of a folder of the user's, or the one file that a path names."""
    files = {task: path / f"{task}.safetensors" if path.is_dir() else path for task in tasks}
    missing = [str(file) for file in files.values() if not file.is_file()]
    if missing:
        raise WeightsError(f"No adapter file at {', '.join(missing)}.")
    if len(tasks) > 1 and not path.is_dir():
        raise WeightsError(f"{path} is one file, but {len(tasks)} tasks are wanted; name a folder or one task.")
    return files


def shared_file(entry: Entry, folder: Path) -> Path:
    """The file of what an entry's tasks share: in the folder of their adapter files, or as the registry publishes it.

    Raises:
        WeightsError: it is in neither place.
    """
    file = folder / SHARED
    if file.exists():
        return file
    if entry.shared is None:
        raise WeightsError(
            f"There is no {file}, and {entry.name} publishes none. What tasks share is made by training all of them "
            "together, or of trained adapters: by `zoo compress`, or by training an entry that names its source."
        )
    return fetch(entry.shared, entry.folder)


def stored_adapter(name: str, task: str) -> Path:
    """Where the local store keeps what `zoo train NAME --task T` makes."""
    return resources.within(resources.store_dir(), f"{name}/{task}.safetensors")


def stored_backbone(name: str) -> Path:
    """Where the local store keeps what `zoo train` makes of a backbone."""
    word = re.sub(r"[^A-Za-z0-9]+", "_", name)
    return resources.within(resources.store_dir(), f"backbones/{word}.safetensors")


def with_files(entry: Entry, files: Mapping[str, Path], uri: str) -> Entry:
    """The entry, naming these files by task, and what they share, with their hashes and sizes.

    Args:
        uri: where the files lie; their names are added to it.
    """
    shared = next(iter(files.values())).parent / SHARED
    return replace(
        entry,
        shared=weights_file(shared, f"{uri}{SHARED}") if shared.exists() else None,
        weights={task: weights_file(file, f"{uri}{file.name}") for task, file in files.items()},
    )


def latents_file(adapter: Path) -> Path:
    """Where the latents of the training pictures lie of a task that makes pictures, beside its adapter file."""
    return adapter.with_suffix(".latents")
