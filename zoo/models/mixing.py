"""Several tasks in one pass, one for each row of a batch: one network whose layers take every row by its own task.

Made as a fused network is: a copy of the backbone with every site replaced. The frozen tensors are not copied.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from zoo.errors import OptionError, UnknownNameError
from zoo.increments import Increment
from zoo.increments.by_row import ByRow, Way
from zoo.models.frozen import ALIKE, copy_of, version
from zoo.models.layers import HOOKS, AdaptedLayer, Site, TaskHead, TaskNorm, scale_and_shift
from zoo.models.multitask import MultiTaskModel

AFFINE = (nn.BatchNorm2d.forward, BatchNormAct2d.forward)  # a scale and a shift of each channel, before anything else
IN_TURN = 1.5  # what a layer costs that takes the rows apart and puts them together, in those of one that does not


class RowTasks(threading.local):
    """The numbers of the tasks of the rows, (B,), that the layers of one network take now, apart for each thread."""

    def __init__(self) -> None:
        self._now: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> RowTasks:
        return RowTasks()

    def __reduce__(self) -> tuple[type[RowTasks], tuple[()]]:
        return RowTasks, ()

    @contextmanager
    def use(self, task: Tensor) -> Iterator[None]:
        """Take the rows by these until the block ends."""
        before, self._now = self._now, task
        try:
            yield
        finally:
            self._now = before

    def of(self, x: Tensor) -> Tensor:
        """Those of the rows of a tensor, which may have several for each image, one image after another."""
        if self._now is None:
            raise OptionError("No tasks are selected: call the Mixed network itself, with images and task numbers.")
        rows, images = x.shape[0], self._now.shape[0]
        if rows == images:
            return self._now
        if rows % images:
            raise OptionError(f"A layer takes {rows} rows, of {images} images.")
        return self._now.repeat_interleave(rows // images)


class MixedLayer(nn.Module):
    """A frozen layer with a weight, run for each row under its task's."""

    def __init__(self, frozen: nn.Module, way: ByRow, rows: RowTasks) -> None:
        super().__init__()
        self.frozen, self.way, self.rows = frozen, way, rows

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.way(x, self.frozen, self.rows.of(x))
        return made


class MixedNorm(nn.Module):
    """A batch norm in evaluation mode: each row's scale and shift, and what the norm does after that.

    Args:
        scales, shifts: (T, C).
        after: timm's norms end in an activation.
    """

    scales: Tensor
    shifts: Tensor

    def __init__(self, scales: Tensor, shifts: Tensor, after: nn.Module, rows: RowTasks) -> None:
        super().__init__()
        self.register_buffer("scales", scales, persistent=False)
        self.register_buffer("shifts", shifts, persistent=False)
        self.after, self.rows = after, rows

    def forward(self, x: Tensor) -> Tensor:
        task = self.rows.of(x)
        shape = (x.shape[0], -1, *(1 for _ in x.shape[2:]))
        scale, shift = self.scales.index_select(0, task).view(shape), self.shifts.index_select(0, task).view(shape)
        made: Tensor = self.after(
            x * scale + shift if torch.compiler.is_exporting() else torch.addcmul(shift, x, scale)
        )
        return made


