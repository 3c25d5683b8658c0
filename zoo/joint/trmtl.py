"""TRMTL: tensor-ring layers, some of whose cores the tasks share (TRMTL, Section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from zoo.catalog.options import check_rank
from zoo.errors import OptionError
from zoo.joint.base import Sharing
from zoo.joint.network import DENSE, Network
from zoo.models.composed import materialised
from zoo.ring import Ring, RingLayer
from zoo.ring.cores import Shape
from zoo.ring.layers import chosen_modes, shapes_of, xavier_variance

Pattern = str | Sequence[int | Sequence[int]]


class TRMTL(Sharing):
    """Every layer that may share is a ring of cores (Eq. 2); of these the tasks share some, and own the others.

    Args:
        pattern: for each layer, how many cores are shared, counted from the left: "410" or [4, 1, 0]; or which ones,
            counted from 1: [[1, 3], [2], []]. A layer beyond the pattern shares none. All tasks that have a layer take
            part in sharing its cores.
        rank: R, or the ranks of the first core, the second, …, of every layer; the ring closes with the first.
        cores: of a layer whose modes are not given; a convolution's spatial core is one of them.
        route: "auto", "built" or "contracted" (`zoo.ring.routes`).

    Raises:
        OptionError: a shared core would not have one shape for all tasks; the layer, the core and both shapes are
            named. Or an option is out of range.
    """

    name, summary = "trmtl", "tensor-ring layers that share some of their cores"

    def __init__(
        self, networks: Mapping[str, Network], pattern: Pattern, rank: int | Sequence[int], cores: int = 4,
        route: str = "auto",
    ) -> None:  # fmt: skip
        super().__init__(networks)
        for each in rank if isinstance(rank, list | tuple) else [rank]:
            check_rank("rank of TRMTL", each)
        self.rank, self.route = rank, route
        plain = {task: self.skeleton(task) for task in self.plans}
        self.modes = {
            task: {
                path: modes or chosen_modes(plain[task].get_submodule(path), cores)
                for path, modes in plan.layers.items()
                if modes != DENSE
            }
            for task, plan in self.plans.items()
        }
        self.shapes = {
            task: [shapes_of(plain[task].get_submodule(path), each, rank) for path, each in modes.items()]
            for task, modes in self.modes.items()
        }
        self.pattern = parse_pattern(pattern, max(len(shapes) for shapes in self.shapes.values()))
        self.layers = nn.ModuleDict()
        for number, places in enumerate(self.pattern, 1):
            if places:
                task = self._check_layer(number, places)
                ring = Ring(self.shapes[task][number - 1])
                ring.reset(xavier_variance(plain[task].get_submodule(list(self.modes[task])[number - 1])))
                shared = {str(place): ring.own[str(place - 1)] for place in sorted(places)}
                self.layers[str(number)] = nn.ParameterDict(shared)

    def network(self, task: str) -> nn.Module:
        made = self.skeleton(task)
        shared = {number: dict(cores.named_parameters()) for number, cores in self.layers.named_children()}
        for number, (path, modes) in enumerate(self.modes[task].items(), 1):
            layer = made.get_submodule(path)
            borrowed = {int(place) - 1: core for place, core in shared.get(str(number), {}).items()}
            made.set_submodule(path, RingLayer.kind(layer).like(layer, modes, self.rank, borrowed, self.route))
        return materialised(made)

    def shareable(self) -> list[list[int]]:
        """For each layer, the places of the cores that are of one shape for all tasks that have the layer."""
        found = []
        for number in range(max(map(len, self.shapes.values()))):
            first, *others = [shapes[number] for shapes in self.shapes.values() if len(shapes) > number]
            places = range(1, len(first) + 1) if others else range(0)
            found.append([p for p in places if all(_shape(each, p) == _shape(first, p) for each in others)])
        return found

    def _check_layer(self, number: int, places: Sequence[int]) -> str:
        """The first of the tasks that share some cores of a layer; raises OptionError where they cannot."""
        having = {task: shapes[number - 1] for task, shapes in self.shapes.items() if len(shapes) >= number}
        (first, shapes), *others = having.items()
        if not others:
            raise OptionError(f"Layer {number} cannot share cores: {first} alone has such a layer.")
        for place in places:
            for task, theirs in others:
                one, other = (_shape(each, place) for each in (shapes, theirs))
                if one != other or one is None:
                    raise OptionError(
                        f"Core {place} of layer {number} cannot be shared: it is {_text(one)} in {first} "
                        f"and {_text(other)} in {task} (rank, input mode, output mode, rank). Share fewer cores there."
                    )
        return first


def _shape(shapes: Sequence[Shape], place: int) -> Shape | None:
    return shapes[place - 1] if place <= len(shapes) else None


def _text(shape: Shape | None) -> str:
    return "missing" if shape is None else "×".join(map(str, shape))


def parse_pattern(pattern: Pattern, layers: int) -> list[list[int]]:
    """The places of the shared cores of each layer, counted from 1.

    Raises:
        OptionError: it is no pattern, or names more layers than there are.
    """
    parts = list(pattern) if isinstance(pattern, str) else pattern
    wrong = OptionError(
        f"A pattern gives for each layer how many cores are shared, such as '410' or [4, 1, 0], or which ones, such as "
        f"[[1, 3], [2], []]; not {pattern!r}."
    )
    if not isinstance(parts, Sequence):
        raise wrong
    found = []
    for part in parts:
        if isinstance(part, str) and part.isdecimal():
            found.append(list(range(1, int(part) + 1)))
        elif isinstance(part, int) and not isinstance(part, bool) and part >= 0:
            found.append(list(range(1, part + 1)))
        elif isinstance(part, list | tuple) and all(isinstance(p, int) and p > 0 for p in part):
            if len(set(part)) < len(part):
                raise wrong
            found.append(sorted(part))
        else:
            raise wrong
    if len(found) > layers:
        raise OptionError(f"The pattern {pattern!r} is for {len(found)} layers; the networks have {layers} at most.")
    return found + [[]] * (layers - len(found))


SHARING = TRMTL
