"""What is done with a trained entry: export it, and time it."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.catalog.entry import Entry
from zoo.catalog.registry import Registry
from zoo.catalog.store import adapter_files
from zoo.catalog.task import Bands, Task
from zoo.datasets import benchmark_of
from zoo.errors import OptionError
from zoo.export import FULL, Parity, run, session, to_adapters, to_mixed, to_onnx, to_shared
from zoo.export.adapters import BASE, SUFFIX
from zoo.export.shared import held
from zoo.loader import load, load_adapters, plain_network
from zoo.storage.files import sha256
from zoo.storage.tensors import read
from zoo.verification.timing import interleaved, medians, ratio

log = logging.getLogger(__name__)
FUSED, SHARED, MIXED, ADAPTERS = FORMS = "fused", "shared", "mixed", "adapters"  # in which tasks leave
REAL_IMAGES = 16  # test images per task that a graph is compared on


@dataclass(frozen=True)
class Exported:
    """What was written of a task, or of several in one."""

    path: Path
    parity: Parity  # with its source
    holds: str = "the whole network"  # beside what it refers to
    base: Path | None = None  # the graph that the file is for, where it is none itself

    @property
    def graph(self) -> Path:
        return self.base or self.path


def export_entry(
    entry: Entry, registry: Registry, tasks: Sequence[str], out: Path, *, form: str = FUSED,
    data_root: Path | None = None, weights: str | Path = "auto", preprocess: bool | str = False, **options: Any,
) -> dict[str, Exported]:  # fmt: skip
    """Checked ONNX graphs of tasks of an entry, by task, or by all their names where one graph holds them.

    Each is compared on random inputs and, where the benchmark's images are at hand, on real ones.

    Args:
        out: a folder; for "mixed", the graph's file.
        form: "fused": each task's graph holds its whole network; "shared": all refer to one file of the backbone's
            weights; "mixed": one graph for all, each image by its own; "adapters": one graph, and a file of ONNX
            Runtime's for each task.
        options: of `zoo.export.to_onnx`, `to_shared`, `to_mixed` or `to_adapters`.
    """
    if form not in FORMS:
        raise OptionError(f"The form is one of {', '.join(FORMS)}, not {form!r}.")
    files = adapter_files(entry, tasks, weights)
    model = load_adapters(entry, registry, files)
    images = {task: real_inputs(entry, model.task(task), data_root, preprocess) for task in files}
    facts = {task: provenance(entry, file) for task, file in files.items()}
    options["preprocess"] = preprocess
    if form in (MIXED, ADAPTERS):
        options |= {"tasks": list(files), "images": images, "metadata": _of_all(facts)}
        if form == MIXED:
            return {", ".join(files): Exported(out, to_mixed(model, out, **options), "all tasks")}
        made = to_adapters(model, out, **options)
        return {task: Exported(out / f"{task}{SUFFIX}", p, "what it owns", out / BASE) for task, p in made.items()}
    found = {}
    for task in files:
        path, own = out / f"{task}.onnx", {**options, "images": images[task], "metadata": facts[task]}
        if form == SHARED:
            found[task] = Exported(path, to_shared(model, task, path, **own), held(model, task))
        else:
            found[task] = Exported(path, to_onnx(model.fuse(task), path, task=model.task(task), **own))
    return found


def _of_all(facts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the metadata of one graph say of the adapters of several tasks: hashes and recipes by task."""
    first = next(iter(facts.values()))
    by_task = {
        key: {task: own[key] for task, own in facts.items() if key in own} for key in ("adapter_sha256", "recipe")
    }
    return {**first, **{key: values for key, values in by_task.items() if values}}


def provenance(entry: Entry, file: Path) -> dict[str, Any]:
    """What a graph's metadata say of the adapter that is in it."""
    header = read(file)[1]
    known = ("backbone", "backbone_sha256", "recipe", "method")
    return {"entry": entry.name, "adapter_sha256": sha256(file), **{key: header[key] for key in known if key in header}}


def real_inputs(entry: Entry, task: Task, data_root: Path | None, preprocess: bool | str) -> list[Tensor]:
    """A few test images of a task in the form that its graph takes, in batches; none where they are not at hand."""
    benchmark = benchmark_of(entry)
    root = entry.images_root(data_root)
    if benchmark.needs_root and (root is None or not root.is_dir()):
        return []
    test, preprocessing = benchmark.splits(task.name, root).test, task.preprocessing
    count: int = len(test)  # type: ignore[arg-type]
    some = [test[i][0] for i in range(0, count, -(-count // REAL_IMAGES))]
    if preprocess == FULL:  # of sizes of their own
        bands = Bands(preprocessing.channels)
        return [bands(image).as_subclass(Tensor).movedim(-3, -1)[None].contiguous() for image in some]
    batch = torch.stack([preprocessing.transform()(image) for image in some])
    if not preprocess:
        return [batch]  # (B, C, H, W)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return [(255 * (batch * std + mean)).round().clamp(0, 255).to(torch.uint8).movedim(-3, -1).contiguous()]


def latencies(
    entry: Entry, registry: Registry, task: str | None = None, batch: int = 16, rounds: int = 20
) -> list[dict[str, Any]]:
    """Milliseconds per batch of an entry's network: plain, fused and unfused, in torch and in ONNX Runtime.

    The candidates take turns in one process. "plain" is the backbone's own architecture, untouched by the zoo but for a
    classifier of as many classes, or the task's own network in layers of torch's; a ratio is the median over the rounds
    of a candidate's time to its plain backbone's.
    """
    task = entry.known_task(task or entry.tasks[0])
    model = load(entry.name, task=task, weights=None, registry=registry)
    fused, known = model.fuse(task), model.task(task)
    plain = plain_network(entry, registry, model, fused)
    inputs = torch.randn(batch, *known.preprocessing.input_size)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        graphs = {}
        for name, network in (("plain", plain), ("fused", fused)):
            to_onnx(network, Path(folder, f"{name}.onnx"), task=known)
            graphs[name] = session(Path(folder, f"{name}.onnx"), spinning=False)
        array = inputs.numpy()
        groups: list[dict[str, Callable[[], object]]] = [  # apart: the idle threads of one library slow the other down
            {
                "torch plain": lambda: plain(inputs),
                "torch fused": lambda: fused(inputs),
                "torch unfused": lambda: model(inputs, task=task),
            },
            {
                "onnx plain": lambda: run(graphs["plain"], array),
                "onnx fused": lambda: run(graphs["fused"], array),
            },
        ]
        seconds = {name: values for group in groups for name, values in interleaved(group, rounds).items()}
    return [
        {
            "network": name,
            "ms per batch": round(1000 * s, 3),
            "ratio": round(ratio(seconds, name, f"{name.split()[0]} plain"), 3),
        }
        for name, s in medians(seconds).items()
    ]
