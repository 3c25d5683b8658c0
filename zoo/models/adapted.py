"""One frozen backbone and any number of tasks on it: `y_t = F(x; W + ΔW_t, h_t)` (FTN, Eq. 1)."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from zoo.backbones.generator import Generator, Prior
from zoo.catalog.options import as_patterns, check_ranks_of, options_at, rank_at
from zoo.catalog.task import GENERATION, Task, has_labels
from zoo.errors import OptionError
from zoo.increments import Increment, Method, get_method
from zoo.models import proof
from zoo.models.first_passes import FirstPasses
from zoo.models.frozen import ALIKE, Buffers, copy_of, exact_arithmetic, rests, trainable
from zoo.models.latents import fit
from zoo.models.layers import AdaptedLayer, Site, TaskHead, TaskNorm, TaskOwn, adapted_kind, replace_everywhere
from zoo.models.mixing import Mixed, Mixes, agreement, mixed_network, output_positions
from zoo.models.multitask import MultiTaskModel
from zoo.models.placement import Placement
from zoo.models.selection import Selection, Stack

log = logging.getLogger(__name__)
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


def _check_plain(backbone: nn.Module) -> None:
    """Raise OptionError for a network that is adapted already, or that has an input called `task`."""
    if any(isinstance(part, Site | MultiTaskModel) for part in backbone.modules()):
        raise OptionError(
            f"The {type(backbone).__name__} is adapted already. Give it a further task with add_task: "
            "model.add_task(zoo.Task.of(name, classes)); or adapt what model.fuse(task) gives."
        )
    inputs: Collection[str] = ()
    with contextlib.suppress(TypeError, ValueError):  # a forward without a signature
        inputs = inspect.signature(backbone.forward).parameters
    if "task" in inputs:
        raise OptionError(
            f"{type(backbone).__name__} has an input called task, which is how a model is told what to serve. "
            "Rename it in the network's forward."
        )


class TaskModel(proof.Provable):
    """A frozen backbone with, for each task, increments to its weights, norms and a head.

    Args:
        backbone: the network to adapt. The model takes it over and changes it; pass a copy to keep yours.
        method: the method's name, such as "ftn".
        options: the method's own arguments, such as `{"rank": 20}`.
        placement: which layers are adapted and which one is the classifier.

    Attributes:
        backbone: the network, with its layers replaced by sites (`zoo.models.layers`). Call the model, not this.
        first_passes: what has been seen of the tasks' first passes.
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
        _check_plain(backbone)
        layers = (placement or Placement()).find(backbone, self.method)
        self.head_paths = layers.heads
        backbone.requires_grad_(self.method.trains_backbone)
        self.backbone = backbone
        self._replace(list(layers.adapted), adapted_kind)
        self._replace(layers.norms, lambda _: TaskNorm)
        self._replace(layers.whole, lambda _: TaskOwn)
        self._replace(layers.heads, lambda _: TaskHead)
        self.may_rest = layers.may_rest
        self._sites = [(path, module) for path, module in backbone.named_modules() if isinstance(module, Site)]
        for path, site in self._sites:
            if isinstance(site, AdaptedLayer):
                site.role = layers.adapted.get(path, site.role)
                if self.method.shared:
                    site.shared = _named(path, self.method.share, site, options_at(self.options, path))
        self.left_aside = tuple(f"{path}." for path in layers.heads)
        places = [p for p, m in backbone.named_modules(remove_duplicate=False) if isinstance(m, Site)]
        self._task_prefixes = tuple(f"{path}.tasks." for path in places)
        self._mixes = Mixes()
        self._stacks: dict[Any, bool] = {}  # whether one pass serves all tasks, for each shape of images that came
        self.first_passes = FirstPasses()
        self._drawn: dict[str, list[Tensor]] = {}  # of each task's head, its first rows when it was added
        self.latents = {}
        self._own_prefixes = self._task_prefixes + tuple(f"{path}.shared." for path in places)
        self._frozen_buffers = Buffers(() if self.method.trains_backbone else self._keepers())
        self.eval()

    def add_task(self, task: Task, options: Mapping[str, Any] | None = None) -> None:
        """Give the model a further task, with fresh increments, the backbone's norms and a fresh head.

        Args:
            options: overrides of the model's method options for this task alone, such as another rank. A rank may be
                a mapping of patterns to ranks: a layer's is what the pattern says that spells out most of its path,
                and a layer of the rank 0, or that none matches, stays the backbone's.

        Raises:
            OptionError: a name that is taken or that cannot stand in a file name, or a method option out of range.
        """
        self.check_new(task.name)
        self._check_kind(task)
        fresh = {**self.options, **(options or {})}
        added: list[Site] = []
        peers: list[Increment] = []
        try:
            with torch.inference_mode(False):
                check_ranks_of(fresh, [path for path, _ in self.adapted()])
                for path, site in self._sites:
                    if isinstance(site, AdaptedLayer):
                        own = options_at(fresh, path)
                        if own.get("rank") == 0 and isinstance(fresh["rank"], Mapping):
                            continue
                        peers.append(_named(path, self.method.build, site, own, peers))
                        site.add(task.name, peers[-1])
                    elif isinstance(site, TaskHead):
                        _named(path, site.add, task.name, len(task.classes))
                    elif isinstance(site, TaskOwn):
                        site.add(task.name)
                    added.append(site)
                    site.tasks[task.name].train(self.training)
        except BaseException:
            for site in added:
                del site.tasks[task.name]
            raise
        self._tasks[task.name] = task
        self._mixes.clear()
        self._task_options[task.name] = fresh
        self.first_passes.begin(self, task.name)
        self._drawn[task.name] = self._head_rows(task.name)

    def _check_kind(self, task: Task) -> None:
        """Raise OptionError for a task of a kind that the network is not made for."""
        makes, name = isinstance(self.backbone, Generator), type(self.backbone).__name__
        if makes and task.kind != GENERATION:
            raise OptionError(f"{name} makes pictures; the kind of {task.name} is {task.kind}, not {GENERATION}.")
        if task.kind == GENERATION and not makes:
            raise self.makes_no_pictures()
        if has_labels(task.kind) and not self.head_paths:
            raise OptionError(f"{task.name} labels images, and the model has no head to do so: name one, head=….")

    def leave(self, task: str, paths: Collection[str]) -> None:
        """Drop what a task adds to some layers: these are then as the backbone has them, and their ranks 0.

        Raises:
            OptionError: the method has no rank, or layers or tasks share factors.
        """
        ranks = self._task_options[self.task(task).name].get("rank")
        if ranks is None:
            raise OptionError(f"Layers are left out by a rank of 0, and {self.method_name} has no rank here.")
        if self.method.shared or self.method.shares_factors:
            raise OptionError(f"No layer can be left out of {self.method_name}, whose layers or tasks share factors.")
        now = {path: rank_at(ranks, path) if isinstance(ranks, Mapping) else ranks for path, _ in self.adapted()}
        for path, site in self.adapted():
            if path in paths and task in site.tasks:
                del site.tasks[task]
        own = {path: 0 if path in paths else rank for path, rank in now.items()}
        self._task_options[task] = {**self._task_options[task], "rank": as_patterns(own)}
        self._mixes.clear()
        self._stacks.clear()
        self.first_passes.forget(task)
        self.first_passes.begin(self, task)

    def remove_task(self, name: str) -> None:
        """Forget a task; the others stay as they are, bit for bit."""
        self.task(name)
        for _, site in self._sites:
            if name in site.tasks:
                del site.tasks[name]
        del self._tasks[name], self._task_options[name]
        self.latents.pop(name, None)
        self._mixes.clear()
        self.first_passes.forget(name)
        del self._drawn[name]

    # -- the network ----------------------------------------------------------------------------------------------

    def forward(self, *inputs: Any, task: str | Sequence[str] | Tensor | None = None, **named: Any) -> Any:
        """What `task` makes of the network's inputs: for a classifier of images (B, C, H, W), logits (B, classes).

        All but `task` is handed to the network. Without a task: what every task makes of them, by its name, in one pass
        where the network allows it (`Stack`). With a task for each row, a list of names or an int64 tensor of their
        places in `tasks`: what each row's task makes of it, in one tensor as wide as the largest task's; beyond a
        task's own classes it is -inf. Safe to call from several threads, each with a task of its own.

        Raises:
            OptionError: a task's first pass shows that what it adds to some layer cannot act (`zoo.models.proof`).
        """
        self.refuse_text(inputs, task)
        if task is None:
            return self._all_tasks((inputs, named))
        if not isinstance(task, str):
            return self._mixes.serve(self, self.unchecked_mixed, task, inputs, named)
        self.task(task)
        if torch.compiler.is_compiling():
            return self.serve(task, inputs, named)
        learns = self.training and torch.is_grad_enabled()
        if self.first_passes.are_over(task, learns):
            return self.serve(task, inputs, named)
        return self.first_passes.take(self, task, (inputs, named), learns)

    def serve(self, task: str | Stack, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """The network's outputs for a task that the model has, unwatched."""
        with self.selection.use(task), self._frozen_buffers.kept():
            outputs = self.backbone(*inputs, **named)
        self.selection.follow(outputs, task)
        return outputs

    def prove(self, task: str, *inputs: Any, **named: Any) -> None:
        """Raise OptionError unless what `task` adds acts on these inputs: every layer is called, every parameter gets a
        gradient, and the fused network agrees, with the task's parameters moved a little. They are put back.
        """
        self.task(task)
        with proof.evaluating(self), torch.no_grad(), proof.on_images(self, inputs):
            own, own_named = proof.copied((inputs, named))
            self.forward(*own, task=task, **own_named)
        rows = proof.two_rows((inputs, named))
        with proof.moved(self, task):
            idle = proof.check_gradients(self, task, rows)
            if idle:
                log.warning("%s: on the first images, the gradient of %s is zero.", task, ", ".join(idle[:4]))
            if not self.method.trains_backbone:
                proof.check_fused(self, task, self.fused(task), rows)

    def prior(self, task: str) -> Prior:
        if not isinstance(self.backbone, Generator):
            return super().prior(task)
        prior: Prior = self.backbone.prior.tasks[self.task(task).name]  # type: ignore[assignment, index]
        return prior

    def input_shape(self, task: str) -> tuple[int, ...]:
        return (self.backbone.latent_size,) if isinstance(self.backbone, Generator) else super().input_shape(task)

    def answering(self, task: str) -> Callable[[Tensor], Any]:
        if self.task(task).kind != GENERATION:
            return super().answering(task)
        return lambda pictures: self(
            fit(lambda z: self(z, task=task), self.taken(pictures), self.prior(task)), task=task
        )

    def _all_tasks(self, call: proof.Call) -> dict[str, Any]:
        """The outputs by task: in one pass, if that is known to give the same for images of this shape.

        It is known once both ways have been taken and compared, in evaluation mode, the first time that images of a
        shape come. Networks that cannot be run so (those that add what all tasks share to what is one task's, that do
        more after the head, that mix the rows of a batch, or that take more than images) take a pass for each task.
        """
        inputs, named = call
        alone = len(inputs) == 1 and not named and isinstance(inputs[0], Tensor) and inputs[0].ndim > 0
        case = (self.tasks, inputs[0].shape, inputs[0].dtype) if alone else None
        if self.training or len(self.tasks) < 2 or not alone or not self._stacks.get(case, True):
            return {task: self.forward(*inputs, task=task, **named) for task in self.tasks}
        if case in self._stacks:
            return self._stacked(inputs[0])
        apart = {task: self.forward(*inputs, task=task) for task in self.tasks}
        try:
            with torch.no_grad():
                self._stacks[case] = _alike(self._stacked(inputs[0]), apart)
        except Exception:  # whatever a network raises that was not made for this; an error of the images' came before
            self._stacks[case] = False
        return apart

    def _stacked(self, images: Tensor) -> dict[str, Any]:
        """The outputs by task, in one pass."""
        # Tensors of many rows are fastest with their channels last.
        layout = torch.channels_last if images.ndim == 4 else torch.contiguous_format
        stack = Stack(self.tasks, len(images))
        outputs: dict[str, Any] = self.serve(stack, (images.contiguous(memory_format=layout),), {})
        return outputs

    def mixed(
        self, tasks: Sequence[str] | None = None, *, stack_limit: int | None = None, example: Tensor | None = None,
        exported: bool = False,
    ) -> Mixed:  # fmt: skip
        """One network for several tasks, with the number of a task for each image: `mixed(images, numbers)`.

        It is what `model(images, task=numbers)` runs, to be compiled or exported by itself. Its frozen tensors are
        this model's; of what tasks own it is a copy, as they are now.

        Args:
            tasks: their names, in the order of their numbers; all by default.
            stack_limit: bytes of weights that may be kept whole for each task, where that is cheaper than to add what
                tasks add; by default as many as the backbone has. 0: none.
            example: one image, (1, C, H, W), as large as those to come; by default of the first task's size.
            exported: whether it is for a graph that takes any batch.

        Raises:
            OptionError: the network cannot be run so: it reads the tensors of its layers itself, mixes the rows of a
                batch, or answers with something else than (B, classes, …).
        """
        with proof.evaluating(self):
            made = self.unchecked_mixed(tasks, stack_limit, example, exported)
            if example is None:
                example = next(self.backbone_parameters()).new_empty(self._shape(made.tasks)).normal_()
            agrees = agreement(self, made, example.to(made.known.device))
        if agrees is False:
            raise OptionError(
                f"{type(self.backbone).__name__} cannot take a task for each row in one pass: that gives other outputs "
                "than the rows of one task after another. model(images, task=[…]) takes them so."
            )
        return made

    def unchecked_mixed(
        self, tasks: Sequence[str] | None = None, stack_limit: int | None = None, example: Tensor | None = None,
        exported: bool = False,
    ) -> Mixed:  # fmt: skip
        """What `mixed` gives, before it is compared with one task after another."""
        names = list(self.tasks if tasks is None else tasks)
        classes = [len(self.task(name).classes) for name in names]
        if not names:
            raise OptionError("The model has no tasks yet to mix: add_task comes first.")
        limit = sum(t.nbytes for t in self.backbone_tensors().values()) if stack_limit is None else stack_limit
        self._frozen_buffers.put_back()
        with exact_arithmetic(), torch.no_grad():
            fused = self.fused(names[0])
            if example is None:
                example = next(self.backbone_parameters()).new_zeros(self._shape(names))
            positions = output_positions(
                fused, [path for path, site in self._sites if isinstance(site, AdaptedLayer)], example[:1]
            )
            return mixed_network(self.backbone, self._sites, names, classes, positions, limit, exported)

    def _shape(self, tasks: Sequence[str]) -> tuple[int, ...]:
        """That of one input of the first of some tasks."""
        return (1, *self.input_shape(tasks[0]))

    def train(self, mode: bool = True) -> TaskModel:
        """Set training mode, but for what would move a frozen backbone: norms, and other keepers of statistics."""
        super().train(mode)
        self._stacks.clear()
        self._mixes.clear()
        if not self.method.trains_backbone:
            for path, module in self.backbone.named_modules():
                if not isinstance(module, Site) and rests(module) and not path.startswith(self._task_prefixes):
                    module.training = False
        return self

    def _apply(self, *args: Any, **named: Any) -> Any:
        self._mixes.clear()
        with self._frozen_buffers.replaced():
            return super()._apply(*args, **named)  # type: ignore[no-untyped-call]

    def _keepers(self) -> Iterator[nn.Module]:
        """The frozen modules with buffers that a pass could move."""
        for path, module in self.backbone.named_modules():
            known = isinstance(module, Site | nn.modules.batchnorm._NormBase)  # which move none of theirs
            if module._buffers and not known and not path.startswith(self._task_prefixes):
                yield module

    def fuse(self, task: str) -> nn.Module:
        """A plain module of the backbone's own class: weights `W + ΔW`, the task's norms and head, in eval mode.

        It shares nothing with this model, which stays as it was, bit for bit. It is compared with the model once, on
        two rows of the task's first pass; one that is fused before any pass is not.

        Raises:
            OptionError: the two differ by more than rounding; layers are named.
        """
        self.task(task)
        fused = self.fused(task)
        self.first_passes.compare(self, task, fused)
        return fused

    def fused(self, task: str) -> nn.Module:
        """What `fuse` gives, before it is compared."""
        self._frozen_buffers.put_back()
        with exact_arithmetic():
            plain: dict[int, Any] = {id(site): site.plain(task) for _, site in self._sites}
            fused: nn.Module = trainable(copy_of(self.backbone, plain))
        return fused.eval()

    def plain_tensors(self, task: str) -> dict[str, Tensor]:
        self.task(task)
        return {f"{path}.{name}": t for path, site in self._sites for name, t in site.plain_tensors(task).items()}

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

    def task_places(self, task: str) -> dict[str, str]:
        """Where the model's state has each of the tensors that `task` owns, by its name in the adapter file."""
        return {
            f"{path}.{name}": f"backbone.{path}.tasks.{task}.{name}"
            for path, module in self._task_modules(task)
            for name in module.state_dict()
        }

    def load_task_tensors(self, task: str, tensors: Mapping[str, Tensor], source: str = "the tensors") -> None:
        super().load_task_tensors(task, tensors, source)
        self._stacks.clear()
        self._mixes.clear()

    def head_prefixes(self, task: str) -> tuple[str, ...]:
        return self.left_aside  # a task's head sits where the backbone's sat

    def load_backbone_tensors(self, tensors: Mapping[str, Tensor], source: str = "the tensors") -> None:
        super().load_backbone_tensors(tensors, source)
        self._frozen_buffers.record()

    def load_state_dict(self, *args: Any, **named: Any) -> Any:
        found = super().load_state_dict(*args, **named)
        self._frozen_buffers.record()
        return found

    def backbone_tensors(self) -> dict[str, Tensor]:
        """The frozen tensors, by the backbone's own names; no task's, none that tasks share, and no classifier's."""
        self._frozen_buffers.put_back()
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

    def has_fresh_head(self, task: str) -> bool:
        drawn, now = self._drawn[task], self._head_rows(task)
        return all(torch.equal(a.to(b), b) for a, b in zip(drawn, now, strict=True))

    def _head_rows(self, task: str) -> list[Tensor]:
        """The first row of each tensor of a task's head: what no training leaves as it is."""
        heads = (site.tasks[task] for _, site in self.sites(task) if isinstance(site, TaskHead))
        return [(p.detach()[:1] if p.ndim else p.detach()).clone() for head in heads for p in head.parameters()]

    def rest_norms(self, task: str) -> None:
        if self.method.trains_backbone:
            super().rest_norms(task)
        if self.method.increment is not None and self.method.increment.normalises:
            raise OptionError(
                f"statistics: frozen does not go with {self.method.name}, which divides by each batch's deviation: the "
                "norms' statistics would be of something else. Leave it out of the recipe."
            )
        for _, site in self.sites(task):
            if isinstance(site, TaskNorm):
                site.tasks[task].eval()

    def sites(self, task: str) -> Iterator[tuple[str, Site]]:
        """The layers where `task` has something of its own, by their paths."""
        self.task(task)
        for path, site in self._sites:
            if task in site.tasks:
                yield path, site

    def adapted(self) -> Iterator[tuple[str, AdaptedLayer]]:
        """The layers that tasks may add to, by their paths."""
        return ((path, site) for path, site in self._sites if isinstance(site, AdaptedLayer))

    def _task_modules(self, task: str) -> Iterator[tuple[str, nn.Module]]:
        for path, site in self.sites(task):
            yield path, site.tasks[task]

    def _replace(self, paths: Sequence[str], kind: Callable[[nn.Module], type[Site]]) -> None:
        for path in paths:
            layer = self.backbone.get_submodule(path)
            if not isinstance(layer, Site):  # a module that stands in two places is replaced in both by one site
                replace_everywhere(self.backbone, layer, kind(layer).adopt(layer, self.selection))
