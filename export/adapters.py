"""ONNX Runtime's own adapters: one graph, and a file for each task that any of its languages can switch to.

What a task owns is an optional input of the graph, by the names of the adapter file; the frozen weights are its
constants. So each layer runs as it is trained, the frozen one with the task's beside it, and not under summed weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor, nn
from torch.func import functional_call
from zoo.export.files import written
from zoo.export.form import Form, Further, check_alike, describe, latent_shape, real_images, with_backbone
from zoo.export.parity import Parity, metadata_of, outputs, session

from zoo.errors import ExportError, sentence
from zoo.increments import Increment
from zoo.models.adapted import TaskModel
from zoo.models.frozen import copy_of
from zoo.models.layers import TaskHead
from zoo.models.multitask import MultiTaskModel
from zoo.storage.files import atomic_path
from zoo.storage.tensors import fingerprint

BASE, SUFFIX = "base.onnx", ".onnx_adapter"
BASE_SHA256 = "base_sha256"  # in its metadata: of what is constant in it, which adapters stand on


def to_adapters(
    model: MultiTaskModel, folder: str | Path, *, tasks: Sequence[str] | None = None, preprocess: bool | str = False,
    images: Mapping[str, Tensor | Sequence[Tensor]] | None = None, provider: str = "cpu",
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Parity]:  # fmt: skip
    """Write `base.onnx` and, for each task, `<task>.onnx_adapter`, which a program adds to the options of a run.

    Without an adapter the graph answers with zeros.

    Args:
        model: one with a frozen backbone, whose tasks differ in their values and their numbers of classes alone.
        tasks: their names; all by default.
        preprocess, provider, metadata: as of `to_onnx`.
        images: by task, batches of real inputs in the graph's form, to compare on beside random ones.

    Returns:
        For each task the largest difference from its fused network.

    Raises:
        ExportError: the tasks' tensors, images or preprocessing differ otherwise; or as of `to_onnx`. Nothing is
            written then.
    """
    model = with_backbone(model)
    folder, names = Path(folder), list(model.tasks if tasks is None else tasks)
    known, real = [model.task(name) for name in names], real_images(images, names)
    forms = {each.name: Form(each, preprocess, real.get(each.name), latent_shape(model, each.name)) for each in known}
    form, first = forms[names[0]], names[0]
    check_alike(known, preprocess)
    own = {name: {key: t.detach().cpu() for key, t in model.task_tensors(name).items() if t.is_floating_point()}
           for name in names}  # fmt: skip
    _check_shapes(own, _by_classes(model, first))
    identity = _identity(model, names)
    _check_base(folder / BASE, identity)
    fed = Fed(model, first, own[first])
    outputs(form.around(fed.serving), form.batches[0])
    exported = form.exported(form.around(fed), folder / BASE, _inputs(own[first], _by_classes(model, first)))
    for value in list(exported.graph.inputs[1:]):
        name = str(value.name)
        neutral = torch.ones if name.endswith(("var", "variance")) else torch.zeros
        value.const_value = ir.tensor(neutral(own[first][name].shape, dtype=own[first][name].dtype), name=name)
        exported.graph.register_initializer(value)
    describe(exported, {**form.facts_of(known), **(metadata or {}), BASE_SHA256: identity})
    found = {}
    with contextlib.ExitStack() as stack:  # which puts the base in place first: an adapter fits no other
        files = {name: stack.enter_context(atomic_path(folder / f"{name}{SUFFIX}")) for name in names}
        base = session(stack.enter_context(written(exported, folder / BASE)), provider)
        for name, file in files.items():
            _write(file, own[name], identity)
            source = forms[name].around(model.fuse(name))
            found[name] = forms[name].parity(source, Adapted(base, file), folder / f"{name}{SUFFIX}")
    return found


class Adapted:
    """A session of the base graph under one task's adapter; it runs as a session does.

    Raises:
        ExportError: the file is no adapter, or one for another base graph.
    """

    def __init__(self, base: ort.InferenceSession, file: str | Path) -> None:
        try:
            made_for = ort.AdapterFormat.read_adapter(str(file)).get_model_version()
        except Exception as error:  # ONNX Runtime raises classes of its own for each status, with no common base
            raise ExportError(f"{file} is no adapter of ONNX Runtime's: {sentence(error)}") from error
        if made_for != _version(base.get_modelmeta().custom_metadata_map.get(BASE_SHA256, "")):
            raise ExportError(f"{file} was made for another base graph than this one.")
        self.base, self.adapter, self.options = base, ort.LoraAdapter(), ort.RunOptions()
        self.adapter.Load(str(file))
        self.options.add_active_adapter(self.adapter)

    def get_inputs(self) -> Sequence[Any]:
        """The base graph's inputs, the images first."""
        found: Sequence[Any] = self.base.get_inputs()
        return found

    def run(self, names: Sequence[str] | None, feed: Mapping[str, Any]) -> Any:
        """The outputs, as `InferenceSession.run` gives them."""
        return self.base.run(names, feed, self.options)


