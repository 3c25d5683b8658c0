"""Fine-tuned checkpoints as an entry of one's own: one backbone, and a small file for each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zoo.backbones import architecture
from zoo.backbones.weights import restricted
from zoo.catalog.entry import Entry
from zoo.catalog.handover import carried, check_new, put_in
from zoo.catalog.recipe import load_recipe, recipe_names
from zoo.catalog.registry import Registry
from zoo.catalog.task import Preprocessing, Task
from zoo.compression.fine_tuned import (
    Factorised,
    add_fine_tuned,
    check_size,
    fitting,
    ranks_for,
    tensors_of,
    without_tasks,
)
from zoo.errors import OptionError, WeightsError
from zoo.loader import described, load, pretrained_network
from zoo.models.adapted import TaskModel
from zoo.models.multitask import MultiTaskModel
from zoo.models.placement import heads_of
from zoo.storage.fetch import fetch
from zoo.storage.files import sha256
from zoo.storage.tensors import check_tensors, counters, read

log = logging.getLogger(__name__)
MADE_OF = "made_of"  # in the header of a file, which fine-tuned network stands behind it
WRAPPED = "state_dict", "model", "model_state_dict"  # what training scripts call the tensors in a larger checkpoint
Source = tuple[Mapping[str, Tensor], Task | None]


def factorised_entry(
    sources: Sequence[str], backbone: str, registry: Registry, out: Path, name: str, form: str = "cp",
    rank: int | float = 8, budget: int | None = None, keep_rest: bool = False,
) -> tuple[Entry, dict[str, Factorised]]:  # fmt: skip
    """A new entry of fine-tuned checkpoints in `out`, listed in `out/registry.yaml`, and what became of each.

    Of all checkpoints one is in memory at a time.

    Args:
        sources: files of tensors (safetensors, or `.pth` of tensors alone), each of which is a task by its file's name;
            or ENTRY/TASK of the registry.
        form, rank, budget, keep_rest: as of `zoo.factorise`.

    Raises:
        OptionError: the entry's name is taken, or two sources make one task.
        WeightsError: a source cannot be read, or is not of the backbone's architecture.
    """
    check_new(name, out, registry)
    check_size(rank, budget)
    readers: dict[str, Callable[[], Source]] = {}
    origins: dict[str, str] = {}
    for source in sources:
        task, reader = _reader(source, registry)
        if task in readers:
            raise OptionError(
                f"Two sources make the task {task}; a task is called by the file's name, or the entry's task."
            )
        readers[task] = reader
        origins[task] = source if _of_entry(source, registry) else str(Path(source).resolve())
    origin = _origin(sources, registry)
    of = origin if origin and origin.backbone == backbone else None
    # Its classifier, which may be of another size, stays fresh.
    apart = heads_of(architecture(backbone, registry))
    own = of.backbone_weights if of else None
    network = pretrained_network(backbone, registry, apart, fetch(own, of.folder) if of and own else None)
    model = without_tasks(network, form, keep_rest)
    card = _input_of(backbone, network, registry)
    found, files = dict[str, Factorised](), {}
    for task, reader in readers.items():
        log.info("%s:", task)
        tensors, known = reader()
        given = fitting(model, tensors)
        ranks = ranks_for(model, given, rank, budget, keep_rest)
        said: dict[str, Any] = {"preprocessing": card}
        if known:
            said = {"classes": list(known.classes), "preprocessing": known.preprocessing, "kind": known.kind}
        found[task] = add_fine_tuned(model, given, ranks, task, **said)
        del tensors, given  # before the next are read
    for task in found:
        files[task] = out / name / f"{task}.safetensors"
        model.save_adapter(task, files[task], {"entry": name, "backbone": backbone, MADE_OF: origins[task]})
    return put_in(out, _entry(model, found, backbone, origin, name, out, keep_rest), files), found


def _entry(
    model: TaskModel, found: Mapping[str, Factorised], backbone: str, origin: Entry | None, name: str, out: Path,
    keep_rest: bool,
) -> Entry:  # fmt: skip
    """The entry of what was made, on the benchmark of the entry that all of it comes from, if there is one."""
    layers = {"layers": [path for path, _ in model.adapted()]} if keep_rest else {}
    of = origin.benchmark if origin else "folder"
    recipes = [f"{of}/{model.method_name}", f"{of}/ftn", "folder/ftn"]
    recipe = next(name for name in recipes if name in recipe_names())
    made = Entry(
        benchmark="folder", classes={task: len(model.task(task).classes) for task in found}, recipe=recipe,
        backbone=backbone, name=name, folder=out, **described(model, layers),
    )  # fmt: skip
    if origin is None:
        return made
    there, kinds = origin.at(out), {task: origin.kind(task) for task in found if task in origin.kinds}
    own = carried(origin, out) if origin.backbone == backbone else None
    return replace(
        made, benchmark=there.benchmark, kinds=kinds, data_root=there.data_root, test_share=there.test_share,
        backbone_weights=own,
    )  # fmt: skip


def _origin(sources: Sequence[str], registry: Registry) -> Entry | None:
    """The entry that all sources are tasks of, or one of those of a single benchmark; None of other files."""
    if not all(_of_entry(source, registry) for source in sources):
        return None
    entries = [registry.entry(source.rpartition("/")[0]) for source in sources]
    images = {(entry.benchmark, entry.images_root()) for entry in entries}
    return entries[0] if len(images) == 1 else None


def _input_of(backbone: str, network: nn.Module, registry: Registry) -> Preprocessing:
    """How a backbone wants its images: as it was pre-trained by the zoo, or as its card says."""
    known = registry.backbone(backbone)
    return load_recipe(known.recipe).of(known.task).input if known else Preprocessing.of(network)


def teacher(model: MultiTaskModel, task: str, file: Path, registry: Registry) -> nn.Module:
    """The fine-tuned network that an adapter file was made of.

    Args:
        model: has the task.

    Raises:
        OptionError: the file does not say what it was made of.
        WeightsError: that is not there any more, or is another network.
    """
    source = read(file)[1].get(MADE_OF)
    if not isinstance(source, str):
        raise OptionError(f"{file} does not say what it was made of; --distil is for what `zoo factorise` made.")
    network = model.fuse(task)
    given = tensors_of(_reader(source, registry)[1]()[0])
    own = network.state_dict()
    check_tensors(own, {**counters(own), **given}, source)
    network.load_state_dict({**counters(own), **given})
    return network.requires_grad_(False)


def _of_entry(source: str, registry: Registry) -> bool:
    """Whether a source is ENTRY/TASK."""
    return not Path(source).exists() and source.rpartition("/")[0] in registry.names()


def _reader(source: str, registry: Registry) -> tuple[str, Callable[[], Source]]:
    """What a source is called as a task, and what reads the tensors of its network and what is known of the task."""
    file, (name, _, task) = Path(source), source.rpartition("/")
    if _of_entry(source, registry):
        registry.entry(name).known_task(task)
        return task, lambda: _fused(name, task, registry)
    if not file.is_file():
        raise WeightsError(f"There is no file {file}, and no entry {name!r} with such a task.")
    return file.stem, lambda: (_tensors(file), None)


def _fused(name: str, task: str, registry: Registry) -> Source:
    model = load(name, task=task, registry=registry)
    return model.fuse(task).state_dict(), model.task(task)


def _tensors(file: Path) -> Mapping[str, Tensor]:
    """The tensors of a network in a file."""
    if file.suffix == ".safetensors":
        return read(file)[0]
    found = restricted(file)
    log.info("%s: SHA-256 %s", file, sha256(file))
    if isinstance(found, Mapping):
        found = next((found[key] for key in WRAPPED if isinstance(found.get(key), Mapping)), found)
    if not isinstance(found, Mapping) or not all(isinstance(each, Tensor) for each in found.values()):
        raise WeightsError(f"{file} is no state dict: write torch.save(network.state_dict(), FILE), or safetensors.")
    return found
