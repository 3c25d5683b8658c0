"""Files whose sums are right and whose content is odd: made anew from a whole one. For `mutations.py`.

Damage by chance is mostly found by a checksum. Here the checksums are made anew, so that what reads the content has to
find it: types, sizes, names and values of tensors, what headers and lists say, tags of YAML, addresses and paths.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import random
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
import yaml
from safetensors.torch import load, save
from torch import Tensor

from zoo.storage.bundles import MANIFEST
from zoo.storage.tensors import HEADER, _content_sha256

NUMBERS = [0, -1, 1.5, 1e308, float("nan"), float("inf"), 2**31, 2**63, 2**70, 10**9, 10**400, True]
TEXTS = [
    "", "x" * 10_000, "..", "../../x", "/etc/passwd", "a/b", "\x00", "\u202e", "é", "shared", "backbones", "*",
    "?" * 50, "nan", "1", "__class__", "F8_E4M3", "timm/no", "torchvision/no", "zoo/no", "entry/a/b",
    "hf://a/b@main/c", "2024-13-45", "file:../../x", "file:/dev/zero", "package:..", "https://[::1",
    "http://x:99999/", "https://\u00e9/x", "pypi:a@b/c",
]  # fmt: skip
ODD = [
    *NUMBERS,
    *TEXTS,
    None,
    [],
    {},
    [[]],
    {"": ""},
    {"*": 3},
    {"*": -1},
    {"[": 1},
    [1, 2, 3],
    ["a", "a"],
    {"a": {"a": 1}},
]
TAGS = [
    "!!int x", "!!float x", "!!bool x", "!!null x", "!!binary x", "!!timestamp x", "!!set {a}", "!!omap [a: 1]",
    "!!pairs [a]", "!!python/name:os.system", "!!python/object/apply:os.getcwd []", "!!seq {a: 1}", "!!map [1]",
    "!!str [1]", "!x y", "&a [*a]", "*b", "<<", "? [a]", "1_000", "0x1f", "0b1", "1:30", "~", ".nan", "-.inf", "=",
    "yes", "2024-01-02", "|", ">-",
]  # fmt: skip
TYPES = [
    torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint64,
]  # fmt: skip
BLOWN = 10**6  # elements of the largest tensor that is made
NAMES = ["../x", "/x", "a/../../x", "a" * 300, "registry.index", "A"]  # of files in a bundle


def forged(tree: Any, draw: random.Random) -> Any:
    """Plain data with a value or two that are others, or gone, or called otherwise, or twice there."""
    held = [copy.deepcopy(tree)]
    for _ in range(draw.choice([1, 1, 2])):
        parent, key = draw.choice(list(_places(held)))
        act = draw.choice([_odd, _odd, _odd, _gone, _renamed, _another, _nested])
        act(parent, key, held, draw)
    return held[0]


def _places(held: Any) -> Iterator[tuple[Any, Any]]:
    """Where each value of plain data stands: in what, and by which key."""
    for key in held if isinstance(held, dict) else range(len(held)):
        yield held, key
        if isinstance(held[key], dict | list):
            yield from _places(held[key])


def _odd(parent: Any, key: Any, held: Any, draw: random.Random) -> None:
    parent[key] = copy.deepcopy(draw.choice(ODD))


def _gone(parent: Any, key: Any, held: Any, draw: random.Random) -> None:
    if parent is not held:
        del parent[key]


def _renamed(parent: Any, key: Any, held: Any, draw: random.Random) -> None:
    if isinstance(parent, dict):
        parent[draw.choice([*TEXTS, f"{key}s", str(key).upper()])] = parent.pop(key)


def _another(parent: Any, key: Any, held: Any, draw: random.Random) -> None:
    """A value from elsewhere in the same data."""
    place, name = draw.choice(list(_places(held)))
    parent[key] = copy.deepcopy(place[name])


def _nested(parent: Any, key: Any, held: Any, draw: random.Random) -> None:
    for _ in range(draw.choice([1, 5, 60])):
        parent[key] = {"a": parent[key]} if draw.random() < 0.5 else [parent[key]]


def forged_tensors(held: dict[str, Tensor], draw: random.Random) -> dict[str, Tensor]:
    """The same with a tensor or two of another type, size, name or content, or left out, or added."""
    made = dict(held)
    for _ in range(draw.choice([1, 1, 2])):
        name = draw.choice(list(made)) if made else "a"
        tensor = made.pop(name, torch.zeros(2))
        act = draw.choice(["type", "type", "size", "size", "value", "name", "gone", "added"])
        if act == "type":
            made[name] = tensor.to(torch.float32).to(draw.choice(TYPES))
        elif act == "size":
            made[name] = _resized(tensor, draw)
        elif act == "value":
            values = torch.full(tensor.shape, draw.choice([math.nan, math.inf, -1.0, 1e30, 0.0]))
            made[name] = values.to(tensor.dtype)
        elif act == "name":
            made[draw.choice([*filter(None, TEXTS), f"{name}.x", name.rsplit(".", 1)[-1]])] = tensor
        elif act == "added":
            made |= {name: tensor, name + draw.choice([".weight", "_", ".0", "\x00"]): torch.zeros(3)}
    return made


def _resized(tensor: Tensor, draw: random.Random) -> Tensor:
    """Flat, turned, empty, with another axis, or longer or shorter by some."""
    axis = draw.randrange(tensor.ndim) if tensor.ndim else 0
    sizes = list(tensor.shape) or [1]
    sizes[axis] = draw.choice([0, 1, sizes[axis] + 1, max(0, sizes[axis] - 1), 4096, 5000])
    other = torch.zeros(sizes if math.prod(sizes) <= BLOWN else [1], dtype=tensor.dtype)
    return draw.choice([tensor.flatten(), tensor.mT if tensor.ndim > 1 else tensor, tensor[None], other, other, other])


def tensor_file(whole: bytes, draw: random.Random) -> bytes:
    """A safetensors file of the zoo's, of which either the header or the tensors are others; its own sum is right."""
    held, size = _tensors_of(whole), int.from_bytes(whole[:8], "little")
    stated = json.loads(whole[8 : 8 + size])["__metadata__"][HEADER]
    header = json.loads(stated[stated.index("{") :])
    if draw.random() < 0.5:
        header = forged(header, draw)
    else:
        held = forged_tensors(held, draw)
    text = json.dumps(header)
    return _file(held, {HEADER: f"{_content_sha256(text, held)} {text}"})


