"""How several networks share parts of their weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from zoo.errors import OptionError
from zoo.joint.network import Network
from zoo.models.composed import Borrowed, Composed


class Sharing(nn.Module):
    """What several networks have in common: its parameters and buffers are the shared ones.

    A way of sharing takes its options in `__init__`, after the networks, and defines `network`.

    Args:
        networks: of all tasks, by name.

    Attributes:
        name: as the registry writes it.
        summary: what it does, in a few words.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    def __init__(self, networks: Mapping[str, Network]) -> None:
        super().__init__()
        self.plans = dict(networks)

    @abstractmethod
    def network(self, task: str) -> nn.Module:
        """A task's network: what is the task's own is registered in it, what is shared only referred to."""

    def penalty(self, networks: Mapping[str, nn.Module], task: str) -> Tensor | None:
        """What is added to the loss of a batch of one task; it reaches no other task's parameters."""
        return None

    def adjust(self, networks: Mapping[str, nn.Module]) -> None:
        """Adjust what is not learnt by gradients, after an epoch."""

    def begin(self, networks: Mapping[str, nn.Module], sources: Mapping[str, nn.Module]) -> dict[str, float]:
        """Start from trained plain networks, one for each task; the relative error of each layer that is approximated.

        Raises:
            OptionError: this way of sharing starts from fresh weights only.
        """
        raise OptionError(f"{self.name} starts from fresh weights, not from trained networks.")

    def skeleton(self, task: str) -> nn.Module:
        """A task's plain network, with no memory yet for what is fresh (`zoo.models.composed.materialised`)."""
        with torch.device("meta"):
            return self.plans[task].plain()

    def common_layers(self) -> list[tuple[str, ...]]:
        """The paths of the first layers that may share, of the second, …: one for each task, in the tasks' order.

        Only as many as every task's network has.
        """
        return list(zip(*(plan.layers for plan in self.plans.values()), strict=False))


def copy_rest(network: nn.Module, source: nn.Module) -> None:
    """Take over from a trained plain network all but the weights that are composed or borrowed."""
    with torch.no_grad():
        for path, module in network.named_modules():
            if any(path.startswith(f"{above}.") for above, part in network.named_modules()
                   if above and isinstance(part, Composed | Borrowed)):  # fmt: skip
                continue
            given = source.get_submodule(path)
            own = module.frame if isinstance(module, Composed) else module
            for name, parameter in own.named_parameters(recurse=False):
                parameter.copy_(given.get_parameter(name))
            for name, buffer in own.named_buffers(recurse=False):
                buffer.copy_(given.get_buffer(name))
