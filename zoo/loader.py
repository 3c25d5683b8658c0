"""From a name to a ready model: name → entry → files → model → tensors in."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from zoo.backbones.lookup import FUSED, architecture, source_of
from zoo.backbones.weights import pretrained_tensors
from zoo.catalog.entry import Entry, Parameters
from zoo.catalog.places import entry_of
from zoo.catalog.recipe import load_recipe
from zoo.catalog.registry import Registry, default_registry
from zoo.catalog.store import adapter_files, shared_file
from zoo.catalog.task import CLASSIFICATION, Preprocessing, Task
from zoo.errors import OptionError, WeightsError
from zoo.joint import joined, tables
from zoo.models.adapted import TaskModel
from zoo.models.frozen import copy_of
from zoo.models.multitask import MultiTaskModel
from zoo.models.placement import Placement
from zoo.storage.fetch import fetch
from zoo.storage.tensors import check_tensors, counters, read


@overload
def load(
    name: str, *, task: str | None = ..., fuse: Literal[False] = ..., weights: str | Path | None = ...,
    registry: Registry | str | Path | None = ...,
) -> MultiTaskModel: ...  # fmt: skip
@overload
def load(
    name: str,
    *,
    task: str,
    fuse: Literal[True],
    weights: str | Path | None = ...,
    registry: Registry | str | Path | None = ...,
) -> nn.Module: ...
def load(
    name: str,
    *,
    task: str | None = None,
    fuse: bool = False,
    weights: str | Path | None = "auto",
    registry: Registry | str | Path | None = None,
) -> nn.Module:
    """Build a model of the zoo, in evaluation mode.

    Args:
        name: an entry's name, as `zoo.list_models()` gives them. Or an entry of a repository of the Hugging Face Hub,
            `"hf://OWNER/REPO/NAME"`, at a commit, tag or branch of it, `"hf://OWNER/REPO@REVISION/NAME"`; or a bundle,
            `"FILE.zoo"`. Its own files are taken then, whatever the local store has.
        task: load this task alone; by default all of the entry's.
        fuse: return the plain module of `task`, such as the backbone under `W + ΔW`, instead of the model.
        weights: "auto": what `zoo train` left in the local store, else what the registry publishes.
            "published": the registry's, whatever the store holds. A path: a folder of `<task>.safetensors`,
            or one such file. "backbone": the pre-trained backbone with fresh adapters. None: the architecture
            alone, with random weights and without any download.
        registry: where names are looked up: by default the zoo's own; a path, of a registry file or of the folder that
            `zoo train` made, stands beside it; a repository, `"hf://OWNER/REPO"`, or a bundle goes before it.

    Raises:
        UnknownNameError: no such entry or task.
        WeightsError: weights that are missing, damaged or made for something else.
    """
    entry, registry = entry_of(name, registry)
    if fuse and task is None:
        raise OptionError(f"Fusing needs a task; those of {entry.name} are {', '.join(entry.tasks)}.")
    tasks = entry.tasks if task is None else (entry.known_task(task),)
    if weights is None or weights == "backbone":
        model = fresh_model(entry, registry, pretrained=weights == "backbone")
        recipe = load_recipe(entry.recipe_source).on(card(entry, registry))
        for each in tasks:
            known = Task.of(each, entry.classes[each], recipe.of(each).input, entry.kind(each))
            model.add_task(known, entry.task_methods.get(each))
    else:
        model = load_adapters(entry, registry, adapter_files(entry, tasks, weights))
    return model.fuse(tasks[0]) if fuse else model


def adapt(
    module: nn.Module | str,
    tasks: Mapping[str, int | Sequence[str]],
    method: str = "ftn",
    *,
    layers: Sequence[str] | None = None,
    norms: Sequence[str] | None = None,
    head: str | None = None,
    placement: str = "all",
    projections: Sequence[str] | None = None,
    may_rest: Sequence[str] | None = None,
    whole: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    kinds: Mapping[str, str] | None = None,
    **options: Any,
) -> TaskModel:
    """Plug a method into any module with convolutions or Linear layers. The module itself stays as it is.

    Args:
        module: a classifier of torchvision, of timm, or of your own; its weights are copied and frozen. Or the name of
            a pre-trained one, such as `"zoo/efficientnet_lite0@imagenet"` or `"timm/resnet50.a1_in1k"`.
        tasks: the number of classes, or their names, of each task; or the number of channels of its output.
        method: one of `zoo.increments.methods()`, such as "ftn", "parallel" or "bn".
        layers, norms: glob patterns over module paths: what to adapt, which norms each task owns.
        head: the path of the classifier, or of a decoder. See `zoo.models.Placement` for what is taken by default.
        placement: "all", "early", "mid", "late" or "half" of the layers; see there too.
        projections: of attention, such as `["query", "value"]`, for methods that adapt these; see there too.
        may_rest: patterns of adapted layers that not every pass calls, such as auxiliary heads and experts; see there.
        whole: patterns of other modules that each task owns whole; see there.
        preprocessing: of every task; by default what timm says of its networks, for others ImageNet's at 224 pixels.
        kinds: of the tasks that do not classify, such as `{"depth": "depth"}`; see `zoo.kinds`.
        options: the method's own, such as `rank=20`.

    Raises:
        OptionError: a pattern that matches nothing, or an option out of range.
        WeightsError: the weights of a network that is named cannot be had.
    """
    if isinstance(module, str):
        module = pretrained_network(module, default_registry())
    if strange := sorted(set(kinds or {}) - set(tasks)):
        raise OptionError(f"kinds names {', '.join(strange)}, which are none of the tasks: {', '.join(tasks)}.")
    chosen = Placement(layers, norms, head, placement, projections, may_rest, whole)
    model = TaskModel(copy_of(module), method, options, chosen)
    for name, classes in tasks.items():
        kind = (kinds or {}).get(name, CLASSIFICATION)
        model.add_task(Task.of(name, classes, preprocessing or Preprocessing.of(module), kind))
    return model


def card(entry: Entry, registry: Registry) -> Preprocessing:
    """How an entry's backbone wants its images, where a recipe does not say; ImageNet's way where there is none."""
    if not entry.backbone:
        return Preprocessing()
    try:
        with torch.device("meta"):  # quickly, and without memory
            network = architecture(entry.backbone, registry)
    except RuntimeError:  # of networks that look at their own weights when they are made
        network = architecture(entry.backbone, registry)
    return Preprocessing.of(network)


def fresh_model(
    entry: Entry, registry: Registry, *, pretrained: bool = True, backbone_file: Path | None = None
) -> MultiTaskModel:
    """An entry's model with no task yet: its backbone, adapted by its method, or its tasks' networks, joined.

    Args:
        pretrained: load the backbone's weights; False downloads nothing.
        backbone_file: a safetensors file to load them from.
    """
    model = _joint_model(entry, registry) if entry.networks else _adapted_backbone(entry, registry)
    if pretrained and entry.backbone:
        own = entry.backbone_weights
        file = backbone_file or (fetch(own, entry.folder) if own else None)
        model.load_backbone_tensors(_backbone_tensors(entry.backbone, registry, file), entry.backbone)
    return model


def _adapted_backbone(entry: Entry, registry: Registry) -> TaskModel:
    network = architecture(entry.backbone, registry)
    return TaskModel(network, entry.method["name"], entry.method_options, Placement(**entry.placement))


def _joint_model(entry: Entry, registry: Registry) -> MultiTaskModel:
    """The tasks' networks, joined; behind the backbone without its head, if the entry has one."""
    trunk, head = None, entry.placement.get("head", "")
    if entry.backbone:
        trunk = architecture(entry.backbone, registry)
        trunk.set_submodule(head, nn.Identity())
    networks = {task: tables.network(name, entry.classes[task]) for task, name in entry.networks.items()}
    options = entry.method_options | {key: value for key, value in entry.placement.items() if key != "head"}
    return joined(networks, entry.method["name"], options, trunk, (f"{head}.",))


