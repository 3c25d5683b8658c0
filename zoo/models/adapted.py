"""One frozen backbone and any number of tasks on it: `y_t = F(x; W + ΔW_t, h_t)` (FTN, Eq. 1)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from zoo.catalog.task import Task
from zoo.errors import OptionError
from zoo.increments import Increment, Method, get_method
from zoo.models.layers import AdaptedConv2d, AdaptedLayer, AdaptedLinear, Site, TaskHead, TaskNorm
from zoo.models.multitask import MultiTaskModel
from zoo.models.placement import Placement
from zoo.models.selection import Selection, Stack

ALIKE = {2: 3e-2, 4: 1e-4, 8: 1e-8}  # how far two ways to compute the same may differ, by the bytes of a number
T = TypeVar("T")


def _alike(found: Any, expected: dict[str, Any]) -> bool:
    """Whether outputs by task are the same but for rounding, relative to each task's largest."""
    if not isinstance(found, dict) or tuple(found) != tuple(expected):
        return False
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True)
    return all(
        a.shape == b.shape and bool(((a - b).abs().max() <= ALIKE[b.element_size()] * b.abs().max()).item())
        for a, b in pairs
    )


def _named(path: str, make: Callable[..., T], *arguments: Any) -> T:
    """`make(*arguments)`; an OptionError names the layer."""
    try:
        return make(*arguments)
    except OptionError as error:
        raise OptionError(f"{path}: {error} Leave the layer out with layers=…, or change the option.") from error


