"""Where registries lie: a file or folder of this machine, a repository of the Hub, a bundle; and names that say so.

Of a repository or a bundle only data is read: YAML safely, tensors as safetensors. Its entries stand before the zoo's,
for whoever names a place means what is there. What reads a place is imported when one is named: `zoo ls` needs neither.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import replace
from pathlib import Path

from zoo.catalog.entry import Entry, is_file
from zoo.catalog.registry import Registry, default_registry
from zoo.errors import ConfigError, OptionError
from zoo.storage.files import WeightsFile

log = logging.getLogger(__name__)
HUB, BUNDLE = "hf://", ".zoo"  # what a repository's address begins with, and a bundle's name ends with


def registry_with(place: str | Path | None) -> Registry:
    """The zoo's own registry and, with it, that of a place: of `place`, or of what ZOO_REGISTRY names."""
    place = place or os.environ.get("ZOO_REGISTRY")
    if not place:
        return default_registry()
    if is_elsewhere(place):
        return registry_at(place).over(default_registry())
    return default_registry().merged(Registry.read(place))


def addressed(name: str | Path, registry: Registry) -> tuple[str, Registry]:
    """The name of an entry, and the registry that has it: `name` may begin with a place, or be a bundle.

    Args:
        name: an entry of `registry`; `hf://OWNER/REPO[@REVISION]/NAME`; or `FILE.zoo`, which means the entry that the
            bundle was made of.

    Raises:
        OptionError: it names a place and no entry of it.
        WeightsError: the place cannot be read.
    """
    name = str(name)
    if not is_elsewhere(name):
        return name, registry
    if name.startswith(HUB):
        from zoo.storage import hub

        inside = hub.Address.of(name).inside
        found = registry_at(name)
        if not inside:
            raise OptionError(f"{name} is a repository; name one of its entries: {', '.join(found.names())}.")
        return inside, found.over(registry)
    found, inside = _of_bundle(Path(name))
    return inside, found.over(registry)


def entry_of(name: str | Path, registry: Registry | str | Path | None) -> tuple[Entry, Registry]:
    """An entry by its name or address, and the registry that has it; the arguments are those of `zoo.load`."""
    known = registry if isinstance(registry, Registry) else registry_with(registry)
    inside, known = addressed(name, known)
    return known.entry(inside), known


def is_elsewhere(place: str | Path) -> bool:
    """Whether this names a repository of the Hub or a bundle."""
    path = Path(place)
    return str(place).startswith(HUB) or (path.suffix == BUNDLE and not path.is_dir() and "*" not in path.name)


def registry_at(place: str | Path) -> Registry:
    """The entries of a place, and nothing else; their files are those of the place, at the commit it has now.

    Raises:
        ConfigError: its registry has problems, or names what is outside the place.
        WeightsError: it cannot be read.
    """
    if not is_elsewhere(place):
        return Registry.read(place)
    if str(place).startswith(HUB):
        from zoo.storage import hub

        address = hub.Address.of(str(place))
        folder, commit = hub.hub_data(address.repo, address.revision)
        if address.revision != commit:
            log.info("%s%s is at commit %s", HUB, address.repo, commit)
        return _moved(Registry.read(folder), f"{HUB}{address.repo}@{commit}")
    return _of_bundle(Path(place))[0]


def _of_bundle(file: Path) -> tuple[Registry, str]:
    """The entries of a bundle, and the name of the one that it was made of."""
    from zoo.storage import bundles

    folder, manifest = bundles.unpacked(file)
    return _moved(Registry.read(folder), str(file.resolve())), str(manifest["entry"])


def _moved(registry: Registry, origin: str) -> Registry:
    """The entries of a registry that came from a place, with URIs of the files there, and without ways out of it.

    What it says of backbones is taken into the entries that stand on them: it counts for no others.
    """

    def there(file: WeightsFile) -> WeightsFile:
        if not origin.startswith(HUB):
            return file
        # A URI without a commit is of the repository itself, under whatever name that has by now.
        inside = re.fullmatch(r"(?:file:|hf://[\w.-]+/[\w.-]+/)(.+)", file.uri)
        return replace(file, uri=f"{origin}/{inside[1]}") if inside else file

    def entry(known: Entry) -> Entry:
        _check_inside(known, origin)
        backbone = registry.backbone(known.backbone)
        own = known.backbone_weights or (backbone and backbone.weights) or registry.pins.get(known.backbone)
        return replace(
            known, weights={task: there(file) for task, file in known.weights.items()} if known.weights else None,
            shared=known.shared and there(known.shared), backbone_weights=own and there(own), data_root=None,
            origin=origin,
        )  # fmt: skip

    return Registry(map(entry, registry.entries()))


def _check_inside(entry: Entry, origin: str) -> None:
    """Raise ConfigError where a path leaves its folder."""
    if is_file(entry.recipe) and (".." in Path(entry.recipe).parts or Path(entry.recipe).is_absolute()):
        raise ConfigError(origin, [f"{entry.name}: the recipe {entry.recipe} leaves its folder"])
