"""Layers that serve one of several tasks, each sitting where a layer of the backbone sat.

A *site* takes over the parameters, buffers and hooks of the layer it replaces, so that module paths and
state-dict names of the backbone stay what they were, and keeps one small module per task in `tasks`.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from zoo.errors import OptionError
from zoo.increments import Increment, Role

PASSES = 64  # backward passes that one thread is thought to run at the same time, at most
HOOKS = [name for name in nn.Module().__dict__ if "_hooks" in name]


class Selection(threading.local):
    """The task that the sites of one model serve, apart for each thread.

    A backward pass may run parts of the forward pass again (activation checkpointing), after the forward
    pass has ended and perhaps on a thread of autograd's own. `follow` makes the outputs carry their task
    there: the first node of their graph sets it for the pass, on whichever thread runs it. One thread may run
    several passes in turn (a GPU has one such thread), so each pass is told apart by its number.
    """

    def __init__(self) -> None:
        self._forward: str | None = None
        self._backward: dict[int, str] = {}  # by autograd's number of the pass; the newest last

    def __deepcopy__(self, memo: dict[int, Any]) -> Selection:
        return Selection()

    def __reduce__(self) -> tuple[type[Selection], tuple[()]]:
        return Selection, ()

    @property
    def task(self) -> str:
        """The task served now, on this thread."""
        task = self._forward
        return self._task_of_pass() if task is None else task  # torch.compile can follow the second alone

    def _task_of_pass(self) -> str:
        """The task of the backward pass that autograd runs on this thread."""
        number = torch._C._current_graph_task_id()
        if number == -1 or not self._backward:
            raise OptionError("No task is selected: call the TaskModel as model(images, task=…), not its backbone.")
        return self._backward.get(number) or list(self._backward.values())[-1]  # else a pass within a pass

    @contextmanager
    def use(self, task: str) -> Iterator[None]:
        """Serve `task` on this thread until the block ends."""
        before, self._forward = self._forward, task
        try:
            yield
        finally:
            self._forward = before

    def follow(self, outputs: Any, task: str) -> None:
        """Have a backward pass from `outputs`, tensors in any nesting, serve `task` again."""
        for output in pytree.tree_leaves(outputs):
            if isinstance(output, Tensor) and output.grad_fn is not None:
                output.grad_fn.register_prehook(lambda _: self._resume(task))

    def _resume(self, task: str) -> None:
        number = torch._C._current_graph_task_id()
        self._backward.pop(number, None)
        self._backward[number] = task
        while len(self._backward) > PASSES:
            del self._backward[next(iter(self._backward))]


class Site(nn.Module):
    """A layer of the backbone, and one module per task."""

    frozen_class: type[nn.Module]
    selection: Selection
    tasks: nn.ModuleDict

    @classmethod
    def adopt(cls, layer: nn.Module, selection: Selection) -> Self:
        """A site in place of `layer`, sharing its parameters, with no task yet."""
        site = cls.__new__(cls)
        site.__dict__.update(layer.__dict__)
        site.__dict__["_modules"] = dict(layer._modules)
        site.frozen_class = type(layer)
        site.selection = selection
        site.tasks = nn.ModuleDict()
        return site

    def plain(self, task: str) -> nn.Module:
        """An independent layer of the frozen layer's class that does what this site does for `task`."""
        layer = copy.deepcopy(self.tasks[task])
        layer.__dict__.update({name: copy.copy(self.__dict__[name]) for name in HOOKS})
        return layer

    def forward(self, *args: Any) -> Any:
        return self.tasks[self.selection.task](*args)

    def _frozen(self) -> nn.Module:
        """The layer that this site replaced, around the same parameters."""
        layer = self.frozen_class.__new__(self.frozen_class)
        own = ("frozen_class", "selection", "role")
        layer.__dict__.update({key: value for key, value in self.__dict__.items() if key not in own})
        layer.__dict__["_modules"] = {
            key: value for key, value in self._modules.items() if key not in ("tasks", "shared")
        }
        return layer


