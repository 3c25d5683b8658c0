"""What was parsed and checked of a registry, kept as JSON, so that `zoo ls` need not do it again.

The YAML file is the one source. An index states the SHA-256 of the file that it was made of, of the code that read the
file, and of its own content; where one of these is another, or the index cannot be read, the YAML is read instead. The
zoo's own index comes with the wheel; others, and a checkout's, are kept in the cache, made at first use.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zoo.catalog.entry import Backbone, Entry, Parameters, Reported, as_data
from zoo.errors import ZooError
from zoo.storage import resources
from zoo.storage.files import WeightsFile, atomic_path

PARTS = {"parameters": Parameters, "reported": Reported, "backbone_weights": WeightsFile, "shared": WeightsFile}
KEPT = 20  # indices in the cache, those last used
Items = tuple[list[Entry], list[Backbone], dict[str, WeightsFile]]


def key_of(registry: bytes) -> str:
    """What an index of a registry file with this content is known by: it depends on the code that reads the file.

    Raises:
        OSError: the code's own files are not there, as in an archive.
    """
    digest = hashlib.sha256(registry)
    for file in sorted([*Path(__file__).parent.glob("*.py"), Path(__file__).parents[1] / "storage" / "files.py"]):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def packaged_index(registry: Path) -> Path:
    """The index that lies beside a registry in a wheel."""
    return registry.with_name("registry.index")


def load(registry: Path, key: str, beside: bool = True) -> Items | None:
    """The entries and backbones of a registry file, from its index; None where there is none that can be believed.

    Args:
        beside: believe one that lies beside the file. Anybody can make one that says something else than the YAML.
    """
    for place in ("packaged", "cached") if beside else ("cached",):
        try:  # the cache's folder is asked for only where need be
            file = packaged_index(registry) if place == "packaged" else _cached(key)
            found = _read(file, key, registry.parent)
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError):  # no file or folder; or damage
            continue
        if found is not None:
            if place == "cached":
                with contextlib.suppress(OSError):
                    os.utime(file)  # for `save`, which keeps those that are used
            return found
    return None


def save(
    key: str, entries: Iterable[Entry], backbones: Iterable[Backbone], pins: Mapping[str, WeightsFile],
    file: Path | None = None,
) -> None:  # fmt: skip
    """Keep what was read of a registry; nothing is kept, and nothing said, where that cannot be.

    Args:
        file: where; by default in the cache.
    """
    data = {
        "entries": {entry.name: as_data(entry) for entry in entries},
        "backbones": {backbone.name: as_data(backbone) for backbone in backbones},
        "pins": {name: as_data(pin) for name, pin in pins.items()},
    }
    try:
        content = json.dumps(data)
        if json.loads(content) != data:  # a value that JSON does not have, in the options of a method
            return
        with atomic_path(file or _cached(key)) as temporary:
            temporary.write_text(f"{key}\n{_digest(content)}\n{content}", encoding="utf-8")
        others = sorted(_cached(key).parent.glob("*.index"), key=lambda each: each.stat().st_mtime) if not file else []
        for old in others[:-KEPT]:
            old.unlink(missing_ok=True)
    except (OSError, RuntimeError, ValueError, TypeError, ZooError):
        return


def _cached(key: str) -> Path:
    return resources.cache_dir() / "registries" / f"{key}.index"


def _read(file: Path, key: str, folder: Path) -> Items | None:
    """What an index holds, if it has this key and is whole."""
    made_of, digest, content = file.read_text(encoding="utf-8").split("\n", 2)
    if made_of != key or digest != _digest(content):
        return None
    data = json.loads(content)
    return (
        [_entry(fields, name, folder) for name, fields in data["entries"].items()],
        [_backbone(fields, name, folder) for name, fields in data["backbones"].items()],
        {name: WeightsFile(**pin) for name, pin in data["pins"].items()},
    )


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def _entry(fields: Mapping[str, Any], name: str, folder: Path) -> Entry:
    made = {key: PARTS[key](**value) if key in PARTS else value for key, value in fields.items()}
    if "weights" in made:
        made["weights"] = {task: WeightsFile(**file) for task, file in made["weights"].items()}
    return Entry(**made, name=name, folder=folder)


def _backbone(fields: Mapping[str, Any], name: str, folder: Path) -> Backbone:
    made = dict(fields)
    if "weights" in made:
        made["weights"] = WeightsFile(**made["weights"])
    return Backbone(**made, name=name, folder=folder)
