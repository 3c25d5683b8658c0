"""registry.yaml into entries, and back. No torch here: `zoo ls` must start at once."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import gc
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from zoo.catalog import index
from zoo.catalog.entry import Backbone, Entry, as_data
from zoo.errors import ConfigError, OptionError, UnknownNameError, WeightsError
from zoo.storage import resources
from zoo.storage.files import WeightsFile, atomic_path, read_text

FORMAT = 1
KEYS = "format", "backbones", "pins", "entries"
EMPTY: Mapping[str, WeightsFile] = MappingProxyType({})
NAME = re.compile(r"[A-Za-z0-9][\w.-]*")  # of an entry: what can stand in a path
T = TypeVar("T")


MODEL = "model"  # the kind of name that an entry's is
HINT = "`zoo ls` lists them all; those of a folder of your own with --registry FOLDER (in Python, registry=)."
LONGEST_NAME = 120  # bytes, of an entry or a backbone: with a task's, as some folders are called, what a disk takes
TAKEN = (".zoo", ".yaml", ".yml", ".md", ".index", ".sig", ".safetensors")  # endings of what lies beside an entry
OWN = "registry.yaml"  # what the registry in a folder of one's own is called


class Registry:
    """Entries and backbones by name.

    Attributes:
        pins: which file the weights of a backbone are that a library provides, by its name: commit, SHA-256 and size.
    """

    def __init__(
        self, entries: Iterable[Entry] = (), backbones: Iterable[Backbone] = (), pins: Mapping[str, WeightsFile] = EMPTY
    ) -> None:
        self.pins = dict(pins)
        self._entries: dict[str, Entry] = {}
        self._backbones: dict[str, Backbone] = {}
        for entry in entries:
            self.add(entry)
        for backbone in backbones:
            self.add(backbone)

    @classmethod
    def read(cls, path: str | Path) -> Registry:
        """The registry of a YAML file, or of its index; raises ConfigError with every problem of the file.

        Args:
            path: the file, or a folder with a `registry.yaml`.
        """
        path = Path(path)
        if path.is_dir():
            path /= OWN
        collecting = gc.isenabled()
        gc.disable()  # ten thousand objects are made, and none of them is garbage
        try:
            return cls._read(path)
        finally:
            if collecting:
                gc.enable()

    @classmethod
    def _read(cls, path: Path) -> Registry:
        text = read_text(path)
        try:
            key = index.key_of(text.encode())
        except OSError:
            return cls(*_parsed(text, path))
        known = index.load(path, key, beside=path == resources.registry_file())  # which came with the code
        if known is None:
            known = _parsed(text, path)
            index.save(key, *known)
        return cls(*known)

    def add(self, item: Entry | Backbone) -> None:
        """Add an entry or a backbone; raises ConfigError where the name is taken."""
        if item.name in self._entries or item.name in self._backbones:
            raise ConfigError(item.name, ["this name is registered already; choose another"])
        self.update(item)

    def update(self, item: Entry | Backbone) -> None:
        """Add an entry or a backbone, in place of one of the same name; raises OptionError where the other has it."""
        if problem := _misnamed(type(item), item.name):
            raise OptionError(problem)
        if item.name in (self._backbones if isinstance(item, Entry) else self._entries):
            raise OptionError(f"{item.name!r} names a backbone or an entry there already; choose another name.")
        if isinstance(item, Entry):
            self._entries[item.name] = item
        else:
            self._backbones[item.name] = item

    def merged(self, other: Registry) -> Registry:
        """This registry and another, whose pins count; raises ConfigError where both have a name."""
        return Registry(
            [*self._entries.values(), *other._entries.values()],
            [*self._backbones.values(), *other._backbones.values()],
            self.pins | other.pins,
        )

    def over(self, other: Registry) -> Registry:
        """This registry, and of another what it has no name for."""
        both = Registry(other._entries.values(), other._backbones.values(), other.pins | self.pins)
        both._entries |= self._entries
        both._backbones |= self._backbones
        return both

    @classmethod
    def at(cls, folder: Path) -> Registry:
        """The registry of one's own in a folder, `registry.yaml`; an empty one where there is none yet."""
        file = folder / OWN
        return cls.read(file) if file.exists() else cls()

    @classmethod
    @contextlib.contextmanager
    def edited(cls, file: Path) -> Iterator[Registry]:
        """The registry of a file, to be changed; it is written when the block ends without an error.

        Another process that wants to change it waits until then, so that neither loses what the other wrote.
        """
        from filelock import FileLock  # here, and not above: `zoo ls` changes nothing

        lock = resources.cache_dir() / "locks" / hashlib.sha256(str(file.resolve()).encode()).hexdigest()
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WeightsError(
                f"Cannot write {lock}: {error.strerror}. Set ZOO_CACHE to a folder that you may write to."
            ) from error
        with FileLock(lock):
            registry = cls.read(file) if file.exists() else cls()
            yield registry
            registry.write(file)

    def check_new(self, name: str) -> None:
        """Raise OptionError unless `name` can stand in a path, beside the files that are written, and none has it."""
        if problem := _misnamed(Entry, name):
            raise OptionError(problem)
        if name == "backbones" or name.endswith(TAKEN):
            raise OptionError(
                f"{name!r} cannot name an entry: not 'backbones', nor with the ending of a file ({', '.join(TAKEN)})."
            )
        if name in self._entries or name in self._backbones:
            raise OptionError(f"The zoo has an entry {name!r} already; choose another name with --name.")

    def names(self, pattern: str = "*") -> list[str]:
        """The names of the entries that match a glob pattern, sorted as a person would: r8 before r10."""
        names = [name for name in self._entries if fnmatch.fnmatchcase(name, pattern)]
        return sorted(
            names, key=lambda name: [(p.isdigit(), int(p) if p.isdigit() else p) for p in re.split(r"(\d+)", name)]
        )

    def entries(self, pattern: str = "*") -> list[Entry]:
        """The entries whose names match a glob pattern, in the order of `names`."""
        return [self._entries[name] for name in self.names(pattern)]

    def entry(self, name: str) -> Entry:
        """An entry by its name; raises UnknownNameError with the nearest names."""
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownNameError(MODEL, name, self._entries, HINT) from None

    def backbone(self, name: str) -> Backbone | None:
        """A backbone of the zoo's own making; None for one that another library provides."""
        return self._backbones.get(name)

    def backbones(self) -> list[str]:
        """The names of the backbones of the zoo's own making."""
        return sorted(self._backbones)

    def write(self, path: Path) -> None:
        """Write all to a YAML file, atomically; the comment that opens an existing file stays."""
        from zoo.catalog.yaml_files import dump_yaml  # here, and not above: `zoo ls` does without yaml

        opening = ""
        if path.exists():
            opening = "".join(re.match(r"((?:#.*)?\n)*", path.read_text(encoding="utf-8")).group(0))  # type: ignore[union-attr]
        data = {
            "format": FORMAT,
            "backbones": {name: as_data(item) for name, item in self._backbones.items()},
            **({"pins": {name: as_data(pin) for name, pin in sorted(self.pins.items())}} if self.pins else {}),
            "entries": {name: as_data(item) for name, item in self._entries.items()},
        }
        text = opening + dump_yaml(data)
        with atomic_path(path) as temporary:  # a blank line before each entry
            temporary.write_text(re.sub(r"\n(?=  \S|entries:|pins:)", "\n\n", text), encoding="utf-8")


