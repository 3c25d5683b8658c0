"""Damaged files of every kind, loaded: the same as before, a sentence, or a fault.

    python -m benchmarks.reliability.mutations [--count 10000] [--kind adapter] [--seed 0] [--json FILE]

Damage is random and knows the form of the file: bits and bytes, lengths and ends, and the values in headers, lists and
texts. Forged files have right sums and odd content (`forgeries.py`). Each kind runs in a process of its own, so that a
crash is counted; that it grows to twice its size after loading the whole file is a fault too.
"""

from __future__ import annotations

import collections
import io
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from PIL import Image
from safetensors.torch import save_file

import zoo
from benchmarks.record import save
from benchmarks.reliability import forgeries
from zoo.catalog import index
from zoo.catalog.places import registry_at
from zoo.catalog.recipe import load_recipe, recipe_file
from zoo.catalog.registry import Registry
from zoo.catalog.store import adapter_files, shared_file
from zoo.datasets import open_image
from zoo.deployment.parcel import bundle
from zoo.storage import tensors

VALUES = [
    b"0",
    b"-1",
    b"1e999",
    b"99999999999999999999",
    b'""',
    b"null",
    b"true",
    b"{}",
    b"[]",
    b"'",
    b"\xff",
    b"\x00",
    b"&a [*a]",
    b": ",
]


def damaged(whole: bytes, draw: random.Random) -> bytes:
    """A file with one to three random damages."""
    made = bytearray(whole)
    for _ in range(draw.randint(1, 3)):
        if not made:
            break
        draw.choice(DAMAGES)(made, draw)
    return bytes(made)


def _place(made: bytearray, draw: random.Random) -> int:
    """Somewhere, and as often as not near the beginning or the end, where headers and directories stand."""
    near = min(len(made), 600)
    return draw.choice([draw.randrange(len(made)), draw.randrange(near), len(made) - 1 - draw.randrange(near)])


def _flip(made: bytearray, draw: random.Random) -> None:
    made[_place(made, draw)] ^= 1 << draw.randrange(8)


def _overwrite(made: bytearray, draw: random.Random) -> None:
    begin = _place(made, draw)
    made[begin : begin + 8] = draw.randbytes(min(8, len(made) - begin))


def _cut(made: bytearray, draw: random.Random) -> None:
    del made[_place(made, draw) :]


def _remove(made: bytearray, draw: random.Random) -> None:
    begin = _place(made, draw)
    del made[begin : begin + draw.choice([1, 8, 100])]


def _repeat(made: bytearray, draw: random.Random) -> None:
    begin = _place(made, draw)
    made[begin:begin] = made[begin : begin + draw.choice([1, 8, 100])]


def _length(made: bytearray, draw: random.Random) -> None:
    """Of a header, or of an archive's directory."""
    begin = draw.choice([0, max(0, len(made) - 10)])
    value = draw.choice([0, 1, 100, len(made), 2**31, 2**63 - 1, 2**64 - 1])
    made[begin : begin + 8] = value.to_bytes(8, "little")


def _value(made: bytearray, draw: random.Random) -> None:
    """A number or a word of a text or of a header becomes another, or what is no value."""
    words = list(re.finditer(rb"[\w.+-]+", bytes(made[:20_000])))
    if words:
        word = draw.choice(words)
        made[word.start() : word.end()] = draw.choice([*VALUES, draw.choice(words).group()])


def _bracket(made: bytearray, draw: random.Random) -> None:
    found = [place for place, byte in enumerate(made[:20_000]) if byte in b'{}[]:,"\n']
    if found:
        place = draw.choice(found)
        made[place : place + 1] = draw.choice([b"", b"{", b"}", b"[", b"]", b":", b",", b'"', b"\n", 5_000 * b"["])


CUT = b"\n\n--\n\n"  # between the two files of a LoRA checkpoint
DAMAGES = [_flip, _flip, _overwrite, _cut, _remove, _repeat, _length, _value, _value, _bracket]


class Kind(NamedTuple):
    """A kind of file: a whole one, and what loading it gives, which can be compared."""

    whole: bytes
    load: Callable[[Path], Any]
    suffix: str
    # Of texts, pictures and files of other programs, which state nothing of themselves, and of what is forged: who
    # reads another one has another one.
    may_differ: bool = False
    damage: Callable[[bytes, random.Random], bytes] = damaged

    def forged(self, damage: Callable[[bytes, random.Random], bytes]) -> Kind:
        """The same file, made anew with something odd in it."""
        return self._replace(may_differ=True, damage=damage)


