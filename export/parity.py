"""Running an ONNX file, and holding it against the torch module that it came from."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

from zoo.errors import ExportError, OptionError, sentence
from zoo.storage.files import sha256

PROVIDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    "cuda": ("CUDAExecutionProvider", {"use_tf32": 0}),  # whose ten bits of mantissa would fail the comparison
    "tensorrt": ("TensorrtExecutionProvider", {}),
}
INPUT, TASK = "images", "task"
SHARED_FILE, SHARED_SHA256 = "shared_file", "shared_sha256"  # in the metadata of a graph whose weights lie beside it


@dataclass(frozen=True)
class Parity:
    """The largest difference between an ONNX file and its source, over some images."""

    absolute: float
    relative: float  # to the largest output of the source
    tolerance: float  # on the relative difference
    images: int
    real: int = 0  # of these; the others are random
    levels: int | None = None  # of 255, that a resize in the graph is off torchvision's at most

    @property
    def passed(self) -> bool:
        return self.relative <= self.tolerance

    def __str__(self) -> str:
        counts = {"random inputs": self.images - self.real, "real images": self.real}
        over = " and ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        resized = "" if self.levels is None else f"; resized within {self.levels} of 255 levels of torchvision"
        return f"largest difference {self.absolute:.1e} ({self.relative:.1e} relative) over {over}{resized}"


def session(path: str | Path, provider: str = "cpu", *, spinning: bool = True) -> ort.InferenceSession:
    """An ONNX Runtime session on one execution provider: "cpu", "cuda" or "tensorrt".

    Args:
        spinning: let idle threads wait actively. Where sessions are timed in turn, the threads of the one that waits
            would slow the other down.

    Raises:
        OptionError: no such provider.
        ExportError: this machine does not have it, the file cannot be read, or the file of weights that it shares with
            others is not the one that it was made for.
    """
    if provider not in PROVIDERS:
        raise OptionError(f"Unknown provider {provider!r}; choose one of {', '.join(PROVIDERS)}.")
    (wanted, settings), options = PROVIDERS[provider], ort.SessionOptions()
    ort.set_default_logger_severity(4)  # a provider that cannot start says so in the error below, not on stderr
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    if provider != "cpu":
        ort.preload_dlls()  # the CUDA libraries that torch brought
    try:
        made = ort.InferenceSession(str(path), options, providers=[(wanted, settings)])
    except Exception as error:  # ONNX Runtime raises classes of its own for each status, with no common base
        _check_shared(Path(path))
        raise ExportError(f"ONNX Runtime cannot run {path} on {provider}: {sentence(error)}") from error
    _check_shared(Path(path), made.get_modelmeta().custom_metadata_map)
    if made.get_providers()[0] != wanted:
        here = [name for name, (full, _) in PROVIDERS.items() if full in made.get_providers()]
        raise ExportError(
            f"The provider {provider!r} is not available here; ONNX Runtime fell back to {', '.join(here)}. "
            "Install its drivers and libraries, or choose --provider cpu."
        )
    return made


def metadata_of(path: str | Path) -> dict[str, str]:
    """What a graph says of itself, read from its file alone."""
    return {each.key: each.value for each in onnx.load(str(path), load_external_data=False).metadata_props}


def _check_shared(path: Path, facts: Mapping[str, str] | None = None) -> None:
    """Raise ExportError unless the file of weights that a graph shares with others is the one that it states.

    Args:
        facts: the graph's metadata; None: read them, if that is possible.
    """
    if facts is None:
        facts = {}
        with contextlib.suppress(Exception):  # no graph at all, of which somebody else tells
            facts = metadata_of(path)
    if SHARED_FILE not in facts:
        return
    name = facts[SHARED_FILE]
    file = path.parent / name
    if Path(name).name != name:
        raise ExportError(f"{path} names a file of weights outside its folder: {name!r}.")
    if not file.is_file():
        raise ExportError(f"{path} needs the weights in {name} beside it, and they are not there: copy both.")
    if (found := sha256(file)) != facts.get(SHARED_SHA256):
        raise ExportError(
            f"{file} is not the file that {path.name} was made for: its SHA-256 is {found[:12]}…, not "
            f"{facts.get(SHARED_SHA256, 'none')[:12]}…. Copy the folder again, or export into another one."
        )


def run(made: ort.InferenceSession, *inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The output of a graph, logits (B, classes), or maps or pictures (B, channels, H, W).

    Args:
        inputs: images in the form that it takes, and what else it takes in its order, such as each image's task.
    """
    names = [each.name for each in made.get_inputs()]
    try:
        return np.asarray(made.run(None, dict(zip(names, inputs, strict=False)))[0])
    except Exception as error:  # ONNX Runtime raises classes of its own for each status, with no common base
        raise ExportError(f"ONNX Runtime cannot run images of {inputs[0].shape}: {sentence(error)}") from error


def outputs(module: nn.Module, batch: Tensor, *further: Tensor) -> Tensor:
    """What a module makes of a batch; raises ExportError where that is no one tensor, or nothing."""
    try:
        with torch.no_grad():
            found = module(batch, further) if further else module(batch)
    except Exception as error:  # whatever the network raises
        raise ExportError(
            f"The network does not run on inputs of the shape {tuple(batch.shape)}, which its task's preprocessing "
            f"says that it takes: {sentence(error)}"
        ) from error
    if not isinstance(found, Tensor):
        raise ExportError(f"The network gives {type(found).__name__}, not one tensor; wrap it to give what is meant.")
    return found


def compare(
    module: nn.Module, made: ort.InferenceSession, batches: Sequence[Tensor | tuple[Tensor, ...]], tolerance: float
) -> Parity:
    """Run both on the same batches, each in the form that the graph takes; `module` takes it too.

    Args:
        batches: of images; or of images and what the graph takes beside them. Outputs may be -inf in the same places.
    """
    absolute = largest = 0.0
    images = 0
    for batch in batches:
        inputs = batch if isinstance(batch, tuple) else (batch,)
        expected = outputs(module, *inputs).float().numpy()
        found = run(made, *(each.numpy() for each in inputs))
        if found.shape != expected.shape:
            raise ExportError(f"The graph gives outputs of shape {found.shape}, its source {expected.shape}.")
        known = ~(np.isneginf(found) & np.isneginf(expected))
        found, expected = found[known], expected[known]
        if not (np.isfinite(found).all() and np.isfinite(expected).all() and found.size):
            raise ExportError(
                "The graph or its source gives values that are not finite; float16 may not be enough for it."
            )
        absolute = max(absolute, float(np.abs(found - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
        images += len(inputs[0])
    relative = absolute / largest if largest else absolute
    return Parity(absolute, relative, tolerance, images)
