"""Layers that serve one of several tasks, each sitting where a layer of the backbone sat.

A *site* takes over the parameters, buffers and hooks of the layer it replaces, so that module paths and
state-dict names of the backbone stay what they were, and keeps one small module per task in `tasks`.

Networks do not only call their layers. Some read `layer.weight` and compute with it themselves, or call a method of the
layer's own class. While a task is served, a site answers both as the task's own plain layer would.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from zoo.errors import OptionError
from zoo.increments import Increment, Role
from zoo.increments.base import folded
from zoo.increments.forms import WEIGHTED, TransposedConvolution, form_of, has_standard_forward, turned, weight_of
from zoo.models.frozen import copy_of, trainable
from zoo.models.selection import CannotStack, Selection, Stack

Pair = tuple[Tensor, Tensor]
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
        layer: nn.Module = copy_of(self.tasks[task])
        layer.__dict__.update({name: copy.copy(self.__dict__[name]) for name in HOOKS})
        return layer

    def plain_tensors(self, task: str) -> dict[str, Tensor]:
        """The tensors of `plain(task)`, by name; made in the graph of whatever they are made of, and not copied."""
        return self.tasks[task].state_dict(keep_vars=True)

    def forward(self, *args: Any, **named: Any) -> Any:
        served = self.selection.task
        self.selection.note(self)
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

    def _reader(self) -> str | None:
        """The task that whoever reads a tensor of this site now reads it for; None outside of any pass.

        Raises:
            CannotStack: for several tasks at once.
        """
        served = self.selection.anyone
        if isinstance(served, Stack):
            raise CannotStack("a layer's tensors, read by the network itself, are one task's")
        self.selection.note(self)
        return served

    def _frozen(self) -> nn.Module:
        """The layer that this site replaced, around the same parameters."""
        layer = self.frozen_class.__new__(self.frozen_class)
        own = ("frozen_class", "selection", "role")
        layer.__dict__.update({key: value for key, value in self.__dict__.items() if key not in own})
        layer.__dict__["_modules"] = {
            key: value for key, value in self._modules.items() if key not in ("tasks", "shared")
        }
        return layer


class Replaced(Site):
    """A site whose tasks each have a whole layer of their own in its place."""

    def __getattr__(self, name: str) -> Any:
        if name == "tasks":
            return super().__getattr__(name)
        task = self._reader()
        return super().__getattr__(name) if task is None else getattr(self.tasks[task], name)


class TaskOwn(Replaced):
    """A module per task, all of it: a norm, an embedding, where a generator's latents lie."""

    def add(self, task: str) -> None:
        """Give `task` a module that starts as the backbone's."""
        self.tasks[task] = own_copy(self._frozen())


class TaskNorm(TaskOwn):
    """A batch norm per task, with its own affine parameters and running statistics (FTN, Eq. 3)."""

    def stacked(self, stack: Stack, *args: Any, **named: Any) -> Any:
        known = [scale_and_shift(self.tasks[task]) for task in stack.tasks]
        pairs = [pair for pair in known if pair]
        if stack.shares(args[0]) or len(pairs) < len(known):
            return super().stacked(stack, *args, **named)
        x = args[0].unflatten(0, (len(pairs), -1))  # (tasks, B, C, …)
        form = (len(pairs), 1, -1) + (1,) * (x.ndim - 3)
        scale, shift = (torch.stack(each).view(form).to(x.dtype) for each in zip(*pairs, strict=True))
        return torch.addcmul(shift, x, scale).flatten(0, 1)


def scale_and_shift(norm: nn.Module, forwards: Sequence[Any] = (nn.BatchNorm2d.forward,)) -> Pair | None:
    """What a norm multiplies each channel by and what it adds then, (C) each; None if it does more, as it stands.

    Args:
        forwards: what norms compute that do just this, or this first.
    """
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or type(norm).forward not in forwards:
        return None
    if norm.training or norm.running_var is None or norm.running_mean is None or not norm.affine:
        return None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


