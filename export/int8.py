"""A graph that computes in whole numbers of eight bits, made of one in float32 and of images to calibrate it on.

ONNX Runtime's static quantisation: pairs of QuantizeLinear and DequantizeLinear around each layer, which its CPU
provider joins with it. Weights have a scale for each output channel, activations one each, of what they reach on the
images.
"""

from __future__ import annotations

import itertools
import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import compose
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn
from zoo.export.files import written
from zoo.export.form import Form, describe
from zoo.export.parity import INPUT, metadata_of, run, session

from zoo.catalog.task import Preprocessing, Task
from zoo.errors import ExportError, ZooError, sentence

Judged = Callable[[Path, Path], Mapping[str, Any]]


def to_int8(
    source: str | Path, path: str | Path, calibration: Iterable[Tensor], *, preprocess: bool | str = False,
    judged: Judged | None = None,
) -> None:  # fmt: skip
    """Write a graph of `to_onnx` once more, in eight bits. What prepares the images in it computes in float32.

    Weights have seven bits, and so keep what they are worth on processors that add products of eight bits in sixteen
    (x86 without VNNI). It is meant for the CPU: TensorRT asks for activations around zero, which these are not.

    Args:
        source: one task's graph in float32, without preprocessing; what its metadata say is said of the new one.
        calibration: batches of the network's own inputs, such as a hundred training images, normalised.
        preprocess: what of the preprocessing is to be in the graph, as of `to_onnx`.
        judged: is given the graphs of the network in float32 and in int8, before the file is written. Its facts go
            into the metadata; what it raises keeps the file from being written.

    Raises:
        ExportError: the source is another graph than described, there is no image, or it cannot be done; no file is
            written then.
    """
    source, path, images = Path(source), Path(path), iter(calibration)
    facts = _facts(source)
    if (first := next(images, None)) is None:
        raise ExportError("A graph in int8 is calibrated on images, and there is none.")
    form = Form(_task(facts), preprocess)
    with tempfile.TemporaryDirectory() as folder:
        network = _quantised(source, Path(folder), itertools.chain([first], images))
        found = judged(source, network) if judged else {}
        graph = onnx.load(network)
        if form.inside != "no":
            graph = _behind(_preparing(form, path, Path(folder)), graph)
        model = ir.from_proto(graph)
        model.metadata_props.clear()  # the quantiser's
        describe(model, {**facts, **form.facts(), "precision": "int8", **found})
        with written(model, path) as temporary:
            made = session(temporary)
            for batch in form.random if form.inside != "no" else [first]:
                if not np.isfinite(run(made, batch.numpy())).all():
                    raise ExportError(f"{path}: the graph gives values that are not finite.")


def _facts(source: Path) -> dict[str, str]:
    """What a graph in float32 says of itself; raises ExportError for any other."""
    try:
        facts = metadata_of(source)
    except Exception as error:  # protobuf's, or the system's
        raise ExportError(f"{source} cannot be read as a graph: {sentence(error)}") from error
    if facts.get("precision") != "float32" or facts.get("preprocessing_in_graph", "no") != "no" or "tasks" in facts:
        raise ExportError(
            f"{source}: a graph in int8 is made of one task's in float32, as to_onnx writes it without preprocessing."
        )
    return facts


def _task(facts: Mapping[str, str]) -> Task | None:
    """Of a graph's metadata."""
    if "task" not in facts:
        return None
    preprocessing = Preprocessing.from_data(json.loads(facts["preprocessing"]))
    return Task(facts["task"], tuple(json.loads(facts["classes"])), preprocessing, facts["kind"])


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    """What the quantiser asks for images, batch by batch."""

    def __init__(self, batches: Iterator[Tensor]) -> None:
        self.batches = batches

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch.numpy()}


def _quantised(source: Path, folder: Path, batches: Iterator[Tensor]) -> Path:
    """The network of a graph in int8, as a file in `folder`."""
    plain, made = folder / "plain.onnx", folder / "int8.onnx"
    quiet = logging.NullHandler()  # without any handler, what the quantiser logs would give the root logger one
    logging.root.addHandler(quiet)
    try:
        quant_pre_process(source, plain, skip_symbolic_shape=True)
        quantize_static(
            plain, made, _Batches(batches), quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
    except ZooError:  # of an image that does not decode, say
        raise
    except Exception as error:  # the quantiser's, of no base of their own
        raise ExportError(f"{source} cannot be converted to int8: {sentence(error)}") from error
    finally:
        logging.root.removeHandler(quiet)
    return made


def _preparing(form: Form, path: Path, folder: Path) -> onnx.ModelProto:
    """The graph from images as decoded to the network's input, compared with torch."""
    prepare = form.around(nn.Identity())
    with written(form.exported(prepare, path), folder / "prepare.onnx") as temporary:
        form.parity(prepare, session(temporary), path)
    return onnx.load(folder / "prepare.onnx")


def _behind(first: onnx.ModelProto, second: onnx.ModelProto) -> onnx.ModelProto:
    """Two graphs of one input and one output each, one after the other; names of the whole graph's are kept."""
    first, second = (
        compose.add_prefix(first, "prepare/", rename_inputs=False),
        compose.add_prefix(second, "network/", rename_outputs=False),
    )
    first.ir_version = second.ir_version
    pairs = [(first.graph.output[0].name, second.graph.input[0].name)]
    return compose.merge_models(first, second, pairs)
