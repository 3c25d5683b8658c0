"""Writing plain modules as ONNX graphs."""

from __future__ import annotations

import copy
import dataclasses
import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from zoo.export.parity import INPUT, Parity, compare, session

import zoo
from zoo.catalog.task import Preprocessing, Task, is_dense
from zoo.errors import ExportError
from zoo.storage.files import atomic_path

LEAST, LARGEST = 16, 8192  # height and width in pixels of what a graph with maps as its output takes
TOLERANCE, TOLERANCE_HALF = 1e-4, 1e-2  # on the largest difference, relative to the largest logit


class Graph(nn.Module):
    """What is exported: the network between the graph's input and its output.

    Args:
        preprocessing: take uint8 images (B, H, W, C), as decoded, and scale and normalise them in the graph.
            None: take float32 inputs (B, C, H, W) that are normalised already.
        half: compute in float16; inputs and logits keep their types.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing | None = None, half: bool = False) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).cpu().eval().requires_grad_(False)
        if half:
            self.network.half()
        self.half_precision = half
        self.normalises = preprocessing is not None
        if preprocessing is not None:
            self.register_buffer("mean", 255 * torch.tensor(preprocessing.mean).view(-1, 1, 1))
            self.register_buffer("std", 255 * torch.tensor(preprocessing.std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        if self.normalises:
            images = (images.movedim(-1, -3).float() - self.mean) / self.std  # (B, C, H, W)
        outputs: Tensor = self.network(images.half() if self.half_precision else images)
        return outputs.float()


def to_onnx(
    module: nn.Module, path: str | Path, *, task: Task | None = None, preprocess: bool = False, half: bool = False,
    images: Tensor | None = None, provider: str = "cpu", metadata: Mapping[str, Any] | None = None,
) -> Parity:  # fmt: skip
    """Write a plain module as one ONNX file with a dynamic batch, checked against the module before it is kept.

    The graph's input is `images`, its output `logits`; or, for a dense task, `maps` (B, channels, H, W), and then
    height and width are dynamic too, from 16 pixels upwards.

    Args:
        module: a network of float images (B, C, H, W), or clips (B, T, C, H, W), such as `TaskModel.fuse` gives.
        task: what the outputs mean and which input they need; by default those of a classifier of 224×224 RGB.
        preprocess: take uint8 images (B, H, W, C) of the input's size, and scale and normalise them in the graph.
        half: compute in float16.
        images: a batch of real inputs, in the graph's form, to compare on beside random ones.
        provider: ONNX Runtime's execution provider for the comparison: "cpu", "cuda" or "tensorrt".
        metadata: further facts for the file, such as provenance; values as JSON.

    Returns:
        The largest difference between the file and the module, which was below 1e-4, or 1e-2 in float16,
        relative to the largest logit.

    Raises:
        ExportError: the graph cannot be made, is not valid, or differs from the module; no file is written then.
    """
    path, preprocessing = Path(path), task.preprocessing if task else Preprocessing()
    inner, dense = preprocessing if preprocess else None, task is not None and is_dense(task.kind)
    model = _graph_model(Graph(module, inner, half), _random(preprocessing, preprocess, 2), preprocess, dense)
    _describe(model, task, preprocess, half, metadata or {})
    batches = [*_random_batches(preprocessing, preprocess, dense), *([] if images is None else [images])]
    with atomic_path(path) as temporary:
        onnx.save(model, temporary)
        del model  # as large as the network
        _check_valid(temporary, path)
        made, tolerance = session(temporary, provider), TOLERANCE_HALF if half else TOLERANCE
        parity = compare(Graph(module, inner), made, batches, tolerance)
        if not parity.passed:
            raise ExportError(f"{path}: the graph differs from its source by more than {parity.tolerance}: {parity}.")
    return parity


def _check_valid(file: Path, path: Path) -> None:
    """Raise ExportError, naming `path`, unless a file is valid ONNX with shapes that fit each other."""
    try:
        onnx.checker.check_model(str(file), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path}: the exported graph is not valid ONNX: {error}") from error


def _graph_model(graph: Graph, example: Tensor, preprocess: bool, dense: bool) -> onnx.ModelProto:
    rows = 1 if preprocess else 2  # the dimension of the images' height
    sizes = {
        rows: torch.export.Dim("height", min=LEAST, max=LARGEST),
        rows + 1: torch.export.Dim("width", min=LEAST, max=LARGEST),
    }
    dynamic = {0: torch.export.Dim("batch")} | (sizes if dense else {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations; what matters is checked afterwards
        try:
            program = torch.onnx.export(
                graph.eval(), (example,), dynamo=True, verbose=False, input_names=[INPUT],
                output_names=["maps" if dense else "logits"], dynamic_shapes={"images": dynamic},
            )  # fmt: skip
        except Exception as error:  # the exporter raises many classes, none of them its own base
            raise ExportError(f"torch.onnx cannot export {type(graph.network).__name__}: {error}") from error
    assert program is not None
    return program.model_proto


def _describe(
    model: onnx.ModelProto, task: Task | None, preprocess: bool, half: bool, metadata: Mapping[str, Any]
) -> None:
    facts: dict[str, Any] = {"ftn_zoo_version": zoo.__version__, "precision": "float16" if half else "float32"}
    if task is not None:
        facts |= {"task": task.name, "kind": task.kind, "classes": task.classes}
        facts["preprocessing"] = dataclasses.asdict(task.preprocessing)
        facts["preprocessing_in_graph"] = preprocess
    for key, value in {**facts, **metadata}.items():
        model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))


def _random_batches(preprocessing: Preprocessing, preprocess: bool, dense: bool) -> list[Tensor]:
    """One image, and three; where maps are answered, of a height and a width that no stride divides."""
    other = replace(preprocessing, size=37, width=51, resize=None) if dense else preprocessing
    return [_random(preprocessing, preprocess, 1), _random(other, preprocess, 3)]


def _random(preprocessing: Preprocessing, preprocess: bool, batch: int) -> Tensor:
    """Random inputs in the graph's form, the same each time."""
    generator = torch.Generator().manual_seed(batch)
    if preprocess:
        *frames, channels, height, width = preprocessing.input_size
        return torch.randint(0, 256, (batch, *frames, height, width, channels), generator=generator, dtype=torch.uint8)
    return torch.randn(batch, *preprocessing.input_size, generator=generator)
