"""DMTRL: the tasks' weights of a layer, put side by side and factorised (Yang & Hospedales, ICLR 2017)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from zoo.catalog.options import check_rank
from zoo.errors import OptionError
from zoo.joint.base import Sharing, copy_rest
from zoo.joint.network import Network
from zoo.models.composed import Composed, materialised, weight_of
from zoo.ring.layers import xavier_variance

Array = npt.NDArray[np.float64]
Size = tuple[int, ...]


class Factors(nn.Module):
    """A tensor of two or four modes and one of the tasks, in factors; the task's own is a vector that closes it."""

    def __init__(self, size: Size, tasks: int, rank: int) -> None:
        super().__init__()
        self.size = size

    @property
    @abstractmethod
    def own_length(self) -> int:
        """Of a task's vector."""

    @abstractmethod
    def close(self, own: Tensor) -> Tensor:
        """A task's weight, of the size `size`."""

    @abstractmethod
    def fill(self, stack: Array) -> Array:
        """Take the factors of an approximation of (*size, tasks); the tasks' vectors, (tasks, own_length)."""

    @abstractmethod
    def reset(self, variance: float) -> float:
        """Draw the factors so that a weight has this variance; the standard deviation of the tasks' vectors."""


class StackedLayer(Composed):
    """A layer whose weight is closed from shared factors by a vector of the task's own."""

    def __init__(self, layer: nn.Module, factors: Factors, deviation: float) -> None:
        super().__init__(layer)
        self.factors = [factors]  # in a list, for they are not the task's
        self.own = nn.Parameter(deviation * torch.randn(factors.own_length))

    def weight(self) -> Tensor:
        return to_torch(self.factors[0].close(self.own))


class Stacked(Sharing):
    """Where all tasks' layers are of one shape, their weights are one factorised tensor; others are the tasks' own.

    Args:
        rank: the most that any rank may be. (DMTRL's authors choose ranks by a threshold on the error of the trained
            networks' factorisation; an entry's architecture cannot depend on weights, so it names the number.)

    Raises:
        OptionError: no layer has one shape for all tasks.
    """

    factors: type[Factors]

    def __init__(self, networks: Mapping[str, Network], rank: int) -> None:
        super().__init__(networks)
        check_rank(f"rank of {self.name}", rank)
        plain = {task: self.skeleton(task) for task in self.plans}
        self.layers, self.deviations = nn.ModuleDict(), {}
        for number, paths in enumerate(self.common_layers(), 1):
            layers = [plain[task].get_submodule(path) for task, path in zip(self.plans, paths, strict=True)]
            sizes = {from_torch(weight_of(layer)).shape for layer in layers}
            if len(sizes) == 1 and len({type(layer) for layer in layers}) == 1:
                factors = self.factors(tuple(sizes.pop()), len(self.plans), rank)
                self.deviations[str(number)] = factors.reset(xavier_variance(layers[0]))
                self.layers[str(number)] = factors
        if not len(self.layers):
            raise OptionError(f"{self.name} needs layers that are of one shape for all tasks, and there are none.")

    def network(self, task: str) -> nn.Module:
        made = self.skeleton(task)
        for path, number in self._stacked(task).items():
            factors = self.layers[number]
            assert isinstance(factors, Factors)
            made.set_submodule(path, StackedLayer(made.get_submodule(path), factors, self.deviations[number]))
        return materialised(made)

    def begin(self, networks: Mapping[str, nn.Module], sources: Mapping[str, nn.Module]) -> dict[str, float]:
        errors = {}
        for task, network in networks.items():
            copy_rest(network, sources[task])
        for number, factors in self.layers.items():
            assert isinstance(factors, Factors)
            paths = {task: next(p for p, n in self._stacked(task).items() if n == number) for task in networks}
            weights = [from_torch(weight_of(sources[task].get_submodule(path))) for task, path in paths.items()]
            stack = torch.stack(weights, -1).detach().double().cpu().numpy()
            with torch.no_grad():
                for (task, path), own in zip(paths.items(), factors.fill(stack), strict=True):
                    networks[task].get_submodule(path).get_parameter("own").copy_(torch.from_numpy(own))
                made = [from_torch(_composed(networks[task], path).weight()) for task, path in paths.items()]
            found = torch.stack(made, -1).double().cpu()
            errors[f"layer {number}"] = float(
                (found - torch.from_numpy(stack)).norm() / np.linalg.norm(stack).clip(1e-12)
            )
        return errors

    def _stacked(self, task: str) -> dict[str, str]:
        """The paths of a task's layers that are stacked, and their numbers."""
        paths = enumerate(self.plans[task].layers, 1)
        return {path: str(number) for number, path in paths if str(number) in self.layers}


def _composed(network: nn.Module, path: str) -> Composed:
    layer = network.get_submodule(path)
    assert isinstance(layer, Composed)
    return layer


def from_torch(weight: Tensor) -> Tensor:
    """A weight in torch's layout as (inputs, outputs), or (height, width, inputs, outputs)."""
    return weight.T if weight.ndim == 2 else weight.permute(2, 3, 1, 0)


def to_torch(weight: Tensor) -> Tensor:
    """The way back."""
    return weight.T if weight.ndim == 2 else weight.permute(3, 2, 0, 1)


def bounded(rank: int, sizes: Sequence[int]) -> list[int]:
    """The ranks of a Tucker form: no more than `rank`, than a mode is long, and than all the others can tell apart."""
    ranks = [min(rank, size) for size in sizes]
    for place in sorted(range(len(sizes)), key=lambda place: -ranks[place]):
        ranks[place] = min(ranks[place], math.prod(ranks[:place] + ranks[place + 1 :]))
    return ranks
