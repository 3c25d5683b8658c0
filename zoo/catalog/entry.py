"""What the registry says of one model: entries and backbones, as data."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zoo.catalog.options import check_ranks
from zoo.catalog.task import CLASSIFICATION, METRICS, SHARED_NAME, Metric, can_name_task, check_outputs
from zoo.errors import OptionError, UnknownNameError
from zoo.storage.files import WeightsFile

LIBRARIES = ("torchvision/", "timm/")  # begin the names of backbones whose weights these publish
# Options of every method, for `zoo.models`.
PLACEMENT = ("layers", "norms", "head", "placement", "projections", "may_rest", "whole")


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters, recomputed by a test."""

    backbone: int  # the frozen network, its classifier left out
    per_task: int  # what one task adds (increments and norms), its head left out; the mean where tasks differ
    shared: int = 0  # what the tasks have in common
    by_task: dict[str, int] = field(default_factory=dict)  # where tasks differ in size, what each adds

    def __post_init__(self) -> None:
        if min(self.backbone, self.per_task, self.shared, *self.by_task.values()) < 0:
            raise OptionError(f"parameters must be none or more, not {as_data(self)}")

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
    left: dict[str, list[float]] | None = None  # by task, of ‖ΔW‖ that a form leaves: mean and std over layers

    def __post_init__(self) -> None:
        for task, pair in (self.left or {}).items():
            if len(pair) != 2:
                raise OptionError(f"left.{task} must be a mean and a standard deviation, not {pair}")


def is_file(recipe: str) -> bool:
    """Whether a recipe's name is the path of a YAML file, and not one of the zoo's names."""
    return recipe.endswith((".yaml", ".yml"))


