"""Which cores tasks should share: patterns of TRMTL, found on training images that are held out.

The test images have no part in it. Every pattern that is tried is trained once, below `tried/`, and kept there.
"""

from __future__ import annotations

import functools
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from zoo.catalog.entry import Entry, relative
from zoo.catalog.handover import list_in
from zoo.catalog.recipe import Recipe
from zoo.catalog.registry import Registry
from zoo.datasets import Splits, Transformed
from zoo.errors import OptionError
from zoo.joint import JointModel
from zoo.joint.trmtl import TRMTL
from zoo.kinds import get_kind
from zoo.loader import counted_parameters, fresh_model, load_adapters
from zoo.ring import RingLayer
from zoo.storage.tensors import read
from zoo.training.batches import seed_of
from zoo.training.options import RunOptions
from zoo.training.publishing import publish
from zoo.training.runs import given, recipe_of, splits_of, train_entry

log = logging.getLogger(__name__)
STRATEGIES = ("greedy", "bottom-heavy", "similarity")
HELD_OUT = 0.2  # share of the training images that patterns are compared on
REPEATS, NOISE = 5, 0.3  # perturbations of each core, and their size against the core's own deviation
Pattern = list[list[int]]


@dataclass(frozen=True)
class Found:
    """The pattern that a search ended with.

    Attributes:
        tried: the mean figure of all tasks on held-out images, of each pattern that was trained, by its short form.
        entry: of the pattern, trained on all training images; listed in the registry of the search's folder.
        differences: of the similarity strategy: by layer and core, how differently the tasks react to its perturbation.
    """

    pattern: Pattern
    tried: dict[str, float]
    entry: Entry
    differences: dict[tuple[int, int], float]


def short(pattern: Pattern) -> str:
    """A pattern for a name or a table: `410`; cores that are not counted from the left are listed, `1.3-2-0`."""
    if all(places == list(range(1, len(places) + 1)) and len(places) < 10 for places in pattern):
        return "".join(str(len(places)) for places in pattern)
    return "-".join(".".join(map(str, places)) or "0" for places in pattern)


def search(
    entry: Entry, registry: Registry, out: Path, options: RunOptions, strategy: str = "greedy", threshold: float = 0.5
) -> Found:
    """Find a pattern of sharing for a TRMTL entry, and train it on all training images, into `out`.

    - greedy: layer by layer from the first, every number of cores that can be shared from the left, the others' as
      found so far (TRMTL, Section 4.1.2).
    - bottom-heavy: the same, but no layer shares more than the one before it (the guidance of Section 4.1.2).
    - similarity: one training without sharing; then the cores are shared whose perturbation changes the tasks' losses
      alike (Section 5): by no more than `threshold`, relative to the largest change.

    Raises:
        OptionError: the entry is not of TRMTL, or its tasks are measured in several units.
    """
    if entry.method["name"] != TRMTL.name:
        raise OptionError(f"{entry.name} shares no cores; its method is {entry.method['name']!r}, not 'trmtl'.")
    if strategy not in STRATEGIES:
        raise OptionError(f"The strategy must be one of {', '.join(STRATEGIES)}, not {strategy!r}.")
    if len({entry.metric(task) for task in entry.tasks}) > 1:
        raise OptionError(f"The tasks of {entry.name} are measured in several units, so patterns have no mean figure.")
    able, trials = shareable(entry, registry), _Trials(entry, registry, out, options)
    differences: dict[tuple[int, int], float] = {}
    if strategy == "similarity":
        differences = reactions(*trials.unshared(able), able)
        pattern = [[place for place in places if differences[number, place] <= threshold]
                   for number, places in enumerate(able, 1)]  # fmt: skip
        trials.validated(pattern)
    else:
        rising = entry.metric(entry.tasks[0]).higher_is_better
        pattern = greedy(able, trials.validated, rising, strategy == "bottom-heavy")
    return Found(pattern, trials.figures, _trained(entry, registry, out, options, pattern), differences)


class _Trials:
    """The patterns that a search has tried, each trained once, with images held out.

    Attributes:
        figures: the mean figure of all tasks on the held-out images, by the pattern's short form.
    """

    def __init__(self, entry: Entry, registry: Registry, out: Path, options: RunOptions) -> None:
        self.entry, self.registry, self.folder = entry, registry, out / "tried"
        self.options = replace(options, hold_out=HELD_OUT, resume=True)
        self.figures: dict[str, float] = {}

    def validated(self, pattern: Pattern) -> float:
        """How good a pattern is on the held-out images."""
        name = short(pattern)
        if name not in self.figures:
            files = train_entry(
                _with(self.entry, pattern), self.registry, self.entry.tasks, self.folder / name, self.options
            )
            metrics = {task: read(file)[1]["metrics"] for task, file in files.items()}
            self.figures[name] = statistics.mean(
                float(found[self.entry.metric(task).name]) for task, found in metrics.items()
            )
            log.info("%s: %.2f on held-out images", name, self.figures[name])
        return self.figures[name]

    def unshared(self, able: Pattern) -> tuple[JointModel, dict[str, Splits], Recipe]:
        """The model that shares nothing, trained; what it was trained and held out on; and by which recipe."""
        none: Pattern = [[] for _ in able]
        self.validated(none)
        files = {task: self.folder / short(none) / f"{task}.safetensors" for task in self.entry.tasks}
        model = load_adapters(_with(self.entry, none), self.registry, files)
        assert isinstance(model, JointModel)
        recipe = recipe_of(self.entry.recipe_source, self.options)
        data = {
            task: given(splits_of(self.entry, task, self.options), task, recipe, self.options)
            for task in self.entry.tasks
        }
        return model, data, recipe


