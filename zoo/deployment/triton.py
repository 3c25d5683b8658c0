"""A repository of models for NVIDIA's Triton server: one for each task, and one for all tasks mixed.

    FOLDER/<entry>-<task>/config.pbtxt, labels.txt, 1/model.onnx
    FOLDER/<entry>/config.pbtxt, 1/model.onnx

A task's graph holds its whole network: a model of Triton's cannot refer to a file outside its folder, and ONNX takes
weights in a file of several names (hard links) for an attack. The backbone is shared in the model of all tasks.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import onnx

from zoo.catalog.task import Task, has_labels
from zoo.deployment.leaving import Exported, Leaving
from zoo.errors import ExportError
from zoo.export.form import check_alike, with_backbone
from zoo.storage.files import atomic_path

log = logging.getLogger(__name__)
CONFIG, LABELS, VERSION, GRAPH = "config.pbtxt", "labels.txt", "1", "model.onnx"
MOST, WAIT = 32, 500  # images that the server puts into one batch; microseconds that one waits for others
TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8", "int64": "TYPE_INT64"}


def repository(leaving: Leaving, folder: Path) -> dict[str, Exported]:
    """Write a model for each task, and for several on one backbone also one whose batches mix them.

    Raises:
        ExportError: as the other forms do.
    """
    found = {}
    tasks = [leaving.model.task(name) for name in leaving.names]
    for task in tasks:
        model = folder / f"{leaving.entry.name}-{task.name}"
        found[task.name] = _written(model, [task], partial(leaving.whole, task.name))
    model = folder / leaving.entry.name
    if _mixable(leaving, tasks):
        found[", ".join(leaving.names)] = _written(model, tasks, leaving.mixed)
    elif model.exists():
        log.info("%s is of an earlier export, and was not written anew.", model)
    return found


def _written(model: Path, tasks: Sequence[Task], write: Callable[[Path], Exported]) -> Exported:
    """A model's folder; its configuration comes last, and goes first: what is there without one is not whole."""
    (model / CONFIG).unlink(missing_ok=True)
    made = write(model / VERSION / GRAPH)
    if _labelled(tasks):
        _write(model / LABELS, "".join(f"{' '.join(label.splitlines())}\n" for label in tasks[0].classes))
    _write(model / CONFIG, _config(model, tasks))
    return made


def _labelled(tasks: Sequence[Task]) -> bool:
    """Whether the places in a model's output are classes of one task."""
    return len(tasks) == 1 and has_labels(tasks[0].kind)


def _mixable(leaving: Leaving, tasks: Sequence[Task]) -> bool:
    """Whether there is a model of several tasks together; why not is told."""
    if len(tasks) == 1:
        return False
    try:
        with_backbone(leaving.model)
        check_alike(tasks, leaving.preprocess)
    except ExportError as error:
        log.info("There is no model of all tasks. %s", error)
        return False
    return True


def _write(file: Path, text: str) -> None:
    with atomic_path(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _config(model: Path, tasks: Sequence[Task]) -> str:
    """What the server is told of a model: its graph's inputs and outputs, and how to run it."""
    graph = onnx.load(model / VERSION / GRAPH, load_external_data=False).graph
    labels = [f"label_filename: {_quoted(LABELS)}"] if _labelled(tasks) else []
    names = json.dumps([task.name for task in tasks], ensure_ascii=False)  # in the order of their numbers
    return "\n".join([
        f"name: {_quoted(model.name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {MOST}",
        *(_block("input", *_tensor(value)) for value in graph.input),
        *(_block("output", *_tensor(value), *labels) for value in graph.output),
        _block("dynamic_batching", f"max_queue_delay_microseconds: {WAIT}"),
        _block("instance_group", "count: 1", "kind: KIND_AUTO"),
        _block("parameters", 'key: "tasks"', f"value {{ string_value: {_quoted(names)} }}"),
        "",
    ])  # fmt: skip


def _block(name: str, *lines: str) -> str:
    return "\n".join([f"{name} {{", *(f"  {line}" for line in lines), "}"])


def _tensor(value: onnx.ValueInfoProto) -> list[str]:
    """An input or output of a graph, without the dimension of the batch, which is the server's."""
    tensor = value.type.tensor_type
    kind = TYPES[onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name]
    dims = [d.dim_value or -1 for d in tensor.shape.dim][1:]  # one with a name is dynamic
    # One number for each image, without a dimension of its own, is told as [1], and reshaped by the server.
    return [
        f"name: {_quoted(value.name)}", f"data_type: {kind}",
        *([f"dims: {dims}"] if dims else ["dims: [1]", "reshape { shape: [] }"]),
    ]  # fmt: skip


def _quoted(text: str) -> str:
    """As a string of protobuf's text format, which has JSON's escapes but for those of two halves."""
    return json.dumps(text, ensure_ascii=False)
