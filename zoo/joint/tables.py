"""Networks by name: those of the TRMTL paper's tables, and small ones for the twins.

Sizes are the products of the modes that the paper prints. What it leaves open is said beside each network.
"""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from zoo.backbones.lstm import LSTMClassifier
from zoo.errors import UnknownNameError
from zoo.joint.network import DENSE, Modes, Network

HEAD = "head"
FOUR, SIX = (4, 4, 4, 4), (6, 6, 6, 6)


def mlp(*layers: Modes) -> Callable[[int], Network]:
    """Linear layers with ReLU and without bias (Eq. 2 has none, and so come the paper's counts), then a dense head."""

    def make(outputs: int) -> nn.Module:
        return _stack({"flatten": nn.Flatten(), **_dense(layers), HEAD: nn.Linear(math.prod(layers[-1][1]), outputs)})

    modes = {f"fc{number}": layer for number, layer in enumerate(layers, 1)}
    return lambda outputs: Network(make, outputs, modes, HEAD)


@dataclass(frozen=True)
class Conv:
    """A convolution with ReLU, padded so that its stride alone shrinks the image.

    Attributes:
        pool: side of the max pooling behind it, which rounds up; 1 for none.
        modes: of its channels; DENSE where it is never put into tensor-ring format.
    """

    ins: int
    outs: int
    window: int = 3
    stride: int = 1
    pool: int = 1
    modes: Modes | None = None  # balanced ones


