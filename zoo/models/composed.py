"""Layers of torch's whose weight is not stored but made of parts, which other layers may hold too."""

from __future__ import annotations

import copy
import math
from typing import Any

from torch import Tensor, nn

from zoo.errors import OptionError

LAYERS = (nn.Linear, nn.Conv2d, nn.LSTM)


def weight_name(layer: nn.Module) -> str:
    """Which parameter of a layer of torch's is the one that can be made."""
    return "weight_ih_l0" if isinstance(layer, nn.LSTM) else "weight"


def weight_of(layer: nn.Module) -> nn.Parameter:
    """That parameter."""
    return layer.get_parameter(weight_name(layer))


class Composed(nn.Module):
    """A Linear, Conv2d or LSTM layer that makes its weight anew for every batch; an LSTM, its input-to-hidden weights.

    Whoever makes a kind of it defines `weight`. All else (bias, strides, hidden weights) is the given layer's, and is
    this layer's own.

    Attributes:
        frame: the layer, its weight taken out.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        check_layer(layer)
        self.frame = _with_weight(layer, None)

    def weight(self) -> Tensor:
        """The weight, in the layout that torch's layer stores it in."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        return self.run(x, self.weight())

    def run(self, x: Tensor, weight: Tensor) -> Any:
        """What torch's layer makes of `x` under a weight."""
        return _with_weight(self.frame, weight).forward(x)

    def plain(self) -> nn.Module:
        """An independent layer of torch's own that does the same."""
        return copy.deepcopy(_with_weight(self.frame, nn.Parameter(self.weight().detach())))


class Borrowed(nn.Module):
    """A module that belongs to another network, in whose training this one takes part."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.lender = [module]  # in a list, for it is no part of this network

    def forward(self, x: Tensor) -> Any:
        return self.lender[0](x)

    def plain(self) -> nn.Module:
        """A copy of one's own."""
        return copy.deepcopy(self.lender[0])


def plain_copy(network: nn.Module) -> nn.Module:
    """An independent copy of a network with torch's own layers in place of those that are composed or borrowed."""
    plain = {id(part): part.plain() for part in network.modules() if isinstance(part, Composed | Borrowed)}
    return copy.deepcopy(network, memo=plain)


def materialised(network: nn.Module) -> nn.Module:
    """The network, with memory and torch's own fresh values for all of it that is still on the meta device."""
    for module in network.modules():
        if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
            module.to_empty(device="cpu", recurse=False)
            if isinstance(module, LAYERS) and module._parameters[weight_name(module)] is None:
                bound = 1 / math.sqrt(_fan_in(module))  # what torch draws biases and an LSTM's weights within
                for parameter in module.parameters(recurse=False):
                    nn.init.uniform_(parameter, -bound, bound)
            else:
                module.reset_parameters()  # type: ignore[operator]
    return network


def _fan_in(layer: nn.Module) -> int:
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels * math.prod(layer.kernel_size)
    return int(layer.hidden_size if isinstance(layer, nn.LSTM) else layer.in_features)  # type: ignore[arg-type]


def check_layer(layer: nn.Module) -> None:
    """Raise OptionError unless a layer is one whose weight can be made of parts."""
    if type(layer) not in LAYERS:
        raise OptionError(f"A {type(layer).__name__} cannot share its weight; Linear, Conv2d and LSTM layers can.")
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        raise OptionError(f"A convolution in {layer.groups} groups cannot share its weight; one without groups can.")
    if isinstance(layer, nn.LSTM) and (layer.num_layers > 1 or layer.bidirectional or layer.proj_size):
        raise OptionError("An LSTM can share its weights if it is of one layer, in one direction, without projection.")


def _with_weight(layer: nn.Module, weight: Tensor | None) -> nn.Module:
    """A layer of the same kind around the same parameters, but for its weight."""
    made = type(layer).__new__(type(layer))
    made.__dict__.update(layer.__dict__)
    made.__dict__["_parameters"] = {**layer._parameters, weight_name(layer): weight}
    if isinstance(layer, nn.LSTM):  # which keeps a list of its weights beside them
        made.__dict__["_flat_weights"] = [made.__dict__["_parameters"][key] for key in layer._flat_weights_names]
        made.__dict__["_flat_weight_refs"] = [None] * len(layer._flat_weights_names)  # to none of which it refers
    return made
