"""ONNX files and the weights beside them: written whole or not at all, and looked at before they are kept."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from zoo.errors import ExportError, sentence
from zoo.storage.files import atomic_path

LARGEST_FILE = 2**31 - 2**24  # bytes of weights in one file: the format's limit, with room for the graph itself
DATA = r".+\.[0-9a-f]{12}\.data"  # what files of weights beside a graph are called


@contextlib.contextmanager
def written(model: ir.Model, path: Path, largest: int = LARGEST_FILE, bare: bool = False) -> Iterator[Path]:
    """A graph, valid and in a file of its own, that takes the place of `path` when the block ends without an error.

    Args:
        largest: bytes of weights that one file holds; more lie beside it.
        bare: leave out the shapes of what is between input and output, which can be inferred.

    Raises:
        ExportError: it cannot be written, or is not valid.
    """
    held = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    here = [tensor for tensor in held if not isinstance(tensor, ir.ExternalTensor)]
    data = None
    if sum(tensor.nbytes for tensor in here) > largest:  # named by what it holds: never replaced under another graph
        digest = hashlib.sha256()
        for tensor in here:
            digest.update(f"{tensor.name} {tensor.dtype} {tensor.shape}".encode() + tensor.tobytes())
        data = f"{path.stem}.{digest.hexdigest()[:12]}.data"
    with together(path, data) as (temporary, apart):
        proto = ir.to_proto(model)
        if bare:
            del proto.graph.value_info[:]
        _write(proto, temporary, apart)
        _check_valid(temporary, path)
        yield temporary


@contextlib.contextmanager
def together(path: Path, data: str | None) -> Iterator[tuple[Path, Path | None]]:
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
    except OSError:  # of which `together` and `atomic_path` speak
        raise
    except Exception as error:  # protobuf's, past its limit; onnx's own
        raise ExportError(f"The graph cannot be written to {file.name}: {sentence(error)}") from error


def _check_valid(file: Path, path: Path) -> None:
    """Raise ExportError, naming `path`, unless a file is valid ONNX with shapes that fit each other."""
    try:
        onnx.checker.check_model(str(file), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path}: the exported graph is not valid ONNX: {sentence(error)}") from error