def counted_parameters(entry: Entry, registry: Registry) -> Parameters:
    """The numbers of parameters of an entry, counted on its architecture; no weights are needed."""
    model = fresh_model(entry, registry, pretrained=False)
    tasks = entry.tasks if entry.networks or entry.task_methods else entry.tasks[:1]  # else the same for any task
    for task in tasks:
        known = Task.of(task, entry.classes[task], kind=entry.kind(task))
        model.add_task(known, entry.task_methods.get(task))
    counted = {task: model.count_parameters(task) for task in tasks}
    each = {task: found.per_task for task, found in counted.items()}
    mean = round(sum(each.values()) / len(each))
    return replace(counted[entry.tasks[0]], per_task=mean, by_task=each if len(set(each.values())) > 1 else {})


def described(model: TaskModel, placement: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """What an entry says of an adapted network: its method, where tasks differ in that, and numbers of parameters.

    Args:
        placement: the entry's choice of layers.
    """
    options = {task: model.task_options(task) for task in model.tasks}
    usual = next(iter(options.values()))
    counted = {task: model.count_parameters(task) for task in model.tasks}
    sizes = {task: each.per_task for task, each in counted.items()}
    mean = round(sum(sizes.values()) / len(sizes))
    by_task = sizes if len(set(sizes.values())) > 1 else {}
    return {
        "method": {"name": model.method_name, **usual, **placement},
        "task_methods": {task: own for task, own in options.items() if own != usual},
        "parameters": replace(next(iter(counted.values())), per_task=mean, by_task=by_task),
    }


def plain_network(entry: Entry, registry: Registry, model: MultiTaskModel, fused: nn.Module) -> nn.Module:
    """The architecture of an entry's fused network as its makers wrote it, with the fused one's head."""
    if not isinstance(model, TaskModel):
        return copy.deepcopy(fused)
    plain = architecture(entry.backbone, registry).eval()
    for head in model.head_paths:
        plain.set_submodule(head, fused.get_submodule(head))
    return plain


def pretrained_network(
    backbone: str, registry: Registry, apart: Collection[str] = (), file: Path | None = None
) -> nn.Module:
    """A backbone by name, with its pre-trained weights, its classifier's among them.

    Args:
        apart: modules that keep fresh weights.
        file: a safetensors file of the weights, in place of those that the name means.

    Raises:
        WeightsError: the weights do not fit the network; all that is missing or odd is named.
    """
    network = architecture(backbone, registry)
    own, inside = network.state_dict(), tuple(f"{path}." for path in apart)
    given = {name: t for name, t in _backbone_tensors(backbone, registry, file).items() if not name.startswith(inside)}
    fresh = counters(own) | {name: t for name, t in own.items() if name.startswith(inside)}
    check_tensors(own, fresh | given, backbone)
    network.load_state_dict(fresh | given)
    return network


def _backbone_tensors(backbone: str, registry: Registry, file: Path | None) -> Mapping[str, Tensor]:
    if file is None and backbone.startswith(FUSED):
        entry, task = source_of(backbone, registry)
        return load(entry.name, task=task, fuse=True, registry=registry).state_dict()  # the loader's one way back
    return pretrained_tensors(backbone, registry, file)


def load_adapters(
    entry: Entry, registry: Registry, files: Mapping[str, Path], backbone_file: Path | None = None
) -> MultiTaskModel:
    """An entry's model with the tasks of these adapter files; raises WeightsError where one does not fit."""
    model = fresh_model(entry, registry, backbone_file=backbone_file)
    if model.shared_tensors():
        if len(folders := {str(file.parent) for file in files.values()}) > 1:
            raise WeightsError(
                f"The tasks of {entry.name} lie in several places, each sharing something else: "
                f"{', '.join(sorted(folders))}. Load the published ones (weights='published'), or train all tasks."
            )
        load_shared(model, entry, next(iter(files.values())).parent)
    for task, file in files.items():
        if (found := model.load_adapter(file).name) != task:
            raise WeightsError(f"{file} holds the task {found!r}, not {task!r}.")
    return model


def load_shared(model: MultiTaskModel, entry: Entry, folder: Path) -> None:
    """Give a model what its tasks share: from the folder of their adapter files, or as the registry publishes it."""
    file = shared_file(entry, folder)
    model.load_shared_tensors(read(file)[0], str(file))