def _parsed(text: str, path: Path) -> index.Items:
    """The entries and backbones that a registry's YAML states; raises ConfigError with every problem."""
    from zoo.catalog.yaml_files import parse_yaml

    data = parse_yaml(text, str(path))
    problems: list[str] = []
    if not isinstance(data, dict):
        raise ConfigError(str(path), [f"a registry is a mapping with the keys {', '.join(KEYS)}"])
    if data.get("format") != FORMAT:
        problems.append(f"format: {data.get('format')!r} is not {FORMAT}, the one that this version reads")
    problems += [f"{key}: unknown key; known: {', '.join(KEYS)}" for key in data if key not in KEYS]
    entries = _section(Entry, data, "entries", problems)
    backbones = _section(Backbone, data, "backbones", problems)
    pins = _section(WeightsFile, data, "pins", problems)
    if problems:
        raise ConfigError(str(path), problems)
    return (
        [replace(entry, name=name, folder=path.parent) for name, entry in entries.items()],
        [replace(backbone, name=name, folder=path.parent) for name, backbone in backbones.items()],
        pins,
    )


def write_index(path: Path) -> None:
    """Write the index of a registry beside it, as a wheel has it; raises WeightsError where that cannot be."""
    text = read_text(path)
    key, known = index.key_of(text.encode()), _parsed(text, path)
    index.save(key, *known, index.packaged_index(path))
    if index.load(path, key) != known:
        raise WeightsError(
            f"There is no index of {path}: the folder cannot be written to, or JSON lacks a value of it."
        )


def _section(kind: type[T], data: dict[str, Any], section: str, problems: list[str]) -> dict[str, T]:
    from zoo.catalog.schema import parse

    items = data.get(section) or {}
    if not isinstance(items, dict):
        problems.append(f"{section}: {items!r} is not a mapping")
        return {}
    problems += [f"{section}: the name {name!r} is no text; quote it" for name in items if not isinstance(name, str)]
    problems += [f"{section}: {problem}" for name in items if (problem := _misnamed(kind, str(name)))]
    parsed = {str(name): parse(kind, item, problems, str(name)) for name, item in items.items()}
    return {name: item for name, item in parsed.items() if item is not None}


def _misnamed(kind: type[Any], name: str) -> str:
    """What is wrong with a name, of which folders and files are called; nothing, where it may be one."""
    if kind is Entry and not NAME.fullmatch(name):
        return f"{name[:200]!r} cannot name an entry: take letters, digits, '.', '_' and '-'."
    length = len(name.encode("utf-8", errors="replace"))
    what = "an entry" if kind is Entry else "a backbone"
    return f"{name[:50]!r}… cannot name {what}: {length:,} bytes, of {LONGEST_NAME}." if length > LONGEST_NAME else ""


@functools.cache
def default_registry() -> Registry:
    """The zoo's own registry, which `register` adds to."""
    return Registry.read(resources.registry_file())


def register(name: str, **fields: Any) -> Entry:
    """Add an entry to the zoo for as long as this process runs.

    Args:
        name: a name that no entry has yet.
        fields: what the entry would hold in registry.yaml: backbone, method, benchmark, classes, recipe, …

    Raises:
        ConfigError: the name is taken, or a field is unknown, missing or wrong; all problems are listed.
    """
    from zoo.catalog.schema import parse

    problems: list[str] = []
    listed = {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}
    entry = parse(Entry, listed, problems)
    if entry is None:
        raise ConfigError(name, problems)
    entry = replace(entry, name=name, folder=Path.cwd())
    default_registry().add(entry)
    return entry


def list_models(pattern: str = "*") -> list[str]:
    """The names of the zoo's models that match a glob pattern, such as "resnet*-shapes"."""
    return default_registry().names(pattern)
