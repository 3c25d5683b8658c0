"""Where registries lie: a file or folder of this machine, a repository of the Hub, a bundle; and names that say so.

Of a repository or a bundle only data is read: YAML safely, tensors as safetensors. Its entries stand before the zoo's,
for whoever names a place means what is there. What reads a place is imported when one is named: `zoo ls` needs neither.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

from zoo.catalog.entry import Backbone, Entry, is_file
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


def addressed(name: str, registry: Registry) -> tuple[str, Registry]:
    """The name of an entry, and the registry that has it: `name` may begin with a place, or be a bundle.

    Args:
        name: an entry of `registry`; `hf://OWNER/REPO[@REVISION]/NAME`; or `FILE.zoo`, which means the entry that the
            bundle was made of.

    Raises:
        OptionError: it names a place and no entry of it.
        WeightsError: the place cannot be read.
    """
    if not is_elsewhere(name):
        return name, registry
    if name.startswith(HUB):
        from zoo.storage import hub

        inside = hub.Address.of(name).inside
        found = registry_at(name)
        if not inside:
            raise OptionError(f"{name} is a repository; name one of its entries: {', '.join(found.names())}.")
        return inside, found.over(registry)
    from zoo.storage import bundles

    return str(bundles.unpacked(Path(name))[1]["entry"]), registry_at(name).over(registry)


def is_elsewhere(place: str | Path) -> bool:
    """Whether this names a repository of the Hub or a bundle."""
    return str(place).startswith(HUB) or (Path(place).suffix == BUNDLE and not Path(place).is_dir())


def registry_at(place: str | Path) -> Registry:
    """The entries of a place, and nothing else; their files are those of the place, at the commit it has now.

    Raises:
        ConfigError: its registry has problems, or names a path outside the place.
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
        return _moved(Registry.read(folder), str(place), f"{HUB}{address.repo}", commit)
    from zoo.storage import bundles

    return _moved(Registry.read(bundles.unpacked(Path(place))[0]), str(place))


def _moved(registry: Registry, place: str, repo: str = "", commit: str = "") -> Registry:
    """The items of a registry that came from a place, with URIs of the files there, and without ways out of it."""

    def there(file: WeightsFile) -> WeightsFile:
        for beginning in (f"{repo}/", "file:") if repo else ():
            if file.uri.startswith(beginning):
                return replace(file, uri=f"{repo}@{commit}/{file.uri.removeprefix(beginning)}")
        return file

    def entry(known: Entry) -> Entry:
        if is_file(known.recipe) and (".." in Path(known.recipe).parts or Path(known.recipe).is_absolute()):
            raise ConfigError(place, [f"{known.name}: the recipe {known.recipe} leaves its folder"])
        own = known.backbone_weights
        return replace(
            known, weights={task: there(file) for task, file in known.weights.items()} if known.weights else None,
            shared=known.shared and there(known.shared), backbone_weights=own and there(own), data_root=None,
            origin=place,
        )  # fmt: skip

    def backbone(known: Backbone) -> Backbone:
        return replace(known, weights=known.weights and there(known.weights))

    return Registry(
        map(entry, registry.entries()),
        [backbone(own) for name in registry.backbones() if (own := registry.backbone(name))],
        registry.pins,
    )
