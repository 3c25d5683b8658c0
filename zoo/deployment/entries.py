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
from zoo.export import FULL, Parity, run, session, to_mixed, to_onnx, to_shared
from zoo.export.shared import held
from zoo.loader import load, load_adapters, plain_network
from zoo.storage.files import sha256
from zoo.storage.tensors import read
from zoo.verification.timing import interleaved, medians, ratio

log = logging.getLogger(__name__)
FUSED, SHARED = "fused", "shared"  # the forms in which tasks leave
REAL_IMAGES = 16  # test images per task that a graph is compared on


@dataclass(frozen=True)
class Exported:
    """A task's graph."""

    path: Path
    parity: Parity  # with its source
    holds: str = "the whole network"  # beside what it refers to


def export_entry(
    entry: Entry,
    registry: Registry,
    tasks: Sequence[str],
    folder: Path,
    *,
    form: str = FUSED,
    data_root: Path | None = None,
    weights: str | Path = "auto",
    preprocess: bool | str = False,
    **options: Any,
) -> dict[str, Exported]:
    """One checked ONNX graph per task of an entry, `<folder>/<task>.onnx`.

    Each is compared on random inputs and, where the benchmark's images are at hand, on real ones.

    Args:
        form: "fused": each holds its whole network; "shared": all refer to one file of the backbone's weights.
        options: of `zoo.export.to_onnx` or `to_shared`.
    """
    files = adapter_files(entry, tasks, weights)
    model = load_adapters(entry, registry, files)
    made = {}
    for task, file in files.items():
        known, path = model.task(task), folder / f"{task}.onnx"
        given = {"images": real_inputs(entry, known, data_root, preprocess), "metadata": provenance(entry, file)}
        given |= {"preprocess": preprocess, **options}
        if form == SHARED:
            made[task] = Exported(path, to_shared(model, task, path, **given), held(model, task))
        else:
            made[task] = Exported(path, to_onnx(model.fuse(task), path, task=known, **given))
    return made


def export_mixed(
    entry: Entry,
    registry: Registry,
    tasks: Sequence[str],
    path: Path,
    *,
    data_root: Path | None = None,
    weights: str | Path = "auto",
    preprocess: bool | str = False,
    **options: Any,
) -> Exported:
    """One checked ONNX graph of several tasks of an entry; options as of `zoo.export.to_mixed`."""
    files = adapter_files(entry, tasks, weights)
    model = load_adapters(entry, registry, files)
    images = {task: real_inputs(entry, model.task(task), data_root, preprocess) for task in files}
    each = {task: provenance(entry, file) for task, file in files.items()}
    facts = {**next(iter(each.values())), "adapter_sha256": {task: own["adapter_sha256"] for task, own in each.items()}}
    facts["recipe"] = {task: own["recipe"] for task, own in each.items() if "recipe" in own}
    parity = to_mixed(model, path, tasks=list(files), images=images, preprocess=preprocess, metadata=facts, **options)
    return Exported(path, parity, "all tasks")


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
