"""Which way to apply a weight in tensor-ring format is cheaper for a layer and a batch.

*Built* makes the matrix of the cores and runs torch's layer under it; *contracted* passes the input from core to core.
Both are a sequence of products, so one model counts both: multiply-adds, numbers written, and calls.
"""

from __future__ import annotations

from collections.abc import Sequence

from zoo.ring.cores import Shape, halfway

ROUTES = ("auto", "built", "contracted")
# In multiply-adds of a large product: what one multiply-add costs where the inner dimension is a rank or a mode; what
# one number costs that such a product writes (it is put in order, and read and written again on the way back); and
# what a call costs. Fitted to interleaved timings of training steps (benchmarks/ring_layers.py).
THIN_COST, WRITE_COST, CALL_COST = 0.5, 90.0, 6.0e6


def cheaper_route(shapes: Sequence[Shape], rows: int, taps: int = 1, positions: int | None = None) -> str:
    """ "built" or "contracted", whichever the model finds cheaper.

    Args:
        shapes: of all cores, the spatial ones of a convolution first.
        rows: what the layer is given, a sample or a pixel each: B, or B·H·W.
        taps: of the kernel; its spatial cores are those that come to this product, M_k N_k by M_k N_k.
        positions: where a convolution gives an output, B·H'·W'; of other layers, `rows`.
    """
    positions = rows if positions is None else positions
    built = build_cost(shapes) + layer_cost(shapes, positions)
    contracted = contraction_cost(shapes, positions, taps)
    if taps == 1:
        contracted = min(contracted, contraction_cost(backwards(shapes), positions))
    return "built" if built <= contracted else "contracted"


def backwards(shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    """The shapes of the cores of the same ring, gone round the other way."""
    return tuple((right, m, n, left) for left, m, n, right in reversed(shapes))


def layer_cost(shapes: Sequence[Shape], positions: int) -> float:
    """Of torch's own layer: a product with the whole matrix at each position."""
    size, outputs = 1, 1
    for _, m, n, _ in shapes:
        size, outputs = size * m * n, outputs * n
    return size * positions


def build_cost(shapes: Sequence[Shape]) -> float:
    """Of making the matrix: each half core by core, then both closed to a ring."""
    half = halfway(shapes)
    cost, sizes = 0.0, []
    for part in (shapes[:half], shapes[half:]):
        size = 1
        for k, (left, m, n, right) in enumerate(part):
            size *= m * n
            if k:
                cost += _product(part[0][0] * size * right, left)
        sizes.append(size)
    if len(shapes) == 1:
        return _product(sizes[0], 1)
    return cost + _product(sizes[0] * sizes[1], shapes[0][0] * shapes[half][0])


def contraction_cost(shapes: Sequence[Shape], positions: int, taps: int = 1) -> float:
    """Of passing a batch from core to core; the first cores, until they come to `taps`, as a convolution."""
    first = shapes[0][0]
    inputs, spatial, start = 1, 1, 0
    while spatial < taps:
        spatial *= shapes[start][1] * shapes[start][2]
        start += 1
    for _, m, _, _ in shapes[start:]:
        inputs *= m
    cost, done, rank = 0.0, 1, 0
    if start:  # a kernel of k² taps over each input channel, for each pair of the ranks around it
        rank = shapes[start - 1][3]
        cost += _product(positions * inputs * first * rank, taps)
    for k, (left, m, n, right) in enumerate(shapes[start:], start):
        inputs, done = inputs // m, done * n
        if rank == 0:  # the ring is opened here
            cost += _product(positions * done * inputs * left * right, m)
        elif k == len(shapes) - 1:
            cost += _product(positions * done, m * first * left)
        else:
            cost += _product(positions * done * inputs * first * right, m * left)
        rank = right
    return cost


def _product(written: int, inner: int) -> float:
    """Of a product of thin matrices: so many numbers written, each the sum of `inner` multiply-adds."""
    return written * (THIN_COST * inner + WRITE_COST) + CALL_COST
