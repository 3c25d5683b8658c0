"""What stands in the place of a network's layers, where each row of a batch is taken by a task of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from zoo.errors import OptionError
from zoo.increments.by_row import ByRow
from zoo.models.layers import Site


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
        site: a copy of the model's.
        outputs: to fill the channels up to with zeros; None: tasks have as many.
    """

    def __init__(self, site: Site, tasks: Sequence[str], rows: RowTasks, outputs: int | None = None) -> None:
        super().__init__()
        self.site, self.tasks, self.rows, self.outputs = site, tuple(tasks), rows, outputs

    def forward(self, *args: Any, **named: Any) -> Tensor:
        task = self.rows.of(next(x for x in pytree.tree_leaves((args, named)) if isinstance(x, Tensor)))
        if torch.compiler.is_compiling():  # or exporting: what is computed cannot depend on the numbers
            every = torch.stack([self._serve(number, (args, named)) for number in range(len(self.tasks))], 1)
            return every[torch.arange(task.shape[0], device=task.device), task]
        return by_task(self._serve, (args, named), task)

    def _serve(self, number: int, call: tuple[Any, Any]) -> Tensor:
        made: Tensor = self.site.serve(self.tasks[number], *call[0], **call[1])
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