class MixedHead(nn.Module):
    """Linear classifiers of all tasks in one: each row's own logits, and any others behind them up to the widest's."""

    weight: Tensor
    bias: Tensor | None
    places: Tensor

    def __init__(self, heads: Sequence[nn.Linear], rows: RowTasks) -> None:
        super().__init__()
        self.rows = rows
        biases = [head.bias.detach() for head in heads if head.bias is not None]
        self.register_buffer("weight", torch.cat([head.weight.detach() for head in heads]), persistent=False)
        self.register_buffer("bias", torch.cat(biases) if biases else None, persistent=False)
        widest, starts = max(len(head.weight) for head in heads), [0]
        for head in heads:
            starts.append(starts[-1] + len(head.weight))
        places = torch.tensor(starts[:-1])[:, None] + torch.arange(widest)
        self.register_buffer("places", places.clamp(max=starts[-1] - 1).to(self.weight.device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        places, all_logits = self.places.index_select(0, self.rows.of(x)), F.linear(x, self.weight, self.bias)
        for _ in x.shape[2:]:
            places = places.unsqueeze(1)
        return all_logits.gather(-1, places.expand(*x.shape[:-1], -1))


class InTurn(nn.Module):
    """A site, for the rows of one task after another; under a compiler or exporter for all rows by each task.

    Args:
        exported: hold the tasks' plain layers, and not the site, which is the model's.
        outputs: to fill the channels up to with zeros; None: tasks have as many.
    """

    def __init__(
        self, site: Site, tasks: Sequence[str], rows: RowTasks, exported: bool, outputs: int | None = None
    ) -> None:
        super().__init__()
        self.rows, self.outputs = rows, outputs
        self.layers = nn.ModuleList([site.plain(task) for task in tasks] if exported else [])
        self._serving = () if exported else tuple(functools.partial(site.serve, task) for task in tasks)

    def forward(self, *args: Any, **named: Any) -> Tensor:
        task = self.rows.of(next(x for x in pytree.tree_leaves((args, named)) if isinstance(x, Tensor)))
        if torch.compiler.is_compiling():  # or exporting: what is computed cannot depend on the numbers
            every = torch.stack([self._serve(number, (args, named)) for number in range(len(self._all))], 1)
            return every[torch.arange(task.shape[0], device=task.device), task]
        return by_task(self._serve, (args, named), task)

    @property
    def _all(self) -> Sequence[Callable[..., Tensor]]:
        return self._serving or [*self.layers]

    def _serve(self, number: int, call: tuple[Any, Any]) -> Tensor:
        made = self._all[number](*call[0], **call[1])
        return made if self.outputs is None else widened(made, self.outputs)


def by_task(serve: Callable[[int, Any], Tensor], inputs: Any, task: Tensor) -> Tensor:
    """What is made of inputs by the tasks of these numbers, the rows of one task at a time.

    Args:
        inputs: tensors in any nesting; those with a row for each number are taken apart.
    """
    leaves, form = pytree.tree_flatten(inputs)
    found, places = [], []
    for number in torch.unique(task).tolist():
        place = (task == number).nonzero().flatten()
        own = [x[place] if isinstance(x, Tensor) and x.ndim and len(x) == len(task) else x for x in leaves]
        found.append(serve(number, pytree.tree_unflatten(own, form)))
        places.append(place)
    return torch.cat(found)[torch.cat(places).argsort()]


def widened(outputs: Tensor, channels: int, value: float = 0.0) -> Tensor:
    """Outputs (B, channels, …) with further channels of a value."""
    return F.pad(outputs, (0, 0) * (outputs.ndim - 2) + (0, channels - outputs.shape[1]), value=value)


class Mixed(nn.Module):
    """One network for several tasks: `mixed(images, task)` with the number of a task for each image.

    It is a copy of what the tasks are now; later training of the model does not reach it.

    Attributes:
        tasks: their names, by number.
        classes: how many outputs each has.
        stacked: bytes of weights that are kept for each task whole, beside the backbone and what adapters hold.
    """

    known: Tensor

    def __init__(self, network: nn.Module, tasks: Sequence[str], classes: Sequence[int], rows: RowTasks) -> None:
        super().__init__()
        self.network, self.tasks, self.classes, self.rows = network, tuple(tasks), tuple(classes), rows
        known = torch.arange(max(classes)) < torch.tensor(classes)[:, None]
        self.register_buffer("known", known, persistent=False)
        self.stacked = 0

    def forward(self, images: Tensor, task: Tensor) -> Tensor:
        """Logits (B, C), or maps (B, C, H, W), of as many classes as the largest task has; beyond a task's own: -inf.

        Args:
            task: int64 (B,), from 0.
        """
        with self.rows.use(task):
            outputs = self.network(images)
        known = self.known.index_select(0, task).view(task.shape[0], -1, *(1 for _ in outputs.shape[2:]))
        made: Tensor = outputs.masked_fill(~known, -torch.inf)
        return made


@dataclass
class _Plan:
    """An adapted layer, and the ways that it can go."""

    site: AdaptedLayer
    increments: list[Any]
    ways: list[Way]
    in_turn: float  # what it costs to take one task after another, which is always possible

    def best(self, stacked: bool) -> Way | None:
        """The cheapest way; None: in turn."""
        ways = [way for way in self.ways if stacked or not way.stacked]
        found = min(ways, key=lambda way: way.cost, default=None)
        return None if found is None or found.cost > self.in_turn else found


def mixed(
    backbone: nn.Module, sites: Sequence[Site], tasks: Sequence[str], classes: Sequence[int], example: Tensor,
    serve: Callable[[str, Tensor], Any], stack_limit: int, exported: bool,
) -> Mixed:  # fmt: skip
    """The network that takes each row by its own task.

    Args:
        backbone: with its sites in place.
        tasks, classes: their names, and how many outputs each has.
        example: one image, as large as those to come: what a layer costs depends on it.
        serve: the outputs of the model for a task.
        stack_limit: bytes of weights that may be kept for each task whole.
        exported: whether it is for a graph that takes any batch.
    """
    rows, places = RowTasks(), _positions(sites, lambda: serve(tasks[0], example))
    plans = [
        _plan(site, tasks, places[id(site)], exported)
        for site in sites
        if isinstance(site, AdaptedLayer) and id(site) in places and all(task in site.tasks for task in tasks)
    ]
    chosen = {id(plan.site): plan.best(stacked=False) for plan in plans}
    left = stack_limit
    for plan, way in sorted(_savings(plans), key=lambda pair: -_saving(pair[0]) / pair[1].stacked):
        if way.stacked <= left:
            chosen[id(plan.site)], left = way, left - way.stacked
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*backbone.parameters(), *backbone.buffers())}
    with torch.no_grad():
        for site in sites:
            memo[id(site)] = _layer(site, tasks, chosen.get(id(site)), rows, exported, max(classes))
            memo[id(site)].__dict__.update({name: copy.copy(site.__dict__[name]) for name in HOOKS})
        made = Mixed(copy_of(backbone, memo), tasks, classes, rows).eval()
    made.stacked = stack_limit - left
    return made