class TaskNorm(Site):
    """A batch norm per task, with its own affine parameters and running statistics (FTN, Eq. 3)."""

    def add(self, task: str) -> None:
        """Give `task` a norm that starts as the backbone's."""
        norm = copy.deepcopy(self._frozen()).requires_grad_(True)
        norm.__dict__.update({name: type(norm.__dict__[name])() for name in HOOKS})  # the site runs them already
        self.tasks[task] = norm


class TaskHead(Site):
    """A classifier per task, in place of the one that the backbone was trained with."""

    make: Callable[[int], nn.Module]  # a classifier of so many classes

    @classmethod
    def adopt(cls, layer: nn.Module, selection: Selection) -> Self:
        site = super().adopt(layer, selection)
        site.__dict__["_parameters"] = {}  # the backbone's own classifier is no part of the model
        bias = getattr(layer, "bias", None) is not None
        if isinstance(layer, nn.Conv2d):
            form = {"kernel_size": layer.kernel_size, "stride": layer.stride, "padding": layer.padding}
            site.make = functools.partial(nn.Conv2d, layer.in_channels, bias=bias, **form)  # type: ignore[arg-type]
        elif isinstance(layer, nn.Linear):
            site.make = functools.partial(nn.Linear, layer.in_features, bias=bias)
        return site

    def add(self, task: str, classes: int) -> None:
        """Give `task` a fresh classifier of so many classes."""
        self.tasks[task] = self.make(classes)


def has_standard_forward(kind: type[nn.Module]) -> bool:
    """Whether a class of Conv2d or Linear layers computes what torch's own does."""
    base = nn.Conv2d if issubclass(kind, nn.Conv2d) else nn.Linear
    return all(getattr(kind, name, None) is getattr(base, name, None) for name in ("forward", "_conv_forward"))


class AdaptedLayer(Site):
    """A frozen layer with a weight, which adds the selected task's increment to it."""

    weight: Tensor
    bias: Tensor | None
    shared: nn.Module  # what the tasks' increments have in common, for a method that has such
    role: Role = Role()

    @property
    def has_standard_forward(self) -> bool:
        """Whether the frozen layer computes what torch's own Conv2d or Linear computes."""
        return has_standard_forward(self.frozen_class)

    def add(self, task: str, increment: Increment) -> None:
        self.tasks[task] = increment

    def run(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """What the frozen layer makes of `x`, under its own weight and bias or under these."""
        layer = self._frozen()
        if weight is not None:
            layer.__dict__["_parameters"] = {**self._parameters, "weight": weight, "bias": bias}
        outputs: Tensor = layer.forward(x)
        return outputs

    def plain(self, task: str) -> nn.Module:
        with torch.no_grad():
            weight, bias = self._applied(task)
        layer = self._frozen()
        parameters = dict(self._parameters)
        parameters["weight"] = nn.Parameter(weight.detach())
        parameters["bias"] = None if bias is None else nn.Parameter(bias.detach())
        layer.__dict__["_parameters"] = parameters
        return copy.deepcopy(layer)

    def forward(self, input: Tensor) -> Tensor:  # the name that torch's layers give it
        task = self.selection.task
        outputs: Tensor = self.tasks[task](input, self) if task in self.tasks else self.run(input)
        return outputs

    def _applied(self, task: str) -> tuple[Tensor, Tensor | None]:
        if task not in self.tasks:
            return self.weight, self.bias
        increment = self.tasks[task]
        assert isinstance(increment, Increment)
        return increment.applied(self.weight, self.bias)


class AdaptedConv2d(AdaptedLayer, nn.Conv2d):
    """A frozen Conv2d of any form, with an increment per task."""


class AdaptedLinear(AdaptedLayer, nn.Linear):  # type: ignore[misc]  # torch declares one bias in two ways
    """A frozen Linear layer, with an increment per task."""