class TaskHead(Replaced):
    """A head per task, in place of the one that the backbone was trained with: a classifier, or a whole decoder."""

    make: Callable[[int], nn.Module]  # a head of so many outputs
    original: nn.Module  # the head that the backbone came with; no part of the model

    @classmethod
    def adopt(cls, layer: nn.Module, selection: Selection) -> Self:
        site = super().adopt(layer, selection)
        # The backbone's own head is no part of the model.
        site.__dict__.update({"_parameters": {}, "_buffers": {}, "_modules": {"tasks": site.tasks}})
        site.make = functools.partial(fresh_head, layer)
        site.__dict__["original"] = layer
        return site

    def add(self, task: str, outputs: int) -> None:
        """Give `task` a fresh classifier of so many classes, or a decoder that starts as the backbone's."""
        self.tasks[task] = self.make(outputs)

    def stacked(self, stack: Stack, *args: Any, **named: Any) -> Any:
        """The outputs by task: those of several tasks need not be of one shape, and after a head nothing follows."""
        return self._each(stack, *args, **named)


def fresh_head(head: nn.Module, outputs: int) -> nn.Module:
    """A head of the same form with so many outputs: the last layer that it registers is fresh, the rest is copied."""
    if not isinstance(head, WEIGHTED):
        fresh = own_copy(head)
        last = [layer for layer in fresh.modules() if isinstance(layer, WEIGHTED)][-1]
        replace_everywhere(fresh, last, fresh_head(last, outputs))
        return fresh
    bias, like = getattr(head, "bias", None) is not None, next(head.parameters(), torch.empty(0))
    with torch.inference_mode(False):
        if isinstance(head, nn.Linear):
            return _placed(nn.Linear(head.in_features, outputs, bias=bias), like)
        if outputs % head.groups:
            raise OptionError(f"The head is a convolution in {head.groups} groups; {outputs} outputs are no multiple.")
        names = ["kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"]
        names += ["output_padding"] if isinstance(head, TransposedConvolution) else []
        settings = {name: getattr(head, name) for name in names}
        made: nn.Module = form_of(type(head))(head.in_channels, outputs, bias=bias, **settings)
        return _placed(made, like)


def _placed(layer: nn.Module, like: Tensor) -> nn.Module:
    """The layer in a tensor's type, and where it lies; one that has no values yet gets them where they are made."""
    return layer if next(layer.parameters()).is_meta else layer.to(like.device, like.dtype)


