"""Which task the layers of a model serve now: one, or several at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from zoo.errors import OptionError

PASSES = 64  # backward passes that one thread is thought to run at the same time, at most


class CannotStack(RuntimeError):
    """A network whose tensors do not tell which of their rows are whose, so that tasks cannot be stacked."""


@dataclass
class Stack:
    """Several tasks served in one forward pass, on the same images.

    A tensor of as many rows as there are images is taken to be the same for all tasks, one of tasks × images rows to
    hold what each task makes of the images, task after task. Networks can be written in which that is not so.
    """

    tasks: tuple[str, ...]
    images: int
    begun: bool = False  # whether some layer has told the tasks apart already

    def shares(self, x: Tensor) -> bool:
        """Whether a tensor is the same for all tasks; raises CannotStack where that cannot be told."""
        if len(x) != self.images and not (self.begun and len(x) == self.images * len(self.tasks)):
            raise CannotStack(f"{len(x)} rows, of {self.images} images and {len(self.tasks)} tasks")
        return len(x) == self.images

    def parts(self, arguments: Any) -> list[Any]:
        """For each task, its part of every tensor among the arguments, in any nesting."""
        leaves, form = pytree.tree_flatten(arguments)
        split = [
            x.chunk(len(self.tasks)) if isinstance(x, Tensor) and not self.shares(x) else (x,) * len(self.tasks)
            for x in leaves
        ]
        return [pytree.tree_unflatten(list(part), form) for part in zip(*split, strict=True)]


class Selection(threading.local):
    """The task, or the stack of tasks, that the sites of one model serve, apart for each thread.

    A backward pass may run parts of the forward pass again (activation checkpointing), after the forward
    pass has ended and perhaps on a thread of autograd's own. `follow` makes the outputs carry their task
    there: the first node of their graph sets it for the pass, on whichever thread runs it. One thread may run
    several passes in turn (a GPU has one such thread), so each pass is told apart by its number.
    """

    def __init__(self) -> None:
        self._forward: str | Stack | None = None
        self._used: set[int] | None = None  # the sites that were used, by their ids, while somebody watches
        self._backward: dict[int, str | Stack] = {}  # by autograd's number of the pass; the newest last

    def __deepcopy__(self, memo: dict[int, Any]) -> Selection:
        return Selection()

    def __reduce__(self) -> tuple[type[Selection], tuple[()]]:
        return Selection, ()

    @property
    def task(self) -> str | Stack:
        """What is served now, on this thread."""
        task = self._forward
        return self._task_of_pass() if task is None else task  # torch.compile can follow the second alone

    @property
    def anyone(self) -> str | Stack | None:
        """What is served now, on this thread; None if nothing is."""
        task = self._forward
        return task if task is not None or torch._C._current_graph_task_id() == -1 else self._task_of_pass()

    def _task_of_pass(self) -> str | Stack:
        """The task of the backward pass that autograd runs on this thread."""
        number = torch._C._current_graph_task_id()
        if number == -1 or not self._backward:
            raise OptionError("No task is selected: call the TaskModel as model(images, task=…), not its backbone.")
        return self._backward.get(number) or list(self._backward.values())[-1]  # else a pass within a pass

    @contextmanager
    def watched(self) -> Iterator[set[int]]:
        """The ids of the sites that are used on this thread until the block ends, in a set that fills."""
        before, self._used = self._used, set()
        try:
            yield self._used
        finally:
            self._used = before

    def note(self, site: object) -> None:
        """Tell whoever watches that a site is used."""
        if self._used is not None:
            self._used.add(id(site))

    @contextmanager
    def use(self, task: str | Stack) -> Iterator[None]:
        """Serve `task` on this thread until the block ends."""
        before, self._forward = self._forward, task
        try:
            yield
        finally:
            self._forward = before

    def follow(self, outputs: Any, task: str | Stack) -> None:
        """Have a backward pass from `outputs`, tensors in any nesting, serve `task` again."""
        for output in pytree.tree_leaves(outputs):
            if isinstance(output, Tensor) and output.grad_fn is not None:
                output.grad_fn.register_prehook(lambda _: self._resume(task))

    def _resume(self, task: str | Stack) -> None:
        number = torch._C._current_graph_task_id()
        self._backward.pop(number, None)
        self._backward[number] = task
        while len(self._backward) > PASSES:
            del self._backward[next(iter(self._backward))]
