"""Naming trained files in a registry: the user's own, or the one that comes with the package."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from zoo.catalog.entry import Entry
from zoo.catalog.registry import Registry
from zoo.catalog.store import SHARED, stored_adapter, stored_backbone, with_files
from zoo.catalog.task import METRICS
from zoo.errors import OptionError, WeightsError
from zoo.storage import resources
from zoo.storage.files import weights_file
from zoo.storage.tensors import read


def publish(entry: Entry, files: dict[str, Path], uri: str) -> Entry:
    """The same as `with_files`, and the figures that the files state."""
    return replace(with_files(entry, files, uri), measured=_stated(entry, files))


def pack(name: str, registry: Registry, figures_only: bool = False, tasks: Sequence[str] = ()) -> None:
    """Move what the local store holds of an entry or backbone to the packaged weights, and record it in `registry`.

    Args:
        figures_only: record an entry's figures alone, for weights that cannot come with the package.
        tasks: of the entry, in place of all; what is known of its others stays.
    """
    backbone = registry.backbone(name)
    if backbone is not None:
        file = _move({backbone.task: stored_backbone(name)}, resources.packaged_weights_dir(), name)[backbone.task]
        weights, measured = weights_file(file, f"package:{file.name}"), {backbone.task: _figure(file, backbone.kind)}
        registry.update(replace(backbone, weights=weights, measured=measured))
    else:
        entry = registry.entry(name)
        if tasks and stored_adapter(name, entry.tasks[0]).with_name(SHARED).exists():
            raise OptionError(f"The tasks of {name} share a file, which fits all of them or none. Name no task.")
        made = {entry.known_task(task): stored_adapter(name, task) for task in tasks or entry.tasks}
        _finished(made, name)
        measured = (entry.measured or {}) | _stated(entry, made)
        entry = replace(entry, measured={task: measured[task] for task in entry.tasks if task in measured})
        if figures_only:
            registry.update(entry)
            return
        shared = stored_adapter(name, entry.tasks[0]).parent / SHARED
        files = _move(made, resources.packaged_weights_dir() / name, name)
        if shared.exists():
            shutil.move(shared, resources.packaged_weights_dir() / name / SHARED)
        made_now = with_files(entry, files, f"package:{name}/")
        registry.update(replace(made_now, weights=(entry.weights or {}) | (made_now.weights or {})))


def _move(files: dict[str, Path], folder: Path, name: str) -> dict[str, Path]:
    _finished(files, name)
    folder.mkdir(parents=True, exist_ok=True)
    return {task: Path(shutil.move(file, folder / file.name)) for task, file in files.items()}


def _finished(files: dict[str, Path], name: str) -> None:
    """Raises WeightsError unless every task was trained to its recipe's end."""
    missing = [task for task, file in files.items() if not file.exists()]
    if missing:
        raise WeightsError(f"The local store lacks {', '.join(missing)} of {name}. Train it first: `zoo train {name}`.")
    partly = {"max_steps", "steps_per_epoch", "hold_out", "fraction"}
    tried = [task for task, file in files.items() if partly & set(read(file)[1].get("recipe", {}))]
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
