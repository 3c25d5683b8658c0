"""LoRA checkpoints of Hugging Face PEFT, to and from."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.catalog.entry import Entry
from zoo.catalog.handover import check_new, put_in
from zoo.catalog.registry import Registry, default_registry
from zoo.catalog.task import Preprocessing, Task
from zoo.deployment.peft_files import CONFIG, PREFIX, WEIGHTS, read_config, scaling, sort_tensors
from zoo.errors import OptionError, WeightsError
from zoo.increments import Increment
from zoo.increments.forms import has_standard_forward
from zoo.loader import pretrained_network
from zoo.models.adapted import TaskModel
from zoo.models.layers import AdaptedLayer, TaskHead, TaskNorm, TaskOwn
from zoo.models.multitask import MultiTaskModel
from zoo.models.placement import NORMS, Placement, heads_of
from zoo.storage.files import atomic_path
from zoo.storage.tensors import read, write


def load_peft(
    folder: str | Path, backbone: str | nn.Module, *, task: str = "task", registry: Registry | None = None
) -> TaskModel:
    """A LoRA adapter that PEFT saved, as a model of the method `lora` with one task; the logits are PEFT's.

    A norm or the classifier is the checkpoint's where PEFT trained it (`modules_to_save`), else the backbone's.

    Args:
        folder: of adapter_config.json and adapter_model.safetensors.
        backbone: a name such as `timm/vit_base_patch32_clip_224.openai`, with its pre-trained weights, or a module.

    Raises:
        WeightsError: the checkpoint is damaged, or not of this backbone.
        OptionError: the checkpoint does something that `lora` cannot; nothing is converted in part.
    """
    registry = registry or default_registry()
    config, (tensors, header) = read_config(Path(folder)), read(Path(folder) / WEIGHTS)
    pairs, saved = sort_tensors(tensors)
    whole = {name.rpartition(".")[0] for name in saved}
    network = backbone if isinstance(backbone, nn.Module) else pretrained_network(backbone, registry, whole)
    _check_layers(network, pairs)
    changes = {
        path: (scaling(config, path, len(down)) * up.flatten(1), down.flatten(1)) for path, (down, up) in pairs.items()
    }
    head = _head(network)
    model = _model_like(network, head, changes, whole)
    classifier = _classifier(network, head, saved, changes)
    if head in changes:
        up, down = changes.pop(head)
        classifier["weight"] += (up @ down).view_as(classifier["weight"])
    model.add_task(_task(task, header, len(classifier["weight"]), network))
    own = {name: saved.pop(name, tensor) for name, tensor in model.task_tensors(task).items()}
    own |= {f"{head}.{key}": tensor for key, tensor in classifier.items()}
    for path, (up, down) in changes.items():
        own[f"{path}.parts.whole.a"], own[f"{path}.parts.whole.b"] = _filled(down, up, model.options["rank"])
    if saved:
        raise WeightsError(f"The checkpoint holds {', '.join(saved)}, which the backbone has no place for.")
    model.load_task_tensors(task, own, str(folder))
    return model


def save_peft(model: MultiTaskModel, task: str, folder: str | Path, base_model: str = "") -> None:
    """Write a task as a LoRA checkpoint of PEFT's, which computes the same; what would not be exact is refused.

    ΔW has to be a product of thin matrices: `lora` (rank R for each projection that it adapts, so 2R on a packed query,
    key and value layer), `ftn_qv` (the same), `ftn_o` (R), and `ftn` (R) on layers that are not grouped. Ranks that
    differ are filled up with zeros. The classifier and the task's norms are saved whole.

    Args:
        folder: a new one, or one without a checkpoint.
        base_model: what PEFT is told that the backbone is, such as `timm/vit_base_patch32_clip_224.openai`.

    Raises:
        OptionError: the method or a layer has no exact LoRA form, or the folder holds a checkpoint.
    """
    known, folder = model.task(task), Path(folder)
    if not isinstance(model, TaskModel):
        raise OptionError(f"The method {model.method_name!r} adapts no backbone, so there is nothing for LoRA to hold.")
    if (folder / CONFIG).exists() or (folder / WEIGHTS).exists():
        raise OptionError(f"{folder} holds a checkpoint already; name another folder.")
    if len(model.head_paths) > 1:
        raise OptionError(
            f"The network has several classifiers, {', '.join(model.head_paths)}; a checkpoint keeps one."
        )
    if other := [p for p, site in model.sites(task) if isinstance(site, TaskOwn) and not isinstance(site, TaskNorm)]:
        raise OptionError(f"{task} owns {', '.join(other)} whole, and a LoRA checkpoint has no place for that.")
    whole = [*model.head_paths, *(path for path, site in model.sites(task) if isinstance(site, TaskNorm))]
    pairs = {path: _exact(path, site, task) for path, site in model.sites(task) if isinstance(site, AdaptedLayer)}
    if not pairs:
        raise OptionError(f"The method {model.method.name!r} adapts no layer, so there is nothing for LoRA to hold.")
    _check_endings(model.backbone, whole)
    rank = max(len(down) for _, down in pairs.values())
    tensors = _peft_factors(model, pairs, rank)
    tensors |= {n: t for n, t in model.task_tensors(task).items() if n.startswith(tuple(f"{path}." for path in whole))}
    header = {"task": {"classes": list(known.classes), "preprocessing": vars(known.preprocessing)}}
    write(folder / WEIGHTS, {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}, header)
    config = {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": base_model, "inference_mode": True,
        "r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "bias": "none",
        "target_modules": sorted(pairs), "modules_to_save": whole,
    }  # fmt: skip
    with atomic_path(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _peft_factors(model: TaskModel, pairs: Mapping[str, tuple[Tensor, Tensor]], rank: int) -> dict[str, Tensor]:
    """The layers' factors under PEFT's names and in PEFT's shapes, all of one rank.

    Args:
        pairs: ΔW of each layer as (up, down).
    """
    tensors = {}
    for path, (up, down) in pairs.items():
        weight = model.backbone.get_submodule(path).get_parameter("weight")
        a, b = _filled(down, up, rank)
        tensors[f"{path}.lora_A.weight"] = a.view(rank, *weight.shape[1:])
        tensors[f"{path}.lora_B.weight"] = b.view(*b.shape, *[1] * (weight.ndim - 2))
    return tensors


def converted_entry(folder: Path, backbone: str, registry: Registry, out: Path, name: str, task: str) -> Entry:
    """A PEFT checkpoint as an entry of its own in `out`, listed in `out/registry.yaml`.

    Raises:
        OptionError: the name is taken, or cannot stand in a path.
    """
    check_new(name, out, registry)
    file = out / name / f"{task}.safetensors"
    model = load_peft(folder, backbone, task=task, registry=registry)
    norms = [path for path, site in model.sites(task) if isinstance(site, TaskNorm)]
    layers = [path for path, site in model.sites(task) if isinstance(site, AdaptedLayer)]
    method = {"name": "lora", **model.options, "layers": layers} | ({"norms": norms} if norms else {})
    model.save_adapter(task, file, {"entry": name, "backbone": backbone})
    entry = Entry(
        method, "folder", {task: len(model.task(task).classes)}, "folder/lora", backbone=backbone, name=name,
        folder=out, parameters=model.count_parameters(task),
    )  # fmt: skip
    return put_in(out, entry, {task: file})


def _check_layers(network: nn.Module, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Raise WeightsError where the network lacks what the checkpoint adapts, OptionError where LoRA here differs."""
    modules = dict(network.named_modules())
    for path, (down, up) in pairs.items():
        layer = modules.get(path)
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            raise WeightsError(f"The backbone has no Conv2d or Linear layer {path}, which the checkpoint adapts.")
        _check_form(path, layer)
        if not len(down) == up.shape[1] > 0:
            raise WeightsError(f"The factors of {path} have the ranks {len(down)} and {up.shape[1]}, and no product.")
        if (len(up), down[0].numel()) != (len(layer.weight), layer.weight[0].numel()):
            raise WeightsError(
                f"The checkpoint adapts {path} by {len(up)} × {down[0].numel()}; "
                f"the backbone's layer is {len(layer.weight)} × {layer.weight[0].numel()}."
            )


