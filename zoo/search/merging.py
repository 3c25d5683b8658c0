"""Tasks of an entry merged into one, and how well that does each of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Subset

from zoo.catalog.entry import Entry
from zoo.catalog.handover import carried, check_new, put_in
from zoo.catalog.recipe import recipe_names
from zoo.catalog.registry import Registry
from zoo.catalog.store import adapter_files
from zoo.catalog.task import CLASSIFICATION
from zoo.compression.merging import SIDE_BY_SIDE, merged, re_estimate
from zoo.datasets import Splits, Transformed, benchmark_of
from zoo.errors import OptionError
from zoo.loader import described, load_adapters
from zoo.models.adapted import TaskModel
from zoo.training.evaluation import measure

log = logging.getLogger(__name__)
IMAGES, BATCH = 2000, 64  # of the tasks' training images together, that statistics are estimated on


def merged_entry(
    entry: Entry, registry: Registry, weights: Mapping[str, float], name: str, task: str, out: Path,
    data_root: Path | None = None, **options: Any,
) -> tuple[Entry, list[dict[str, Any]]]:  # fmt: skip
    """A new entry of one task made of tasks of another, in `out`, and the accuracy of each in per cent.

    Args:
        weights: of the tasks that take part.
        task: what the new one is called.
        options: of `zoo.compression.merging.merged`.

    Returns:
        The entry; and for each part a row: the part itself, merged with the mean of the norms' statistics, and with
        statistics estimated on training images.

    Raises:
        OptionError: the tasks do not classify, or cannot be merged so.
    """
    check_new(name, out, registry)
    parts = [entry.known_task(part) for part in weights]
    if odd := [part for part in parts if entry.kind(part) != CLASSIFICATION]:
        raise OptionError(f"{odd[0]} does not classify, and merging is for tasks that do.")
    model = load_adapters(entry, registry, adapter_files(entry, parts))
    made = merged(model, weights, task, **options)
    benchmark, root = benchmark_of(entry), entry.images_root(data_root)
    splits = {part: benchmark.splits(part, root) for part in parts}
    head = options.get("head", SIDE_BY_SIDE)
    rows = [{"task": part, "by itself": _figure(model, part, splits[part])} for part in parts]
    for column in ("merged", "statistics anew"):
        if column == "statistics anew":
            re_estimate(made, task, _batches(made, task, splits))
        first = 0
        for part, row in zip(parts, rows, strict=True):
            row[column] = _figure(made, task, splits[part], first)
            first += len(splits[part].classes) if head == SIDE_BY_SIDE else 0
            log.info("%s, %s: %.2f %%", part, column, row[column])
    file = out / name / f"{task}.safetensors"
    facts = {"entry": name, "backbone": entry.backbone, "source": entry.name, "merged": dict(weights)}
    made.save_adapter(task, file, facts)
    same = made.method_name == entry.method["name"]
    kept = {key: value for key, value in entry.placement.items() if key not in ("placement", "projections")}
    placement = entry.placement if same else kept | {"layers": [path for path, _ in made.adapted()]}
    recipe = f"folder/{made.method_name}"
    new = Entry(
        benchmark="folder", classes={task: len(made.task(task).classes)}, backbone=entry.backbone, name=name,
        recipe=recipe if recipe in recipe_names() else "folder/ftn", backbone_weights=carried(entry, out),
        folder=out, **described(made, placement),
    )  # fmt: skip
    return put_in(out, new, {task: file}), rows


def _figure(model: Any, task: str, splits: Splits, first: int = 0) -> float:
    """The accuracy of a task on the test images of one of its parts, in per cent.

    Args:
        first: the number of the part's first class.
    """
    known = model.task(task)
    shifted = _Shifted(splits.test, first)
    return round(measure(model.answering(task), shifted, known), 2)  # type: ignore[arg-type]


class _Shifted:
    """Images whose labels count from another number."""

    def __init__(self, images: Any, first: int) -> None:
        self.images, self.first = images, first

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        image, label = self.images[index]
        return image, label + self.first


def _batches(model: TaskModel, task: str, splits: Mapping[str, Splits]) -> Iterator[Tensor]:
    """Training images of all parts, mixed, as the network takes them."""
    transform = model.task(task).preprocessing.transform()
    draws = torch.Generator().manual_seed(0)
    each = IMAGES // len(splits)
    chosen = []
    for part in splits.values():
        count: int = len(part.train)  # type: ignore[arg-type]
        order = torch.randperm(count, generator=draws)[:each].tolist()
        chosen.append(Transformed(Subset(part.train, order), transform))
    for inputs, _ in DataLoader(ConcatDataset(chosen), BATCH, shuffle=True, generator=draws):
        yield inputs