def _savings(plans: Sequence[_Plan]) -> Iterator[tuple[_Plan, Way]]:
    """Layers with a way that is cheaper than any that keeps nothing, and that way."""
    for plan in plans:
        way = plan.best(stacked=True)
        if way is not None and way.stacked and _saving(plan) > 0:
            yield plan, way


def _saving(plan: _Plan) -> float:
    before, after = plan.best(stacked=False), plan.best(stacked=True)
    cost = plan.in_turn if before is None else before.cost
    return cost - (plan.in_turn if after is None else after.cost)


def _plan(site: AdaptedLayer, tasks: Sequence[str], positions: int, exported: bool) -> _Plan:
    increments = [site.tasks[task] for task in tasks]
    kind, *others = {type(each) for each in increments}
    ways: list[Way] = []
    if not others and issubclass(kind, Increment) and site.has_standard_forward:
        ways = [way for way in kind.by_row(increments, site._frozen(), positions) if not (exported and way.fixes_batch)]
    full = float(site.frozen_weight.numel() * positions)
    return _Plan(site, increments, ways, full * (len(tasks) if exported else IN_TURN))


def _layer(
    site: Site, tasks: Sequence[str], way: Way | None, rows: RowTasks, exported: bool, outputs: int
) -> nn.Module:  # fmt: skip
    """What stands in the place of a site."""
    if isinstance(site, AdaptedLayer):
        if not any(task in site.tasks for task in tasks):
            return site._frozen()
        return InTurn(site, tasks, rows, exported) if way is None else MixedLayer(site._frozen(), way.make(), rows)
    own: list[Any] = [site.tasks[task] for task in tasks]
    if isinstance(site, TaskNorm):
        pairs = [pair for norm in own if (pair := scale_and_shift(norm, AFFINE))]
        if len(pairs) == len(own):
            scales, shifts = (torch.stack(each) for each in zip(*pairs, strict=True))
            timms = isinstance(own[0], BatchNormAct2d)
            after = [copy_of(own[0].drop), copy_of(own[0].act)] if timms else []
            return MixedNorm(scales, shifts, nn.Sequential(*after), rows)
    if isinstance(site, TaskHead):
        plain = all(type(head) is nn.Linear for head in own) and len({head.bias is None for head in own}) == 1
        return MixedHead(own, rows) if plain else InTurn(site, tasks, rows, exported, outputs)
    return InTurn(site, tasks, rows, exported)


