"""Tasks of an entry on their way out: loaded, with what their graphs are compared on and say of themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.catalog.entry import Entry
from zoo.catalog.registry import Registry
from zoo.catalog.store import adapter_files
from zoo.catalog.task import GENERATION, Bands
from zoo.datasets import benchmark_of
from zoo.export import FULL, Parity, to_adapters, to_mixed, to_onnx, to_shared
from zoo.export.adapters import BASE, SUFFIX
from zoo.export.shared import held
from zoo.loader import load_adapters
from zoo.models.multitask import MultiTaskModel
from zoo.storage.files import sha256
from zoo.storage.tensors import read

REAL_IMAGES = 16  # test images per task that a graph is compared on


@dataclass(frozen=True)
class Exported:
    """What was written of a task, or of several in one."""

    path: Path
    parity: Parity  # with its source
    holds: str = "the whole network"  # beside what it refers to
    base: Path | None = None  # the graph that the file is for, where it is none itself
    int8: Mapping[str, Any] | None = None  # what eight bits cost, see `export_int8`

    @property
    def graph(self) -> Path:
        return self.base or self.path


class Leaving:
    """Tasks of an entry that are to be exported, in one form or another.

    Attributes:
        model: with these tasks.
        names: of the tasks, in their order.
        preprocess: what of the preprocessing is to be in the graphs.
    """

    def __init__(
        self, entry: Entry, registry: Registry, tasks: Sequence[str], *, data_root: Path | None = None,
        weights: str | Path = "auto", preprocess: bool | str = False, provider: str = "cpu",
    ) -> None:  # fmt: skip
        files = adapter_files(entry, tasks, weights)
        self.entry, self.data_root, self.names = entry, data_root, list(files)
        self.model = load_adapters(entry, registry, files)
        self.preprocess, self._common = preprocess, {"preprocess": preprocess, "provider": provider}
        self.facts = {task: provenance(entry, file) | _latents(self.model, task) for task, file in files.items()}
        self.images = {task: real_inputs(entry, self.model, task, data_root, preprocess) for task in files}

    def whole(self, task: str, path: Path, plain: nn.Module | None = None, half: bool = False) -> Exported:
        """A graph that holds all of a task's network."""
        plain, known = plain or self.model.fuse(task), self.model.task(task)
        return Exported(path, to_onnx(plain, path, task=known, half=half, **self._own(task)))

    def shared(self, task: str, path: Path) -> Exported:
        """A graph on the backbone's weights beside it."""
        return Exported(path, to_shared(self.model, task, path, **self._own(task)), held(self.model, task))

    def mixed(self, path: Path, stack_limit: int | None = None) -> Exported:
        """One graph of all tasks."""
        return Exported(path, to_mixed(self.model, path, stack_limit=stack_limit, **self._all()), "all tasks")

    def adapters(self, folder: Path) -> dict[str, Exported]:
        """One graph, and a file of ONNX Runtime's for each task."""
        made = to_adapters(self.model, folder, **self._all())
        return {
            task: Exported(folder / f"{task}{SUFFIX}", p, "what it owns", folder / BASE) for task, p in made.items()
        }

    def _own(self, task: str) -> dict[str, Any]:
        return {"images": self.images[task], "metadata": self.facts[task], **self._common}

    def _all(self) -> dict[str, Any]:
        return {"tasks": self.names, "images": self.images, "metadata": _of_all(self.facts), **self._common}


def _of_all(facts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the metadata of one graph say of the adapters of several tasks: hashes and recipes by task."""
    first = next(iter(facts.values()))
    by_task = {
        key: {task: own[key] for task, own in facts.items() if key in own}
        for key in ("adapter_sha256", "recipe", "latents")
    }
    return {**first, **{key: values for key, values in by_task.items() if values}}


def provenance(entry: Entry, file: Path) -> dict[str, Any]:
    """What a graph's metadata say of the adapter that is in it."""
    header = read(file)[1]
    known = ("backbone", "backbone_sha256", "recipe", "method")
    return {"entry": entry.name, "adapter_sha256": sha256(file), **{key: header[key] for key in known if key in header}}


def _latents(model: MultiTaskModel, task: str) -> dict[str, Any]:
    """Where the latents of a task lie that makes pictures, for whoever has the graph alone."""
    if model.task(task).kind != GENERATION:
        return {}
    prior = model.prior(task)
    return {"latents": {"mean": prior.mean.tolist(), "covariance": prior.covariance.tolist()}}


def real_inputs(
    entry: Entry, model: MultiTaskModel, name: str, data_root: Path | None, preprocess: bool | str
) -> list[Tensor]:
    """A few test images of a task in the form that its graph takes, in batches; none where they are not at hand.

    Of a task that makes pictures: a few latents.
    """
    task = model.task(name)
    if task.kind == GENERATION:
        return [model.prior(name).draw(REAL_IMAGES, torch.Generator().manual_seed(0))]
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
