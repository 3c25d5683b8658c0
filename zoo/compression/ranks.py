"""The rank of each layer: the smallest that keeps a share of its ΔW, or the best split of so many parameters."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from zoo.compression.forms import fill, largest, matrix_of
from zoo.errors import OptionError
from zoo.increments.base import Increment

Key = TypeVar("Key", bound=Any)  # a layer's path, or of which task and its path
ROUNDING = 1e-9
GROWTH = 1.25  # between the ranks that are tried for a budget, in forms without a spectrum


class Choice(NamedTuple):
    """What a layer costs at one rank, and what is then left out of it."""

    rank: int
    parameters: int
    lost: float


class Curve:
    """What is left out of one layer's ΔW (C_out, C_in, …) at each rank, as a share of ‖ΔW‖².

    Args:
        form: "cp", "tt", "svd" or "tucker".
        build: makes a fresh increment of a rank.
    """

    def __init__(self, form: str, build: Callable[[int], Increment], delta: Tensor) -> None:
        self.form, self.build, self.delta = form, build, delta
        self.most = largest(form, delta.shape)
        self.norm = float(delta.norm())
        self._known = {0: 1.0, self.most: 0.0} if self.norm else {0: 0.0}
        matrix = matrix_of(form, delta.double())
        self.step = 1.0 if matrix is not None else GROWTH  # where the singular values say it, every rank is tried
        if matrix is not None and self.norm:
            energies = torch.linalg.svdvals(matrix).square()
            tails = energies.flip(0).cumsum(0).flip(0) / energies.sum()
            self._known |= dict(enumerate(tails.tolist()))

    def lost(self, rank: int) -> float:
        """The share at one rank."""
        rank = min(rank, self.most) if self.norm else 0
        if rank not in self._known:
            self._known[rank] = fill(self.build(rank).to(self.delta.device), self.delta)[1] ** 2
        return self._known[rank]

    def smallest(self, share: float) -> int:
        """The smallest rank that keeps so much of ‖ΔW‖²; 0 of a layer that has not changed.

        Ranks are doubled until one keeps it, and then halved between, as if no larger rank lost more.
        """
        if not self.norm:
            return 0
        kept, top = 1e-12 + 1 - share, 1
        while top < self.most and self.lost(top) > kept:
            top = min(self.most, 2 * top)
        return bisect.bisect_left(range(top + 1), True, lo=max(1, top // 2), hi=top, key=lambda r: self.lost(r) <= kept)

    def size(self, rank: int) -> int:
        """The parameters of an increment of a rank; 0: there is none."""
        if not rank:
            return 0
        with torch.device("meta"):
            return sum(p.numel() for p in self.build(rank).parameters())

    def choices(self, budget: int, least: int = 0) -> list[Choice]:
        """What some ranks cost and lose, from the one that the layer has for certain to the last that so many
        parameters buy; the first component of all, whatever it costs.
        """
        found = [Choice(least, self.size(least), self.norm**2 * self.lost(least))]
        rank, top = least + 1, self.most if self.norm else 0
        while rank <= top and ((size := self.size(rank)) <= budget or not found[-1].rank):
            found.append(Choice(rank, size, self.norm**2 * self.lost(rank)))
            rank = max(rank + 1, min(top, int(rank * self.step) + 1))
        return found


def split(layers: Mapping[Key, Sequence[Choice]], budget: int) -> dict[Key, int]:
    """A rank for each layer, of no more parameters than the budget in all, so that little is lost.

    Each layer goes from rank to rank along the convex hull of its choices; of all layers' next steps the one is taken
    that saves most for its parameters. For "svd", whose components all cost the same, no other split of as many
    parameters loses less.

    Args:
        layers: the choices of each, smallest first; the first one is what the layer has for certain.

    Raises:
        OptionError: the budget is not enough for these; or no layer that could have a component has one.
    """
    certain = sum(choices[0].parameters for choices in layers.values())
    at, left = dict.fromkeys(layers, 0), budget - certain
    if left < 0:
        raise OptionError(f"{budget:,} parameters are too few: what is kept in any case has {certain:,}.")
    steps = {
        path: _hull([c for c in each if c.parameters - each[0].parameters <= left]) for path, each in layers.items()
    }
    queue = [(-_gain(hull[0], hull[1]), path) for path, hull in steps.items() if len(hull) > 1]
    heapq.heapify(queue)
    while queue:
        _, path = heapq.heappop(queue)
        hull, now = steps[path], at[path]
        price = hull[now + 1].parameters - hull[now].parameters
        if price > left:
            continue  # a cheaper step of another layer may still fit
        left -= price
        at[path] = now + 1
        if now + 2 < len(hull):
            heapq.heappush(queue, (-_gain(hull[now + 1], hull[now + 2]), path))
    free = {path: each for path, each in layers.items() if len(_hull(each)) > 1}
    if free and not any(steps[path][at[path]].rank for path in free):
        least = min(each[1].parameters - each[0].parameters for each in free.values())
        beside = f", beside {certain:,} that are kept in any case" if certain else ""
        raise OptionError(
            f"{budget:,} parameters are too few: the first component of the cheapest layer has {least:,}{beside}."
        )
    return {path: steps[path][number].rank for path, number in at.items()}


def _gain(before: Choice, after: Choice) -> float:
    """What a step saves for each of its parameters."""
    return (before.lost - after.lost) / max(1, after.parameters - before.parameters)


def _hull(choices: Sequence[Choice]) -> list[Choice]:
    """Those of the choices that no two others surround: from one to the next, a parameter saves ever less."""
    found: list[Choice] = []
    for choice in choices:
        if found and choice.lost >= found[-1].lost:
            continue
        while len(found) > 1 and _gain(found[-2], found[-1]) < _gain(found[-1], choice) * (1 - ROUNDING):
            found.pop()
        found.append(choice)
    return found