def _check_form(path: str, layer: nn.Module) -> None:
    """Raise OptionError unless PEFT's `B(A(x))` is ΔW of the layer; its A is a plain convolution, with zeros around."""
    plain = has_standard_forward(layer.frozen_class if isinstance(layer, AdaptedLayer) else type(layer))
    plain = plain and isinstance(layer, nn.Conv2d | nn.Linear)
    if isinstance(layer, nn.Conv2d):
        plain = plain and (layer.groups, layer.padding_mode, layer.dilation) == (1, "zeros", (1, 1))
    if not plain:
        raise OptionError(
            f"{path} is grouped, dilated, padded in another way than with zeros, neither Conv2d nor Linear, or has a "
            "forward of its own; PEFT's LoRA computes something else there than the zoo's."
        )


def _check_endings(network: nn.Module, whole: Sequence[str]) -> None:
    """Raise OptionError where PEFT would take another module for one that is saved whole: it looks at endings alone."""
    for path, module in network.named_modules():
        taken = [name for name in whole if path.endswith(name) and path != name]
        if taken and not isinstance(module, TaskHead) and any(True for _ in module.parameters()):
            raise OptionError(f"PEFT would take {path} for {taken[0]}, since its name ends so; it could not load this.")


def _classifier(
    network: nn.Module, head: str, saved: dict[str, Tensor], changes: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """The tensors of the checkpoint's classifier, taken from those that are saved whole, else the network's own."""
    own = network.get_submodule(head).state_dict()
    found = {key: saved.pop(f"{head}.{key}", tensor).clone() for key, tensor in own.items()}
    weight = found["weight"]
    classes = len(weight) if weight.ndim else 0
    shapes = {key: (classes, *tensor.shape[1:]) for key, tensor in own.items()}
    if odd := [key for key, tensor in found.items() if not classes or tuple(tensor.shape) != shapes[key]]:
        raise WeightsError(
            f"The checkpoint's {head}.{odd[0]} has the shape {tuple(found[odd[0]].shape)}: no classifier."
        )
    if head in changes and len(changes[head][0]) != classes:
        raise WeightsError(f"The checkpoint adapts {head} for {len(changes[head][0])} classes, and saves {classes}.")
    return found


def _head(network: nn.Module) -> str:
    """The network's one classifier."""
    heads = heads_of(network)
    if len(heads) > 1:
        raise OptionError(f"The backbone has several classifiers, {', '.join(heads)}; one is converted.")
    return heads[0]


def _model_like(
    network: nn.Module, head: str, changes: Mapping[str, tuple[Tensor, Tensor]], whole: Collection[str]
) -> TaskModel:
    """A copy of the network, with the checkpoint's layers adapted, and its norms the task's."""
    modules = dict(network.named_modules())
    norms = [path for path in whole if isinstance(modules.get(path), NORMS)]
    if odd := sorted(set(whole) - {*norms, head}):
        raise OptionError(f"The checkpoint trained {odd[0] or 'a parameter'} whole, neither a norm nor the classifier.")
    layers = [path for path in changes if path != head]
    rank = max(len(down) for _, down in changes.values())
    return TaskModel(copy.deepcopy(network), "lora", {"rank": rank}, Placement(layers, norms, head))


def _task(name: str, header: Mapping[str, Any], classes: int, network: nn.Module) -> Task:
    """The task as the zoo wrote it, else with numbers for classes and the network's own preprocessing."""
    known = header.get("task")
    if known is None:
        return Task.of(name, classes, Preprocessing.of(network))
    try:
        return Task(name, tuple(known["classes"]), Preprocessing.from_data(known["preprocessing"]))
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"The checkpoint's header is damaged: {error!r}. Save the adapter again.") from error


def _filled(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factors of a product with zeros up to a rank: (rank, columns) and (rows, rank)."""
    short = rank - len(down)
    return torch.cat([down, down.new_zeros(short, down.shape[1])]), torch.cat([up, up.new_zeros(len(up), short)], 1)


def _exact(path: str, site: AdaptedLayer, task: str) -> tuple[Tensor, Tensor]:
    """ΔW of a layer as (up, down); raises OptionError if it has no such form."""
    increment = site.tasks[task]
    assert isinstance(increment, Increment)
    with torch.no_grad():
        found = increment.low_rank(site.frozen_weight)
    if found is None:
        raise OptionError(f"{path}: the increment of this method is no product of two thin matrices.")
    if increment.own_shift is not None:
        raise OptionError(f"{path}: the task has a bias of its own, which LoRA's form has no place for.")
    _check_form(path, site)
    return found