class Fed(nn.Module):
    """A model serving one task, whose tensors are given in each pass by their names in the adapter file."""

    def __init__(self, model: TaskModel, task: str, given: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.serving = _Serving(copy_of(model), task)
        self.names = list(given)
        self._places = {name: f"model.{place}" for name, place in model.task_places(task).items()}

    def forward(self, images: Tensor, *values: Tensor) -> Tensor:
        given = {self._places[name]: value for name, value in zip(self.names, values, strict=True)}
        found: Tensor = functional_call(self.serving, given, (images,))
        return found


class _Serving(nn.Module):
    """A model for one task. What has a route of thin branches takes it, so that no weight is summed in a pass."""

    def __init__(self, model: TaskModel, task: str) -> None:
        super().__init__()
        self.model, self.task = model, task
        for part in model.modules():
            if isinstance(part, Increment) and hasattr(part, "route"):
                setattr(part, "route", "factored")  # noqa: B010

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.model.serve(self.task, (images,), {})
        return found


def _by_classes(model: TaskModel, task: str) -> set[str]:
    """The tensors of a task that have a row for each class: the last weight of each head, and its bias."""
    found = set()
    for path, site in model.sites(task):
        if isinstance(site, TaskHead):
            weights = [name for name, p in site.tasks[task].named_parameters() if p.ndim > 1]
            layer = weights[-1].rpartition(".")[0]
            found |= {f"{path}.{layer}.{kind}".replace("..", ".") for kind in ("weight", "bias")}
    return found


def _check_shapes(own: Mapping[str, Mapping[str, Tensor]], by_classes: set[str]) -> None:
    """Raise ExportError unless tasks' tensors differ in their numbers of classes alone."""
    first, *others = own.values()
    for name in dict.fromkeys(name for each in own.values() for name in each):
        if any(name not in each for each in own.values()):
            raise ExportError(f"Not every task has {name}: those of one base graph own the same tensors.")
        if not first[name].ndim:
            raise ExportError(
                f"{name} is one number, and ONNX Runtime's adapters hold tensors of one dimension or more."
            )
        axes = slice(1 if name in by_classes else 0, None)
        if any(other[name].shape[axes] != first[name].shape[axes] for other in others):
            shapes = dict.fromkeys(str(tuple(each[name].shape)) for each in own.values())
            raise ExportError(
                f"{name} is {' or '.join(shapes)}: tasks of one base graph differ in their numbers of classes, and not "
                "in rank. Export them apart, or with --mixed."
            )


def _inputs(own: Mapping[str, Tensor], by_classes: set[str]) -> list[Further]:
    """What is exported as inputs: where a tensor has a row for each class, of at least two, lest it be a constant."""
    found = []
    for name, tensor in own.items():
        if name in by_classes:
            example = tensor.new_zeros(max(2, len(tensor)), *tensor.shape[1:])
            found.append(Further(name, example, {0: "classes"}))
        else:
            found.append(Further(name, tensor))
    return found


def _identity(model: TaskModel, names: Sequence[str]) -> str:
    """SHA-256 over what is constant in a base graph: the frozen tensors, what tasks share, and the method's options."""
    options = [{**model.task_options(name)} for name in names]
    if any(each != options[0] for each in options):
        raise ExportError(
            "The tasks were added with options of their own, such as another rank: one base graph has one method. "
            "Export them apart, or with --mixed."
        )
    shared = model.shared_tensors()
    stated = [model.backbone_sha256(), fingerprint(shared) if shared else "", model.method_name, options[0]]
    return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()


def _version(identity: str) -> int:
    """What an adapter file says of its base graph: it has room for a number."""
    return int(identity[:7] or "0", 16)


def _check_base(file: Path, identity: str) -> None:
    """Raise ExportError where another base graph lies, which adapters beside it may be for."""
    if not file.exists():
        return
    stated = None
    with contextlib.suppress(Exception):  # no graph at all
        stated = metadata_of(file).get(BASE_SHA256)
    if stated != identity:
        raise ExportError(f"{file} is another graph, and adapters beside it may be for that. Choose another folder.")


def _write(file: Path, tensors: Mapping[str, Tensor], identity: str) -> None:
    """A file in ONNX Runtime's format for adapters."""
    arrays = {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}
    adapter = ort.AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(_version(identity))
    # These values are views: the arrays have to live until the file is written.
    adapter.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()})
    adapter.export_adapter(str(file))
