"""Modes: the factors into which a layer's inputs and outputs are split, so that its weight becomes a tensor."""

from __future__ import annotations

import functools

from zoo.errors import OptionError


def balanced(size: int, count: int) -> tuple[int, ...]:
    """`size` as a product of `count` whole numbers that are as equal as can be, the largest first.

    Of all such products it is one of the least sum. A prime gives itself and ones.

    Raises:
        OptionError: `size` or `count` is below 1.
    """
    if size < 1 or count < 1:
        raise OptionError(f"Modes need a size and a count of at least 1, not {size} and {count}.")
    return tuple(sorted(_split(size, count), reverse=True))


def balanced_pair(c_in: int, c_out: int, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Modes of the inputs, largest first, and of the outputs, smallest first, so that the cores are of like sizes."""
    return balanced(c_in, count), balanced(c_out, count)[::-1]


@functools.cache
def _split(size: int, count: int) -> tuple[int, ...]:
    if count == 1:
        return (size,)
    divisors = {d for i in range(1, int(size**0.5) + 1) if size % i == 0 for d in (i, size // i)}
    return min(((d, *_split(size // d, count - 1)) for d in sorted(divisors)), key=lambda modes: (sum(modes), modes))