def _tensors_of(file: bytes) -> dict[str, Tensor]:
    """In an order that is always the same."""
    return dict(sorted(load(file).items()))


def _file(held: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    return save({name: tensor.contiguous() for name, tensor in held.items()}, metadata)


def checkpoint(whole: bytes, draw: random.Random) -> bytes:
    """A `.pth` file of other tensors, or with other things among them."""
    held: Any = forged_tensors(torch.load(io.BytesIO(whole), weights_only=True), draw)
    if draw.random() < 0.3:
        held = forged(held, draw)
    made = io.BytesIO()
    torch.save(held, made)
    return made.getvalue()


def listing(whole: bytes, draw: random.Random) -> bytes:
    """A YAML file of other content, or with a tag, an anchor or another word of YAML's for a value."""
    made = yaml.safe_dump(forged(yaml.safe_load(whole), draw), sort_keys=False)
    for _ in range(draw.choice([0, 0, 1])):
        lines = made.split("\n")
        number = draw.randrange(len(lines))
        lines[number] = f"{lines[number].partition(': ')[0]}: {draw.choice(TAGS)}"
        made = "\n".join(lines)
    return made.encode()


def archive(whole: bytes, draw: random.Random) -> bytes:
    """A bundle of another list, registry or adapter, or of files called otherwise; all hashes are right."""
    with zipfile.ZipFile(io.BytesIO(whole)) as opened:
        held = {name: opened.read(name) for name in opened.namelist()}
    manifest = json.loads(held.pop(MANIFEST))
    name = draw.choice([MANIFEST, *held])
    if name == "registry.yaml":
        held[name] = listing(held[name], draw)
    elif name.endswith(".safetensors") and draw.random() < 0.8:
        before, held[name] = held[name], tensor_file(held[name], draw)
        held["registry.yaml"] = _restated(held["registry.yaml"], before, held[name])
    elif name != MANIFEST:
        held[draw.choice(NAMES)] = held.pop(name)
    manifest["files"] = {key: {"sha256": _sha256(data), "size": len(data)} for key, data in held.items()}
    manifest = forged(manifest, draw) if name == MANIFEST else manifest
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as made:
        for key, data in [(MANIFEST, json.dumps(manifest).encode()), *held.items()]:
            made.writestr(key, data)
    return written.getvalue()


def _restated(registry: bytes, before: bytes, after: bytes) -> bytes:
    """A registry that says of a file what it is now."""
    data = yaml.safe_load(registry)
    for place, key in list(_places([data])):
        stated = place[key]
        if isinstance(stated, dict) and stated.get("sha256") == _sha256(before):
            stated |= {"sha256": _sha256(after), "size": len(after)}
    return yaml.safe_dump(data, sort_keys=False).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pair(cut: bytes) -> Callable[[bytes, random.Random], bytes]:
    """Of JSON and a safetensors file of another program, one after the other, one or both others."""

    def made(whole: bytes, draw: random.Random) -> bytes:
        config, weights = whole.split(cut, 1)
        if (chance := draw.random()) < 0.6:
            config = json.dumps(forged(json.loads(config), draw)).encode()
        if chance > 0.4:
            weights = _file(forged_tensors(_tensors_of(weights), draw))
        return config + cut + weights

    return made