def kinds(folder: Path) -> dict[str, Callable[[], Kind]]:
    """Every kind of file, made when it is asked for."""
    return {
        "adapter": lambda: _adapter("resnet20-features-shapes", "sketch", folder),
        "shared": lambda: _shared(folder),
        "backbone": lambda: _tensors(folder),
        "checkpoint": lambda: _torch_file(folder),
        "registry": lambda: Kind(_registry(folder).read_bytes(), _read_registry, ".yaml", may_differ=True),
        "recipe": _recipe,
        "index": lambda: _index(folder),
        "bundle": lambda: _bundle(folder),
        "peft": lambda: _peft(folder),
        "image": _image,
        "forged adapter": lambda: _adapter("resnet20-ftn-r4-shapes", "sketch", folder).forged(forgeries.tensor_file),
        "forged shared": lambda: _shared(folder).forged(forgeries.tensor_file),
        "forged backbone": lambda: _tensors(folder).forged(forgeries.tensor_file),
        "forged checkpoint": lambda: _torch_file(folder).forged(forgeries.checkpoint),
        "forged registry": lambda: _used_registry(folder),
        "forged recipe": lambda: _recipe().forged(forgeries.listing),
        "forged bundle": lambda: _bundle(folder).forged(forgeries.archive),
        "forged peft": lambda: _peft(folder).forged(forgeries.pair(CUT)),
    }


def _adapter(name: str, task: str, folder: Path) -> Kind:
    model = zoo.load(name, task=task)
    file, images = folder / "whole.safetensors", torch.zeros(1, 3, 32, 32)
    model.save_adapter(task, file, {"entry": name})
    model.remove_task(task)

    def load(path: Path) -> Any:
        found = model.load_adapter(path)
        try:
            model(images, task=found.name)
            return found, tensors.fingerprint(model.task_tensors(found.name))
        finally:
            model.remove_task(found.name)

    return Kind(file.read_bytes(), load, ".safetensors")


def _shared(folder: Path) -> Kind:
    name = "resnet20-parallel_svd-shapes"
    entry = zoo.catalog.registry.default_registry().entry(name)
    files = adapter_files(entry, ["sketch"])
    model, file = zoo.load(name, task="sketch"), folder / "whole.safetensors"
    tensors.write(file, tensors.read(shared_file(entry, files["sketch"].parent))[0], {"entry": name})

    def load(path: Path) -> Any:
        model.load_shared_tensors(tensors.read(path)[0], str(path))
        return tensors.fingerprint(model.shared_tensors())

    return Kind(file.read_bytes(), load, ".safetensors")


def _tensors(folder: Path) -> Kind:
    network, file = zoo.backbones.build("zoo/resnet20"), folder / "whole.safetensors"
    tensors.write(file, network.state_dict(), {"backbone": "zoo/resnet20"})
    return Kind(file.read_bytes(), lambda path: tensors.fingerprint(tensors.read(path)[0]), ".safetensors")


def _torch_file(folder: Path) -> Kind:
    held = io.BytesIO()
    torch.save(zoo.backbones.build("zoo/resnet20").state_dict(), held)

    def load(path: Path) -> Any:
        return tensors.fingerprint(zoo.backbones.weights.named_tensors(path))

    return Kind(held.getvalue(), load, ".pth")


def _registry(folder: Path) -> Path:
    """A registry of an entry, with all that one may say."""
    known = zoo.catalog.registry.default_registry()
    file = folder / "registry.yaml"
    names = ("resnet20-parallel_svd-shapes", "mlp-trmtl_410-digits")
    Registry([known.entry(name) for name in names], [known.backbone("zoo/resnet20@shapes")]).write(file)
    return file


def _read_registry(file: Path) -> Any:
    return _contents(Registry.read(file))


def _used_registry(folder: Path) -> Kind:
    """A registry whose entries are loaded too, with the weights that it states."""

    def load(path: Path) -> Any:
        registry = Registry.read(path)
        for name in registry.names():
            zoo.load(name, registry=registry)
        return _contents(registry)

    return Kind(_registry(folder).read_bytes(), load, ".yaml").forged(forgeries.listing)


def _recipe() -> Kind:
    return Kind(recipe_file("shapes/ftn").read_bytes(), lambda file: load_recipe(str(file)), ".yaml", may_differ=True)


def _contents(registry: Registry) -> Any:
    return registry.entries(), registry.backbones(), registry.pins


