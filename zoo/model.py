"""One frozen backbone and any number of tasks on it: `y_t = F(x; W + ΔW_t, h_t)` (FTN, Eq. 1)."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from zoo.errors import OptionError, UnknownNameError, WeightsError
from zoo.increments import Increment, Method, get_method
from zoo.layers import AdaptedConv2d, AdaptedLayer, AdaptedLinear, Site, TaskHead, TaskNorm
from zoo.placement import Placement
from zoo.registry import Parameters
from zoo.selection import Selection, Stack
from zoo.task import CLASSIFICATION, Preprocessing, Task
from zoo.tensors import check_tensors, fingerprint, read, write

ADAPTER_FORMAT = 1
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


class TaskModel(nn.Module):
    """A frozen backbone with, for each task, increments to its weights, norms and a head.

    Args:
        backbone: the network to adapt. The model takes it over and changes it; pass a copy to keep yours.
        method: the method's name, such as "ftn".
        options: the method's own arguments, such as `{"rank": 20}`.
        placement: which layers are adapted and which one is the classifier.

    Attributes:
        backbone: the network, with its layers replaced by sites (`zoo.layers`). Call the model, not this.
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
        self._head_prefixes = tuple(f"{path}." for path in layers.heads)
        self._task_prefixes = tuple(f"{path}.tasks." for path, _ in self._sites)
        self._stacks: dict[Any, bool] = {}  # whether one pass serves all tasks, for each shape of images that came
        self._own_prefixes = self._task_prefixes + tuple(f"{path}.shared." for path, _ in self._sites)
        self.eval()

    # -- tasks ----------------------------------------------------------------------------------------------------

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, in the order in which they were added."""
        return tuple(self._tasks)

    def task(self, name: str) -> Task:
        """What is known of a task: its classes and preprocessing."""
        try:
            return self._tasks[name]
        except (KeyError, TypeError):
            raise UnknownNameError("task", str(name), self._tasks) from None

    def transforms(self, task: str) -> Callable[[Any], Any]:
        """The transform from an image to the input that this task was trained on."""
        return self.task(task).preprocessing.transform()

    def add_task(self, task: Task, options: Mapping[str, Any] | None = None) -> None:
        """Give the model a further task, with fresh increments, the backbone's norms and a fresh head.

        Args:
            options: overrides of the model's method options for this task alone, such as another rank.

        Raises:
            OptionError: a name that is taken or that cannot stand in a file name, or a method option out of range.
        """
        if task.name in self._tasks:
            raise OptionError(f"The model has a task {task.name!r} already; remove_task({task.name!r}) comes first.")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", task.name) or hasattr(nn.ModuleDict(), task.name):
            raise OptionError(
                f"{task.name!r} cannot name a task: take letters, digits, '-' and '_', "
                "and none of the names of torch's module methods."
            )
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
        """Replace every tensor of `task` by those given; nothing is changed unless all of them fit.

        Raises:
            WeightsError: a tensor is missing, unexpected or of the wrong shape; all such are named.
        """
        own = self.task_tensors(task)
        check_tensors(own, tensors, source)
        self._stacks.clear()
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    def backbone_tensors(self) -> dict[str, Tensor]:
        """The frozen tensors, by the backbone's own names; no task's, none that tasks share, and no classifier's."""
        return {
            name: tensor
            for name, tensor in self.backbone.state_dict().items()
            if not name.startswith(self._own_prefixes)
        }

    def load_backbone_tensors(self, tensors: Mapping[str, Tensor], source: str = "the tensors") -> None:
        """Replace the frozen tensors; a classifier among those given is left aside.

        Raises:
            OptionError: the model has tasks already, which were made for other frozen weights.
            WeightsError: a tensor is missing, unexpected or of the wrong shape; all such are named.
        """
        if self._tasks:
            raise OptionError("Load the backbone's weights before the first task is added.")
        own = self.backbone_tensors()
        given = {name: tensor for name, tensor in tensors.items() if not name.startswith(self._head_prefixes)}
        counters = {name: own[name] for name in own if name.endswith("num_batches_tracked")}  # older files lack them
        check_tensors(own, {**counters, **given}, source)
        for name, tensor in given.items():
            own[name].copy_(tensor)

    def shared_tensors(self) -> dict[str, Tensor]:
        """What the tasks' increments share, by name; empty for a method that shares nothing."""
        return {
            f"{path}.shared.{name}": tensor
            for path, site in self._sites
            if isinstance(site, AdaptedLayer) and self.method.shared
            for name, tensor in site.shared.state_dict().items()
        }

    def load_shared_tensors(self, tensors: Mapping[str, Tensor], source: str = "the tensors") -> None:
        """Replace what the tasks share; raises WeightsError, naming every tensor that does not fit."""
        own = self.shared_tensors()
        check_tensors(own, tensors, source)
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    def backbone_sha256(self) -> str:
        """What identifies the frozen weights: the SHA-256 over their names, types, shapes and values."""
        tensors = self.backbone_tensors()
        return fingerprint({name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")})

    def count_parameters(self, task: str) -> Parameters:
        """Parameters of the frozen backbone, of `task` and of what tasks share, no classifiers (as FTN counts)."""
        frozen = [p for name, p in self.backbone.named_parameters() if not name.startswith(self._own_prefixes)]
        own = [p for name, p in self.task_parameters(task) if not name.startswith(self._head_prefixes)]
        counts = (sum(p.numel() for p in group) for group in (frozen, own, self.shared_tensors().values()))
        return Parameters(*counts)

    # -- adapter files --------------------------------------------------------------------------------------------

    def save_adapter(self, task: str, path: Path, provenance: Mapping[str, Any] | None = None) -> None:
        """Write everything that `task` owns to one safetensors file, atomically.

        Args:
            provenance: further facts for the header, such as entry, recipe and metrics.

        Raises:
            WeightsError: the file cannot be written; what stood there is unchanged.
        """
        known = self.task(task)
        header = {
            "format": ADAPTER_FORMAT,
            "task": task,
            "classes": list(known.classes),
            "kind": known.kind,
            "preprocessing": dataclasses.asdict(known.preprocessing),
            "method": {"name": self.method.name, **self._task_options[task]},
            "backbone_sha256": self.backbone_sha256(),
            **({"shared_sha256": fingerprint(self.shared_tensors())} if self.method.shared else {}),
            **(provenance or {}),
        }
        write(path, self.task_tensors(task), header)

    def load_adapter(self, path: Path) -> Task:
        """Add the task that an adapter file holds; the model is unchanged where that fails.

        Raises:
            WeightsError: the file is damaged, or was made for another method, rank or backbone.
            OptionError: the model has a task of that name.
        """
        tensors, header = read(path)
        if header.get("format") != ADAPTER_FORMAT:
            raise WeightsError(f"{path} is no adapter file of this version: its format is {header.get('format')!r}.")
        try:
            method, made_for = dict(header["method"]), str(header["backbone_sha256"])
            name = method.pop("name")
            preprocessing = Preprocessing.from_data(header["preprocessing"])
            task = Task.of(str(header["task"]), header["classes"], preprocessing, header.get("kind", CLASSIFICATION))
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{path} has a damaged header: {error!r}. Fetch or train it again.") from error
        if name != self.method.name:
            raise WeightsError(f"{path} holds an adapter of the method {name!r}; this model's is {self.method.name!r}.")
        if made_for != (own := self.backbone_sha256()):
            raise WeightsError(
                f"{path} was trained on another backbone (SHA-256 {made_for[:12]}…, this one's is {own[:12]}…). "
                f"Load it on the backbone that its header names: {header.get('backbone', 'unknown')}."
            )
        shared = fingerprint(self.shared_tensors()) if self.method.shared else None
        if shared != header.get("shared_sha256"):
            raise WeightsError(
                f"{path} belongs to other shared tensors than this model has. Load those beside it first."
            )
        self.add_task(task, method)
        try:
            self.load_task_tensors(task.name, tensors, str(path))
        except WeightsError:
            self.remove_task(task.name)
            raise
        return task

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
