"""Several tasks in one pass, one for each row of a batch: one network whose layers take every row by its own task.

Made as a fused network is: a copy of the backbone with every site replaced. The frozen tensors are not copied.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from zoo.errors import OptionError, UnknownNameError
from zoo.increments import Increment
from zoo.increments.by_row import Way
from zoo.increments.forms import weight_of
from zoo.models.frozen import ALIKE, Buffers, copy_of, version
from zoo.models.layers import HOOKS, AdaptedLayer, Site, TaskHead, TaskNorm, scale_and_shift
from zoo.models.multitask import MultiTaskModel
from zoo.models.row_layers import InTurn, MixedHead, MixedLayer, MixedNorm, RowTasks, by_task, widened

AFFINE = (nn.BatchNorm2d.forward, BatchNormAct2d.forward)  # a scale and a shift of each channel, before anything else
TRIED = 6  # tasks in one batch, where a mixed network is compared
IN_TURN = 1.5  # what a layer costs that takes the rows apart and puts them together, in those of one that does not


class Mixed(nn.Module):
    """One network for several tasks: `mixed(images, task)` with the number of a task for each image.

    It is a copy of what the tasks are now; later training of the model does not reach it. Of frozen parameters it has
    the model's values, in the same memory until it is converted or moved.

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
        norms = nn.modules.batchnorm._NormBase  # which move none of theirs in evaluation mode
        self._frozen_buffers = Buffers(part for part in network.modules() if not isinstance(part, norms))

    def _apply(self, *args: Any, **named: Any) -> Any:
        with self._frozen_buffers.replaced():
            return super()._apply(*args, **named)  # type: ignore[no-untyped-call]

    def forward(self, images: Tensor, task: Tensor) -> Tensor:
        """Logits (B, C), or maps (B, C, H, W), of as many classes as the largest task has; beyond a task's own: -inf.

        Args:
            task: int64 (B,), from 0.
        """
        if task.ndim != 1 or task.shape[0] != images.shape[0]:
            raise OptionError(f"{images.shape[0]} images need as many task numbers, not {tuple(task.shape)}.")
        with self.rows.use(task), self._frozen_buffers.kept():
            outputs = checked(self.network(images), max(self.classes))
        known = self.known.index_select(0, task).view(task.shape[0], -1, *(1 for _ in outputs.shape[2:]))
        return outputs.masked_fill(~known, -torch.inf)


def checked(outputs: Any, channels: int) -> Tensor:
    """A network's outputs, if they are such as rows of several tasks can stand in; else raises OptionError."""
    if not isinstance(outputs, Tensor):
        raise OptionError(f"The network gives {type(outputs).__name__}: a task for each row needs one tensor.")
    if outputs.ndim < 2 or outputs.shape[1] != channels:
        raise OptionError(
            f"The network gives {tuple(outputs.shape)}: a task for each row needs (B, {channels}, …), classes second."
        )
    return outputs


@dataclass
class _Plan:
    """An adapted layer, and the ways that it can go."""

    ways: list[Way]
    in_turn: float  # what it costs to take one task after another, which is always possible

    def best(self, stacked: bool) -> Way | None:
        """The cheapest way; None: in turn."""
        ways = [way for way in self.ways if stacked or not way.stacked]
        found = min(ways, key=lambda way: way.cost, default=None)
        return None if found is None or found.cost > self.in_turn else found

    def saving(self) -> float:
        """How much cheaper it is where weights may be kept whole."""
        before, after = (way.cost if way else self.in_turn for way in map(self.best, (False, True)))
        return before - after


