"""What a task adds to a frozen weight, and what a method is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from zoo.catalog.options import check_options
from zoo.errors import OptionError
from zoo.increments.by_row import (
    GATHER_COST,
    OUTPUT_COST,
    THIN_COST,
    Branch,
    Stacked,
    StackedConvolution,
    Way,
    filled,
    is_pointwise,
    stack,
)
from zoo.increments.forms import Convolution, TransposedConvolution, weight_of

WHOLE = "whole"  # what the one block of rows is called of a layer that is adapted as it stands


@dataclass(frozen=True)
class Role:
    """What a layer is in its network, as `zoo.models.placement` finds it."""

    second_of_block: bool = False  # whether it is the second convolution of a block, or the fourth, …
    heads: int = 0  # of the attention that it projects for; 0 outside one
    rows: Mapping[str, slice] = field(default_factory=dict)  # of its weight: what each projection to adapt is made by


def role_of(layer: nn.Module) -> Role:
    """A layer's role; one that stands outside any network has none in particular."""
    return getattr(layer, "role", Role())


class FrozenLayer(Protocol):
    """The layer that an increment is added to; `zoo.models.layers.AdaptedLayer` is one."""

    @property
    def frozen_weight(self) -> Tensor:
        """(C_out, C_in / groups, …) or (C_out, C_in), whatever way the layer stores it."""

    @property
    def frozen_bias(self) -> Tensor | None:
        """(C_out,)."""

    @property
    def role(self) -> Role:
        """What the layer is in its network."""

    @property
    def has_standard_forward(self) -> bool:
        """Whether the layer computes what torch's own layer of its form computes."""

    @property
    def shared(self) -> nn.Module:
        """What all tasks' increments to this layer share, for a method that has such."""

    def run(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """What the layer makes of `x`, under its own weight and bias or under these, in the form of `frozen_weight`."""


class Increment(nn.Module):
    """One task's ΔW for one frozen layer: `W_t = W + ΔW_t` (FTN, Eq. 1).

    A method defines `delta`. It overrides `forward` only where a route exists
    that is cheaper than running the layer under the summed weight.
    """

    normalises = (
        False  # whether training divides the output by the deviation of the batch, for which norms must make up
    )

    @property
    def own_shift(self) -> Tensor | None:
        """(C_out,), what the task adds to the layer's bias, once that is scaled if at all; None where that stays."""
        return self._parameters.get("shift")

    def delta(self, weight: Tensor) -> Tensor:
        """ΔW, in the shape, dtype and device of `weight`."""
        raise NotImplementedError

    def own_bias(self, layer: nn.Module, wanted: bool) -> None:
        """Give the task a bias of its own, if that is wanted and the layer has one; it starts as the layer's."""
        if not isinstance(wanted, bool):
            raise OptionError(f"The bias must be true or false, not {wanted!r}.")
        if wanted and layer._parameters.get("bias") is not None:
            self.shift = nn.Parameter(torch.zeros(len(weight_of(layer))))

    def applied(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The task's own weight `W + ΔW`, and its bias."""
        return weight + self.delta(weight), self.shifted(bias)

    def shifted(self, bias: Tensor | None) -> Tensor | None:
        """The task's own bias, made of the layer's."""
        shift = self.own_shift
        if shift is None or bias is None:
            return bias if shift is None else shift
        return bias + shift.to(bias.dtype)

    def low_rank(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        """ΔW as an exact product of thin matrices, up (C_out, R) and down (R, C_in k²), for a method that has such.

        A bias of the task's own is not in it.
        """
        return None

    def forward(self, x: Tensor, layer: FrozenLayer) -> Tensor:
        """The output of `layer` under the task's weight and bias, for the input `x` that the layer takes."""
        return layer.run(x, *folded(self, layer.frozen_weight, layer.frozen_bias))

    @staticmethod
    def together(increments: Sequence[Any], x: Tensor, layer: FrozenLayer, shared: bool) -> Tensor:
        """The outputs of `layer` under the weights of several tasks, one task after another in the rows.

        A method overrides it where a cheaper way exists than one task at a time.

        Args:
            increments: one of each task, all of this class.
            x: the same input for all tasks, if `shared`; else the tasks' inputs, one after another in the rows.
        """
        inputs = [x] * len(increments) if shared else x.chunk(len(increments))
        return torch.cat([increment(part, layer) for increment, part in zip(increments, inputs, strict=True)])

    @classmethod
    def by_row(cls, increments: Sequence[Any], layer: Any, positions: int) -> list[Way]:
        """The ways to run a layer for rows of several tasks; none: one task after another.

        A method overrides it where it has others than weights of low rank have.

        Args:
            increments: one of each task, all of this class.
            layer: the frozen one, as it stands; it computes what torch's own layer of its form computes.
            positions: of its output, for one image.
        """
        weight, bias = weight_of(layer), layer._parameters["bias"]
        numbers, c_out = weight.numel(), len(weight)
        full, gathered, c_in = numbers * positions, GATHER_COST * numbers, numbers // c_out

        def own() -> tuple[Tensor, Tensor | None]:
            pairs = [folded(each, weight, bias) for each in increments]
            biases = [b for _, b in pairs if b is not None]
            return stack([w for w, _ in pairs], weight), stack(biases, weight) if biases else None

        ways, kept = [], len(increments) * weight.nbytes
        if not is_pointwise(layer):
            if isinstance(layer, Convolution) and not isinstance(layer, TransposedConvolution):
                cost = full + gathered + OUTPUT_COST * c_out * positions
                ways.append(Way(cost, lambda: StackedConvolution(*own()), kept, fixes_batch=True))
            return ways
        ways.append(Way(full + gathered, lambda: Stacked(*own()), kept))
        thin = [each.low_rank(weight) for each in increments]
        if all(thin) and not any(each.own_shift is not None for each in increments):
            ups, downs = zip(*thin, strict=True)
            rank = max(up.shape[1] for up in ups) * (c_in + c_out)
            cost = full + (THIN_COST * rank + OUTPUT_COST * c_out) * positions + GATHER_COST * rank
            ways.append(Way(cost, lambda: Branch(stack(filled(ups, 1), weight), stack(filled(downs, 0), weight))))
        return ways


def folded(increment: Increment, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The task's own weight and bias in the frozen ones' types, summed in float32 at least, and so rounded once."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    own, own_bias = increment.applied(weight.to(wide), None if bias is None else bias.to(wide))
    narrow = weight.dtype if bias is None else bias.dtype
    return own.to(weight.dtype), None if own_bias is None else own_bias.to(narrow)


class RowIncrement(Increment):
    """A ΔW that is made of one matrix for each of some blocks of the weight's rows; the others keep every bit.

    The blocks are the projections of attention that are to be adapted, as the layer's role says; or the whole layer.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.rows: Mapping[str, slice] = role_of(layer).rows or {WHOLE: slice(0, len(weight_of(layer)))}

    def part(self, kind: str) -> Tensor:
        """What is added to the rows of one block, (rows, C_in k²)."""
        raise NotImplementedError

    def delta(self, weight: Tensor) -> Tensor:
        return self._added(torch.zeros_like(weight))

    def applied(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self._added(weight.clone()), bias

    def _added(self, weight: Tensor) -> Tensor:
        for kind, rows in self.rows.items():
            weight[rows] += self.part(kind).to(weight.dtype).view_as(weight[rows])
        return weight


@dataclass(frozen=True)
class Method:
    """How a task adapts a backbone: what it adds to which weights, and what else it owns.

    Every method gives the task a head of its own.
    """

    name: str
    summary: str
    increment: type[Increment] | None = None  # what an adapted layer gets; None adapts no layer
    norms: bool = True  # whether the task has batch norms (affine and running statistics) of its own
    stem: bool = False  # whether the first convolution is adapted too
    projections: tuple[str, ...] = ()  # of attention, which to adapt, where nothing else is asked for; (): whole layers
    whole: bool = True  # whether whole layers can be adapted
    linear: bool = True  # whether Linear layers are adapted, where nothing else is asked for
    shared: Callable[..., nn.Module] | None = None  # made of a layer and the options: what its tasks' increments share
    trains_backbone: bool = False  # whether the backbone's own weights are trained (pre-training)

    @property
    def shares_factors(self) -> bool:
        """Whether several layers of a task have factors in common."""
        return self.increment is not None and "peers" in inspect.signature(self.increment).parameters

    def check(self, options: Mapping[str, Any]) -> None:
        """Raise OptionError unless the method takes just these options."""
        taken = list(inspect.signature(self.increment).parameters.values())[1:] if self.increment else []
        taken = [p for p in taken if p.kind is not p.KEYWORD_ONLY]  # such as `peers`, which the model gives
        check_options(self.name, taken, options)

    def share(self, layer: nn.Module, options: Mapping[str, Any]) -> nn.Module:
        """What the tasks' increments to `layer` have in common, for a method that has such; frozen."""
        assert self.shared is not None
        self.check(options)
        return self.shared(layer, **options).requires_grad_(False)

    def build(self, layer: nn.Module, options: Mapping[str, Any], peers: Sequence[Increment] = ()) -> Increment:
        """A fresh increment for `layer`; raises OptionError on options that the method rejects.

        Args:
            peers: the same task's increments to the layers before; one whose factors several layers share needs them.
        """
        assert self.increment is not None
        self.check(options)
        if self.shares_factors:
            return self.increment(layer, **options, peers=peers)
        return self.increment(layer, **options)

    def size(self, layer: nn.Module, options: Mapping[str, Any]) -> int:
        """Parameters of an increment for `layer`, which is built without memory; of the rank 0, which is none: 0."""
        if options.get("rank") == 0:
            return 0
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in self.build(layer, options).parameters())
