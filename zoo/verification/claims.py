"""Whether an entry is what the registry says: its files, its parameters, its accuracy, and its recipe."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from zoo.backbones import build
from zoo.backbones.imported import imported
from zoo.backbones.weights import pretrained_tensors
from zoo.catalog.entry import Backbone, Entry
from zoo.catalog.recipe import load_recipe
from zoo.catalog.registry import Registry
from zoo.catalog.store import adapter_files
from zoo.catalog.task import Task
from zoo.datasets import Images, benchmark_of
from zoo.errors import DataError, WeightsError
from zoo.loader import load_adapters
from zoo.models.adapted import TaskModel
from zoo.models.multitask import MultiTaskModel
from zoo.storage.fetch import fetch
from zoo.storage.tensors import read
from zoo.training.evaluation import measure
from zoo.training.options import RunOptions
from zoo.training.runs import train_entry
from zoo.verification.mistakes import Answers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    task: str
    what: str
    passed: bool
    detail: str


def evaluate(
    entry: Entry, model: MultiTaskModel, data_root: Path | None = None, skip_unreadable: bool = False,
    answers: Mapping[str, Answers] | None = None,
) -> dict[str, float]:  # fmt: skip
    """How well `model` does every task on its test images, each in its metric's unit.

    Args:
        answers: what gathers the answers of a task while it is measured.
    """
    benchmark = benchmark_of(entry, skip_unreadable)
    root = entry.images_root(data_root)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    figures = {}
    for name in model.tasks:
        task, splits = model.task(name), benchmark.splits(name, root)
        if splits.classes != task.classes:
            odd = sorted(set(splits.classes) ^ set(task.classes)) or ["the same in another order"]
            raise DataError(f"{name} was trained on other classes than those of {root}: {', '.join(odd)}.")
        watched = (answers or {}).get(name)
        for part, images in {name: splits.test, **{f"{name}: {p}": i for p, i in splits.parts.items()}}.items():
            watch = watched.take if watched and part == name else None
            figures[part] = measure(model.answering(name), images, task, device=device, watch=watch)
            log.info("%s: %s", part, task.metric.text(figures[part]))
    return figures


def test_images(entry: Entry, task: str, data_root: Path | None = None, skip_unreadable: bool = False) -> Images:
    """The images that a task of an entry is tested on."""
    return benchmark_of(entry, skip_unreadable).splits(task, entry.images_root(data_root)).test


def verify(entry: Entry, registry: Registry, data_root: Path | None = None) -> list[Check]:
    """Check every published file of an entry, its numbers of parameters, and its measured accuracy.

    Without the images of a benchmark that the user must have, accuracy is not checked, and that is told.

    Raises:
        WeightsError: no weights are published for the entry.
    """
    if not entry.weights:
        raise WeightsError(f"No weights of {entry.name} are published, so there is nothing to verify.")
    checks = []
    files = entry.weights | ({"shared": entry.shared} if entry.shared else {})
    for task, file in files.items():
        try:
            fetch(file, entry.folder)
            checks.append(Check(task, "file", True, f"{file.size} bytes, sha256 {file.sha256[:12]}…"))
        except WeightsError as error:
            checks.append(Check(task, "file", False, str(error)))
    if not all(check.passed for check in checks):
        return checks
    model = load_adapters(entry, registry, adapter_files(entry, tuple(entry.weights), "published"))
    if entry.parameters:
        counted = {task: model.count_parameters(task) for task in model.tasks}
        fits = all(found == entry.parameters.of(task) for task, found in counted.items())
        checks.append(Check("all", "parameters", fits, ", ".join(dict.fromkeys(map(str, counted.values())))))
    if benchmark_of(entry).needs_root and entry.images_root(data_root) is None:
        told = "not measured: that needs the images of the benchmark. Name their folder with --data-root DIR."
        return [*checks, Check("all", entry.metric(model.tasks[0]).name, True, told)]
    figures = evaluate(entry, model, data_root)
    return checks + _compare(entry, {task: figures[task] for task in model.tasks})


def verify_backbone(backbone: Backbone) -> list[Check]:
    """Check a packaged backbone's file and its measured accuracy on what it was pre-trained on."""
    if backbone.weights is None:
        raise WeightsError(f"No weights of {backbone.name} are published, so there is nothing to verify.")
    tensors, header = read(fetch(backbone.weights, backbone.folder))
    model = TaskModel(build(backbone.name), "scratch")
    model.load_backbone_tensors({k: t for k, t in tensors.items() if k in model.backbone_tensors()}, backbone.name)
    prepared = load_recipe(backbone.recipe).of(backbone.task).input
    model.add_task(Task.of(backbone.task, header["classes"], prepared, backbone.kind))
    model.load_task_tensors(backbone.task, {k: t for k, t in tensors.items() if k in model.task_tensors(backbone.task)})
    stated = Entry({"name": "scratch"}, backbone.benchmark, {backbone.task: len(header["classes"])}, backbone.recipe,
                   kinds={backbone.task: backbone.kind}, backbone=backbone.name, measured=backbone.measured,
                   tolerance=backbone.tolerance)  # fmt: skip
    detail = f"{backbone.weights.size} bytes, sha256 {backbone.weights.sha256[:12]}…"
    counted = model.count_parameters(backbone.task).backbone
    return [
        Check(backbone.task, "file", True, detail),
        Check(backbone.task, "parameters", counted == backbone.parameters, f"{counted:,}"),
        *_compare(stated, evaluate(stated, model)),
    ]


