"""ONNX Runtime's own adapters: one graph that becomes each task by its file, as if its tensors were fed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from zoo.export import Adapted, run, session, to_adapters, to_mixed

from tests.conftest import disturb
from tests.export.test_shared import SERVED
from tests.models.test_dense import four_tasks
from tests.models.test_mixing import SMALL, Forms, model_of
from zoo.catalog.task import Preprocessing, Task
from zoo.errors import ExportError
from zoo.joint import Network, joined


@pytest.mark.parametrize("method", SERVED)
@torch.no_grad()
def test_each_adapter_makes_the_graph_its_tasks_fused_network(method: str, tmp_path: Path) -> None:
    model, images = model_of(method), torch.randn(3, 3, 12, 12)
    assert all(parity.relative < 1e-4 for parity in to_adapters(model, tmp_path).values())
    base = onnxruntime.InferenceSession(str(tmp_path / "base.onnx"), providers=["CPUExecutionProvider"])
    for task in (*model.tasks, model.tasks[0]):
        adapter, options = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
        adapter.Load(str(tmp_path / f"{task}.onnx_adapter"))
        options.add_active_adapter(adapter)
        found = base.run(None, {"images": images.numpy()}, options)[0]
        np.testing.assert_allclose(found, model.fuse(task)(images).numpy(), rtol=1e-4, atol=1e-5)
        own = {name: t.numpy() for name, t in model.task_tensors(task).items() if t.is_floating_point()}
        assert np.array_equal(found, base.run(None, {"images": images.numpy(), **own})[0]), "bit for bit as fed by hand"
        assert (tmp_path / f"{task}.onnx_adapter").stat().st_size <= 1.1 * sum(t.nbytes for t in own.values()) + 64_000
    assert not base.run(None, {"images": images.numpy()})[0].any(), "without an adapter: zeros"


def test_frozen_weights_are_constants_and_what_a_task_owns_is_optional(tmp_path: Path) -> None:
    model = model_of("ftn")
    to_adapters(model, tmp_path, metadata={"entry": "mine"})
    base = session(tmp_path / "base.onnx")
    own = {name for name, tensor in model.task_tensors("a").items() if tensor.is_floating_point()}
    assert [value.name for value in base.get_inputs()] == ["images"]
    assert {value.name for value in base.get_overridable_initializers()} == own
    facts = base.get_modelmeta().custom_metadata_map
    assert [each["task"] for each in json.loads(facts["tasks"])] == ["a", "b", "c"]
    assert facts["entry"] == "mine"


@torch.no_grad()
def test_preprocessing_and_dense_tasks(tmp_path: Path) -> None:
    to_adapters(model_of("ftn"), tmp_path / "full", tasks=["b"], preprocess="full")
    found = run(Adapted(session(tmp_path / "full" / "base.onnx"), tmp_path / "full" / "b.onnx_adapter"),
                np.zeros((1, 31, 20, 3), np.uint8))  # fmt: skip
    assert found.shape == (1, 7)
    model = four_tasks("ftn", None, rank=2).eval()
    to_adapters(model, tmp_path / "dense", tasks=["semseg", "normals"])
    base, images = session(tmp_path / "dense" / "base.onnx"), torch.randn(1, 3, 24, 40)
    for task in ("semseg", "normals"):
        found, expected = (
            run(Adapted(base, tmp_path / "dense" / f"{task}.onnx_adapter"), images.numpy()),
            model.fuse(task)(images),
        )
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4 * float(expected.abs().max()))


def test_what_cannot_be_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("ftn")
    with monkeypatch.context() as patched, pytest.raises(ExportError, match="differs"):
        patched.setattr("zoo.export.form.TOLERANCE", -1.0)
        to_adapters(model, tmp_path)
    model.add_task(Task.of("wide", 3, SMALL), {"rank": 3})
    disturb(model, "wide")
    with pytest.raises(ExportError, match="not in rank"):
        to_adapters(model, tmp_path)
    model.add_task(Task.of("large", 3, Preprocessing(24, None)))
    with pytest.raises(ExportError, match="prepared otherwise"):
        to_adapters(model, tmp_path, tasks=["a", "large"])
    plan = Network.of(nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 3)), 3)
    with pytest.raises(ExportError, match="stl have no backbone"):
        to_adapters(joined({"a": plan}, "stl", {}), tmp_path)
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_a_further_task_joins_and_another_backbone_is_refused(tmp_path: Path) -> None:
    model = model_of("ftn")
    to_adapters(model, tmp_path, tasks=["a"])
    to_adapters(model, tmp_path, tasks=["c", "b"])
    base, images = session(tmp_path / "base.onnx"), torch.randn(2, 3, 12, 12)
    for task in model.tasks:
        found = run(Adapted(base, tmp_path / f"{task}.onnx_adapter"), images.numpy())
        np.testing.assert_allclose(found, model.fuse(task)(images).numpy(), rtol=1e-4, atol=1e-5)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    other = model_of("ftn")
    for tensor in other.backbone_parameters():
        tensor.mul_(1.1)
    with pytest.raises(ExportError, match="another graph"):
        to_adapters(other, tmp_path)
    with pytest.raises(ExportError, match="another graph"):
        to_adapters(model_of("ftn", rank=3), tmp_path)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    to_adapters(other, tmp_path / "other")
    with pytest.raises(ExportError, match="another base graph"):
        Adapted(base, tmp_path / "other" / "a.onnx_adapter")
    with pytest.raises(ExportError, match="no adapter"):
        Adapted(base, tmp_path / "base.onnx")


class Routed(Forms):
    """A network with a method called route."""

    def route(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = super().forward(x)
        return found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.route(x)


class Tempered(nn.Module):
    """Logits by a temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.temperature = nn.Linear(10, 4), nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.layer(x) / self.temperature
        return made


def test_a_networks_own_names_and_heads_do_no_harm(tmp_path: Path) -> None:
    assert all(parity.passed for parity in to_adapters(model_of("ftn", Routed()), tmp_path / "routed").values())
    network = Forms()
    network.head = Tempered()  # type: ignore[assignment]
    with pytest.raises(ExportError, match=r"head\.temperature is one number"):
        to_adapters(model_of("ftn", network, head="head"), tmp_path)


@pytest.mark.parametrize("write", [to_adapters, to_mixed])
def test_tasks_and_images_that_are_not_there(write: Any, tmp_path: Path) -> None:
    model = model_of("bn")
    with pytest.raises(ExportError, match="There is no task"):
        write(model, tmp_path / "all.onnx", tasks=[])
    with pytest.raises(ExportError, match="images of b"):
        write(model, tmp_path / "all.onnx", tasks=["a"], images={"b": torch.randn(1, 3, 12, 12)})
    assert write(model, tmp_path / "all.onnx", tasks=["a"], images={"a": torch.randn(2, 3, 12, 12)})