def shareable(entry: Entry, registry: Registry) -> Pattern:
    """For each layer, the cores that are of one shape for all tasks that have it."""
    model = fresh_model(_with(entry, []), registry, pretrained=False)
    assert isinstance(model, JointModel)
    assert isinstance(model.sharing, TRMTL)
    return model.sharing.shareable()


def greedy(
    able: Pattern, validated: Callable[[Pattern], float], higher_is_better: bool = True, bottom_heavy: bool = False
) -> Pattern:
    """The pattern that is found layer by layer; of equally good numbers of shared cores the largest is taken.

    Args:
        able: the cores of each layer that can be shared; counted from the left, up to the first that cannot.
        validated: how good a pattern is.
        bottom_heavy: let no layer share more cores than the one before it.
    """
    pattern: Pattern = [[] for _ in able]
    sign, most = (1 if higher_is_better else -1), max(map(len, able))
    for number, places in enumerate(able):
        run = next((n for n, place in enumerate(places) if place != n + 1), len(places))
        choices = [list(range(1, count + 1)) for count in range(min(run, most if bottom_heavy else run) + 1)]
        scores = [(sign * validated([*pattern[:number], each, *pattern[number + 1 :]]), len(each)) for each in choices]
        pattern[number] = choices[max(scores)[1]]
        most = len(pattern[number])
    return pattern


def reactions(
    model: JointModel, data: Mapping[str, Splits], recipe: Recipe, able: Pattern
) -> dict[tuple[int, int], float]:
    """By layer and core, how differently tasks react to the same perturbation of it: 0 alike, 1 or more not at all.

    A core is moved by the same noise in every task's network, as large against the core in each. What is compared is by
    how much the task's loss on held-out images changes: the largest difference between two tasks, over the largest
    change.
    """
    changes = {task: _changes(model, task, splits, recipe.of(task), able) for task, splits in data.items()}
    found = {}
    for place in next(iter(changes.values())):
        each = [own[place] for own in changes.values() if place in own]
        found[place] = (max(each) - min(each)) / max(*map(abs, each), 1e-12)
    return found


def _changes(model: JointModel, task: str, data: Splits, recipe: Recipe, able: Pattern) -> dict[tuple[int, int], float]:
    """By layer and core, the mean change of a task's loss when the core is perturbed."""
    layers = [layer for layer in model.branches[task].modules() if isinstance(layer, RingLayer)]
    loss = functools.partial(_loss, model, task, data, recipe)
    before, found = loss(), {}
    for number, (layer, places) in enumerate(zip(layers, able, strict=False), 1):
        for place in places:
            core = layer.ring.own[str(place - 1)]
            kept, after = core.detach().clone(), []
            for repeat in range(REPEATS):
                generator = torch.Generator().manual_seed(seed_of(number, place, repeat))
                noise = torch.randn(core.shape, generator=generator)
                core.data = kept + NOISE * kept.std() * noise
                after.append(loss())
            core.data = kept
            found[number, place] = statistics.mean(after) - before
    return found


def _loss(model: JointModel, task: str, data: Splits, recipe: Recipe) -> float:
    """The mean loss over the images that were held out."""
    known = model.task(task)
    kind, losses = get_kind(known.kind), []
    with torch.no_grad():
        for inputs, targets in DataLoader(Transformed(data.test, known.preprocessing.transform()), 100):
            loss: Tensor = kind.loss(model(inputs, task=task), targets, recipe)
            losses += [float(loss)] * len(targets)
    return statistics.mean(losses)


def _with(entry: Entry, pattern: Pattern) -> Entry:
    """The entry with another pattern, and so without weights."""
    return replace(
        entry, method={**entry.method, "pattern": pattern}, weights=None, shared=None, measured=None, reported=None
    )


def _trained(entry: Entry, registry: Registry, out: Path, options: RunOptions, pattern: Pattern) -> Entry:
    """The entry with this pattern, trained on all training images, and listed in `out/registry.yaml`."""
    first, _, rest = entry.name.partition("-")
    name = "-".join([first, f"trmtl_{short(pattern)}", rest.partition("-")[2] or rest, "searched"])
    registry.check_new(name)
    made = replace(_with(entry, pattern).at(out), name=name)
    if options.recipe:
        made = replace(
            made, recipe=relative(Path(options.recipe), out) if Path(options.recipe).exists() else options.recipe
        )
    made = replace(made, parameters=counted_parameters(made, registry))
    files = train_entry(made, registry, made.tasks, out / name, replace(options, resume=True))
    made = publish(made, files, f"file:{name}/")
    list_in(out, made)
    return made


def as_rows(found: Found, unit: str) -> Sequence[dict[str, object]]:
    """The patterns that were tried, best last, to be printed."""
    ordered = sorted(found.tried.items(), key=lambda pair: pair[1])
    return [{"pattern": name, f"held out {unit}": round(value, 2)} for name, value in ordered]
