"""ONNX Runtime's own adapters: one graph, and a file for each task that any of its languages can switch to.

What a task owns is an optional input of the graph, by the names of the adapter file; the frozen weights are its
constants. So each layer runs as it is trained, the frozen one with the task's beside it, and not under summed weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor, nn
from torch.func import functional_call
from zoo.export.files import written
from zoo.export.form import Form, Further, check_alike, describe, said_of
from zoo.export.parity import Parity, outputs, session

from zoo.errors import ExportError
from zoo.models.adapted import TaskModel
from zoo.models.frozen import copy_of
from zoo.models.multitask import MultiTaskModel
from zoo.storage.files import atomic_path

BASE, SUFFIX = "base.onnx", ".onnx_adapter"


def to_adapters(
    model: MultiTaskModel, folder: str | Path, *, tasks: Sequence[str] | None = None, preprocess: bool | str = False,
    images: Mapping[str, Sequence[Tensor]] | None = None, provider: str = "cpu",
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
    if not isinstance(model, TaskModel):
        raise ExportError(
            f"The networks of {model.method_name} have no backbone that adapters could change. Export each by itself."
        )
    folder, names = Path(folder), list(model.tasks if tasks is None else tasks)
    known = [model.task(name) for name in names]
    forms = {each.name: Form(each, preprocess, (images or {}).get(each.name)) for each in known}
    form = forms[max(known, key=lambda task: len(task.classes)).name]  # a dimension of one would be taken for constant
    assert form.task is not None
    check_alike(known, form.inside)
    own = {name: {key: t for key, t in model.task_tensors(name).items() if t.is_floating_point()} for name in names}
    varying = _varying(own)
    fed = Fed(model, form.task.name, own[form.task.name])
    outputs(form.around(fed.model_serving), form.batches[0])
    further = [
        Further(key, tensor, dict.fromkeys(varying[key], "classes")) for key, tensor in own[form.task.name].items()
    ]
    exported = form.exported(form.around(fed), folder / BASE, further)
    for value in list(exported.graph.inputs[1:]):
        name = str(value.name)
        neutral = torch.ones if name.endswith("var") or name.endswith("variance") else torch.zeros
        value.const_value = ir.tensor(neutral(own[form.task.name][name].shape), name=name)
        exported.graph.register_initializer(value)
    facts = {key: fact for key, fact in form.facts().items() if key not in ("task", "kind", "classes")}
    describe(exported, {**facts, **(metadata or {}), "tasks": said_of(known)})
    found = {}
    with contextlib.ExitStack() as stack:
        base = session(stack.enter_context(written(exported, folder / BASE)), provider)
        for name in names:
            file = stack.enter_context(atomic_path(folder / f"{name}{SUFFIX}"))
            _write(file, own[name])
            source = forms[name].around(model.fuse(name))
            found[name] = forms[name].parity(source, Adapted(base, file), folder / f"{name}{SUFFIX}")
    return found


class Adapted:
    """A session of the base graph under one task's adapter; it runs as a session does."""

    def __init__(self, base: ort.InferenceSession, file: str | Path) -> None:
        self.base, self.adapter, self.options = base, ort.LoraAdapter(), ort.RunOptions()
        self.adapter.Load(str(file))
        self.options.add_active_adapter(self.adapter)

    def run(self, names: Sequence[str] | None, feed: Mapping[str, Any]) -> Any:
        """The outputs, as `InferenceSession.run` gives them."""
        return self.base.run(names, feed, self.options)


class Fed(nn.Module):
    """A model serving one task, whose tensors are given in each pass by their names in the adapter file."""

    def __init__(self, model: TaskModel, task: str, given: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model_serving = _Serving(copy_of(model), task)
        self.names = list(given)
        self._places = {
            f"{path}.{name}": f"model.backbone.{path}.tasks.{task}.{name}"
            for path, site in model.sites(task)
            for name in site.tasks[task].state_dict()
        }

    def forward(self, images: Tensor, *values: Tensor) -> Tensor:
        given = {self._places[name]: value for name, value in zip(self.names, values, strict=True)}
        found: Tensor = functional_call(self.model_serving, given, (images,))
        return found


class _Serving(nn.Module):
    """A model for one task. What has a route of thin branches takes it, so that no weight is summed in a pass."""

    def __init__(self, model: TaskModel, task: str) -> None:
        super().__init__()
        self.model, self.task = model, task
        for part in model.modules():
            if hasattr(part, "route"):
                setattr(part, "route", "factored")  # noqa: B010

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.model.serve(self.task, (images,), {})
        return found


def _varying(own: Mapping[str, Mapping[str, Tensor]]) -> dict[str, list[int]]:
    """The axis of each tensor along which tasks differ: the first, of heads of several numbers of classes; or none.

    Raises:
        ExportError: they differ in something else.
    """
    first, *others = own.values()
    found: dict[str, list[int]] = {}
    for name, tensor in first.items():
        shapes = [tuple(tensor.shape), *(tuple(other[name].shape) if name in other else () for other in others)]
        found[name] = [0] if len(set(shapes)) > 1 else []
        if len({shape[1:] for shape in shapes}) > 1 or () in shapes[1:]:
            raise ExportError(
                f"{name} is {' or '.join(map(str, dict.fromkeys(shapes)))}: tasks of one base graph differ in their "
                "numbers of classes, and not in rank. Export them apart, or with --mixed."
            )
    return found


def _write(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """A file in ONNX Runtime's format for adapters."""
    arrays = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}
    adapter = ort.AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(1)
    # These values are views: the arrays have to live until the file is written.
    adapter.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()})
    adapter.export_adapter(str(file))
