"""Tasks' graphs on one file of weights: each holds what its task adds, and makes `W + ΔW` of that and the shared W.

The frozen tensors lie in one file beside the graphs, which refer to their places in it (ONNX's external data). What
makes the weights are nodes on constants, and so ONNX Runtime computes them once, when a session is made: what it runs
then is the graph of the fused network. The nodes are what torch exports of the increments themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.func import functional_call
from zoo.export.files import written
from zoo.export.form import Form, Further, describe, latent_shape, with_backbone
from zoo.export.parity import SHARED_FILE, SHARED_SHA256, Parity, outputs, session

from zoo.errors import ExportError
from zoo.models.adapted import TaskModel
from zoo.models.layers import AdaptedLayer
from zoo.models.multitask import MultiTaskModel
from zoo.storage.files import atomic_path, sha256

BACKBONE = "backbone.bin"
ALIGNED = 64  # bytes: where each tensor begins is a multiple


def to_shared(
    model: MultiTaskModel, task: str, path: str | Path, *, preprocess: bool | str = False, images: Any = None,
    provider: str = "cpu", metadata: Mapping[str, Any] | None = None,
) -> Parity:  # fmt: skip
    """Write a task's graph onto the weights in `backbone.bin` beside it, which is written if it is not there yet.

    An ordinary session of ONNX Runtime runs it as fast as the fused network's graph of `to_onnx`, and takes longer to
    be made. The folder can be moved as a whole.

    Args:
        model: one with a frozen backbone, and the task.
        preprocess, images, provider, metadata: as of `to_onnx`.

    Returns:
        The largest difference between the graph and the fused network.

    Raises:
        ExportError: no such graph can be made of the model, it differs from the fused network, or another backbone's
            file lies there; no graph is written then, and none that lies there is changed.
    """
    path, model = Path(path), with_backbone(model)
    weights, made = SharedWeights(_common(model)), Made(model, task)
    form = Form(model.task(task), preprocess, images, latent_shape(model, task))
    source = form.around(made.plain)
    outputs(source, form.batches[0])  # what the network itself raises is told as such
    exported = form.exported(form.around(made), path, [Further(name, tensor) for name, tensor in made.given.items()])
    for value in list(exported.graph.inputs[1:]):
        name = str(value.name)
        exported.graph.inputs.remove(value)
        if value.uses():
            value.const_value = (
                weights.place(name) if name in weights.tensors else ir.tensor(made.given[name], name=name)
            )
            exported.graph.register_initializer(value)
    facts = {SHARED_FILE: BACKBONE, SHARED_SHA256: weights.sha256}
    describe(exported, {**form.facts(), **(metadata or {}), **facts})
    with weights.put_beside(path), written(exported, path, bare=True) as temporary:
        return form.parity(source, session(temporary, provider), path)


def held(model: MultiTaskModel, task: str) -> str:
    """What of a task's weights its graph holds, in words: the increments' own tensors, or as much as the weights."""
    sites = [site for _, site in with_backbone(model).sites(task) if isinstance(site, AdaptedLayer)]
    own = sum(p.numel() for site in sites for p in site.tasks[task].parameters())
    whole = sum(site.frozen_weight.numel() for site in sites)
    return "norms and head" if not sites else "increments" if own < whole else "whole weights"


class SharedWeights:
    """Frozen tensors in one file: their bytes in the order of their names, each from a multiple of 64 on."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
        self._offsets, end = {}, 0
        for name, tensor in self.tensors.items():
            self._offsets[name] = -(-end // ALIGNED) * ALIGNED
            end = self._offsets[name] + tensor.nbytes
        digest = hashlib.sha256()
        for piece in self._pieces():
            digest.update(piece)
        self.sha256 = digest.hexdigest()

    def place(self, name: str) -> ir.ExternalTensor:
        """A graph's reference to a tensor."""
        tensor = self.tensors[name]
        kind = ir.DataType.from_numpy(np.dtype(str(tensor.dtype).removeprefix("torch.")))
        return ir.ExternalTensor(
            BACKBONE, self._offsets[name], tensor.nbytes, kind, shape=ir.Shape(tensor.shape), name=name
        )

    @contextlib.contextmanager
    def put_beside(self, path: Path) -> Iterator[None]:
        """Have the file lie beside a graph. If the block ends with an error, it goes again unless a graph is there.

        Raises:
            ExportError: another file of that name lies there.
        """
        file = path.parent / BACKBONE
        there = file.exists()
        if there and not (file.is_file() and sha256(file) == self.sha256):
            raise ExportError(
                f"{file} holds other weights than this backbone's, and graphs may refer to it. Choose another folder."
            )
        if not there:
            with atomic_path(file) as temporary, open(temporary, "wb") as opened:
                opened.writelines(self._pieces())
        try:
            yield
        except BaseException:
            if not there and not any(path.parent.glob("*.onnx")):
                file.unlink()
            raise

    def _pieces(self) -> Iterator[bytes]:
        end = 0
        for name, tensor in self.tensors.items():
            yield bytes(self._offsets[name] - end)
            yield tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
            end = self._offsets[name] + tensor.nbytes


def _common(model: TaskModel) -> dict[str, Tensor]:
    """The frozen tensors and what tasks share, by the model's names; one that has several of them by the first."""
    found, seen = {}, set()
    for name, tensor in {**model.backbone_tensors(), **model.shared_tensors()}.items():
        place = tensor.data_ptr(), tensor.shape, tensor.stride()
        if tensor.is_floating_point() and (place not in seen or not tensor.numel()):
            found[f"backbone.{name}"] = tensor.detach().cpu()
            seen.add(place)
    return found


class Made(nn.Module):
    """A task's fused network, whose weights are made in each pass of the model's tensors, which are given.

    Attributes:
        plain: the network of `fuse`.
        given: the frozen tensors, what tasks share, and the task's own, by their names in the model.
    """

    def __init__(self, model: TaskModel, task: str) -> None:
        super().__init__()
        self.plain = model.fuse(task)
        self.tensors = _PlainTensors(model, task)
        places, own = model.task_places(task), model.task_tensors(task)
        own = {places[name]: tensor.detach().cpu() for name, tensor in own.items() if tensor.is_floating_point()}
        self.given = {**_common(model), **own}
        self._plain_names = set(self.plain.state_dict())

    def forward(self, images: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(self.given, values, strict=True))
        made = functional_call(self.tensors, {f"model.{name}": value for name, value in given.items()}, ())
        frozen = {name.removeprefix("backbone."): value for name, value in given.items()}
        frozen = {name: value for name, value in frozen.items() if name in self._plain_names}
        found: Tensor = functional_call(self.plain, {**frozen, **made}, (images,))
        return found


class _PlainTensors(nn.Module):
    """A task's part of its plain network's tensors, as a module to be called under other tensors of the model's."""

    def __init__(self, model: TaskModel, task: str) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self) -> dict[str, Tensor]:
        return {name: t for name, t in self.model.plain_tensors(self.task).items() if t.is_floating_point()}
