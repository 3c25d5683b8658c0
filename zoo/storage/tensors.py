"""Safetensors files: written whole or not at all, and checked before a tensor of theirs is used.

A file written here states a SHA-256 over its own header and tensors, so that any bit that changes is found wherever the
file lies, and not only where a registry states the file's hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from zoo.errors import WeightsError
from zoo.storage import resources
from zoo.storage.files import atomic_path

log = logging.getLogger(__name__)
HEADER = "zoo"  # one metadata key: several would be written in an order of their own, and files would differ
DIGITS = 64  # of a SHA-256, which stand before the header's JSON
STATED = re.compile(r"[0-9a-f]{20} \{")  # how what a file states of itself begins, wherever a damaged key puts it
# Types of tensors that are read through numpy: safetensors 0.8 keeps some bytes for ever of each that it makes torch's.
OF_NUMPY = frozenset(["F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"])
LONGEST_HEADER = 25_000_000  # bytes; of names, shapes and ours, in a file of any maker


def write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header to a safetensors file, atomically.

    Raises:
        WeightsError: the file cannot be written; what stood there before is unchanged.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        held = tensor.detach().cpu().contiguous()
        # A module that stands in two places gives its tensors twice, and the format knows none that share memory.
        known = {other.untyped_storage().data_ptr() for other in plain.values()}
        plain[name] = held.clone() if held.untyped_storage().data_ptr() in known else held
    text = json.dumps(header, sort_keys=True)
    with atomic_path(path) as temporary:
        try:
            save_file(plain, temporary, metadata={HEADER: f"{_content_sha256(text, plain)} {text}"})
        except SafetensorError as error:
            raise WeightsError(f"Cannot write {path}: {error}. What stood there is unchanged.") from error


def _content_sha256(text: str, tensors: Mapping[str, Tensor]) -> str:
    """What a file states of its own content: the JSON of its header, and its tensors."""
    return hashlib.sha256(f"{text}\n{fingerprint(tensors)}".encode()).hexdigest()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, str, dict[str, Any]]]:
    """A safetensors file, its header as it stands there, and what that says; raises WeightsError for what is none."""
    try:
        with open(path, "rb") as file:
            if (length := int.from_bytes(file.read(8), "little")) > LONGEST_HEADER:
                raise ValueError(f"its header would have {length:,} bytes, and may have {LONGEST_HEADER:,}")
        with safe_open(path, framework="numpy") as opened:
            metadata = opened.metadata() or {}
            if odd := [key for key, said in metadata.items() if key != HEADER and STATED.search(said)]:
                raise ValueError(f"what it states of its own content is called {odd[0]!r} there, not {HEADER!r}")
            text = metadata.get(HEADER, "{}")
            header = json.loads(text if text.startswith("{") else text[DIGITS:])
            if not isinstance(header, dict):
                raise ValueError("its header is no mapping")
            yield opened, text, header
    except FileNotFoundError:
        raise WeightsError(f"There is no weights file {path}.") from None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not a whole safetensors file ({error}). Fetch or train it again.") from error


def read_header(path: Path) -> dict[str, Any]:
    """The header alone of a safetensors file, as `read` gives it; whether it has been altered is not looked at."""
    with _opened(path) as (_, _, header):
        return header


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header of a safetensors file; the header is empty in a file of another program.

    Raises:
        WeightsError: no file, not a whole safetensors file, one that was altered, or a value that is not finite.
    """
    with _opened(path) as (file, text, header):
        types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        tensors = {name: torch.from_numpy(file.get_tensor(name)) for name, kind in types.items() if kind in OF_NUMPY}
        if others := types.keys() - tensors:
            with safe_open(path, framework="pt") as of_torch:
                tensors |= {name: of_torch.get_tensor(name) for name in others}
    if not text.startswith("{"):
        found = _content_sha256(text[DIGITS + 1 :], tensors)
        if not text.startswith(f"{found} "):
            raise WeightsError(
                f"{path} was altered: it states {text[:DIGITS]!r} of its own content, whose SHA-256 is {found}. "
                "Fetch or train it again."
            )
    elif header and not any(map(path.is_relative_to, (resources.packaged_weights_dir(), resources.cache_dir()))):
        log.info("%s is of a version that wrote no checksum of its content; nothing was checked by it.", path)
    for name, tensor in tensors.items():
        try:
            finite = _is_finite(tensor)
        except NotImplementedError as error:  # torch knows the type, and computes nothing with it
            raise WeightsError(f"{path}: the tensor {name} is of {tensor.dtype}, which cannot be read.") from error
        if not finite:
            raise WeightsError(f"{path}: the tensor {name} holds a value that is not finite. Fetch or train it again.")
    return tensors, header


def _is_finite(tensor: Tensor) -> bool:
    if tensor.is_floating_point() and tensor.itemsize == 1:  # of which torch's isfinite knows some, and one wrongly
        tensor = tensor.float()
    return not (tensor.is_floating_point() or tensor.is_complex()) or bool(torch.isfinite(tensor).all())


def _sort(tensor: Tensor) -> str:
    """Which types can be put in place of a tensor's without another meaning."""
    if tensor.is_floating_point():
        return "real numbers"
    return str(tensor.dtype).removeprefix("torch.") if tensor.is_complex() or tensor.dtype == torch.bool else "integers"


def check_tensors(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str) -> None:
    """Raise WeightsError unless `given` has just the names, shapes and sorts of numbers of `expected`; name all that
    differ.
    """
    problems = [f"missing {name}" for name in expected if name not in given]
    problems += [f"unexpected {name}" for name in given if name not in expected]
    counting = counters(expected)
    for name in [name for name in expected if name in given]:
        own, other = expected[name], given[name]
        if other.shape != own.shape:
            problems.append(f"{name} has shape {tuple(other.shape)}, not {tuple(own.shape)}")
        averaged = name in counting and other.is_floating_point()  # with the rest of several tasks' tensors
        if _sort(other) != _sort(own) and not averaged:
            problems.append(f"{name} holds {_sort(other)}, not {_sort(own)}")
    if problems:
        shown = "; ".join(problems[:8]) + (f"; … ({len(problems)} in all)" if len(problems) > 8 else "")
        raise WeightsError(f"{source} does not fit this model: {shown}.")


def counters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The norms' counts of batches among some tensors: what files of other makers may lack, and no figure hangs on."""
    return {name: tensor for name, tensor in tensors.items() if name.endswith("num_batches_tracked")}


def replace_tensors(own: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors over those of the same names; raises WeightsError, and changes nothing, unless all of them fit."""
    check_tensors(own, given, source)
    for name, tensor in own.items():
        tensor.copy_(given[name])


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():  # of nothing, what numpy makes has strides that torch does not take
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