def relative(path: Path, folder: Path) -> str:
    """A path as seen from a folder, so that both may be moved together."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


@dataclass(frozen=True)
class Backbone:
    """A frozen network of the zoo's own making."""

    benchmark: str
    task: str  # what it was pre-trained on
    recipe: str
    parameters: int
    kind: str = CLASSIFICATION  # of that task
    weights: WeightsFile | None = None
    measured: dict[str, float] | None = None  # by task, in its metric's unit
    tolerance: float = 0.5
    name: str = field(default="", metadata={"derived": True})
    folder: Path = field(default=Path(), metadata={"derived": True})  # of the registry file

    def __post_init__(self) -> None:
        if self.parameters < 0:
            raise OptionError(f"parameters must be none or more, not {self.parameters}")
        _check_tolerance(self.tolerance)


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
    task_methods: dict[str, dict[str, Any]] = field(default_factory=dict)  # its options, where a task's differ
    parameters: Parameters | None = None
    backbone_weights: WeightsFile | None = None  # in place of those that the backbone's name means
    weights: dict[str, WeightsFile] | None = None  # by task
    shared: WeightsFile | None = None  # what the tasks' increments have in common
    source: str = ""  # the entry that the adapters are compressed from
    form: str = ""  # in which ΔW of the source's fine-tuned networks is kept, without any training; of `zoo.factorise`
    reported: Reported | None = None
    measured: dict[str, float] | None = None  # by task, in its metric's unit; written by `zoo pack`
    tolerance: float = 0.5  # by which a verification may differ from `measured`: points, or per cent of an error
    data_root: str | None = None  # where the images lie, unless --data-root says otherwise
    test_share: float | None = None  # of images of one's own that have no split, to test on
    baseline: str = ""  # the entry whose errors set the scale of the decathlon score, or "challenge"
    note: str = ""
    name: str = field(default="", metadata={"derived": True})
    folder: Path = field(default=Path(), metadata={"derived": True})  # of the registry file
    # hf://OWNER/REPO@COMMIT or the path of a bundle, where it came from one.
    origin: str = field(default="", metadata={"derived": True})

    def __post_init__(self) -> None:
        self._check_method()
        self._check_tasks()
        if self.form and not self.source:
            raise OptionError("form needs source, the entry whose fine-tuned networks are factorised")
        if not self.backbone and not self.networks:
            raise OptionError("an entry needs a backbone, or networks of its tasks' own")
        _check_tolerance(self.tolerance)
        if self.test_share is not None and not 0 < self.test_share < 1:
            raise OptionError(f"test_share must be between 0 and 1, not {self.test_share}")

    def _check_method(self) -> None:
        if not isinstance(self.method.get("name"), str):
            raise OptionError("method needs a name")
        ranks = self.method.get("rank", 1)
        for rank in ranks if isinstance(ranks, list) and self.networks else [ranks]:
            check_ranks("method.rank", rank)
        for own in self.task_methods.values():
            check_ranks("rank", own.get("rank", 1))

    def _check_tasks(self) -> None:
        if not self.classes or min(self.classes.values()) < 1:
            raise OptionError(f"classes must give at least one class to each task, not {self.classes}")
        for task, outputs in self.classes.items():
            if not can_name_task(task):
                raise OptionError(
                    f"{task!r} cannot name a task: take up to 100 letters, digits, '-', '_'; not {SHARED_NAME!r}"
                )
            try:
                check_outputs(self.kind(task), outputs)
            except OptionError as error:
                raise OptionError(f"{task} {error}") from None
        if self.networks and set(self.networks) != set(self.classes):
            raise OptionError(f"networks must name those of all tasks: {', '.join(self.classes)}")
        for key in ("weights", "measured", "kinds", "task_methods"):
            strange = sorted(set(getattr(self, key) or {}) - set(self.tasks))
            if strange:
                raise OptionError(f"{key} names tasks that the entry does not have: {', '.join(strange)}")

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return tuple(self.classes)

    def known_task(self, task: str) -> str:
        """`task`, if the entry has it; raises UnknownNameError if not."""
        if task not in self.tasks:
            raise UnknownNameError(f"task of {self.name}", task, self.tasks)
        return task

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

    @property
    def measured_mean(self) -> float | None:
        """The mean of what was measured, where that is known of all tasks."""
        return self.mean(self.measured) if set(self.measured or ()) == set(self.tasks) else None

    def images_root(self, asked: Path | None = None) -> Path | None:
        """Where the entry's images lie: where the user says, or the entry, if that is there."""
        stated = self.folder / self.data_root if self.data_root else None
        return asked or (stated if stated and stated.is_dir() else None)

    @property
    def recipe_source(self) -> str:
        """The recipe's name, or the path of its file, which the entry states from its registry's folder."""
        return str(self.folder / self.recipe) if is_file(self.recipe) else self.recipe

    def at(self, folder: Path) -> Entry:
        """The same in the registry of another folder: files and images that it names are named from there."""
        root, recipe = self.images_root(), self.recipe_source
        return replace(
            self, folder=folder, data_root=None if root is None else relative(root, folder),
            recipe=recipe if recipe == self.recipe else relative(Path(recipe), folder),
        )  # fmt: skip

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
        """The method's own options: without its name, and without the choice of layers."""
        return {key: value for key, value in self.adapter_method.items() if key != "name"}

    @property
    def placement(self) -> dict[str, Any]:
        """The choice of layers, where the entry makes one; see `zoo.models.placement.Placement`."""
        return {key: value for key, value in self.method.items() if key in PLACEMENT}

    @property
    def adapter_method(self) -> dict[str, Any]:
        """The method as adapter files state it: without the choice of layers."""
        return {key: value for key, value in self.method.items() if key not in PLACEMENT}

    def method_of(self, task: str) -> dict[str, Any]:
        """The method as the adapter file of a task states it."""
        return self.adapter_method | self.task_methods.get(task, {})

    @property
    def rank(self) -> int | None:
        """The rank of all layers and tasks; None where they have several, or none."""
        found = None if self.task_methods else self.method.get("rank")
        return found if isinstance(found, int) else None


def _check_tolerance(tolerance: float) -> None:
    if tolerance < 0:
        raise OptionError(f"tolerance must be at least 0, not {tolerance}")


def as_data(item: Any) -> dict[str, Any]:
    """A dataclass, such as an entry, as plain data, without what equals its default."""
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
