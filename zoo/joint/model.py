"""A network for each task, and what they share: the zoo's models without an adapted backbone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.catalog.task import Task
from zoo.errors import OptionError, UnknownNameError
from zoo.joint.base import Sharing
from zoo.joint.network import Network
from zoo.models.composed import plain_copy
from zoo.models.mixing import rows_in_turn, task_numbers
from zoo.models.multitask import MultiTaskModel


class JointModel(MultiTaskModel):
    """Several networks, of shapes and for inputs of their own, that share parts of their weights.

    Args:
        networks: of all tasks that it may get, by name.
        sharing: a way of sharing, such as `zoo.joint.trmtl.TRMTL`.
        options: its arguments, such as `{"pattern": "410", "rank": 5}`.
        trunk: a frozen network in front of all of them, such as the convolutions of a VGG-16.

    Attributes:
        sharing: what the networks share.

    Raises:
        OptionError: the networks cannot share what they should.
    """

    def __init__(
        self, networks: Mapping[str, Network], sharing: type[Sharing], options: Mapping[str, Any],
        trunk: nn.Module | None = None, left_aside: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.options, self.method_name, self.left_aside = dict(options), sharing.name, left_aside
        self.sharing = sharing(networks, **options)
        self.trunk = nn.Identity() if trunk is None else trunk.requires_grad_(False)
        self.branches = nn.ModuleDict()
        self._tasks: dict[str, Task] = {}
        self.latents = {}
        self.eval()

    def add_task(self, task: Task, options: Mapping[str, Any] | None = None) -> None:
        self.check_new(task.name)
        plans = self.sharing.plans
        if task.name not in plans:
            raise UnknownNameError("network of this model for the task", task.name, plans)
        if options is not None and dict(options) != self.options:
            raise OptionError(f"{task.name} was made with the options {dict(options)}, not with {self.options}.")
        if len(task.classes) != plans[task.name].outputs:
            raise OptionError(
                f"{task.name} has {len(task.classes)} classes; its network was made for {plans[task.name].outputs}."
            )
        like = next(self.parameters(), torch.empty(0))
        self.branches[task.name] = self.sharing.network(task.name).to(like.device, like.dtype).train(self.training)
        self._tasks[task.name] = task

    def remove_task(self, name: str) -> None:
        self.task(name)
        del self.branches[name], self._tasks[name]

    def begin(self, sources: Mapping[str, nn.Module]) -> dict[str, float]:
        """Start from trained plain networks of all tasks; the relative error of each layer that is approximated."""
        return self.sharing.begin(dict(self.branches.items()), sources)

    # -- the networks ---------------------------------------------------------------------------------------------

    def forward(self, *inputs: Any, task: str | Sequence[str] | Tensor | None = None, **named: Any) -> Any:
        """What `task` makes of a batch that its network takes, such as images (B, C, H, W): logits (B, classes).

        Without a task: what every task makes of it, by its name. With one for each row: as `TaskModel.forward` does.
        """
        self.refuse_text(inputs, task)
        if task is None:
            return {each: self(*inputs, task=each, **named) for each in self.tasks}
        if not isinstance(task, str):
            return rows_in_turn(self, task_numbers(self.tasks, task, inputs), inputs, named)
        self.task(task)
        return self.branches[task](self.trunk(*inputs, **named))

    def train(self, mode: bool = True) -> JointModel:
        super().train(mode)
        self.trunk.eval()
        return self

    def fuse(self, task: str) -> nn.Module:
        """The task's network in layers of torch's own, behind the trunk if there is one; a module by itself."""
        self.task(task)
        network = plain_copy(self.branches[task])
        if not isinstance(self.trunk, nn.Identity):
            network = nn.Sequential(plain_copy(self.trunk), network)
        return network.requires_grad_(True).eval()

    def networks(self) -> Sequence[nn.Module]:
        return list(self.branches.values())

    # -- tensors --------------------------------------------------------------------------------------------------

    def task_parameters(self, task: str) -> Iterator[tuple[str, nn.Parameter]]:
        self.task(task)
        return self.branches[task].named_parameters()

    def task_tensors(self, task: str) -> dict[str, Tensor]:
        self.task(task)
        return dict(self.branches[task].state_dict())

    def head_prefixes(self, task: str) -> tuple[str, ...]:
        return (f"{self.sharing.plans[task].head}.",)

    def backbone_tensors(self) -> dict[str, Tensor]:
        return dict(self.trunk.state_dict())

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        return self.trunk.parameters()

    def shared_tensors(self) -> dict[str, Tensor]:
        return dict(self.sharing.state_dict())

    def common_parameters(self) -> Iterator[nn.Parameter]:
        return self.sharing.parameters()

    def common_tensors(self) -> dict[str, Tensor]:
        return self.shared_tensors()

    def task_options(self, task: str) -> dict[str, Any]:
        return self.options

    # -- training -------------------------------------------------------------------------------------------------

    def penalty(self, task: str) -> Tensor | None:
        return self.sharing.penalty(dict(self.branches.items()), task)

    def end_epoch(self) -> None:
        self.sharing.adjust(dict(self.branches.items()))
