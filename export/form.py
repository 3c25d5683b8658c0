"""What a task's graph takes and gives, and how a network becomes one: the same in every form in which tasks leave."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort
import onnxscript.optimizer
import torch
from onnx_ir.passes import common
from torch import Tensor, nn
from zoo.export import memory
from zoo.export.parity import INPUT, Parity, compare
from zoo.export.resizing import Resize, levels_off

import zoo
from zoo.catalog.task import GENERATION, Preprocessing, Task, is_dense
from zoo.errors import ExportError, sentence
from zoo.models.adapted import TaskModel
from zoo.models.frozen import copy_of
from zoo.models.multitask import MultiTaskModel

LEAST, LARGEST = 16, 8192  # height and width in pixels of what a graph with maps as its output takes
LEVELS = 3  # of 255 that a resize in the graph may be off torchvision's, which weighs in whole numbers
SCALE, FULL = "scale", "full"  # what of the preprocessing can be in a graph
TOLERANCE, TOLERANCE_HALF = 1e-4, 1e-2  # on the largest difference, relative to the largest logit


@dataclass(frozen=True)
class Further:
    """An input of a graph beside the images."""

    name: str
    example: Tensor
    dynamic: Mapping[int, str] = dataclasses.field(default_factory=dict)  # names of dimensions that are no constants


class Graph(nn.Module):
    """What is exported: the network between the graph's inputs and its output. All but the images are the network's.

    Args:
        preprocessing: take uint8 images (B, H, W, C), as decoded, and scale and normalise them in the graph.
            None: take float32 inputs (B, C, H, W) that are normalised already.
        resize: make images of any size those of the input's, before that.
        half: compute in float16; inputs and logits keep their types.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, preprocessing: Preprocessing | None = None, half: bool = False, resize: bool = False
    ) -> None:
        super().__init__()
        self.resize = Resize(preprocessing) if resize and preprocessing else None
        self.network = copy_of(network).cpu().eval().requires_grad_(False)
        if half:
            self.network.half()
        self.half_precision = half
        self.normalises = preprocessing is not None
        if preprocessing is not None:
            self.register_buffer("mean", 255 * torch.tensor(preprocessing.mean).view(-1, 1, 1))
            self.register_buffer("std", 255 * torch.tensor(preprocessing.std).view(-1, 1, 1))

    def forward(self, images: Tensor, further: Sequence[Tensor] = ()) -> Tensor:
        if self.normalises:
            levels = self.resize(images) if self.resize else images.movedim(-1, -3).float()  # (B, C, H, W)
            images = (levels - self.mean) / self.std
        made: Tensor = self.network(images.half() if self.half_precision else images, *further)
        return made.float() if isinstance(made, Tensor) else made


