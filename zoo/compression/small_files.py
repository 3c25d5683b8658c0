"""Fine-tuned checkpoints as an entry of one's own: one backbone, and a small file for each."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zoo.backbones import architecture
from zoo.backbones.weights import restricted
from zoo.catalog.entry import Entry
from zoo.catalog.handover import check_new, put_in
from zoo.catalog.recipe import recipe_names
from zoo.catalog.registry import Registry
from zoo.catalog.task import Task
from zoo.compression.fine_tuned import FORMS, Factorised, factorise
from zoo.errors import OptionError, WeightsError
from zoo.loader import load, pretrained_network
from zoo.models.placement import heads_of
from zoo.storage.files import sha256
from zoo.storage.tensors import read

log = logging.getLogger(__name__)
WRAPPED = "state_dict", "model", "model_state_dict"  # what training scripts call the tensors in a larger checkpoint


def factorised_entry(
    sources: Sequence[str], backbone: str, registry: Registry, out: Path, name: str, form: str = "cp", rank: int = 8
) -> tuple[Entry, dict[str, Factorised]]:
    """A new entry of fine-tuned checkpoints in `out`, listed in `out/registry.yaml`, and what became of each.

    Args:
        sources: files of tensors (safetensors, or `.pth` of tensors alone), each of which is a task by its file's name;
            or ENTRY/TASK of the registry.
        form, rank: as of `zoo.factorise`.

    Raises:
        OptionError: the entry's name is taken, or two sources make one task.
        WeightsError: a source cannot be read, or is not of the backbone's architecture.
    """
    check_new(name, out, registry)
    tuned: dict[str, tuple[Mapping[str, Tensor], Task | None]] = {}
    for source in sources:
        task, tensors, known = _read(source, registry)
        if task in tuned:
            raise OptionError(f"Two sources make the task {task}: rename one of the files.")
        tuned[task] = tensors, known
    base, found, files = _network(backbone, registry), {}, {}
    for task, (tensors, known) in tuned.items():
        log.info("%s:", task)
        said: dict[str, Any] = {"classes": list(known.classes), "preprocessing": known.preprocessing} if known else {}
        made = factorise(tensors, base, form, rank, task=task, **said)
        files[task] = out / name / f"{task}.safetensors"
        made.model.save_adapter(task, files[task], {"entry": name, "backbone": backbone})
        found[task] = made
    classes = {task: len(made.model.task(task).classes) for task, made in found.items()}
    recipe = f"folder/{FORMS[form]}"
    entry = Entry(
        {"name": FORMS[form], "rank": rank}, "folder", classes, recipe if recipe in recipe_names() else "folder/ftn",
        backbone=backbone, name=name, folder=out, parameters=made.model.count_parameters(task),
    )  # fmt: skip
    return put_in(out, entry, files), found


def _network(backbone: str, registry: Registry) -> nn.Module:
    """A backbone with its weights; its classifier, which may be of another size, stays fresh."""
    return pretrained_network(backbone, registry, heads_of(architecture(backbone, registry)))


def _read(source: str, registry: Registry) -> tuple[str, Mapping[str, Tensor], Task | None]:
    """What a source is called as a task, the tensors of its network, and what is known of the task."""
    file = Path(source)
    name, _, task = source.rpartition("/")
    if not file.exists() and name in registry.names():
        model = load(name, task=registry.entry(name).known_task(task), registry=registry)
        return task, model.fuse(task).state_dict(), model.task(task)
    if file.suffix == ".safetensors":
        return file.stem, read(file)[0], None
    if not file.is_file():
        raise WeightsError(f"There is no file {file}, and no entry {name!r} with such a task.")
    found = restricted(file)
    log.info("%s: SHA-256 %s", file, sha256(file))
    if isinstance(found, Mapping):
        found = next((found[key] for key in WRAPPED if isinstance(found.get(key), Mapping)), found)
    if not isinstance(found, Mapping) or not all(isinstance(each, Tensor) for each in found.values()):
        raise WeightsError(f"{file} is no state dict: write torch.save(network.state_dict(), FILE), or safetensors.")
    return file.stem, found, None