def mixed_network(
    backbone: nn.Module, sites: Sequence[tuple[str, Site]], tasks: Sequence[str], classes: Sequence[int],
    positions: Mapping[str, int], stack_limit: int, exported: bool,
) -> Mixed:  # fmt: skip
    """The network that takes each row by its own task.

    Args:
        backbone: with its sites in place.
        sites: these, by their paths.
        tasks, classes: their names, and how many outputs each has.
        positions: of each adapted layer's output, for one image; a layer that is not called has none.
        stack_limit: bytes of weights that may be kept for each task whole.
        exported: whether it is for a graph that takes any batch.
    """
    plans = {
        path: _plan(site, tasks, positions[path], exported)
        for path, site in sites
        if isinstance(site, AdaptedLayer) and path in positions and all(task in site.tasks for task in tasks)
    }
    chosen, left = _choice(plans, stack_limit)
    rows, memo = RowTasks(), _apart(backbone, sites)
    for path, site in sites:
        made = _layer(site, tasks, chosen.get(path), rows, memo, max(classes))
        made.__dict__.update({name: copy.copy(site.__dict__[name]) for name in HOOKS})
        memo[id(site)] = made
    network = Mixed(copy_of(backbone, memo), tasks, classes, rows).to(next(backbone.parameters()).device).eval()
    network.stacked = stack_limit - left
    return network


def _apart(backbone: nn.Module, sites: Sequence[tuple[str, Site]]) -> dict[int, Any]:
    """For a copy of a network, what takes the place of each frozen tensor: parameters in the same memory, buffers in
    memory of their own. So whatever is done to the copy, the network stays.
    """
    tasks = {id(t) for _, site in sites for t in (*site.tasks.parameters(), *site.tasks.buffers())}
    frozen = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in backbone.parameters() if id(p) not in tasks}
    return frozen | {id(b): b.detach().clone() for b in backbone.buffers() if id(b) not in tasks}


def _choice(plans: Mapping[str, _Plan], limit: int) -> tuple[dict[str, Way | None], int]:
    """The way of each layer, and what is left of the limit: first those that save most for each byte."""
    chosen, left = {path: plan.best(stacked=False) for path, plan in plans.items()}, limit
    whole = [(path, plan.saving(), way) for path, plan in plans.items() if (way := plan.best(stacked=True))]
    for path, saving, way in sorted(whole, key=lambda each: -each[1] / max(1, each[2].stacked)):
        if way.stacked and saving > 0 and way.stacked <= left:
            chosen[path], left = way, left - way.stacked
    return chosen, left


def _plan(site: AdaptedLayer, tasks: Sequence[str], positions: int, exported: bool) -> _Plan:
    increments = [site.tasks[task] for task in tasks]
    kind, *others = {type(each) for each in increments}
    ways: list[Way] = []
    if not others and issubclass(kind, Increment) and site.has_standard_forward:
        ways = [way for way in kind.by_row(increments, site._frozen(), positions) if not (exported and way.fixes_batch)]
    full = float(site.frozen_weight.numel() * positions)
    return _Plan(ways, full * (len(tasks) if exported else IN_TURN))


def _layer(
    site: Site, tasks: Sequence[str], way: Way | None, rows: RowTasks, memo: dict[int, Any], outputs: int
) -> nn.Module:  # fmt: skip
    """What stands in the place of a site.

    Args:
        memo: what takes the place of frozen tensors.
    """
    if isinstance(site, AdaptedLayer):
        if not any(task in site.tasks for task in tasks):
            return _frozen(site, memo)
        return _in_turn(site, tasks, rows, memo) if way is None else MixedLayer(_frozen(site, memo), way.make(), rows)
    own: list[Any] = [site.tasks[task] for task in tasks]
    if isinstance(site, TaskNorm):
        pairs = [pair for norm in own if (pair := scale_and_shift(norm, AFFINE))]
        if len(pairs) == len(own):
            scales, shifts = (torch.stack(each).detach() for each in zip(*pairs, strict=True))
            timms = isinstance(own[0], BatchNormAct2d)
            after = [copy_of(own[0].drop), copy_of(own[0].act)] if timms else []
            return MixedNorm(scales, shifts, nn.Sequential(*after), rows)
    if isinstance(site, TaskHead):
        plain = all(type(head) is nn.Linear for head in own) and len({head.bias is None for head in own}) == 1
        return MixedHead(own, rows) if plain else _in_turn(site, tasks, rows, memo, outputs)
    return _in_turn(site, tasks, rows, memo)


