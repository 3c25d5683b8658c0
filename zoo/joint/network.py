"""One task's network, before anything of it is shared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from zoo.errors import OptionError
from zoo.models.composed import LAYERS
from zoo.models.layers import fresh_head, own_copy

Modes = tuple[Sequence[int], Sequence[int]]  # of a layer's inputs and outputs, as its weight is made a tensor
DENSE: Modes = ((), ())  # of a layer that is never put into tensor-ring format


@dataclass(frozen=True)
class Network:
    """A plain network of torch's layers, and which of them may share their weights.

    Attributes:
        make: the network with so many outputs and fresh weights.
        outputs: how many this task has.
        layers: those that may share, by path, from the input to the output, each with its modes; None: balanced ones;
            DENSE: TRMTL leaves it as it is.
        head: the path of the layer that gives the outputs; it is the task's own.
    """

    make: Callable[[int], nn.Module]
    outputs: int
    layers: Mapping[str, Modes | None]
    head: str

    def plain(self) -> nn.Module:
        """The network by itself, with fresh weights."""
        return self.make(self.outputs)

    @classmethod
    def of(cls, module: nn.Module, outputs: int) -> Network:
        """A module of one's own as it stands: all its Linear, Conv2d and LSTM layers but the last may share.

        Its weights are where the network begins, but for the last layer's.

        Raises:
            OptionError: it has fewer than two such layers.
        """
        paths = [path for path, layer in module.named_modules() if type(layer) in LAYERS]
        if len(paths) < 2 or isinstance(module.get_submodule(paths[-1]), nn.LSTM):
            raise OptionError(
                f"{type(module).__name__} needs two Linear, Conv2d or LSTM layers at least, the last of them no LSTM."
            )
        head = paths.pop()

        def make(outputs: int) -> nn.Module:
            made = own_copy(module)
            made.set_submodule(head, fresh_head(made.get_submodule(head), outputs))
            return made

        return cls(make, outputs, dict.fromkeys(paths), head)