def cnn(convolutions: Sequence[Conv], dense: Sequence[Modes], features: int) -> Callable[[int], Network]:
    """Convolutions, then Linear layers as in `mlp`, then the head.

    Args:
        features: the head's inputs.
    """

    def make(outputs: int) -> nn.Module:
        parts: dict[str, nn.Module] = {}
        for number, c in enumerate(convolutions, 1):
            parts[f"conv{number}"] = nn.Conv2d(c.ins, c.outs, c.window, stride=c.stride, padding=c.window // 2)
            parts[f"convrelu{number}"] = nn.ReLU()
            if c.pool > 1:
                parts[f"pool{number}"] = nn.MaxPool2d(c.pool, ceil_mode=True)
        return _stack({**parts, "flatten": nn.Flatten(), **_dense(dense), HEAD: nn.Linear(features, outputs)})

    modes: dict[str, Modes | None] = {f"conv{number}": c.modes for number, c in enumerate(convolutions, 1)}
    modes |= {f"fc{number}": pair for number, pair in enumerate(dense, 1)}
    return lambda outputs: Network(make, outputs, modes, HEAD)


def lstm(modes: Modes) -> Callable[[int], Network]:
    """An LSTM over the frames of a clip, then the head."""
    sizes = math.prod(modes[0]), math.prod(modes[1])
    return lambda outputs: Network(functools.partial(LSTMClassifier, *sizes), outputs, {"lstm": modes}, HEAD)


def _dense(layers: Sequence[Modes]) -> dict[str, nn.Module]:
    parts: dict[str, nn.Module] = {}
    for number, (ins, outs) in enumerate(layers, 1):
        parts[f"fc{number}"] = nn.Linear(math.prod(ins), math.prod(outs), bias=False)
        parts[f"relu{number}"] = nn.ReLU()
    return parts


def _stack(parts: dict[str, nn.Module]) -> nn.Module:
    return nn.Sequential(OrderedDict(parts))


def _tables_11_and_12(inputs: Sequence[int], outputs: Sequence[int]) -> Callable[[int], Network]:
    """A network whose first layer alone depends on the images."""
    return mlp(
        (inputs, outputs), ((8, 8, 6, 4, 4), (8, 8, 6, 4, 8)), ((8, 8, 6, 8, 4), (8, 8, 6, 8, 8)),
        ((8, 8, 6, 8, 8), (3, 3, 3, 3, 3)),
    )  # fmt: skip


def _table_14(outputs: Sequence[int]) -> Callable[[int], Network]:
    return mlp(((8, 8, 8, 7, 7), (4, 4, 4, 5, 5)), ((4, 4, 4, 5, 5), outputs))


def _adience(
    channels: int, outs: Sequence[int], stride: int, outs2: Sequence[int], stride2: int
) -> Callable[[int], Network]:
    """Table 5. It tells no pooling; one after each convolution takes 227×227 pixels to the 4×4 that FC1 asks for."""
    return cnn(
        [
            Conv(3, channels, 7, stride, 2, ((3, 1, 1), outs)),
            Conv(channels, math.prod(outs2), 5, stride2, 2, ((*outs, 1), outs2)),
            Conv(math.prod(outs2), 256, 3, 2, 2, (outs2, FOUR)),
        ],
        [((8, 8, 4, 4, 4), (4, 4, 4, 4, 2)), ((4, 4, 4, 4, 2), (4, 4, 4, 4, 2))],
        512,
    )


NETWORKS: dict[str, Callable[[int], Network]] = {
    # Table 6: 28×28 pixels.
    "mnist_mlp": mlp(((7, 7, 4, 4), SIX), (SIX, SIX), (SIX, FOUR)),
    # Table 8: 105×105 pixels. Which layers are followed by a pooling is not told; two are, by FC1's 27×27×32 inputs.
    "omniglot_cnn": cnn(
        [
            Conv(1, 8, pool=2, modes=DENSE),
            Conv(8, 16, pool=2, modes=((2, 2, 2), (4, 2, 2))),
            Conv(16, 32, modes=((2, 2, 2, 2), (4, 2, 2, 2))),
        ],
        [((18, 12, 12, 9), FOUR)],
        256,
    ),
    # Appendix B.1.2: "the last two CNN layers and first two FC layers", four cores each, of modes that are not told.
    "cifar10_cnn": cnn(
        [Conv(3, 64, pool=2, modes=DENSE), Conv(64, 128, pool=2, modes=DENSE), Conv(128, 256, pool=2), Conv(256, 512)],
        [((16, 8, 8, 8), (4, 4, 8, 8)), ((8, 8, 4, 4), (4, 4, 4, 8))],
        512,
    ),
    # Section 4.2.4: its modes come to 160×120 RGB frames, not to the 120×180 that are told.
    "ucf11_lstm": lstm(((8, 20, 20, 18), FOUR)),
    # Table 3: 105×105 and 28×28 pixels.
    "omniglot_mlp": mlp(
        ((7, 7, 5, 5, 3, 3), (7, 7, 5, 5, 3, 3)), ((7, 7, 5, 5, 3, 3), (7, 7, 5, 5, 3, 3)),
        ((7, 7, 5, 5, 3, 3), (2, 2, 2, 2, 2, 2)),
    ),
    "mnist4_mlp": mlp(((7, 7, 4, 4), (7, 7, 5, 5)), ((7, 7, 5, 5), (7, 7, 5, 5)), ((7, 7, 5, 5), (2, 2, 2, 2))),
    # Table 11: RGB images of three sizes; Table 12: of 32×32 pixels, in colour and grey.
    "cifar10_16x32_mlp": _tables_11_and_12((4, 4, 4, 4, 3, 2), (4, 4, 4, 4, 3, 8)),
    "cifar10_16x16_mlp": _tables_11_and_12((4, 4, 4, 4, 3, 1), (4, 4, 4, 4, 3, 8)),
    "cifar10_32x32_mlp": _tables_11_and_12((4, 4, 4, 4, 3, 4), (4, 4, 4, 4, 3, 8)),
    "cifar10_rgb_mlp": _tables_11_and_12((4, 4, 4, 4, 4, 3), (4, 4, 4, 4, 4, 6)),
    "cifar10_grey_mlp": _tables_11_and_12((4, 4, 4, 4, 4, 1), (4, 4, 4, 4, 4, 6)),
    # Table 14: VGG-16's features, 512×7×7.
    "officehome_art_mlp": _table_14((4, 4, 4, 5, 5)),
    "officehome_clipart_mlp": _table_14((3, 4, 4, 5, 5)),
    "officehome_product_mlp": _table_14((2, 4, 4, 5, 5)),
    "officehome_real_world_mlp": _table_14((1, 4, 4, 5, 5)),
    # Table 5: 227×227 and 218×178 RGB.
    "adience_ht_cnn": _adience(96, (6, 4, 4), 4, FOUR, 1),
    "adience_hm_cnn": _adience(64, (4, 4, 4), 2, (4, 4, 4, 2), 2),
    "celeba_cnn": cnn(
        [
            Conv(3, 64, 7, 2, modes=((3, 1, 1), (4, 4, 4))),
            Conv(64, 128, 5, 2, modes=((4, 4, 4, 1), (4, 4, 4, 2))),
            Conv(128, 256, 3, 2, modes=((4, 4, 4, 2), FOUR)),
        ],
        [],
        164864,
    ),
    # The twins: 8×8 and 16×16 pixels; 32×32 and 16×16 RGB, and 32×32 grey; clips of 16×16.
    "digits_mlp": mlp(((4, 4, 2, 2), FOUR), (FOUR, FOUR), (FOUR, (4, 4, 2, 2))),
    "digits16_mlp": mlp((FOUR, FOUR), (FOUR, (4, 4, 2, 2))),
    "shapes_mlp": mlp(((4, 4, 4, 4, 4, 3), (4, 4, 4, 2, 2, 2)), ((8, 4, 4, 4), (4, 4, 4, 4))),
    "shapes16_mlp": mlp(((4, 4, 4, 4, 1, 3), (4, 4, 4, 2, 2, 2)), ((8, 4, 4, 4), (4, 4, 4, 4))),
    "shapes_grey_mlp": mlp(((4, 4, 4, 4, 4, 1), (4, 4, 4, 2, 2, 2)), ((8, 4, 4, 4), (4, 4, 4, 4))),
    "clips_lstm": lstm((FOUR, (4, 4, 2, 2))),
}  # fmt: skip


def network(name: str, outputs: int) -> Network:
    """The network of a name, with so many outputs; raises UnknownNameError with the nearest names."""
    try:
        return NETWORKS[name](outputs)
    except KeyError:
        raise UnknownNameError("network", name, NETWORKS) from None
