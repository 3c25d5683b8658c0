"""What every model of the zoo is to its users: tasks, `forward(x, task)`, `fuse(task)`, adapter files in and out."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zoo.backbones.generator import Prior
from zoo.catalog.entry import Parameters
from zoo.catalog.task import CLASSIFICATION, SHARED_NAME, Preprocessing, Task, can_name_task
from zoo.errors import OptionError, UnknownNameError, WeightsError
from zoo.models.frozen import input_dtype
from zoo.storage.tensors import check_tensors, counters, fingerprint, read, replace_tensors, write

COMMON_RANK = 4096  # that a header may state without a tensor of that size
ADAPTER_FORMAT = 1


class MultiTaskModel(nn.Module):
    """Tasks by name, each with tensors of its own, beside tensors that are frozen and tensors that tasks share.

    How these make up a network differs: `zoo.models.TaskModel` adapts one frozen backbone, `zoo.joint.JointModel` has
    a network for each task, which share parts of their weights.

    Attributes:
        method_name: of the method, as the registry writes it.
        latents: of tasks that make pictures, those of the training pictures (N, Z), where a training has found them.
        left_aside: what names of a backbone's tensors begin with that no model keeps: its own classifier's.
    """

    method_name: str
    latents: dict[str, Tensor]
    left_aside: tuple[str, ...]
    _tasks: dict[str, Task]

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

    def rename(self, task: Task) -> None:
        """Know a task the model has by other names of its classes, or prepared in another way; no tensor changes."""
        known = self.task(task.name)
        if (len(known.classes), known.kind) != (len(task.classes), task.kind):
            raise OptionError(f"The task {task.name} has {len(known.classes)} outputs of the kind {known.kind}.")
        self._tasks[task.name] = task

    def transforms(self, task: str) -> Callable[[Any], Any]:
        """The transform from an image to the input that this task was trained on."""
        return self.task(task).preprocessing.transform()

    @abstractmethod
    def add_task(self, task: Task, options: Mapping[str, Any] | None = None) -> None:
        """Give the model a further task, with fresh tensors of its own; raises OptionError where that cannot be."""

    @abstractmethod
    def remove_task(self, name: str) -> None:
        """Forget a task; the others stay as they are, bit for bit."""

    def check_new(self, name: str) -> None:
        """Raise OptionError unless `name` can name a task, and none has it yet."""
        if name in self._tasks:
            raise OptionError(f"The model has a task {name!r} already; remove_task({name!r}) comes first.")
        if not can_name_task(name) or hasattr(nn.ModuleDict(), name):
            raise OptionError(
                f"{name!r} cannot name a task: take up to 100 letters, digits, '-' and '_', "
                f"and neither {SHARED_NAME!r} nor one of the names of torch's module methods."
            )

    # -- the network ----------------------------------------------------------------------------------------------

    @abstractmethod
    def forward(self, *inputs: Any, task: str | Sequence[str] | Tensor | None = None, **named: Any) -> Any:
        """What `task` makes of the network's inputs; without a task: what every task makes of them, by its name; with
        one for each row: what each makes of its row.
        """

    def refuse_text(self, inputs: Sequence[Any], task: object) -> None:
        """Raise OptionError where a task's name stands among the inputs, as versions before 0.2 took it."""
        if task is None and len(inputs) > 1 and isinstance(inputs[1], str):
            raise OptionError(f"The task is a keyword: model(images, task={inputs[1]!r}). Inputs stand before it.")

    def prior(self, task: str) -> Prior:
        """Where the latents of a task's training pictures lie; before its training, those of the backbone's.

        Raises:
            OptionError: the network makes no pictures of latents.
        """
        self.task(task)
        raise self.makes_no_pictures()

    def makes_no_pictures(self) -> OptionError:
        """What is wrong with asking a network for pictures that is no generator."""
        name = type(self.networks()[0]).__name__
        return OptionError(f"{name} makes no pictures of latents; what does is a zoo.backbones.Generator.")

    def input_shape(self, task: str) -> tuple[int, ...]:
        """The shape of one input of a task: of an image (C, H, W), of a clip (T, C, H, W), of a latent (Z,)."""
        return self.task(task).preprocessing.input_size

    def taken(self, inputs: Tensor) -> Tensor:
        """A batch of floats in the type of number that the networks take."""
        return inputs.to(input_dtype(self)) if inputs.is_floating_point() else inputs

    def answering(self, task: str) -> Callable[[Tensor], Any]:
        """What a task makes of batches of floats, which are brought to the type of number that the networks take.

        A task that makes pictures takes pictures here, and makes them again, of the latents that fit best.
        """
        return lambda inputs: self(self.taken(inputs), task=task)

    def prove(self, task: str, *inputs: Any, **named: Any) -> None:
        """Raise OptionError where it shows on these inputs that what `task` owns does not act as it should."""

    @abstractmethod
    def fuse(self, task: str) -> nn.Module:
        """A plain module that does what this model does for `task`, in eval mode; the model stays as it was."""

    def plain_tensors(self, task: str) -> dict[str, Tensor]:
        """What of the tensors of `fuse(task)` is the task's own, by their names there: W + ΔW, norms and head.

        They are computed of the model's tensors, in autograd's graph or an exporter's if there is one; some are the
        model's own and no copies.
        """
        return self.fuse(task).state_dict()

    @abstractmethod
    def networks(self) -> Sequence[nn.Module]:
        """The modules that do the work when the model is called, to be compiled each by itself."""

    # -- tensors --------------------------------------------------------------------------------------------------

    @abstractmethod
    def task_parameters(self, task: str) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that `task` owns, each with its name: the layer's path and the name within."""

    def increment_parameters(self, task: str) -> Iterator[nn.Parameter]:
        """Those of the task's parameters that a recipe's optimiser for increments is for."""
        return iter(())

    @abstractmethod
    def task_tensors(self, task: str) -> dict[str, Tensor]:
        """All tensors that `task` owns, running statistics included, by name; not copies."""

    @abstractmethod
    def head_prefixes(self, task: str) -> tuple[str, ...]:
        """What the names of a task's tensors begin with that belong to its head."""

    @abstractmethod
    def backbone_tensors(self) -> dict[str, Tensor]:
        """The frozen tensors, by the backbone's own names; no task's, none that tasks share, and no classifier's."""

    @abstractmethod
    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """The frozen parameters."""

    @abstractmethod
    def shared_tensors(self) -> dict[str, Tensor]:
        """What the tasks share, by name; empty for a method that shares nothing."""

    def common_parameters(self) -> Iterator[nn.Parameter]:
        """What is trained beside what tasks own: shared parameters, or a backbone that is pre-trained."""
        return iter(())

    def common_tensors(self) -> dict[str, Tensor]:
        """What training changes beside what tasks own, by name."""
        return {}

    def has_fresh_head(self, task: str) -> bool:
        """Whether a task's head is as it was drawn: neither trained nor loaded since."""
        return True

    def rest_norms(self, task: str) -> None:
        """In training mode, have the norms that `task` owns take the statistics that they have, and keep them.

        Raises:
            OptionError: the norms come with no statistics to keep: the network is trained from its beginning.
        """
        raise OptionError("statistics: frozen is for backbones that are trained already; leave it out of the recipe.")

    def penalty(self, task: str) -> Tensor | None:
        """What the method adds to the loss of a batch of this task."""
        return None

    def end_epoch(self) -> None:
        """Adjust what is not learnt by gradients, after an epoch of training."""

    def load_task_tensors(self, task: str, tensors: Mapping[str, Tensor], source: str = "the tensors") -> None:
        """Replace every tensor of `task` by those given; nothing is changed unless all of them fit.

        Raises:
            WeightsError: a tensor is missing, unexpected or of the wrong shape; all such are named.
        """
        replace_tensors(self.task_tensors(task), tensors, source)

    def load_shared_tensors(self, tensors: Mapping[str, Tensor], source: str = "the tensors") -> None:
        """Replace what the tasks share; raises WeightsError, naming every tensor that does not fit."""
        replace_tensors(self.shared_tensors(), tensors, source)

    def load_backbone_tensors(self, tensors: Mapping[str, Tensor], source: str = "the tensors") -> None:
        """Replace the frozen tensors; a classifier among those given is left aside.

        Raises:
            OptionError: the model has tasks already, which were made for other frozen weights.
            WeightsError: a tensor is missing, unexpected or of the wrong shape; all such are named.
        """
        if self._tasks:
            raise OptionError("Load the backbone's weights before the first task is added.")
        own = self.backbone_tensors()
        for name, tensor in self.backbone_among(tensors, source).items():
            own[name].copy_(tensor)

    def backbone_among(self, tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """The frozen tensors among those of a whole network, by the backbone's own names; its classifier is left aside.

        Raises:
            WeightsError: a tensor is missing, unexpected or of the wrong shape; all such are named.
        """
        own = self.backbone_tensors()
        given = {name: tensor for name, tensor in tensors.items() if not name.startswith(self.left_aside)}
        check_tensors(own, {**counters(own), **given}, source)
        return given

    def backbone_sha256(self) -> str:
        """What identifies the frozen weights: the SHA-256 over their names, types, shapes and values."""
        tensors = self.backbone_tensors()
        return fingerprint({name: tensors[name] for name in tensors.keys() - counters(tensors).keys()})

    def count_parameters(self, task: str) -> Parameters:
        """Parameters of the frozen backbone, of `task` and of what tasks share, no classifiers (as FTN counts)."""
        heads = self.head_prefixes(task)
        own = [p for name, p in self.task_parameters(task) if not name.startswith(heads)]
        frozen, per_task, shared = (
            sum(tensor.numel() for tensor in group)
            for group in (self.backbone_parameters(), own, self.shared_tensors().values())
        )
        return Parameters(frozen, per_task, shared)

    # -- adapter files --------------------------------------------------------------------------------------------

    @abstractmethod
    def task_options(self, task: str) -> dict[str, Any]:
        """The method's options that a task was added with."""

    def _foundations(self) -> dict[str, str]:
        """What a task's tensors stand on, each thing by its hash; an adapter file fits no other."""
        shared = self.shared_tensors()
        found = {"backbone_sha256": self.backbone_sha256()} if self.backbone_tensors() else {}
        return found | ({"shared_sha256": fingerprint(shared)} if shared else {})

    def save_adapter(self, task: str, path: str | Path, provenance: Mapping[str, Any] | None = None) -> None:
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
            "method": {"name": self.method_name, **self.task_options(task)},
            **self._foundations(),
            **(provenance or {}),
        }
        write(Path(path), self.task_tensors(task), header)

    def load_adapter(self, path: str | Path) -> Task:
        """Add the task that an adapter file holds; the model is unchanged where that fails.

        Raises:
            WeightsError: the file is damaged, or was made for another method, rank or backbone.
            OptionError: the model has a task of that name.
        """
        path = Path(path)
        tensors, header = read(path)
        if header.get("format") != ADAPTER_FORMAT:
            raise WeightsError(f"{path} is no adapter file of this version: its format is {header.get('format')!r}.")
        try:
            _check_sizes(header, tensors)
            method = dict(header["method"])
            name = method.pop("name")
            preprocessing = Preprocessing.from_data(header["preprocessing"])
            task = Task.of(str(header["task"]), header["classes"], preprocessing, header.get("kind", CLASSIFICATION))
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{path} has a damaged header: {error!r}. Fetch or train it again.") from error
        if name != self.method_name:
            raise WeightsError(f"{path} holds an adapter of the method {name!r}; this model's is {self.method_name!r}.")
        self._check_foundations(header, path)
        self.add_task(task, method)
        try:
            self.load_task_tensors(task.name, tensors, str(path))
        except WeightsError:
            self.remove_task(task.name)
            raise
        return task

    def begin_task(self, task: str, path: Path) -> None:
        """Give a task that the model has the tensors of an adapter file, to train it further.

        Raises:
            WeightsError: the file is damaged, or was made for another method, rank, backbone or number of classes.
        """
        tensors, header = read(path)
        own = {"name": self.method_name, **self.task_options(task)}
        if (made := header.get("method")) != own:
            raise WeightsError(f"{path} was made by the method {made}; {task} is to have {own}.")
        self._check_foundations(header, path)
        self.load_task_tensors(task, tensors, str(path))

    def _check_foundations(self, header: Mapping[str, Any], path: Path) -> None:
        """Raise WeightsError unless an adapter file was made for this backbone and what tasks share here."""
        own = self._foundations()
        if (made_for := header.get("backbone_sha256")) != (here := own.get("backbone_sha256")):
            raise WeightsError(
                f"{path} was trained on another backbone (SHA-256 {_short(made_for)}, this one's is {_short(here)}). "
                f"Load it on the backbone that its header names: {header.get('backbone', 'unknown')}."
            )
        if header.get("shared_sha256") != own.get("shared_sha256"):
            raise WeightsError(
                f"{path} belongs to other shared tensors than this model has. Load those beside it first."
            )


def _short(digest: object) -> str:
    return f"{digest[:12]}…" if isinstance(digest, str) else "none"


def _check_sizes(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError where a header states numbers that its tensors do not have, before anything is made of them."""
    if not isinstance(header["classes"], list) or not isinstance(header["method"], dict):
        raise ValueError(f"{header['classes']!r:.100} is no list of classes, or {header['method']!r:.100} no method")
    rank = header["method"].get("rank")
    ranks = [each for each in (rank.values() if isinstance(rank, dict) else [rank]) if isinstance(each, int)]
    largest = max((length for tensor in tensors.values() for length in tensor.shape), default=0)
    if ranks and max(ranks) > max(largest, COMMON_RANK):  # some methods take the largest that a layer has
        raise ValueError(f"the rank is {max(ranks)}, and no tensor has more than {largest} rows or columns")
