"""Writing plain modules as ONNX graphs."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import io
import json
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from zoo.export.parity import INPUT, Parity, compare, outputs, session
from zoo.export.resizing import Resize, levels_off

import zoo
from zoo.catalog.task import Preprocessing, Task, is_dense
from zoo.errors import ExportError, sentence
from zoo.models.frozen import copy_of
from zoo.models.layers import Site
from zoo.models.multitask import MultiTaskModel
from zoo.storage.files import atomic_path
from zoo.storage.tensors import fingerprint

LEAST, LARGEST = 16, 8192  # height and width in pixels of what a graph with maps as its output takes
LARGEST_FILE = 2**31 - 2**24  # bytes of weights in one file: the format's limit, with room for the graph itself
DATA = r".+\.[0-9a-f]{12}\.data"  # what files of weights beside a graph are called
LEVELS = 3  # of 255 that a resize in the graph may be off torchvision's, which weighs in whole numbers
SCALE, FULL = "scale", "full"  # what of the preprocessing can be in a graph
TOLERANCE, TOLERANCE_HALF = 1e-4, 1e-2  # on the largest difference, relative to the largest logit


class Graph(nn.Module):
    """What is exported: the network between the graph's input and its output.

    Args:
        preprocessing: take uint8 images (B, H, W, C), as decoded, and scale and normalise them in the graph.
            None: take float32 inputs (B, C, H, W) that are normalised already.
        resize: make images of any size those of the input's, before that.
        half: compute in float16; inputs and logits keep their types.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, preprocessing: Preprocessing | None = None, half: bool = False, resize: bool = False
    ) -> None:
        super().__init__()
        self.resize = Resize(preprocessing) if resize and preprocessing else None
        self.network = copy_of(network).cpu().eval().requires_grad_(False)
        if half:
            self.network.half()
        self.half_precision = half
        self.normalises = preprocessing is not None
        if preprocessing is not None:
            self.register_buffer("mean", 255 * torch.tensor(preprocessing.mean).view(-1, 1, 1))
            self.register_buffer("std", 255 * torch.tensor(preprocessing.std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        if self.normalises:
            levels = self.resize(images) if self.resize else images.movedim(-1, -3).float()  # (B, C, H, W)
            images = (levels - self.mean) / self.std
        made: Tensor = self.network(images.half() if self.half_precision else images)
        return made.float() if isinstance(made, Tensor) else made


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
    inside = _inside(preprocess)
    path, preprocessing = Path(path), task.preprocessing if task else Preprocessing()
    inner, dense = None if inside == "no" else preprocessing, task is not None and is_dense(task.kind)
    real = [images] if isinstance(images, Tensor) else [*(images or ())]
    of_any_size = dense or inside == FULL
    batches = [*_random_batches(preprocessing, inside, dense, real[0] if real else None), *real]
    graph = Graph(module, inner, half, inside == FULL)
    source = Graph(module, inner, False, inside == FULL) if half else graph  # one copy will do, where both are alike
    outputs(source, batches[0])  # what the network itself raises is told as such
    example = batches[0].repeat(2, *[1] * (batches[0].ndim - 1))
    model = _graph_model(graph, example, _rows(inside, example) if of_any_size else None, dense)
    _check_dimensions(model.graph, path, _rows(inside, example) if of_any_size else None)
    _describe(model, task, inside, half, metadata or {})
    apart = _weight(graph) > largest
    with _together(path, f"{path.stem}.{_digits(graph)}.data" if apart else None) as (temporary, data):
        _write(model, temporary, data)
        del model  # as large as the network
        _check_valid(temporary, path)
        made, tolerance = session(temporary, provider), TOLERANCE_HALF if half else TOLERANCE
        parity = replace(compare(source, made, batches, tolerance), real=sum(map(len, real)))
        if inside == FULL:
            parity = replace(parity, levels=levels_off(preprocessing, batches))
            if parity.levels is not None and parity.levels > LEVELS:
                raise ExportError(f"{path}: images are resized otherwise than by torchvision: {parity}.")
        if not parity.passed:
            raise ExportError(f"{path}: the graph differs from its source by more than {parity.tolerance}: {parity}.")
    return parity


def interface(path: str | Path) -> dict[str, str]:
    """Names, types and shapes of a graph's inputs and outputs, such as images: float32 (batch, 3, 224, 224)."""
    graph = onnx.load(str(path), load_external_data=False).graph
    return {kind: ", ".join(map(_words, values)) for kind, values in (("input", graph.input), ("output", graph.output))}


def preprocessing_of(path: str | Path) -> Preprocessing:
    """What a graph's metadata say that is done to an image before it."""
    properties = {each.key: each.value for each in onnx.load(str(path), load_external_data=False).metadata_props}
    return Preprocessing.from_data(json.loads(properties["preprocessing"]))


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


def _weight(graph: nn.Module) -> int:
    """Bytes of all tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in graph.state_dict().values())


def _digits(graph: nn.Module) -> str:
    """A name for what a graph holds, so that a file of weights is never replaced under a graph that refers to it."""
    return fingerprint(graph.state_dict())[:12]


@contextlib.contextmanager
def _together(path: Path, data: str | None) -> Iterator[tuple[Path, Path | None]]:
    """Paths to write a graph and its weights to, which are put in place together when the block ends, or not at all.

    The weights have a name of their own, and come first: at no moment does a graph refer to weights that are not there.
    Those of the graph that stood at `path` go last.
    """
    if data is None:
        before = _data_of(path)
        with atomic_path(path) as temporary:
            yield temporary, None
        before.unlink(missing_ok=True) if before else None
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as folder:
            yield Path(folder, path.name), Path(folder, data)
            before = _data_of(path)
            if Path(folder, data).exists():  # no tensor may be large enough to stand apart
                Path(folder, data).replace(path.parent / data)
            try:
                Path(folder, path.name).replace(path)
            except OSError:
                if before is None or before.name != data:
                    (path.parent / data).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise ExportError(f"Cannot write {path}: {error.strerror or error}. What stood there is unchanged.") from error
    if before and before.name != data:
        before.unlink(missing_ok=True)


def _data_of(path: Path) -> Path | None:
    """The file of weights beside a graph, if it has one by the name that this software gives."""
    if not path.is_file():
        return None
    found = [file for file in path.parent.glob(f"{glob.escape(path.stem)}.*.data") if re.fullmatch(DATA, file.name)]
    try:
        held = onnx.load(path, load_external_data=False).graph.initializer
    except Exception:  # another file, which is about to be replaced
        return None
    named = {entry.value for tensor in held for entry in tensor.external_data if entry.key == "location"}
    return next((file for file in found if file.name in named), None)


def _write(model: onnx.ModelProto, file: Path, data: Path | None) -> None:
    """Write a graph, its weights into a file beside it where one is named."""
    try:
        if data is None:
            onnx.save(model, file)
        else:
            onnx.save(
                model,
                file,
                save_as_external_data=True,
                all_tensors_to_one_file=True,
                location=data.name,
            )
    except Exception as error:  # protobuf's, past its limit; onnx's own
        raise ExportError(f"The graph cannot be written to {file.name}: {sentence(error)}") from error


def _check_dimensions(graph: onnx.GraphProto, path: Path, row: int | None) -> None:
    """Raise ExportError where a dimension that is to be dynamic has become a number.

    Args:
        row: the dimension of the height, if that and the width are to be dynamic.
    """
    dimensions = graph.input[0].type.tensor_type.shape.dim
    names = {0: "batch", **({row: "height", row + 1: "width"} if row else {})}
    for place, name in names.items():
        if dimensions[place].HasField("dim_value"):
            raise ExportError(
                f"{path}: the {name} of the graph is fixed at {dimensions[place].dim_value}. The network takes it for "
                f"a number, such as in a Python loop over the {name}; write that with operations on whole tensors."
            )


def _check_valid(file: Path, path: Path) -> None:
    """Raise ExportError, naming `path`, unless a file is valid ONNX with shapes that fit each other."""
    try:
        onnx.checker.check_model(str(file), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path}: the exported graph is not valid ONNX: {sentence(error)}") from error


def _inside(preprocess: bool | str) -> str:
    """What of the preprocessing is in the graph: nothing ("no"), "scale", or "full"."""
    inside = {False: "no", True: SCALE, SCALE: SCALE, FULL: FULL}.get(preprocess)
    if inside is None:
        raise ExportError(f"preprocess is False, True, {SCALE!r} or {FULL!r}, not {preprocess!r}.")
    return inside


def _rows(inside: str, example: Tensor) -> int:
    """The dimension of the images' height."""
    return example.ndim - (2 if inside == "no" else 3)


def _graph_model(graph: Graph, example: Tensor, rows: int | None, dense: bool) -> onnx.ModelProto:
    """The graph of a module.

    Args:
        rows: the dimension of the height, if that and the width shall be dynamic.
    """
    dynamic = {0: torch.export.Dim("batch")}
    if rows is not None:
        for place, name in ((rows, "height"), (rows + 1, "width")):
            dynamic[place] = torch.export.Dim(name, min=1 if graph.resize else LEAST, max=LARGEST)
    page = io.StringIO()  # what the exporter says on stderr of what it cannot do
    with warnings.catch_warnings(), contextlib.redirect_stderr(page):
        warnings.simplefilter("ignore")  # the exporter's own deprecations; what matters is checked afterwards
        try:
            program = torch.onnx.export(
                graph.eval(), (example,), dynamo=True, verbose=False, input_names=[INPUT],
                output_names=["maps" if dense else "logits"], dynamic_shapes={"images": dynamic},
            )  # fmt: skip
        except Exception as error:  # the exporter raises many classes, none of them its own base
            error.add_note(page.getvalue())
            reason = sentence(error.__cause__ if isinstance(error.__cause__, Exception) else error)
            raise ExportError(f"torch.onnx cannot export {type(graph.network).__name__}: {reason}") from error
    assert program is not None
    return program.model_proto


def _describe(model: onnx.ModelProto, task: Task | None, inside: str, half: bool, metadata: Mapping[str, Any]) -> None:
    facts: dict[str, Any] = {"ftn_zoo_version": zoo.__version__, "precision": "float16" if half else "float32"}
    if task is not None:
        facts |= {"task": task.name, "kind": task.kind, "classes": task.classes}
        facts["preprocessing"] = dataclasses.asdict(task.preprocessing)
        facts["preprocessing_in_graph"] = inside
    for key, value in {**facts, **metadata}.items():
        model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))


