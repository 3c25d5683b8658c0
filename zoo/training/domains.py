"""Domains of the user's own: a new entry of a folder of images, trained and listed in a registry beside it."""

from __future__ import annotations

import logging
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
from zoo.loader import card, fresh_model
from zoo.storage.files import weights_file
from zoo.storage.tensors import fingerprint, read, write
from zoo.training.publishing import publish
from zoo.training.runs import RunOptions, recipe_of, splits_of, train_entry

log = logging.getLogger(__name__)


LOW = 85.0  # per cent of training images answered rightly, below which more training may be what is missing
# What methods take on a user's own domains, where nothing else is asked for. FTN's own start, the paper's, throws
# networks of depthwise convolutions off before the first step (docs/pictures.md).
OPTIONS: dict[str, dict[str, Any]] = {"ftn": {"rank": 4, "start": "zero"}}


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

    What is going to be done is logged first.

    Args:
        method: its name, and options; where FTN's are missing, those of OPTIONS are taken.
        name: of the new entry; by default made of backbone, method, rank and the data folder's name.

    Returns:
        The new entry, and the registry file in `out` that now lists it.
    """
    method = OPTIONS.get(method["name"], {}) | method
    entry = _own_entry(backbone, data, method, out, registry, options, name)
    _announce(entry, registry, options)
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
    for task, file in files.items():
        seen = read(file)[1]["metrics"].get("train_accuracy", 100)
        if seen < LOW:
            log.warning(
                "%s: only %.1f %% of the training images were answered rightly in the last epoch. Train longer "
                "(--epochs), with higher rates (--lr) or with more capacity (--rank, --method finetune).", task, seen,
            )  # fmt: skip
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


def _announce(entry: Entry, registry: Registry, options: RunOptions) -> None:
    """Log what is trained, on how much, of what size, and what the images become."""
    for task in entry.tasks:
        splits = splits_of(entry, task, options)
        train, test = (len(images) for images in (splits.train, splits.test))  # type: ignore[arg-type]
        log.info("%s: %d training and %d test images of %d classes", task, train, test, entry.classes[task])
    assert entry.parameters is not None
    added, backbone = entry.parameters.per_task, entry.parameters.backbone
    described = " ".join(str(value) for value in (entry.method["name"], *_options(entry.method)))
    share = f"{100 * added / backbone:.1f} % of its {backbone:,}"
    log.info(
        "%s on %s: %s parameters for each task beside its head, %s", described, entry.backbone, f"{added:,}", share
    )
    wanted = recipe_of(entry.recipe, options)
    inputs = wanted.on(card(entry, registry)).input.words()
    log.info("Images: %s%s", inputs, ", by the backbone's card" if wanted.leaves_open() else "")


def _options(method: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in method.items() if key != "name"]


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_").lower()