def replace_everywhere(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put one module into all the places of another one."""
    for path in [path for path, module in network.named_modules(remove_duplicate=False) if module is old]:
        network.set_submodule(path, new)


def own_copy(module: nn.Module) -> nn.Module:
    """A copy of a module for a task to train; without its hooks, which the site in its place runs already."""
    copied = trainable(copy_of(module))
    copied.__dict__.update({name: type(copied.__dict__[name])() for name in HOOKS})
    return copied


class AdaptedLayer(Site):
    """A frozen layer with a weight, which adds the selected task's increment to it.

    Increments see its weight in the form of `zoo.increments.forms`, as `frozen_weight`. `weight` and `bias` are, while
    a task is served, the task's own, in the form that torch stores; otherwise the frozen ones.
    """

    shared: nn.Module  # what the tasks' increments have in common, for a method that has such
    role: Role = Role()

    @property
    def frozen_weight(self) -> Tensor:
        """The layer's own weight, (C_out, C_in / groups, …)."""
        return weight_of(self)

    @property
    def frozen_bias(self) -> Tensor | None:
        """The layer's own bias, (C_out,)."""
        return self._parameters["bias"]

    @property
    def weight(self) -> Tensor:  # read by networks that compute with it themselves
        weight: Tensor = self._read("weight")
        return weight

    @property
    def bias(self) -> Tensor | None:
        bias: Tensor | None = self._read("bias")
        return bias

    def _read(self, name: str) -> Any:
        task = self._reader()
        return self._parameters[name] if task is None else self._own(task)[name]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if not hasattr(self.__dict__.get("frozen_class"), name):
                raise
        task = self._reader()  # such as a method of a class of layers that only its network knows
        return getattr(self._frozen() if task is None else self._with(self._own(task)), name)

    @property
    def has_standard_forward(self) -> bool:
        """Whether the frozen layer computes what torch's own layer of its form computes."""
        return has_standard_forward(self.frozen_class)

    def add(self, task: str, increment: Increment) -> None:
        weight = self.frozen_weight
        wide = torch.promote_types(weight.dtype, torch.float32)  # small steps would be lost in fewer bits
        self.tasks[task] = increment.to(weight.device, wide)

    def run(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """What the frozen layer makes of `x`, under its own weight and bias or these, in `frozen_weight`'s form."""
        layer = self._frozen() if weight is None else self._with({"weight": turned(weight, self), "bias": bias})
        outputs: Tensor = layer.forward(x)
        return outputs

    def plain(self, task: str) -> nn.Module:
        with torch.no_grad():
            own = {k: None if t is None else nn.Parameter(t.detach().clone()) for k, t in self._own(task).items()}
        layer: nn.Module = copy_of(self._with(own))
        return layer

    def plain_tensors(self, task: str) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self._own(task).items() if tensor is not None}

    def serve(self, task: str, *args: Any, **named: Any) -> Any:
        if task not in self.tasks:
            return self._frozen().forward(*args, **named)
        if len(args) == 1 and not named:
            return self.tasks[task](*args, self)
        return self._with(self._own(task)).forward(*args, **named)  # such as a transposed convolution's output size

    def stacked(self, stack: Stack, *args: Any, **named: Any) -> Any:
        if not any(task in self.tasks for task in stack.tasks):
            return self._frozen().forward(*args, **named)
        increments = [self.tasks[task] for task in stack.tasks if task in self.tasks]
        kind, *others = {type(increment) for increment in increments}
        plainly = len(args) == 1 and not named
        if others or len(increments) < len(stack.tasks) or not issubclass(kind, Increment) or not plainly:
            return super().stacked(stack, *args, **named)
        return kind.together(increments, args[0], self, stack.shares(args[0]))

    def _own(self, task: str) -> dict[str, Tensor | None]:
        """The task's own weight and bias, in the form that torch stores."""
        if task not in self.tasks:
            return {name: self._parameters[name] for name in ("weight", "bias")}
        increment = self.tasks[task]
        assert isinstance(increment, Increment)
        weight, bias = folded(increment, self.frozen_weight, self.frozen_bias)
        return {"weight": turned(weight, self), "bias": bias}

    def _with(self, parameters: dict[str, Any]) -> nn.Module:
        """The frozen layer around another weight and bias."""
        layer = self._frozen()
        layer.__dict__["_parameters"] = {**self._parameters, **parameters}
        return layer


class AdaptedLinear(AdaptedLayer, nn.Linear):  # type: ignore[misc, override]  # torch's classes declare plain attributes
    """A frozen Linear layer, with an increment per task."""


class AdaptedConv1d(AdaptedLayer, nn.Conv1d):  # type: ignore[override]
    """A frozen Conv1d of any form, with an increment per task; and so on."""


class AdaptedConv2d(AdaptedLayer, nn.Conv2d):  # type: ignore[override]
    """See AdaptedConv1d."""


class AdaptedConv3d(AdaptedLayer, nn.Conv3d):  # type: ignore[override]
    """See AdaptedConv1d."""


class AdaptedConvTranspose1d(AdaptedLayer, nn.ConvTranspose1d):  # type: ignore[override]
    """See AdaptedConv1d."""


class AdaptedConvTranspose2d(AdaptedLayer, nn.ConvTranspose2d):  # type: ignore[override]
    """See AdaptedConv1d."""


class AdaptedConvTranspose3d(AdaptedLayer, nn.ConvTranspose3d):  # type: ignore[override]
    """See AdaptedConv1d."""


ADAPTED: tuple[type[AdaptedLayer], ...] = (
    AdaptedLinear, AdaptedConv1d, AdaptedConv2d, AdaptedConv3d,
    AdaptedConvTranspose1d, AdaptedConvTranspose2d, AdaptedConvTranspose3d,
)  # fmt: skip


def adapted_kind(layer: nn.Module) -> type[AdaptedLayer]:
    """The kind of site that takes a layer's place."""
    return next(kind for kind in ADAPTED if issubclass(kind, form_of(type(layer))))