def _random_batches(preprocessing: Preprocessing, inside: str, dense: bool, images: Tensor | None) -> list[Tensor]:
    """One image, and three; where maps are answered, of a height and a width that no stride divides."""
    if inside == FULL:
        sizes = ((97, 61), (300, 401), (preprocessing.size, 2 * preprocessing.size))
        return [_random(replace(preprocessing, size=h, width=w, resize=None), True, 1) for h, w in sizes]
    preprocess = inside == SCALE
    other = replace(preprocessing, size=37, width=51, resize=None) if dense else preprocessing
    if images is not None and not dense and not preprocess and images.shape[1:] != preprocessing.input_size:
        return [torch.randn(rows, *images.shape[1:], generator=torch.Generator().manual_seed(rows)) for rows in (1, 3)]
    return [_random(preprocessing, preprocess, 1), _random(other, preprocess, 3)]


def _random(preprocessing: Preprocessing, preprocess: bool, batch: int) -> Tensor:
    """Random inputs in the graph's form, the same each time."""
    generator = torch.Generator().manual_seed(batch)
    if preprocess:
        *frames, channels, height, width = preprocessing.input_size
        return torch.randint(0, 256, (batch, *frames, height, width, channels), generator=generator, dtype=torch.uint8)
    return torch.randn(batch, *preprocessing.input_size, generator=generator)