class Form:
    """What goes into a graph of a task and comes out of it, and the images that it is compared on.

    Args:
        task: what the outputs mean and which input they need; None: a classifier of 224×224 RGB.
        preprocess: what of the preprocessing is in the graph, see `to_onnx`.
        images: a batch of real inputs, or several, in the graph's form.
        shape: of one input, where the task's preprocessing cannot say it; by default that of the real ones.
    """

    def __init__(
        self, task: Task | None, preprocess: bool | str = False, images: Tensor | Sequence[Tensor] | None = None,
        shape: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        real = [images] if isinstance(images, Tensor) else [*(images or ())]
        self.task, self.inside = task, _inside(preprocess)
        self.preprocessing = task.preprocessing if task else Preprocessing()
        self.dense = task is not None and is_dense(task.kind)
        self.makes = task is not None and task.kind == GENERATION
        if self.makes and self.inside != "no":
            raise ExportError(
                "A graph that makes pictures takes latents, which are not prepared: leave out preprocess."
            )
        self.real = sum(map(len, real))
        stated = shape or (real[0].shape[1:] if real else None)
        self.random: list[Tensor] = _random_batches(self.preprocessing, self.inside, self.dense, stated)
        self.batches: list[Any] = [*self.random, *real]
        example = self.batches[0]
        self.example = example.repeat(2, *[1] * (example.ndim - 1))  # a batch of one would be taken for a constant
        of_any_size = self.dense or self.inside == FULL
        self.rows = example.ndim - (2 if self.inside == "no" else 3) if of_any_size else None  # of the height

    def pair(self, batches: list[tuple[Tensor, Tensor]], real: int) -> None:
        """Compare on these instead: batches of images, each with another input.

        Args:
            real: how many of the images are no random ones.
        """
        self.batches, self.real = batches, real

    def around(self, network: nn.Module, half: bool = False) -> Graph:
        """A copy of a network between these inputs and outputs."""
        return Graph(network, None if self.inside == "no" else self.preprocessing, half, self.inside == FULL)

    def exported(self, graph: Graph, path: Path, further: Sequence[Further] = ()) -> ir.Model:
        """The ONNX graph of a module.

        Args:
            path: what errors name.
            further: inputs that the module takes after the images.

        Raises:
            ExportError: torch cannot export it, or takes for a number what is to be a dimension.
        """
        batch = torch.export.Dim("batch")
        taken, given = ("latents", "pictures") if self.makes else (INPUT, "maps" if self.dense else "logits")
        images = {0: batch}
        if self.rows is not None:
            for place, name in ((self.rows, "height"), (self.rows + 1, "width")):
                images[place] = torch.export.Dim(name, min=1 if graph.resize else LEAST, max=LARGEST)
        named = {"batch": batch}
        others = [  # of no None, in a list of which the names would be lost
            {axis: named.setdefault(name, torch.export.Dim(name)) for axis, name in each.dynamic.items()}
            for each in further
        ]
        shapes = {"images": images, "further": others} if further else {"images": images}
        examples = (self.example, [each.example for each in further]) if further else (self.example,)
        page = io.StringIO()  # what the exporter says on stderr of what it cannot do
        with warnings.catch_warnings(), contextlib.redirect_stderr(page), memory.sources_forgotten():
            warnings.simplefilter("ignore")  # the exporter's own deprecations; what matters is checked afterwards
            try:
                program = torch.onnx.export(
                    graph.eval(), examples, dynamo=True, verbose=False, optimize=not further,
                    input_names=[taken, *(each.name for each in further)], output_names=[given],
                    dynamic_shapes=shapes,
                )  # fmt: skip
            except Exception as error:  # the exporter raises many classes, none of them its own base
                error.add_note(page.getvalue())
                reason = sentence(error.__cause__ if isinstance(error.__cause__, Exception) else error)
                raise ExportError(f"torch.onnx cannot export {type(graph.network).__name__}: {reason}") from error
        assert program is not None
        memory.forget_shapes(program)
        if further:
            _simplify(program.model)
        common.ClearMetadataAndDocStringPass()(program.model)  # such as the lines of code that nodes came from
        self._check_dimensions(program.model, path)
        return program.model

    def _check_dimensions(self, model: ir.Model, path: Path) -> None:
        """Raise ExportError where a dimension that is to be dynamic has become a number."""
        shape = model.graph.inputs[0].shape
        assert shape is not None
        names = {0: "batch", **({self.rows: "height", self.rows + 1: "width"} if self.rows else {})}
        for place, name in names.items():
            if isinstance(shape[place], int):
                raise ExportError(
                    f"{path}: the {name} of the graph is fixed at {shape[place]}. The network takes it for "
                    f"a number, such as in a Python loop over the {name}; write that with operations on whole tensors."
                )

    def facts(self, half: bool = False) -> dict[str, Any]:
        """What a graph's metadata say of it."""
        facts: dict[str, Any] = {"ftn_zoo_version": zoo.__version__, "precision": "float16" if half else "float32"}
        if self.task is not None:
            facts |= {"task": self.task.name, "kind": self.task.kind, "classes": self.task.classes}
        if self.task is not None or self.inside != "no":
            facts |= {"preprocessing": dataclasses.asdict(self.preprocessing), "preprocessing_in_graph": self.inside}
        return facts

    def facts_of(self, tasks: Sequence[Task]) -> dict[str, Any]:
        """What the metadata of one graph of several tasks say of it and of them."""
        common = {key: fact for key, fact in self.facts().items() if key not in ("task", "kind", "classes")}
        said = [{"task": each.name, "kind": each.kind, "classes": list(each.classes)} for each in tasks]
        return {**common, "tasks": said}

    def parity(self, source: nn.Module, made: ort.InferenceSession, path: Path, half: bool = False) -> Parity:
        """How far a graph is from its source; raises ExportError where that is too far."""
        found = compare(source, made, self.batches, TOLERANCE_HALF if half else TOLERANCE)
        found = replace(found, real=self.real)
        if self.inside == FULL:
            images = [batch[0] if isinstance(batch, tuple) else batch for batch in self.batches]
            found = replace(found, levels=levels_off(self.preprocessing, images))
            if found.levels is not None and found.levels > LEVELS:
                raise ExportError(f"{path}: images are resized otherwise than by torchvision: {found}.")
        if not found.passed:
            raise ExportError(f"{path}: the graph differs from its source by more than {found.tolerance}: {found}.")
        return found


def real_images(
    images: Mapping[str, Tensor | Sequence[Tensor]] | None, tasks: Sequence[str]
) -> dict[str, list[Tensor]]:  # fmt: skip
    """Batches of real inputs of each task; raises ExportError for those of a task that is not exported, or no task."""
    given = {name: [each] if isinstance(each, Tensor) else [*each] for name, each in (images or {}).items()}
    if not tasks:
        raise ExportError("There is no task to export: name one, or give the model one.")
    if unknown := [name for name in given if name not in tasks]:
        raise ExportError(f"There are images of {', '.join(unknown)}, and only {', '.join(tasks)} are exported.")
    return given


def with_backbone(model: MultiTaskModel) -> TaskModel:
    """The model, if its tasks stand on one frozen backbone; else raises ExportError."""
    if not isinstance(model, TaskModel):
        raise ExportError(
            f"The networks of {model.method_name} have no backbone that graphs could share. Export each by itself."
        )
    return model


def latent_shape(model: MultiTaskModel, task: str) -> tuple[int, ...] | None:
    """The shape of one input of a task that makes pictures, which its preprocessing does not say; None for others."""
    return model.input_shape(task) if model.task(task).kind == GENERATION else None


def check_alike(tasks: Sequence[Task], preprocess: bool | str) -> None:
    """Raise ExportError unless one graph can take the images of all tasks, with so much of their preprocessing."""
    first, *others = tasks
    inside = _inside(preprocess)
    for other in others:
        mine, theirs = first.preprocessing, other.preprocessing
        if GENERATION in (first.kind, other.kind) and first.kind != other.kind:
            raise ExportError(f"One of {first.name} and {other.name} makes pictures: one graph cannot do both.")
        if is_dense(first.kind) != is_dense(other.kind):
            raise ExportError(
                f"{first.name} answers for the image and {other.name} for its pixels: one graph cannot do both."
            )
        if mine != theirs if inside != "no" else mine.input_size != theirs.input_size:
            raise ExportError(
                f"The images of {first.name} are prepared otherwise than those of {other.name}: {mine.words()}, and "
                f"{theirs.words()}. One graph takes images of one size; export tasks that agree, with --task."
            )


def _simplify(model: ir.Model) -> None:
    """What torch's exporter does of itself, but for its rewriting, whose time grows with the square of a graph."""
    onnxscript.optimizer.fold_constants(model)
    for each in (
        common.RemoveUnusedNodesPass(), common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(), common.CommonSubexpressionEliminationPass(),
    ):  # fmt: skip
        each(model)


def describe(model: ir.Model, facts: Mapping[str, Any]) -> None:
    """Write facts into a graph's metadata; values that are no text as JSON."""
    for key, value in facts.items():
        model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)


