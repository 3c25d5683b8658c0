"""A task's network as one ONNX file that holds all of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from zoo.export.files import LARGEST_FILE, written
from zoo.export.form import Form, Further, describe
from zoo.export.parity import Parity, metadata_of, outputs, session

from zoo.backbones.generator import Generator
from zoo.catalog.task import Preprocessing, Task
from zoo.errors import ExportError
from zoo.models.layers import Site
from zoo.models.multitask import MultiTaskModel


def to_onnx(
    module: nn.Module, path: str | Path, *, task: Task | None = None, preprocess: bool | str = False,
    half: bool = False, images: Tensor | Sequence[Tensor] | None = None, provider: str = "cpu",
    metadata: Mapping[str, Any] | None = None, largest: int = LARGEST_FILE,
) -> Parity:  # fmt: skip
    """Write a plain module as one ONNX file with a dynamic batch, checked against the module before it is kept.

    The graph's input is `images`, its output `logits`; or, for a dense task, `maps` (B, channels, H, W), and then
    height and width are dynamic too, from 16 pixels upwards.

    Args:
        module: a network of float images (B, C, H, W), or clips (B, T, C, H, W), such as `TaskModel.fuse` gives.
        task: what the outputs mean and which input they need; by default those of a classifier of 224×224 RGB.
        preprocess: "scale", or True: take uint8 images (B, H, W, C) of the input's size, and scale and normalise them
            in the graph; "full": of any size, and resize, crop, scale and normalise them there (see `resizing.py`);
            the maps of dense tasks then have the size of the network's input.
        half: compute in float16.
        images: a batch of real inputs, or several, in the graph's form, to compare on beside random ones. Where a
            task's preprocessing cannot say what the network takes (volumes, sound), its shape is the graph's.
        provider: ONNX Runtime's execution provider for the comparison: "cpu", "cuda" or "tensorrt".
        metadata: further facts for the file, such as provenance; values as JSON.
        largest: bytes of weights that one file holds. More lie beside it, in `<name>.<digits>.data`: the format allows
            2 GB.

    Returns:
        The largest difference between the file and the module, which was below 1e-4, or 1e-2 in float16,
        relative to the largest logit.

    Raises:
        ExportError: the graph cannot be made, is not valid, or differs from the module; no file is written then.
    """
    _check_plain(module)
    shape = (module.latent_size,) if isinstance(module, Generator) else None
    path, form = Path(path), Form(task, preprocess, images, shape)
    graph = form.around(module, half)
    source = form.around(module) if half else graph  # one copy will do, where both are alike
    further = _with_classes(module, form)
    first = form.batches[0]
    outputs(
        source, *(first if isinstance(first, tuple) else (first,))
    )  # what the network itself raises is told as such
    exported = form.exported(graph, path, further)
    describe(exported, {**form.facts(half), **(metadata or {})})
    with written(exported, path, largest) as temporary:
        del exported  # as large as the network
        return form.parity(source, session(temporary, provider), path, half)


def interface(path: str | Path) -> dict[str, str]:
    """Names, types and shapes of a graph's inputs and outputs, such as images: float32 (batch, 3, 224, 224).

    Inputs that need not be given are left out.
    """
    graph = onnx.load(str(path), load_external_data=False).graph
    given = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in given]
    return {kind: ", ".join(map(_words, values)) for kind, values in (("input", inputs), ("output", graph.output))}


def preprocessing_of(path: str | Path) -> Preprocessing:
    """What a graph's metadata say that is done to an image before it."""
    return Preprocessing.from_data(json.loads(metadata_of(path)["preprocessing"]))


def _with_classes(module: nn.Module, form: Form) -> list[Further]:
    """The classes as an input, of a generator that has several, and the latents that it is compared on in pairs."""
    if not isinstance(module, Generator) or module.classes < 2:
        return []
    form.pair([(batch, torch.arange(len(batch)) % module.classes) for batch in form.batches], form.real)
    return [Further("classes", torch.zeros(2, dtype=torch.int64), {0: "batch"})]


def _words(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return f"{value.name}: {kind} ({', '.join(d.dim_param or str(d.dim_value) for d in tensor.shape.dim)})"


def _check_plain(module: nn.Module) -> None:
    """Raise ExportError for a model that serves several tasks."""
    if (model := next((part for part in module.modules() if isinstance(part, MultiTaskModel)), None)) is not None:
        tasks = ", ".join(model.tasks) or "none yet"
        raise ExportError(
            f"A graph is of one task. Fuse one first: zoo.export.to_onnx(model.fuse(task), …), of {tasks}."
        )
    if any(isinstance(part, Site) for part in module.modules()):
        raise ExportError(
            "This is the inside of a TaskModel. A graph is of one task: fuse one first, model.fuse(task)."
        )