def _positions(sites: Sequence[Site], run: Callable[[], Any]) -> dict[int, int]:
    """How many positions of its output each adapted layer computes in a pass, by the site's id."""
    found: dict[int, int] = {}

    def note(site: Any, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            found[id(site)] = max(1, output.numel() // len(site.frozen_weight))

    hooks = [site.register_forward_hook(note) for site in sites if isinstance(site, AdaptedLayer)]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return found


class Mixes:
    """How a model serves a task for each row: by one mixed network where that is known to give the same, or in turn."""

    def __init__(self) -> None:
        self.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> Mixes:
        return Mixes()

    def clear(self) -> None:
        """Forget what was made, and what is known of it."""
        self._made: Mixed | None = None
        self._made_of: Any = None  # the tensors of the tasks, by how often each was written to
        self._alike: dict[Any, bool] = {}  # by the shape of the images

    def serve(self, model: Any, task: Any, inputs: Sequence[Any], named: Mapping[str, Any]) -> Tensor:
        """The outputs for a task of each row, see `TaskModel.forward`."""
        numbers = task_numbers(model.tasks, task, inputs)
        if torch.compiler.is_compiling():
            if self._made is None:
                raise OptionError("Compile model.mixed(), and call that with images and the numbers of their tasks.")
            made: Tensor = self._made(*inputs, numbers)
            return made
        alone = len(inputs) == 1 and not named
        if not alone or model.training or torch.is_grad_enabled():
            return rows_in_turn(model, numbers, inputs, named)
        images, case = inputs[0], (inputs[0].shape[1:], inputs[0].dtype, inputs[0].device)
        self._refresh(model)
        if case not in self._alike:
            apart = rows_in_turn(model, numbers, inputs, named)
            self._alike[case] = self._try(model, images, numbers, apart)
            return apart
        return (
            self._made(images, numbers)
            if self._alike[case] and self._made
            else rows_in_turn(model, numbers, inputs, named)
        )

    def _refresh(self, model: Any) -> None:
        """Forget a network that was made of tensors which have changed since."""
        of = model.tasks, tuple(
            (id(t), version(t)) for task in model.tasks for _, site in model.sites(task)
            for t in (*site.tasks[task].parameters(), *site.tasks[task].buffers())
        )  # fmt: skip
        if of != self._made_of:
            self.clear()
            self._made_of = of

    def _try(self, model: Any, images: Tensor, numbers: Tensor, apart: Tensor) -> bool:
        """Whether one network gives the same as one task after another."""
        try:
            self._made = self._made or model.mixed(example=images)
            found = self._made(images, numbers)
        except Exception:  # whatever a network raises that cannot be run so; an error of the images' came before
            return False
        known = torch.isfinite(apart)
        same = found.shape == apart.shape and bool((known == torch.isfinite(found)).all())
        off, largest = (found - apart)[known].abs().max(), apart[known].abs().max()
        return same and bool((off <= ALIKE[apart.element_size()] * largest).item())


def rows_in_turn(model: MultiTaskModel, numbers: Tensor, inputs: Sequence[Any], named: Mapping[str, Any]) -> Tensor:
    """The outputs of a model for a task of each row, the rows of one task at a time, with their gradients."""
    widest = max(len(model.task(name).classes) for name in model.tasks)

    def serve(number: int, own: tuple[tuple[Any, ...], dict[str, Any]]) -> Tensor:
        made = model(*own[0], task=model.tasks[number], **own[1])
        if not isinstance(made, Tensor):
            raise OptionError(f"The network gives {type(made).__name__}: a task for each row needs one tensor.")
        return widened(made, widest, -torch.inf)

    return by_task(serve, (tuple(inputs), dict(named)), numbers)


def task_numbers(tasks: Sequence[str], task: Any, inputs: Sequence[Any]) -> Tensor:
    """The number of each row's task, int64 (B,).

    Raises:
        UnknownNameError: a name that no task has.
        OptionError: numbers that no task has, or not one for each row.
    """
    device = next((x.device for x in inputs if isinstance(x, Tensor)), None)
    if not isinstance(task, Tensor | Sequence):
        raise UnknownNameError("task", str(task), tasks)
    if not isinstance(task, Tensor) and all(isinstance(each, int) for each in task):
        task = torch.tensor(task, dtype=torch.long)
    if isinstance(task, Tensor):
        numbers = task.to(device=device)
        if numbers.ndim != 1 or numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
            raise OptionError(
                f"Task numbers are a tensor of whole numbers, (B,), not {task.dtype} {tuple(task.shape)}."
            )
        numbers = numbers.long()
    else:
        places = {name: number for number, name in enumerate(tasks)}
        unknown = [name for name in task if name not in places]
        if unknown:
            raise UnknownNameError("task", str(unknown[0]), tasks)
        numbers = torch.tensor([places[name] for name in task], dtype=torch.long, device=device)
    rows = len(inputs[0]) if inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim else None
    if rows is None or len(numbers) != rows or not rows:
        raise OptionError(f"A task for each row: {len(numbers)} tasks were given for {rows or 'no'} rows.")
    if not torch.compiler.is_compiling() and not bool(((numbers >= 0) & (numbers < len(tasks))).all()):
        raise OptionError(
            f"The tasks have the numbers 0 to {len(tasks) - 1}, not {int(numbers.min())} to {int(numbers.max())}."
        )
    return numbers
