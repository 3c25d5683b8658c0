"""Linear, Conv2d and LSTM layers whose weights are rings of cores (TRMTL, Eqs. 2 and 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import OptionError
from zoo.models.composed import Composed
from zoo.ring.cores import Ring, Shape, close, core_shapes
from zoo.ring.modes import balanced_pair
from zoo.ring.routes import ROUTES, backwards, cheaper_route, contraction_cost

GATES = 4  # of an LSTM
Ranks = int | Sequence[int]
Modes = tuple[Sequence[int], Sequence[int]]  # of the inputs and of the outputs


class RingLayer(Composed):
    """A layer of torch's whose weight is a ring.

    Two ways compute the same output, and "auto" takes the cheaper of them (`zoo.ring.routes`): *built* makes the weight
    and runs torch's layer, *contracted* passes the input from core to core.

    Args:
        layer: whose form, bias and hidden weights the new layer takes; its weight is left aside.
        ring: the cores; see `shapes_of` for their shapes.
        route: "auto", "built" or "contracted".
    """

    def __init__(self, layer: nn.Module, ring: Ring, route: str = "auto") -> None:
        super().__init__(layer)
        if route not in ROUTES:
            raise OptionError(f"The route must be one of {', '.join(ROUTES)}, not {route!r}.")
        self.ring, self.route = ring, route
        self.backwards = contraction_cost(backwards(ring.shapes), 1) < contraction_cost(ring.shapes, 1)

    @staticmethod
    def kind(layer: nn.Module) -> type[RingLayer]:
        """The class that stands for a layer of torch's."""
        return TRConv2d if isinstance(layer, nn.Conv2d) else TRLSTM if isinstance(layer, nn.LSTM) else TRLinear

    @classmethod
    def like(
        cls, layer: nn.Module, modes: Modes, ranks: Ranks, borrowed: Mapping[int, nn.Parameter] | None = None,
        route: str = "auto",
    ) -> Self:  # fmt: skip
        """A layer of the same form with fresh cores of its own, beside those it borrows; raises OptionError as they do.

        The variance of its weight is Xavier's, 2 / (fan in + fan out).
        """
        made = cls.__new__(cls)
        RingLayer.__init__(made, layer, Ring(shapes_of(layer, modes, ranks), borrowed), route)
        made.ring.reset(xavier_variance(layer))
        return made

    def forward(self, x: Tensor) -> Any:
        if self.route == "contracted" or (self.route == "auto" and self._cheaper(x) == "contracted"):
            return self.contracted(x)
        return super().forward(x)

    def _cheaper(self, x: Tensor) -> str:
        return cheaper_route(self.ring.shapes, x.numel() // x.shape[-1])

    def contracted(self, x: Tensor) -> Any:
        """What the layer makes of `x`, core by core."""
        raise NotImplementedError


class TRLinear(RingLayer):
    """`y_{j_1 … j_D} = Σ_i x_{i_1 … i_D} Tr{G_1[i_1, j_1] … G_D[i_D, j_D]}`, and a bias (TRMTL, Eq. 2).

    Args:
        in_modes, out_modes: whose products are the numbers of inputs and of outputs.
        ranks: R_1 … R_D, or one number for all.
    """

    frame: nn.Linear

    def __init__(
        self, in_modes: Sequence[int], out_modes: Sequence[int], ranks: Ranks, bias: bool = True, route: str = "auto"
    ) -> None:
        layer = nn.Linear(math.prod(in_modes), math.prod(out_modes), bias)
        super().__init__(layer, Ring(core_shapes(in_modes, out_modes, ranks)), route)
        self.ring.reset(xavier_variance(layer))

    def weight(self) -> Tensor:
        return self.ring.dense().T  # (outputs, inputs)

    def contracted(self, x: Tensor) -> Tensor:
        y = self.ring.contract(x.flatten(0, -2), self.backwards).view(*x.shape[:-1], -1)
        return y if self.frame.bias is None else y + self.frame.bias


class TRConv2d(RingLayer):
    """A kernel `K[h, w, i, o] = Tr{G_1[h, w] G_2[i_1, o_1] …}`: a spatial core, then one for each channel mode (Eq. 3).

    Args:
        in_modes, out_modes: whose products are the numbers of input and of output channels.
        kernel_size: height and width, or one number for both.
        ranks: of the spatial core first, then of the others; or one number for all.
        options: stride, padding, dilation and bias, as Conv2d takes them.
    """

    frame: nn.Conv2d

    def __init__(
        self, in_modes: Sequence[int], out_modes: Sequence[int], kernel_size: int | tuple[int, int], ranks: Ranks,
        route: str = "auto", **options: Any,
    ) -> None:  # fmt: skip
        layer = nn.Conv2d(math.prod(in_modes), math.prod(out_modes), kernel_size, **options)
        super().__init__(layer, Ring(shapes_of(layer, (in_modes, out_modes), ranks)), route)
        self.ring.reset(xavier_variance(layer))

    def weight(self) -> Tensor:
        height, width = self.frame.kernel_size
        matrix = self.ring.dense()  # (h·i, w·o)
        return matrix.view(height, -1, width, matrix.shape[1] // width).permute(3, 1, 0, 2)  # (o, i, h, w)

    def _cheaper(self, x: Tensor) -> str:
        if self.frame.padding_mode != "zeros":
            return "built"
        height, width = self._size(x)
        taps = math.prod(self.frame.kernel_size)
        return cheaper_route(self.ring.shapes, len(x) * x.shape[2] * x.shape[3], taps, len(x) * height * width)

    def _size(self, x: Tensor) -> tuple[int, int]:
        """Height and width of the output."""
        layer = self.frame
        if isinstance(layer.padding, str):
            return (x.shape[2], x.shape[3]) if layer.padding == "same" else self._shrunk(x, (0, 0))
        return self._shrunk(x, layer.padding)

    def _shrunk(self, x: Tensor, padding: Sequence[int]) -> tuple[int, int]:
        layer = self.frame
        height, width = (
            (x.shape[axis + 2] + 2 * padding[axis] - layer.dilation[axis] * (layer.kernel_size[axis] - 1) - 1)
            // layer.stride[axis] + 1
            for axis in (0, 1)
        )  # fmt: skip
        return height, width

    def contracted(self, x: Tensor) -> Tensor:
        layer, (spatial, *others) = self.frame, self.ring.cores
        if layer.padding_mode != "zeros":
            built: Tensor = self.run(x, self.weight())
            return built
        first, _, _, rank = spatial.shape
        taps = spatial.permute(0, 3, 1, 2).reshape(-1, 1, *layer.kernel_size)  # (R_1·R_2, 1, h, w)
        seen = F.conv2d(x.flatten(0, 1)[:, None], taps, None, layer.stride, layer.padding, layer.dilation)
        height, width = seen.shape[2:]
        state = seen.view(len(x), x.shape[1], first, rank, height * width).permute(0, 4, 1, 2, 3)
        y = close(state.reshape(-1, 1, x.shape[1], first, rank), others)  # (B·H'·W', outputs)
        y = y.view(len(x), height, width, -1).permute(0, 3, 1, 2)
        return y if layer.bias is None else y + layer.bias[:, None, None]


class TRLSTM(RingLayer):
    """An LSTM of one layer, batch first, whose input-to-hidden weights alone are a ring.

    The weights of all four gates are one matrix. The gates are counted by the first output mode, which is 4·N_1.

    Args:
        in_modes, out_modes: whose products are the numbers of inputs and of hidden units.
    """

    frame: nn.LSTM

    def __init__(
        self, in_modes: Sequence[int], out_modes: Sequence[int], ranks: Ranks, bias: bool = True, route: str = "auto"
    ) -> None:
        layer = nn.LSTM(math.prod(in_modes), math.prod(out_modes), bias=bias, batch_first=True)
        super().__init__(layer, Ring(shapes_of(layer, (in_modes, out_modes), ranks)), route)
        self.ring.reset(xavier_variance(layer))

    def weight(self) -> Tensor:
        return self.ring.dense().T.contiguous()  # (4·hidden, inputs)

    def contracted(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        layer = self.frame
        x = x if layer.batch_first else x.transpose(0, 1)  # (B, T, inputs)
        gates = self.ring.contract(x.flatten(0, 1), self.backwards).view(len(x), x.shape[1], -1)  # (B, T, 4·hidden)
        recurrent = layer.get_parameter("weight_hh_l0")
        if layer.bias:
            gates = gates + layer.get_parameter("bias_ih_l0") + layer.get_parameter("bias_hh_l0")
        hidden = cell = gates.new_zeros(len(x), layer.hidden_size)
        steps = []
        for step in gates.unbind(1):
            enter, forget, new, leave = (step + F.linear(hidden, recurrent)).chunk(GATES, 1)
            cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
            hidden = leave.sigmoid() * cell.tanh()
            steps.append(hidden)
        return torch.stack(steps, 1 if layer.batch_first else 0), (hidden[None], cell[None])


def shapes_of(layer: nn.Module, modes: Modes, ranks: Ranks) -> tuple[Shape, ...]:
    """The cores' shapes for a layer's weight.

    Args:
        modes: of inputs and outputs; a convolution gets a spatial core (height, width) in front of them, an LSTM its
            four gates in the first output mode.

    Raises:
        OptionError: the products of the modes are not the layer's inputs and outputs.
    """
    in_modes, out_modes = (list(each) for each in modes)
    sizes = sizes_of(layer)
    if (math.prod(in_modes), math.prod(out_modes)) != sizes:
        raise OptionError(
            f"The modes {in_modes} → {out_modes} come to {math.prod(in_modes)} → {math.prod(out_modes)}, "
            f"where the layer has {sizes[0]} inputs and {sizes[1]} outputs."
        )
    if isinstance(layer, nn.Conv2d):
        in_modes, out_modes = [layer.kernel_size[0], *in_modes], [layer.kernel_size[1], *out_modes]
    if isinstance(layer, nn.LSTM):
        out_modes[0] *= GATES
    return core_shapes(in_modes, out_modes, ranks)


def sizes_of(layer: nn.Module) -> tuple[int, int]:
    """A layer's inputs and outputs: features, channels, or inputs and hidden units."""
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    if isinstance(layer, nn.LSTM):
        return layer.input_size, layer.hidden_size
    assert isinstance(layer, nn.Linear)
    return layer.in_features, layer.out_features


def chosen_modes(layer: nn.Module, cores: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Balanced modes for a layer that shall have so many cores; a convolution's spatial core is one of them.

    Raises:
        OptionError: a convolution with fewer than two cores.
    """
    channel_cores = cores - isinstance(layer, nn.Conv2d)
    if channel_cores < 1:
        raise OptionError(f"A convolution needs a spatial core and another at least, not {cores} in all.")
    return balanced_pair(*sizes_of(layer), channel_cores)


def xavier_variance(layer: nn.Module) -> float:
    """2 / (fan in + fan out); of an LSTM, of one gate (Glorot & Bengio 2010)."""
    taps = math.prod(layer.kernel_size) if isinstance(layer, nn.Conv2d) else 1
    return 2 / (taps * sum(sizes_of(layer)))