def _index(folder: Path) -> Kind:
    """Damage to an index is passed over, and the YAML read: always the same."""
    file = _registry(folder)
    key = index.key_of(file.read_bytes())
    cached = index._cached(key)

    def load(path: Path) -> Any:
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_bytes(path.read_bytes())
        return _contents(Registry.read(file))

    Registry.read(file)
    return Kind(cached.read_bytes(), load, ".index")


def _bundle(folder: Path) -> Kind:
    file = bundle("mlp-trmtl_420-digits", folder / "whole.zoo")

    def load(path: Path) -> Any:
        entries = registry_at(path).entries()
        model = zoo.load(str(path))
        return [entry.measured for entry in entries], [tensors.fingerprint(model.task_tensors(t)) for t in model.tasks]

    return Kind(file.read_bytes(), load, ".zoo")


def _peft(folder: Path) -> Kind:
    """The settings and the weights of a LoRA checkpoint, one after the other."""
    network = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["0"], "bias": "none"}
    weights = {
        f"base_model.model.0.lora_{part}.weight": torch.ones(size) for part, size in (("A", (2, 6)), ("B", (5, 2)))
    }
    place = folder / "peft"
    place.mkdir(exist_ok=True)
    save_file(weights, place / "adapter_model.safetensors")
    first = json.dumps(config).encode()
    whole = (place / "adapter_model.safetensors").read_bytes()

    def load(path: Path) -> Any:
        data = path.read_bytes()
        cut = data.find(CUT)
        (place / "adapter_config.json").write_bytes(data[:cut] if cut >= 0 else data)
        (place / "adapter_model.safetensors").write_bytes(data[cut + len(CUT) :] if cut >= 0 else b"")
        return tensors.fingerprint(zoo.load_peft(place, network).task_tensors("task"))

    return Kind(first + CUT + whole, load, ".peft", may_differ=True)


def _image() -> Kind:
    held = io.BytesIO()
    random.seed(0)
    Image.frombytes("RGB", (40, 30), random.randbytes(3600)).save(held, "png")
    return Kind(held.getvalue(), lambda path: open_image(path).tobytes(), ".png", may_differ=True)


def run(kind: str, count: int, seed: int) -> dict[str, Any]:
    """What became of so many damaged files of a kind, in this process."""
    torch.manual_seed(0)  # what a whole file holds, of which some is random
    draw = random.Random(f"{kind} {seed}")
    found: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        os.environ |= {"ZOO_CACHE": str(Path(temporary) / "cache"), "ZOO_HOME": str(Path(temporary) / "home")}
        made = kinds(Path(temporary))[kind]()
        file = Path(temporary) / f"damaged{made.suffix}"
        file.write_bytes(made.whole)
        expected = made.load(file)
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(count):
            content = made.damage(made.whole, draw)
            file.write_bytes(content)
            try:
                same = made.load(file) == expected
            except zoo.ZooError:
                found["refused"] += 1
                continue
            except BaseException as error:
                found["fault"] += 1
                faults.append(f"{number}: {type(error).__name__}: {str(error)[:200]}")
                continue
            found["same" if same else "another" if made.may_differ else "fault"] += 1
            if not same and not made.may_differ:
                faults.append(f"{number}: loaded as something else")
        if (grown := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / base) > 2:
            found["fault"] += 1
            faults.append(f"{grown:.1f} times the memory")
    return {"kind": kind, "count": count, "seed": seed, **found, "memory": round(grown, 2), "faults": faults[:20]}


@click.command()
@click.option("--kind", "chosen", multiple=True)
@click.option("--count", default=10_000, show_default=True, help="Damaged files of each kind.")
@click.option("--seed", default=0, show_default=True)
@click.option("--here", is_flag=True, help="In this process; a crash ends it.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures here.")
def main(chosen: tuple[str, ...], count: int, seed: int, here: bool, json_file: Path | None) -> None:
    rows = []
    for kind in chosen or tuple(kinds(Path())):
        if here:
            rows.append(run(kind, count, seed))
        else:
            command = [
                sys.executable,
                "-m",
                "benchmarks.reliability.mutations",
                "--kind",
                kind,
                "--count",
                str(count),
                "--seed",
                str(seed),
                "--here",
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            crashed = {"kind": kind, "count": count, "seed": seed, "fault": 1, "faults": [f"exit {done.returncode}"]}
            rows.append(json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else crashed)
        click.echo(json.dumps(rows[-1]))
    save(json_file, rows)


if __name__ == "__main__":
    main()