def _inside(preprocess: bool | str) -> str:
    """What of the preprocessing is in the graph: nothing ("no"), "scale", or "full"."""
    inside = {False: "no", True: SCALE, SCALE: SCALE, FULL: FULL}.get(preprocess)
    if inside is None:
        raise ExportError(f"preprocess is False, True, {SCALE!r} or {FULL!r}, not {preprocess!r}.")
    return inside


def _random_batches(
    preprocessing: Preprocessing, inside: str, dense: bool, shape: Sequence[int] | None
) -> list[Tensor]:
    """One image, and three; where maps are answered, of a height and a width that no stride divides."""
    if inside == FULL:
        sizes = ((97, 61), (300, 401), (preprocessing.size, 2 * preprocessing.size))
        return [_random(replace(preprocessing, size=h, width=w, resize=None), True, 1) for h, w in sizes]
    preprocess = inside == SCALE
    other = replace(preprocessing, size=37, width=51, resize=None) if dense else preprocessing
    if shape is not None and not dense and not preprocess and tuple(shape) != preprocessing.input_size:
        return [torch.randn(rows, *shape, generator=torch.Generator().manual_seed(rows)) for rows in (1, 3)]
    return [_random(preprocessing, preprocess, 1), _random(other, preprocess, 3)]


def _random(preprocessing: Preprocessing, preprocess: bool, batch: int) -> Tensor:
    """Random inputs in the graph's form, the same each time."""
    generator = torch.Generator().manual_seed(batch)
    if preprocess:
        *frames, channels, height, width = preprocessing.input_size
        return torch.randint(0, 256, (batch, *frames, height, width, channels), generator=generator, dtype=torch.uint8)
    return torch.randn(batch, *preprocessing.input_size, generator=generator)
