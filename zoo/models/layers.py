"""Layers that serve one of several tasks, each sitting where a layer of the backbone sat.

A *site* takes over the parameters, buffers and hooks of the layer it replaces, so that module paths and
state-dict names of the backbone stay what they were, and keeps one small module per task in `tasks`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from zoo.increments import Increment, Role
from zoo.models.selection import Selection, Stack

HOOKS = [name for name in nn.Module().__dict__ if "_hooks" in name]


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

    def forward(self, *args: Any, **named: Any) -> Any:
        served = self.selection.task
        if not isinstance(served, Stack):
            return self.serve(served, *args, **named)
        outputs = self.stacked(served, *args, **named)
        served.begun = served.begun or (isinstance(outputs, Tensor) and len(outputs) > served.images)
        return outputs

    def serve(self, task: str, *args: Any, **named: Any) -> Any:
        """What the layer makes of its inputs for one task."""
        return self.tasks[task](*args, **named)

    def stacked(self, stack: Stack, *args: Any, **named: Any) -> Any:
        """What it makes of them for each of a stack of tasks, one after another in the rows."""
        return torch.cat(list(self._each(stack, *args, **named).values()))

    def _each(self, stack: Stack, *args: Any, **named: Any) -> dict[str, Any]:
        parts = zip(stack.tasks, stack.parts((args, named)), strict=True)
        return {task: self.serve(task, *own, **own_named) for task, (own, own_named) in parts}

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
        self.tasks[task] = own_copy(self._frozen())

    def stacked(self, stack: Stack, *args: Any, **named: Any) -> Any:
        known = [_scale_and_shift(self.tasks[task]) for task in stack.tasks]
        pairs = [pair for pair in known if pair]
        if stack.shares(args[0]) or len(pairs) < len(known):
            return super().stacked(stack, *args, **named)
        x = args[0].unflatten(0, (len(pairs), -1))  # (tasks, B, C, …)
        form = (len(pairs), 1, -1) + (1,) * (x.ndim - 3)
        scale, shift = (torch.stack(each).view(form).to(x.dtype) for each in zip(*pairs, strict=True))
        return torch.addcmul(shift, x, scale).flatten(0, 1)


def _scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """What a norm multiplies each channel by and what it adds then, (C) each; None if it does more, as it stands."""
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or type(norm).forward is not nn.BatchNorm2d.forward:
        return None
    if norm.training or norm.running_var is None or norm.running_mean is None or not norm.affine:
        return None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


class TaskHead(Site):
    """A head per task, in place of the one that the backbone was trained with: a classifier, or a whole decoder."""

    make: Callable[[int], nn.Module]  # a head of so many outputs

    @classmethod
    def adopt(cls, layer: nn.Module, selection: Selection) -> Self:
        site = super().adopt(layer, selection)
        # The backbone's own head is no part of the model.
        site.__dict__.update({"_parameters": {}, "_buffers": {}, "_modules": {"tasks": site.tasks}})
        site.make = functools.partial(fresh_head, layer)
        return site

    def add(self, task: str, outputs: int) -> None:
        """Give `task` a fresh classifier of so many classes, or a decoder that starts as the backbone's."""
        self.tasks[task] = self.make(outputs)

    def stacked(self, stack: Stack, *args: Any, **named: Any) -> Any:
        """The outputs by task: those of several tasks need not be of one shape, and after a head nothing follows."""
        return self._each(stack, *args, **named)


def fresh_head(head: nn.Module, outputs: int) -> nn.Module:
    """A head of the same form with so many outputs: the last layer that it registers is fresh, the rest is copied."""
    bias = getattr(head, "bias", None) is not None
    if isinstance(head, nn.Conv2d | nn.ConvTranspose2d):
        names = ["kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"]
        names += ["output_padding"] if isinstance(head, nn.ConvTranspose2d) else []
        kind = nn.Conv2d if isinstance(head, nn.Conv2d) else nn.ConvTranspose2d
        return kind(head.in_channels, outputs, bias=bias, **{name: getattr(head, name) for name in names})
    if isinstance(head, nn.Linear):
        return nn.Linear(head.in_features, outputs, bias=bias)
    fresh = own_copy(head)
    last_of = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    path, last = [(path, layer) for path, layer in fresh.named_modules() if isinstance(layer, last_of)][-1]
    fresh.set_submodule(path, fresh_head(last, outputs))
    return fresh


def own_copy(module: nn.Module) -> nn.Module:
    """A copy of a module for a task to train; without its hooks, which the site in its place runs already."""
    copied = copy.deepcopy(module).requires_grad_(True)
    copied.__dict__.update({name: type(copied.__dict__[name])() for name in HOOKS})
    return copied


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

    def forward(self, input: Tensor) -> Any:  # the name that torch's layers give it
        return super().forward(input)

    def serve(self, task: str, *args: Any, **named: Any) -> Any:
        return self.tasks[task](*args, self) if task in self.tasks else self.run(*args)

    def stacked(self, stack: Stack, *args: Any, **named: Any) -> Any:
        if not any(task in self.tasks for task in stack.tasks):
            return self.run(*args)
        increments = [self.tasks[task] for task in stack.tasks if task in self.tasks]
        (kind, *others), shared = {type(increment) for increment in increments}, stack.shares(args[0])
        if others or len(increments) < len(stack.tasks) or not issubclass(kind, Increment):
            return super().stacked(stack, *args)
        return kind.together(increments, args[0], self, shared)

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