def _frozen(site: AdaptedLayer, memo: dict[int, Any]) -> nn.Module:
    """The layer that a site replaced, of tensors that are apart."""
    layer: nn.Module = copy_of(site._frozen(), memo)
    return layer


def _in_turn(
    site: Site, tasks: Sequence[str], rows: RowTasks, memo: dict[int, Any], outputs: int | None = None
) -> InTurn:  # fmt: skip
    copied: Site = copy_of(site, memo)
    for task in set(copied.tasks) - set(tasks):
        del copied.tasks[task]
    for name in HOOKS:  # which the module around it has
        copied.__dict__[name] = type(copied.__dict__[name])()
    return InTurn(copied, tasks, rows, outputs)


def output_positions(plain: nn.Module, paths: Sequence[str], example: Tensor) -> dict[str, int]:
    """How many positions of its output each of some layers of a plain network computes of one image, by its path."""
    found: dict[str, int] = {}

    def note(path: str, layer: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            found[path] = max(1, output.numel() // len(weight_of(layer)))

    for path in paths:
        plain.get_submodule(path).register_forward_hook(lambda layer, _, output, path=path: note(path, layer, output))
    plain(example)
    return found


@dataclass(frozen=True)
class _Made:
    """A mixed network, and what it was made of."""

    network: Mixed | None  # None: the model's network cannot be run so
    tasks: tuple[str, ...]
    versions: tuple[tuple[Tensor, int], ...]  # the model's tensors, and how often each was written to
    agrees: dict[Any, bool]  # with one task after another: by the shape and type of the images

    def is_of(self, model: MultiTaskModel) -> bool:
        return self.tasks == model.tasks and all(version(t) == known for t, known in self.versions)


class Mixes:
    """How a model serves a task for each row: by one mixed network where that is known to give the same, or in turn."""

    def __init__(self) -> None:
        self._made: _Made | None = None
        self._making = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Mixes:
        return Mixes()

    def __reduce__(self) -> tuple[type[Mixes], tuple[()]]:
        return Mixes, ()

    def clear(self) -> None:
        """Forget what was made, and what is known of it."""
        self._made = None

    def serve(
        self, model: MultiTaskModel, make: Callable[..., Mixed], task: Any, inputs: Sequence[Any],
        named: Mapping[str, Any],
    ) -> Tensor:  # fmt: skip
        """The outputs for a task of each row, see `TaskModel.forward`.

        Args:
            make: makes the mixed network of a model for images such as its `example`.
        """
        if torch.compiler.is_compiling():
            raise OptionError("Compile model.mixed(), and call that with images and the numbers of their tasks.")
        numbers = task_numbers(model.tasks, task, inputs)
        alone = len(inputs) == 1 and not named
        if not alone or model.training or torch.is_grad_enabled():
            return rows_in_turn(model, numbers, inputs, named)
        images: Tensor = inputs[0]
        made = self._current(model, make, images)
        precision = torch.is_autocast_enabled(images.device.type), torch.get_autocast_dtype(images.device.type)
        case = images.shape[1:], images.dtype, images.device, precision
        if made.network is not None and case not in made.agrees:
            agrees = agreement(model, made.network, images)
            if agrees is None:  # nothing that can be compared, such as images of zeros
                return rows_in_turn(model, numbers, inputs, named)
            made.agrees[case] = agrees
        if made.network is None or not made.agrees[case]:
            return rows_in_turn(model, numbers, inputs, named)
        found: Tensor = made.network(images, numbers)
        return found

    def _current(self, model: MultiTaskModel, make: Callable[..., Mixed], images: Tensor) -> _Made:
        """What is made of the model's tensors as they are now."""
        made = self._made
        if made is not None and made.is_of(model):
            return made
        with self._making:
            made = self._made
            if made is None or not made.is_of(model):
                versions = tuple((tensor, version(tensor)) for tensor in _made_of(model))
                network = None
                with contextlib.suppress(Exception):  # whatever a network raises that cannot be run so
                    network = make(example=images[:1])
                made = self._made = _Made(network, model.tasks, versions, {})
            return made


def _made_of(model: MultiTaskModel) -> Iterator[Tensor]:
    """The tensors that a mixed network depends on: all but frozen buffers that passes move, which are put back."""
    yield from model.parameters()
    for task in model.tasks:
        yield from model.task_tensors(task).values()
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._NormBase):
            yield from part.buffers()


def agreement(model: MultiTaskModel, mixed: Mixed, images: Tensor) -> bool | None:
    """Whether a mixed network gives what the tasks give one after another; None where that cannot be told.

    The batches that it is tried on are made of the images, and each has rows of several tasks, in no order of theirs.
    """
    decided = False
    for first in range(0, len(mixed.tasks), TRIED):
        some = [*range(first, min(first + TRIED, len(mixed.tasks)))]
        numbers = torch.tensor([*reversed(some), some[0], (some[-1] + 1) % len(mixed.tasks)], device=images.device)
        rows = torch.stack([images[row % len(images)].roll(row, -1) for row in range(len(numbers))])
        with torch.no_grad():
            apart = rows_in_turn(model, numbers, (rows,), {}, mixed.tasks)
            try:
                found = mixed(rows, numbers)
            except Exception:  # whatever a network raises; an error of the images' came before
                return False
        known = torch.isfinite(apart)
        if found.shape != apart.shape or not torch.equal(known, torch.isfinite(found)):
            return False
        if known.any() and bool(apart[known].any()):
            off, largest = (found - apart)[known].abs().max(), apart[known].abs().max()
            if bool(off > ALIKE[apart.element_size()] * largest):
                return False
            decided = True
    return True if decided else None


def rows_in_turn(
    model: MultiTaskModel, numbers: Tensor, inputs: Sequence[Any], named: Mapping[str, Any],
    tasks: Sequence[str] | None = None,
) -> Tensor:  # fmt: skip
    """The outputs of a model for a task of each row, the rows of one task at a time, with their gradients.

    Args:
        tasks: their names, by number; those of the model by default.
    """
    names = model.tasks if tasks is None else tasks
    classes = [len(model.task(name).classes) for name in names]

    def serve(number: int, own: tuple[tuple[Any, ...], dict[str, Any]]) -> Tensor:
        made = checked(model(*own[0], task=names[number], **own[1]), classes[number])
        return widened(made, max(classes), -torch.inf)

    return by_task(serve, (tuple(inputs), dict(named)), numbers)


def task_numbers(tasks: Sequence[str], task: Any, inputs: Sequence[Any]) -> Tensor:
    """The number of each row's task, int64 (B,).

    Raises:
        UnknownNameError: a name that no task has.
        OptionError: numbers that no task has, or not one for each row.
    """
    device = next((x.device for x in inputs if isinstance(x, Tensor)), None)
    if isinstance(task, np.ndarray):
        task = torch.as_tensor(task)
    if isinstance(task, Tensor):
        numbers = task.to(device=device)
        if numbers.ndim != 1 or numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
            raise OptionError(
                f"Task numbers are a tensor of whole numbers, (B,), not {task.dtype} {tuple(task.shape)}."
            )
        numbers = numbers.long()
    elif isinstance(task, Sequence):
        places = {name: number for number, name in enumerate(tasks)}
        whole = (int, np.integer)
        given = [int(each) if isinstance(each, whole) and not isinstance(each, bool) else each for each in task]
        unknown = [
            each for each in given if (not isinstance(each, int) and each not in places) or isinstance(each, bool)
        ]
        if unknown:
            raise UnknownNameError("task", str(unknown[0]), tasks)
        numbers = torch.tensor(
            [each if isinstance(each, int) else places[each] for each in given], device=device
        ).long()
    else:
        raise UnknownNameError("task", str(task), tasks)
    rows = len(inputs[0]) if inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim else None
    if rows is None or len(numbers) != rows or not rows:
        raise OptionError(f"A task for each row: {len(numbers)} tasks were given for {rows or 'no'} rows.")
    if not bool(((numbers >= 0) & (numbers < len(tasks))).all()):
        raise OptionError(
            f"The tasks have the numbers 0 to {len(tasks) - 1}, not {int(numbers.min())} to {int(numbers.max())}."
        )
    return numbers
