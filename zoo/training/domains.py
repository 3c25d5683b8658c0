"""Domains of the user's own: a new entry of a folder of images, trained and listed in a registry beside it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from zoo.backbones.weights import DEEPLAB, library_file
from zoo.catalog.entry import LIBRARIES, Entry, is_file, relative
from zoo.catalog.handover import list_in
from zoo.catalog.recipe import Recipe, recipe_data
from zoo.catalog.registry import OWN, Registry, default_registry
from zoo.catalog.task import Task
from zoo.catalog.yaml_files import dump_yaml
from zoo.datasets import get_benchmark
from zoo.errors import OptionError
from zoo.increments import get_method
from zoo.loader import card, fresh_model
from zoo.storage.files import WeightsFile, atomic_path, weights_file
from zoo.storage.tensors import fingerprint, read, write
from zoo.training.loop import device_words, planned
from zoo.training.options import RunOptions
from zoo.training.publishing import publish
from zoo.training.runs import given, recipe_of, splits_of, train_entry

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

    Domains without images to test on are parted by `options.test_share`.

    What is going to be done is logged first.

    Args:
        method: its name, and options; where FTN's are missing, those of OPTIONS are taken.
        name: of the new entry; by default made of backbone, method, rank and the data folder's name.

    Returns:
        The new entry, and the registry file in `out` that now lists it.
    """
    method = OPTIONS.get(method["name"], {}) | method
    entry = _own_entry(backbone, data, method, out, registry, options, name)
    own = Registry.at(out)
    if entry.name in own.names() and not options.overwrite:
        _check_same_images(own.entry(entry.name), entry)
    options = replace(options, data_root=data)
    steps = _announce(entry, registry, options)
    if options.backbone_weights:
        entry = _with_backbone(entry, options.backbone_weights)
    elif backbone.removeprefix(DEEPLAB).startswith(LIBRARIES):
        entry = replace(entry, backbone_weights=_found_weights(backbone.removeprefix(DEEPLAB), registry))
    files = train_entry(entry, registry, entry.tasks, out / entry.name, options, steps)
    if not PartialState().is_main_process:
        return entry, out / OWN
    _warn_of_what_was_not_learnt(files)
    published = publish(_with_recipe(entry, options), files, f"file:{entry.name}/")
    return published, list_in(out, published)


def _own_entry(
    backbone: str, data: Path, method: dict[str, Any], out: Path, registry: Registry, options: RunOptions, name: str
) -> Entry:
    """The entry of the user's domains; all that can be known to be wrong is an error before any training."""
    get_method(method["name"])
    benchmark = get_benchmark("folder", test_share=options.test_share)
    classes = {task: benchmark.splits(task, data).classes for task in benchmark.tasks(data)}
    recipe = options.recipe or f"folder/{method['name']}"
    if is_file(recipe):
        recipe = relative(Path(recipe), out)
    rank = [f"r{method['rank']}"] if "rank" in method else []
    name = name or "-".join([_word(backbone.rpartition("/")[2]), method["name"], *rank, _word(data.resolve().name)])
    default_registry().check_new(name)
    entry = Entry(
        method, "folder", {task: len(names) for task, names in classes.items()}, recipe, backbone=backbone,
        data_root=relative(data, out), test_share=options.test_share, name=name, folder=out,
    )  # fmt: skip
    model = fresh_model(entry, registry, pretrained=False)
    for task, names in classes.items():
        model.add_task(Task.of(task, names))
    return replace(entry, parameters=model.count_parameters(entry.tasks[0]))


def _check_same_images(known: Entry, entry: Entry) -> None:
    """Raise OptionError where an entry of that name was trained on images of another folder."""
    root = known.images_root()
    stated = (entry.folder / str(entry.data_root)).resolve()
    if known.classes != entry.classes or (root and root.resolve() != stated):
        raise OptionError(
            f"{entry.folder} holds an entry {entry.name} that was trained on other images"
            f"{f', those of {root}' if root else ''}. Name another --out or --name, or --overwrite it."
        )


def _found_weights(backbone: str, registry: Registry) -> WeightsFile:
    """Which file the weights of a library's backbone are today: the entry stays with it."""
    if backbone in registry.pins:
        return registry.pins[backbone]
    with PartialState().main_process_first():
        uri, file = library_file(backbone)
    found = weights_file(file, uri)
    log.info("No registry pins the weights of %s; the entry does: %s, SHA-256 %s.", backbone, uri, found.sha256)
    return found


def _with_backbone(entry: Entry, weights: Path) -> Entry:
    """The entry with its backbone's weights in a file in its folder, one for all entries there that have the same."""
    tensors, _ = read(weights)
    kept = entry.folder / f"backbone-{fingerprint(tensors)[:8]}.safetensors"
    with PartialState().main_process_first():
        if not kept.exists():
            write(kept, tensors, {})
    return replace(entry, backbone_weights=weights_file(kept, f"file:{kept.name}"))


def _warn_of_what_was_not_learnt(files: Mapping[str, Path]) -> None:
    for task, file in files.items():
        seen = read(file)[1]["metrics"].get("train_accuracy", 100)
        if seen < LOW:
            log.warning(
                "%s: only %.1f %% of the training images were answered rightly in the last epoch. Train longer "
                "(--epochs), with higher rates (--lr) or with more capacity (--rank, --method finetune).", task, seen,
            )  # fmt: skip


def _with_recipe(entry: Entry, options: RunOptions) -> Entry:
    """The entry with what it was trained by in a file beside its adapters."""
    file = entry.folder / entry.name / "recipe.yaml"
    text = dump_yaml(recipe_data(options.recipe or entry.recipe_source, options.changes))
    with atomic_path(file) as temporary:
        temporary.write_text(f"# What {entry.name} was trained by.\n\n{text}", encoding="utf-8")
    return replace(entry, recipe=f"{entry.name}/{file.name}")


def _announce(entry: Entry, registry: Registry, options: RunOptions) -> dict[str, int]:
    """Log what is trained, on how much, where and how long, and what the images become; the steps of each task."""
    wanted, steps = recipe_of(entry.recipe_source, options), {}
    for task in entry.tasks:
        own = wanted.of(task)
        splits = given(splits_of(entry, task, options), task, wanted, options)
        train, test = (len(images) for images in (splits.train, splits.test))  # type: ignore[arg-type]
        epochs, _, steps[task] = planned(wanted, {task: train}, options)
        log.info(
            "%s: %d training and %d test images of %d classes; %d epochs, %d steps of %d images", task, train, test,
            entry.classes[task], epochs, steps[task], own.batch,
        )  # fmt: skip
    assert entry.parameters is not None
    added, backbone = entry.parameters.per_task, entry.parameters.backbone
    described = " ".join(str(value) for value in (entry.method["name"], *_options(entry.method)))
    share = f"{100 * added / backbone:.1f} % of its {backbone:,}"
    log.info(
        "%s on %s: %s parameters for each task beside its head, %s", described, entry.backbone, f"{added:,}", share
    )
    log.info("Recipe: %s; on %s", options.recipe or entry.recipe, device_words(options.cpu, wanted.threads))
    log.info("Images: %s%s", wanted.on(card(entry, registry)).input.words(), _whence(wanted))
    return steps


def _whence(recipe: Recipe) -> str:
    """Where the preprocessing comes from, as far as a recipe leaves it open."""
    left = recipe.leaves_open() - {"width", "frames"}
    return f"; {', '.join(sorted(left))} by the backbone's card, or as for ImageNet where it has none" if left else ""


def _options(method: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in method.items() if key != "name"]


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_").lower()
