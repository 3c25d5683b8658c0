"""Recipes: everything that training needs beside the entry. `recipes/<benchmark>/<method>.yaml`."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from zoo.catalog.changes import Changes
from zoo.catalog.entry import is_file
from zoo.catalog.schema import LARGEST, parse
from zoo.catalog.task import Preprocessing
from zoo.catalog.yaml_files import load_yaml
from zoo.errors import ConfigError, OptionError, UnknownNameError
from zoo.storage import resources

INPUT = frozenset(f.name for f in fields(Preprocessing))


@dataclass(frozen=True)
class Optimizer:
    """One optimiser and its hyperparameters."""

    name: Literal["sgd", "adam", "adamw"]
    lr: float
    weight_decay: float = 0.0
    momentum: float = 0.0  # sgd only
    nesterov: bool = False  # sgd only

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.weight_decay < 0 or not 0 <= self.momentum < 1:
            raise OptionError("needs lr > 0, weight_decay >= 0 and 0 <= momentum < 1")
        if self.name != "sgd" and (self.momentum or self.nesterov):
            raise OptionError(f"momentum and nesterov belong to sgd, not to {self.name}")


@dataclass(frozen=True)
class Augment:
    """What is done to a training image before it is normalised."""

    crop: Literal["random", "random_resized", "none"] = "none"  # random: of the resized image, padded if need be
    padding: int = 0  # pixels of border for a random crop
    scale: tuple[float, ...] = (0.08, 1.0)  # share of the area that a random_resized crop takes
    zoom: tuple[float, ...] = ()  # range of a random enlargement, before a random crop of the input's size; or none
    flip: bool = False  # horizontal, with probability 1/2

    def __post_init__(self) -> None:
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise OptionError(f"scale needs two numbers 0 < low <= high <= 1, not {self.scale}")
        if self.zoom and (len(self.zoom) != 2 or not 0 < self.zoom[0] <= self.zoom[1]):
            raise OptionError(f"zoom needs two numbers 0 < low <= high, not {self.zoom}")
        if self.zoom and self.crop != "none":
            raise OptionError(f"zoom crops by itself; leave out crop: {self.crop}")


@dataclass(frozen=True)
class Recipe:
    """How one entry is trained, task by task."""

    summary: str  # what the recipe reproduces, in a sentence
    epochs: int  # over all images; more, where these would be fewer than `min_steps`
    batch: int  # images per step, over all processes
    rest: Optimizer  # for norms, heads, and a backbone that is trained itself
    increments: Optimizer | None = None  # for ΔW; None where the method adds none
    latents: Optimizer | None = None  # for those of the training pictures, of tasks that make pictures
    schedule: Literal["cosine", "polynomial", "constant"] = "cosine"
    power: float = 0.9  # of the polynomial schedule
    warmup: float = 0.0  # share of all steps over which the learning rates rise from zero
    label_smoothing: float = 0.0
    positive_weight: float = 0.95  # of an edge in the loss of edges; its absence weighs the rest of 1
    exponent: float = 2.0  # p of the loss of made pictures, ‖x − G(z)‖_p^p
    loss_weight: float = 1.0  # what the loss is multiplied by
    patience: int = 0  # epochs without a loss that is lower by a thousandth, after which training ends; 0: it does not
    min_steps: int = 0  # for few images, whose epochs are short: up to five times as many are taken
    # What it begins as: random, or a linear probe (`training/probe.py`); auto: that, where the head can be one.
    head: Literal["fresh", "probe", "auto"] = "fresh"
    # What a task's norms go by in training: each batch's statistics, or those that they come with, which then stay.
    statistics: Literal["batch", "frozen"] = "batch"
    samples: int | None = None  # training images, drawn at random; None: all that there are
    seed: int = 0
    threads: int | None = None  # of a CPU; set where weights shall not depend on the number of cores
    input: Preprocessing = field(default_factory=Preprocessing)
    augment: Augment = field(default_factory=Augment)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)  # what differs for one task: any key but this one
    variants: Mapping[str, Recipe] = field(default_factory=dict, metadata={"derived": True})  # `tasks`, filled in
    # What a file says of the input, and the input that this made; the rest is the backbone's.
    stated: tuple[Preprocessing, frozenset[str]] | None = field(default=None, metadata={"derived": True})
    name: str = field(default="", metadata={"derived": True})
    sha256: str = field(default="", metadata={"derived": True})  # of what the file says, comments aside

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch, self.threads or 1) < 1:
            raise OptionError(f"needs epochs, batch and threads >= 1, not {self.epochs}, {self.batch}, {self.threads}")
        if self.min_steps < 0:
            raise OptionError(f"needs min_steps >= 0, not {self.min_steps}")
        if self.samples is not None and self.samples < 2:
            raise OptionError(f"needs samples >= 2, not {self.samples}")
        if not 0 <= self.warmup < 1 or not 0 <= self.label_smoothing < 1:
            raise OptionError("needs warmup and label_smoothing in [0, 1)")
        if not 0 < self.positive_weight < 1 or not 0 < self.loss_weight < math.inf:
            raise OptionError("needs positive_weight in (0, 1) and loss_weight above 0")
        if self.exponent < 1 or self.patience < 0:
            raise OptionError(f"needs exponent >= 1 and patience >= 0, not {self.exponent}, {self.patience}")

    def fingerprint(self) -> str:
        """The SHA-256 of all settings: what identifies a recipe that was made without a file."""
        return hashlib.sha256(json.dumps(settings(self), sort_keys=True).encode()).hexdigest()

    def of(self, task: str) -> Recipe:
        """The recipe with what it says for one task alone."""
        changed = self.tasks.get(task, {})
        if changed and task not in self.variants:
            raise OptionError(f"What differs for {task!r} is known only to recipes that load_recipe has read.")
        also = ("stated",) if "input" in changed else ()
        return replace(self, **{key: getattr(self.variants[task], key) for key in (*changed, *also)})

    def leaves_open(self) -> frozenset[str]:
        """What it does not say of the input. One that was set in Python says all, and the default one nothing."""
        if self.stated is not None and self.input == self.stated[0]:
            return INPUT - self.stated[1]
        return INPUT if self.input == Preprocessing() else frozenset()

    def on(self, card: Preprocessing) -> Recipe:
        """The recipe with what it leaves open of the input taken from a backbone's card.

        Where it states a size alone, resize and width are in the same relation to it as on the card.
        """
        missing = self.leaves_open()
        values = {name: getattr(card if name in missing else self.input, name) for name in INPUT}
        for name in missing & {"resize", "width"} if "size" not in missing else ():
            values[name] = _in_relation(values[name], self.input.size, card.size)
        made = Preprocessing(**values)
        variants = {task: each.on(card) for task, each in self.variants.items()}
        return replace(self, input=made, variants=variants, stated=(made, INPUT))


def _in_relation(length: int | None, size: int, to: int) -> int | None:
    return length and round(length * size / to)


def settings(recipe: Recipe) -> dict[str, Any]:
    """All that a recipe says, each setting by its path, such as `rest.lr`; as JSON gives it back."""
    stated = {f.name for f in fields(Recipe) if not f.metadata.get("derived")}
    data = {key: value for key, value in asdict(replace(recipe, variants={})).items() if key in stated}
    return dict(_flat(json.loads(json.dumps(data, default=list))))


def _flat(data: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def differences(made: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> str:
    """In words, which settings of two recipes differ: those that something was made with, and those that are wanted."""
    made = made or {}
    other = [key for key in {**made, **wanted} if made and made.get(key) != wanted.get(key)]
    return "; ".join(f"{key} {made.get(key)!r}, not {wanted.get(key)!r}" for key in other)


def recipe_names() -> list[str]:
    """The zoo's own recipes, such as `shapes/ftn`."""
    folder = resources.recipes_dir()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def recipe_file(name: str) -> Path:
    """The file of one of the zoo's recipes, or of the user's where `name` is the path of a YAML file."""
    if is_file(name):
        return Path(name)
    if name not in recipe_names():
        raise UnknownNameError("recipe", name, recipe_names())
    return resources.within(resources.recipes_dir(), f"{name}.yaml")


