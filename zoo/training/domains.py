"""Domains of the user's own: a new entry of a folder of images, trained and listed in a registry beside it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from zoo.catalog.entry import Entry
from zoo.catalog.registry import Registry
from zoo.catalog.task import Task
from zoo.datasets import get_benchmark
from zoo.increments import get_method
from zoo.loader import fresh_model
from zoo.storage.files import weights_file
from zoo.storage.tensors import fingerprint, read, write
from zoo.training.publishing import publish
from zoo.training.runs import RunOptions, train_entry


def train_own(
    backbone: str,
    data: Path,
    method: dict[str, Any],
    out: Path,
    registry: Registry,
    options: RunOptions,
    name: str = "",
) -> tuple[Entry, Path]:
    """Adapt a backbone to the user's own domains, `<data>/<domain>/{train,test}/<class>/*`.

    Args:
        name: of the new entry; by default made of backbone, method, rank and the data folder's name.

    Returns:
        The new entry, and the registry file in `out` that now lists it.
    """
    entry = _own_entry(backbone, data, method, out, registry, options, name)
    registry_file = out / "registry.yaml"
    own = Registry.at(out)
    if options.backbone_weights:
        kept = out / entry.name / "backbone.safetensors"
        tensors, _ = read(options.backbone_weights)
        with PartialState().main_process_first():
            if not kept.exists() or fingerprint(read(kept)[0]) != fingerprint(tensors):
                write(kept, tensors, {})
        entry = replace(entry, backbone_weights=weights_file(kept, f"file:{entry.name}/{kept.name}"))
    files = train_entry(entry, registry, entry.tasks, out / entry.name, options)
    if not PartialState().is_main_process:
        return entry, registry_file
    published = publish(entry, files, f"file:{entry.name}/")
    own.update(published)
    own.write(registry_file)
    return published, registry_file


def _own_entry(
    backbone: str, data: Path, method: dict[str, Any], out: Path, registry: Registry, options: RunOptions, name: str
) -> Entry:
    """The entry of the user's domains; all that can be known to be wrong is an error before any training."""
    get_method(method["name"])
    benchmark = get_benchmark("folder")
    classes = {task: benchmark.splits(task, data).classes for task in benchmark.tasks(data)}
    recipe = options.recipe or f"folder/{method['name']}"
    if recipe.endswith((".yaml", ".yml")):
        recipe = str(Path(recipe).resolve())
    rank = [f"r{method['rank']}"] if "rank" in method else []
    name = name or "-".join([_word(backbone.rpartition("/")[2]), method["name"], *rank, _word(data.resolve().name)])
    registry.check_new(name)
    entry = Entry(
        method, "folder", {task: len(names) for task, names in classes.items()}, recipe, backbone=backbone,
        data_root=str(data.resolve()), name=name, folder=out,
    )  # fmt: skip
    model = fresh_model(entry, registry, pretrained=False)
    for task, names in classes.items():
        model.add_task(Task.of(task, names))
    return replace(entry, parameters=model.count_parameters(entry.tasks[0]))


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_").lower()
