"""Naming trained files in a registry: the user's own, or the one that comes with the package."""

from __future__ import annotations

import contextlib
import filecmp
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from zoo.catalog.entry import Backbone, Entry
from zoo.catalog.registry import Registry
from zoo.catalog.store import SHARED, stored_adapter, stored_backbone, with_files
from zoo.catalog.task import METRICS
from zoo.errors import OptionError, WeightsError
from zoo.storage import resources
from zoo.storage.files import atomic_path, weights_file
from zoo.storage.tensors import read


def publish(entry: Entry, files: dict[str, Path], uri: str) -> Entry:
    """The same as `with_files`, and the figures that the files state."""
    return replace(with_files(entry, files, uri), measured=_stated(entry, files))


def pack(name: str, registry_file: Path, figures_only: bool = False, tasks: Sequence[str] = ()) -> None:
    """Move what the local store holds of an entry or backbone to the packaged weights, and record it in a registry.

    The store's files go last: whatever ends this on the way, the same again does it.

    Args:
        figures_only: record an entry's figures alone, for weights that cannot come with the package.
        tasks: of the entry, in place of all; what is known of its others stays.

    Raises:
        OptionError: tasks of those that share a file.
        WeightsError: the store lacks some, they were trained in part, or cannot be written.
    """
    with Registry.edited(registry_file) as registry:
        backbone = registry.backbone(name)
        files = _packed_backbone(backbone, registry) if backbone else _packed_entry(name, registry, figures_only, tasks)
    for file in files:
        file.unlink()


def _packed_backbone(backbone: Backbone, registry: Registry) -> list[Path]:
    """Copy and record a backbone; the files of the store that are packaged now."""
    file = stored_backbone(backbone.name)
    _finished({backbone.task: file}, backbone.name)
    _copy([file], resources.packaged_weights_dir())
    measured = {backbone.task: _figure(file, backbone.kind)}
    registry.update(replace(backbone, weights=weights_file(file, f"package:{file.name}"), measured=measured))
    return [file]


def _packed_entry(name: str, registry: Registry, figures_only: bool, tasks: Sequence[str]) -> list[Path]:
    """Copy and record an entry, or its figures alone; the files of the store that are packaged now."""
    entry = registry.entry(name)
    shared = stored_adapter(name, entry.tasks[0]).with_name(SHARED)
    if tasks and shared.exists():
        raise OptionError(f"The tasks of {name} share a file, which fits all of them or none. Name no task.")
    made = {entry.known_task(task): stored_adapter(name, task) for task in tasks or entry.tasks}
    if not figures_only and (left := _left_behind(entry, made, shared)):
        return left
    _finished(made, name)
    measured = (entry.measured or {}) | _stated(entry, made)
    entry = replace(entry, measured={task: measured[task] for task in entry.tasks if task in measured})
    if figures_only:
        registry.update(entry)
        return []
    files = [*made.values(), *([shared] if shared.exists() else [])]
    _copy(files, resources.packaged_weights_dir() / name)
    made_now = with_files(entry, made, f"package:{name}/")
    registry.update(replace(made_now, weights=(entry.weights or {}) | (made_now.weights or {})))
    return files


def _left_behind(entry: Entry, made: Mapping[str, Path], shared: Path) -> list[Path]:
    """The files of the store, where all of them are packaged already: what an end on the way has left there."""
    stated, packaged = entry.weights or {}, resources.packaged_weights_dir() / entry.name
    there = [file for file in (*made.values(), shared) if file.exists()]
    recorded = made.keys() <= stated.keys() and all(
        stated[task] == weights_file(file, f"package:{entry.name}/{file.name}")
        for task, file in made.items()
        if file.exists()
    )
    _, other, lacking = filecmp.cmpfiles(shared.parent, packaged, [file.name for file in there], shallow=False)
    return there if recorded and not other and not lacking else []


def _copy(files: Sequence[Path], folder: Path) -> None:
    """Copy files to a folder, each whole; all are written before the first takes the place of what stood there."""
    with contextlib.ExitStack() as stack:
        for file in files:
            shutil.copyfile(file, stack.enter_context(atomic_path(folder / file.name)))


def _finished(files: dict[str, Path], name: str) -> None:
    """Raises WeightsError unless every task was trained to its recipe's end."""
    missing = [task for task, file in files.items() if not file.exists()]
    if missing:
        raise WeightsError(f"The local store lacks {', '.join(missing)} of {name}. Train it first: `zoo train {name}`.")
    headers = {task: read(file)[1] for task, file in files.items()}
    if odd := [task for task, header in headers.items() if header.get("task", task) != task or "metrics" not in header]:
        raise WeightsError(f"{files[odd[0]]} is no file of {odd[0]} that was trained and tested. Train it again.")
    partly = {"max_steps", "steps_per_epoch", "hold_out", "fraction"}
    tried = [task for task, header in headers.items() if partly & set(header.get("recipe", {}))]
    if tried:
        raise WeightsError(
            f"{', '.join(tried)} of {name} were trained in part, by --max-steps, --steps-per-epoch, --fraction or "
            "--rank auto: not published."
        )


def _stated(entry: Entry, files: dict[str, Path]) -> dict[str, float]:
    """What the adapter files say was measured, by task."""
    return {task: _figure(file, entry.kind(task)) for task, file in files.items()}


def _figure(file: Path, kind: str) -> float:
    return METRICS[kind].rounded(float(read(file)[1]["metrics"][METRICS[kind].name]))