def verify_imported(name: str, registry: Registry) -> list[Check]:
    """Check the weights of a backbone that a Python package holds, and whether timm's hub has the same values.

    An adapter names its backbone by the hash of the tensors: where both have the same, it fits both.
    """
    found = imported(name)
    assert found is not None
    tensors, network = pretrained_tensors(name, registry), build(name)
    counted = sum(p.numel() for n, p in network.named_parameters() if not n.startswith("classifier."))
    detail = f"{found.weights.size} bytes, sha256 {found.weights.sha256[:12]}…"
    checks = [
        Check("imagenet", "file", True, detail),
        Check("imagenet", "parameters", counted == found.parameters, f"{counted:,}"),
    ]
    try:
        theirs = pretrained_tensors(f"timm/{found.architecture}.in1k", registry)
    except WeightsError as error:
        return [*checks, Check("imagenet", "timm's hub", True, f"not compared: {error}")]
    same = all(torch.equal(tensor, theirs[key]) for key, tensor in tensors.items() if "num_batches" not in key)
    words = "has the same values" if same else "has other values: an adapter fits the one that it was trained on alone"
    return [*checks, Check("imagenet", "timm's hub", True, words)]


def retrain(entry: Entry, registry: Registry, options: RunOptions) -> list[Check]:
    """Run an entry's recipe again, in a temporary folder, and compare with its figures and, if published, its files."""
    published = adapter_files(entry, tuple(entry.weights or ()), "published")
    with tempfile.TemporaryDirectory() as folder:
        files = train_entry(
            entry, registry, entry.tasks, Path(folder), replace(options, resume=False, source_weights="published")
        )
        again = {task: read(file) for task, file in files.items()}
    figures = {task: header["metrics"][entry.metric(task).name] for task, (_, header) in again.items()}
    stated = {task: value for task, value in figures.items() if task in (entry.measured or {})}
    checks = _compare(entry, stated or figures, "retrained")
    told = [task for task in figures if stated and task not in stated]
    checks += [Check(task, "retrained", True, f"{figures[task]:.4g}; the registry states nothing") for task in told]
    for task, file in published.items():
        theirs, _ = read(file)
        same = all(torch.equal(tensor, theirs[name]) for name, tensor in again[task][0].items())
        # Another processor or library version may round otherwise: this is told, and is no failure.
        checks.append(Check(task, "weights", True, "bit for bit the same" if same else "not bit for bit the same"))
    return checks


def _compare(entry: Entry, found: dict[str, float], what: str = "") -> list[Check]:
    """Each figure against the registry's.

    Args:
        what: was done to get them; by default they are called by their metric's name.
    """
    measured = entry.measured or {}
    checks = []
    for task, value in found.items():
        stated, metric = measured.get(task), entry.metric(task)
        # Points of a percentage; of an error in metres or degrees, so many per cent of it.
        tolerance = entry.tolerance * (1 if metric.unit == "%" else (stated or 0) / 100)
        passed = stated is not None and abs(value - stated) <= tolerance
        expected = "nothing" if stated is None else f"{metric.text(stated)} ± {tolerance:.2g}"
        checks.append(Check(task, what or metric.name, passed, f"{metric.text(value)}, the registry states {expected}"))
    return checks
