"""registry.yaml into entries, and back. No torch here: `zoo ls` must start at once."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import gc
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from zoo.errors import ConfigError, OptionError, UnknownNameError
from zoo.schema import load_yaml, parse
from zoo.storage import resources
from zoo.storage.files import WeightsFile, atomic_path
from zoo.task import CLASSIFICATION, METRICS, Metric, check_outputs

FORMAT = 1
T = TypeVar("T")


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters, recomputed by a test."""

    backbone: int  # the frozen network, its classifier left out
    per_task: int  # what one task adds (increments and norms), its head left out; the mean where tasks differ
    shared: int = 0  # what the tasks have in common
    by_task: dict[str, int] = field(default_factory=dict)  # where tasks differ in size, what each adds

    def of(self, task: str) -> Parameters:
        """The numbers of one task."""
        return Parameters(self.backbone, self.by_task.get(task, self.per_task), self.shared)

    def total(self, tasks: Collection[str]) -> int:
        """Of one model with all these tasks."""
        return self.backbone + self.shared + sum(self.of(task).per_task for task in tasks)


@dataclass(frozen=True)
class Reported:
    """A paper's own figures."""

    source: str  # paper and table
    figures: dict[str, float]  # by task, each in its metric's unit
    mean: float | None = None  # as printed, which need not be the mean of what is printed
    parameters: float | None = None  # millions, of all tasks together, as printed
    multiple: float | None = None  # of the backbone's parameters, for all tasks together, as printed
    score: int | None = None  # decathlon score, as printed


@dataclass(frozen=True)
class Backbone:
    """A frozen network of the zoo's own making."""

    benchmark: str
    task: str  # what it was pre-trained on
    recipe: str
    parameters: int
    weights: WeightsFile | None = None
    measured: dict[str, float] | None = None  # by task, in its metric's unit
    tolerance: float = 0.5
    name: str = field(default="", metadata={"derived": True})
    folder: Path = field(default=Path(), metadata={"derived": True})  # of the registry file


@dataclass(frozen=True)
class Entry:
    """One model of the zoo."""

    # Frozen: such as torchvision/resnet34@IMAGENET1K_V1, or a name of the registry's `backbones`.
    backbone: str = field(default="", kw_only=True)
    # Each task's own, for tasks that are trained together and share parts of their weights (`zoo.joint`); by task.
    networks: dict[str, str] = field(default_factory=dict, kw_only=True)
    method: dict[str, Any]  # its name and its options
    benchmark: str
    classes: dict[str, int]  # number of classes of each task, or of channels of its output
    recipe: str
    kinds: dict[str, str] = field(default_factory=dict)  # of the tasks; one that is not named here classifies
    parameters: Parameters | None = None
    backbone_weights: WeightsFile | None = None  # in place of those that the backbone's name means
    weights: dict[str, WeightsFile] | None = None  # by task
    shared: WeightsFile | None = None  # what the tasks' increments have in common
    source: str = ""  # the entry that the adapters are compressed from
    reported: Reported | None = None
    measured: dict[str, float] | None = None  # by task, in its metric's unit; written by `zoo pack`
    tolerance: float = 0.5  # by which a verification may differ from `measured`: points, or per cent of an error
    data_root: str | None = None  # where the images lie, unless --data-root says otherwise
    baseline: str = ""  # the entry whose errors set the scale of the decathlon score, or "challenge"
    note: str = ""
    name: str = field(default="", metadata={"derived": True})
    folder: Path = field(default=Path(), metadata={"derived": True})  # of the registry file

    def __post_init__(self) -> None:
        if not isinstance(self.method.get("name"), str):
            raise OptionError("method needs a name")
        ranks = self.method.get("rank", 1)
        for rank in ranks if isinstance(ranks, list) and self.networks else [ranks]:
            if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
                raise OptionError(f"method.rank must be a whole number of at least 1, not {rank!r}")
        if not self.classes or min(self.classes.values()) < 1:
            raise OptionError(f"classes must give at least one class to each task, not {self.classes}")
        if not self.backbone and not self.networks:
            raise OptionError("an entry needs a backbone, or networks of its tasks' own")
        if self.networks and set(self.networks) != set(self.classes):
            raise OptionError(f"networks must name those of all tasks: {', '.join(self.classes)}")
        for task, outputs in self.classes.items():
            try:
                check_outputs(self.kind(task), outputs)
            except OptionError as error:
                raise OptionError(f"{task} {error}") from None
        for key in ("weights", "measured", "kinds"):
            strange = sorted(set(getattr(self, key) or {}) - set(self.tasks))
            if strange:
                raise OptionError(f"{key} names tasks that the entry does not have: {', '.join(strange)}")

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return tuple(self.classes)

    def metric(self, task: str) -> Metric:
        """What says how well a task is done."""
        return METRICS[self.kind(task)]

    def kind(self, task: str) -> str:
        """The kind of a task, one of METRICS."""
        return self.kinds.get(task, CLASSIFICATION)

    def mean(self, figures: Mapping[str, float] | None) -> float | None:
        """The mean of percentages by task, to two places; None of none, of several metrics and of other units."""
        metrics = {self.metric(task) for task in figures or {}}
        if not figures or len(metrics) > 1 or metrics.pop().unit != "%":
            return None
        return round(sum(figures.values()) / len(figures), 2)

    def images_root(self, asked: Path | None = None) -> Path | None:
        """Where the entry's images lie: where the user says, else where the entry says, else nowhere."""
        return asked or (Path(self.data_root) if self.data_root else None)

    @property
    def total_parameters(self) -> int | None:
        """Of one network and all its tasks, heads left out; None where the registry does not say.

        The counting rule that the papers' totals are compared with: the frozen backbone with its norms, what the
        increments share, and for each task its increments and its norms.
        """
        counted = self.parameters
        return None if counted is None else counted.total(self.tasks)

    @property
    def method_options(self) -> dict[str, Any]:
        """The method's options, without its name."""
        return {key: value for key, value in self.method.items() if key != "name"}