class TaskModel(MultiTaskModel):
    """A frozen backbone with, for each task, increments to its weights, norms and a head.

    Args:
        backbone: the network to adapt. The model takes it over and changes it; pass a copy to keep yours.
        method: the method's name, such as "ftn".
        options: the method's own arguments, such as `{"rank": 20}`.
        placement: which layers are adapted and which one is the classifier.

    Attributes:
        backbone: the network, with its layers replaced by sites (`zoo.models.layers`). Call the model, not this.
    """

    def __init__(
        self,
        backbone: nn.Module,
        method: str,
        options: Mapping[str, Any] | None = None,
        placement: Placement | None = None,
    ) -> None:
        super().__init__()
        self.method: Method = get_method(method)
        self.options = dict(options or {})
        self.method.check(self.options)
        self.method_name = self.method.name
        self.selection = Selection()
        self._tasks: dict[str, Task] = {}
        self._task_options: dict[str, dict[str, Any]] = {}
        layers = (placement or Placement()).find(backbone, self.method)
        self.head_paths = layers.heads
        backbone.requires_grad_(self.method.trains_backbone)
        self.backbone = backbone
        self._replace(
            list(layers.adapted), lambda layer: AdaptedConv2d if isinstance(layer, nn.Conv2d) else AdaptedLinear
        )
        self._replace(layers.norms, lambda _: TaskNorm)
        self._replace(layers.heads, lambda _: TaskHead)
        self._sites = [(path, module) for path, module in backbone.named_modules() if isinstance(module, Site)]
        for path, site in self._sites:
            if isinstance(site, AdaptedLayer):
                site.role = layers.adapted.get(path, site.role)
                if self.method.shared:
                    site.shared = _named(path, self.method.share, site, self.options)
        self.left_aside = tuple(f"{path}." for path in layers.heads)
        self._task_prefixes = tuple(f"{path}.tasks." for path, _ in self._sites)
        self._stacks: dict[Any, bool] = {}  # whether one pass serves all tasks, for each shape of images that came
        self._own_prefixes = self._task_prefixes + tuple(f"{path}.shared." for path, _ in self._sites)
        self.eval()

    def add_task(self, task: Task, options: Mapping[str, Any] | None = None) -> None:
        """Give the model a further task, with fresh increments, the backbone's norms and a fresh head.

        Args:
            options: overrides of the model's method options for this task alone, such as another rank.

        Raises:
            OptionError: a name that is taken or that cannot stand in a file name, or a method option out of range.
        """
        self.check_new(task.name)
        fresh = {**self.options, **(options or {})}
        like = next(self.backbone.parameters(), torch.empty(0))
        added: list[Site] = []
        peers: list[Increment] = []
        try:
            for path, site in self._sites:
                if isinstance(site, AdaptedLayer):
                    peers.append(_named(path, self.method.build, site, fresh, peers))
                    site.add(task.name, peers[-1])
                elif isinstance(site, TaskHead):
                    site.add(task.name, len(task.classes))
                elif isinstance(site, TaskNorm):
                    site.add(task.name)
                added.append(site)
                site.tasks[task.name].to(like.device, like.dtype).train(self.training)
        except BaseException:
            for site in added:
                del site.tasks[task.name]
            raise
        self._tasks[task.name] = task
        self._task_options[task.name] = fresh

    def remove_task(self, name: str) -> None:
        """Forget a task; the others stay as they are, bit for bit."""
        self.task(name)
        for _, site in self._sites:
            if name in site.tasks:
                del site.tasks[name]
        del self._tasks[name], self._task_options[name]

    # -- the network ----------------------------------------------------------------------------------------------

    def forward(self, images: Tensor, task: str | None = None) -> Any:
        """What `task` makes of a batch of images (B, C, H, W): for a classifier, logits (B, classes).

        Without a task: what every task makes of them, by its name, in one pass where the network allows it (`Stack`).
        Safe to call from several threads, each with a task of its own.
        """
        if task is None:
            return self._all_tasks(images)
        self.task(task)
        return self._serve(task, images)

    def _serve(self, task: str | Stack, images: Tensor) -> Any:
        with self.selection.use(task):
            outputs = self.backbone(images)
        self.selection.follow(outputs, task)
        return outputs

    def _all_tasks(self, images: Tensor) -> dict[str, Any]:
        """The outputs by task: in one pass, if that is known to give the same for images of this shape.

        It is known once both ways have been taken and compared, in evaluation mode, the first time that images of a
        shape come. Networks that cannot be run so (those that add what all tasks share to what is one task's, that do
        more after the head, or that mix the rows of a batch) take a pass for each task.
        """
        case = (self.tasks, images.shape, images.dtype)
        if self.training or len(self.tasks) < 2 or not self._stacks.get(case, True):
            return {task: self._serve(task, images) for task in self.tasks}
        if case in self._stacks:
            return self._stacked(images)
        apart = {task: self._serve(task, images) for task in self.tasks}
        try:
            with torch.no_grad():
                self._stacks[case] = _alike(self._stacked(images), apart)
        except Exception:  # whatever a network raises that was not made for this; an error of the images' came before
            self._stacks[case] = False
        return apart

    def _stacked(self, images: Tensor) -> dict[str, Any]:
        """The outputs by task, in one pass."""
        # Tensors of many rows are fastest with their channels last.
        layout = torch.channels_last if images.ndim == 4 else torch.contiguous_format
        outputs: dict[str, Any] = self._serve(Stack(self.tasks, len(images)), images.contiguous(memory_format=layout))
        return outputs

    def train(self, mode: bool = True) -> TaskModel:
        """Set training mode, but for the norms of a frozen backbone: their statistics stay as they are."""
        super().train(mode)
        self._stacks.clear()
        if not self.method.trains_backbone:
            for path, module in self.backbone.named_modules():
                if isinstance(module, nn.modules.batchnorm._NormBase) and not path.startswith(self._task_prefixes):
                    module.eval()
        return self

    def fuse(self, task: str) -> nn.Module:
        """A plain module of the backbone's own class: weights `W + ΔW`, the task's norms and head, in eval mode.

        It shares nothing with this model, which stays as it was, bit for bit.
        """
        self.task(task)
        plain = {id(site): site.plain(task) for _, site in self._sites}
        return copy.deepcopy(self.backbone, memo=plain).requires_grad_(True).eval()

    # -- tensors --------------------------------------------------------------------------------------------------

    def task_parameters(self, task: str) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that `task` owns, each with its name: the layer's path and the name within."""
        for path, module in self._task_modules(task):
            for name, parameter in module.named_parameters():
                yield f"{path}.{name}", parameter

    def increment_parameters(self, task: str) -> Iterator[nn.Parameter]:
        """Those of the task's parameters that belong to increments, and to neither norms nor head."""
        for _, site in self.sites(task):
            if isinstance(site, AdaptedLayer):
                yield from site.tasks[task].parameters()

    def task_tensors(self, task: str) -> dict[str, Tensor]:
        """All tensors that `task` owns, running statistics included, by name; not copies."""
        return {
            f"{path}.{name}": tensor
            for path, module in self._task_modules(task)
            for name, tensor in module.state_dict().items()
        }

    def load_task_tensors(self, task: str, tensors: Mapping[str, Tensor], source: str = "the tensors") -> None:
        super().load_task_tensors(task, tensors, source)
        self._stacks.clear()

    def head_prefixes(self, task: str) -> tuple[str, ...]:
        return self.left_aside  # a task's head sits where the backbone's sat

    def backbone_tensors(self) -> dict[str, Tensor]:
        """The frozen tensors, by the backbone's own names; no task's, none that tasks share, and no classifier's."""
        return {
            name: tensor
            for name, tensor in self.backbone.state_dict().items()
            if not name.startswith(self._own_prefixes)
        }

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        return (p for name, p in self.backbone.named_parameters() if not name.startswith(self._own_prefixes))

    def shared_tensors(self) -> dict[str, Tensor]:
        """What the tasks' increments share, by name; empty for a method that shares nothing."""
        return {
            f"{path}.shared.{name}": tensor
            for path, site in self._sites
            if isinstance(site, AdaptedLayer) and self.method.shared
            for name, tensor in site.shared.state_dict().items()
        }

    def common_parameters(self) -> Iterator[nn.Parameter]:
        return self.backbone.parameters() if self.method.trains_backbone else iter(())

    def common_tensors(self) -> dict[str, Tensor]:
        return self.backbone_tensors() if self.method.trains_backbone else {}

    def task_options(self, task: str) -> dict[str, Any]:
        return self._task_options[task]

    def networks(self) -> Sequence[nn.Module]:
        return [self.backbone]

    def sites(self, task: str) -> Iterator[tuple[str, Site]]:
        """The layers where `task` has something of its own, by their paths."""
        self.task(task)
        for path, site in self._sites:
            if task in site.tasks:
                yield path, site

    def _task_modules(self, task: str) -> Iterator[tuple[str, nn.Module]]:
        for path, site in self.sites(task):
            yield path, site.tasks[task]

    def _replace(self, paths: Sequence[str], kind: Callable[[nn.Module], type[Site]]) -> None:
        for path in paths:
            layer = self.backbone.get_submodule(path)
            if not isinstance(layer, Site):  # a module that stands in two places is replaced in both by one site
                site = kind(layer).adopt(layer, self.selection)
                for twin in [name for name, m in self.backbone.named_modules(remove_duplicate=False) if m is layer]:
                    self.backbone.set_submodule(twin, site)