def recipe_data(name: str, changes: Changes | None = None) -> Any:
    """What a recipe's file says, changed, before it is checked."""
    data = load_yaml(recipe_file(name))
    return changes.applied(data) if changes not in (None, Changes()) and isinstance(data, dict) else data


def load_recipe(name: str, changes: Changes | None = None) -> Recipe:
    """Read a recipe by its name or path, with changes that stand in place of what it says.

    Raises:
        UnknownNameError: the zoo has no such recipe.
        OptionError: a change that could stand nowhere in a recipe.
        ConfigError: the file has unknown keys or wrong values; all are listed.
    """
    path, data = recipe_file(name), recipe_data(name, changes)
    problems: list[str] = []
    recipe = parse(Recipe, _sized(data), problems)
    variants = {} if recipe is None else _variants(data, recipe.tasks, problems)
    if recipe is None or problems:
        raise ConfigError(str(path), problems)
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    stated = recipe.input, frozenset(data.get("input") or ())
    known = path.name if is_file(name) else name  # wherever the file lies
    return replace(recipe, variants=variants, name=known, sha256=digest, stated=stated)


def _sized(data: Any) -> Any:
    """The same with a resize where the input has a size alone, so that what is open does not forbid a larger size."""
    given = data.get("input") if isinstance(data, dict) else None
    if not isinstance(given, dict) or "resize" in given or not isinstance(given.get("size"), int):
        return data
    if not 0 < given["size"] < LARGEST:  # of which `parse` speaks
        return data
    usual = Preprocessing()
    resize = _in_relation(usual.resize, given["size"], usual.size)
    width = given["width"] if isinstance(given.get("width"), int) else 0
    return {**data, "input": {**given, "resize": max(resize or 0, given["size"], width)}}


def _variants(data: dict[str, Any], changes: dict[str, dict[str, Any]], problems: list[str]) -> dict[str, Recipe]:
    """For each task with changes, the recipe in which they stand."""
    common = {key: value for key, value in data.items() if key != "tasks"}
    found = {}
    for task, changed in changes.items():
        if "tasks" in changed:
            problems.append(f"tasks.{task}.tasks: a task's changes cannot hold another task's")
            continue
        nested = {
            k: {**common[k], **v} for k, v in changed.items() if isinstance(v, dict) and isinstance(common.get(k), dict)
        }
        whole = {**common, **changed, **nested}
        if variant := parse(Recipe, _sized(whole), problems, f"tasks.{task}"):
            found[task] = replace(variant, stated=(variant.input, frozenset(whole.get("input") or ())))
    return found