class Registry:
    """Entries and backbones by name."""

    def __init__(self, entries: Iterable[Entry] = (), backbones: Iterable[Backbone] = ()) -> None:
        self._entries: dict[str, Entry] = {}
        self._backbones: dict[str, Backbone] = {}
        for entry in entries:
            self.add(entry)
        for backbone in backbones:
            self.add(backbone)

    @classmethod
    def read(cls, path: Path) -> Registry:
        """The registry of a YAML file; raises ConfigError with every problem of the file."""
        collecting = gc.isenabled()
        gc.disable()  # ten thousand objects are made, and none of them is garbage
        try:
            return cls._read(path)
        finally:
            if collecting:
                gc.enable()

    @classmethod
    def _read(cls, path: Path) -> Registry:
        data = load_yaml(path)
        problems: list[str] = []
        if not isinstance(data, dict):
            raise ConfigError(str(path), ["a registry is a mapping with the keys format, backbones and entries"])
        if data.get("format") != FORMAT:
            problems.append(f"format: {data.get('format')!r} is not {FORMAT}, the one that this version reads")
        problems += [
            f"{key}: unknown key; known: format, backbones, entries"
            for key in data
            if key not in ("format", "backbones", "entries")
        ]
        entries = _section(Entry, data, "entries", problems)
        backbones = _section(Backbone, data, "backbones", problems)
        if problems:
            raise ConfigError(str(path), problems)
        return cls(
            [replace(entry, name=name, folder=path.parent) for name, entry in entries.items()],
            [replace(backbone, name=name, folder=path.parent) for name, backbone in backbones.items()],
        )

    def add(self, item: Entry | Backbone) -> None:
        """Add an entry or a backbone; raises ConfigError where the name is taken."""
        if item.name in self._entries or item.name in self._backbones:
            raise ConfigError(item.name, ["this name is registered already; choose another"])
        self.update(item)

    def update(self, item: Entry | Backbone) -> None:
        """Add an entry or a backbone, in place of one of the same name."""
        if isinstance(item, Entry):
            self._entries[item.name] = item
        else:
            self._backbones[item.name] = item

    def merged(self, other: Registry) -> Registry:
        """This registry and another; raises ConfigError where both have a name."""
        return Registry(
            [*self._entries.values(), *other._entries.values()], [*self._backbones.values(), *other._backbones.values()]
        )

    @classmethod
    def at(cls, folder: Path) -> Registry:
        """The registry of one's own in a folder, `registry.yaml`; an empty one where there is none yet."""
        file = folder / "registry.yaml"
        return cls.read(file) if file.exists() else cls()

    def check_new(self, name: str) -> None:
        """Raise OptionError unless `name` can stand in a path, and no entry has it."""
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or name == "registry.yaml":
            raise OptionError(f"{name!r} cannot name an entry: take letters, digits, '.', '_' and '-'.")
        if name in self._entries:
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
            raise UnknownNameError("model", name, self._entries, "`zoo ls` lists them all.") from None

    def backbone(self, name: str) -> Backbone | None:
        """A backbone of the zoo's own making; None for one that another library provides."""
        return self._backbones.get(name)

    def backbones(self) -> list[str]:
        """The names of the backbones of the zoo's own making."""
        return sorted(self._backbones)

    def write(self, path: Path) -> None:
        """Write all to a YAML file, atomically; the comment that opens an existing file stays."""
        opening = ""
        if path.exists():
            opening = "".join(re.match(r"((?:#.*)?\n)*", path.read_text(encoding="utf-8")).group(0))  # type: ignore[union-attr]
        data = {
            "format": FORMAT,
            "backbones": {name: as_data(item) for name, item in self._backbones.items()},
            "entries": {name: as_data(item) for name, item in self._entries.items()},
        }
        text = opening + yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=300, allow_unicode=True)
        with atomic_path(path) as temporary:  # a blank line before each entry
            temporary.write_text(re.sub(r"\n(?=  \S|entries:)", "\n\n", text), encoding="utf-8")


def _section(kind: type[T], data: dict[str, Any], section: str, problems: list[str]) -> dict[str, T]:
    items = data.get(section) or {}
    if not isinstance(items, dict):
        problems.append(f"{section}: {items!r} is not a mapping")
        return {}
    parsed = {str(name): parse(kind, item, problems, str(name)) for name, item in items.items()}
    return {name: item for name, item in parsed.items() if item is not None}


class _Dumper(yaml.SafeDumper):
    """Block style for entries, one line for what is small."""

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        node = super().represent_mapping(tag, mapping, flow_style)
        node.flow_style = all(isinstance(value, yaml.ScalarNode) for _, value in node.value) and len(node.value) <= 6
        return node

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        return super().represent_sequence(tag, sequence, flow_style=True)


def as_data(item: Entry | Backbone) -> dict[str, Any]:
    """An entry as plain data, without what equals its default."""
    return {f.name: _data(getattr(item, f.name)) for f in _stated(item) if not f.metadata.get("derived")}


def _stated(item: Any) -> list[dataclasses.Field[Any]]:
    """The fields of a dataclass that do not hold their default."""
    fields = dataclasses.fields(item)
    defaults = {f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory() for f in fields}
    return [f for f in fields if getattr(item, f.name) != defaults[f.name]]


def _data(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _data(getattr(value, f.name)) for f in _stated(value)}
    if isinstance(value, Mapping):
        return {key: _data(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


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
