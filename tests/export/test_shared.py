"""Tasks' graphs on one file of weights: what the fused networks compute, for any method."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from torch import nn
from zoo.export import run, session, to_onnx, to_shared

import zoo
from tests.conftest import SmallNet, disturb
from tests.models.test_dense import four_tasks
from zoo.catalog.task import Preprocessing, Task
from zoo.errors import ExportError
from zoo.increments.lookup import methods
from zoo.joint import Network, joined
from zoo.models.adapted import TaskModel
from zoo.storage.tensors import read

SMALL = Preprocessing(16, None, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
OPTIONS: dict[str, dict[str, Any]] = {
    "ftn": {"rank": 2}, "lora": {"rank": 2, "layers": ["body.0", "hidden"]},
    "kadaptation": {"rank": 1, "products": 2, "layers": ["body.0", "hidden"]},
    "parallel_svd": {"rank": 2}, "tt": {"rank": 2}, "svd": {"rank": 2}, "tucker": {"rank": 2},
}  # fmt: skip
SERVED = [name for name, m in methods().items() if (not m.projections or m.whole) and not m.trains_backbone]


def model_of(method: str, **tasks: int) -> TaskModel:
    torch.manual_seed(0)
    known = [Task.of(name, classes, SMALL) for name, classes in (tasks or {"a": 5, "b": 7}).items()]
    model = zoo.adapt(SmallNet(), {}, method=method, **OPTIONS.get(method, {}))
    for task in known:
        model.add_task(task)
        disturb(model, task.name)
    for tensor in model.shared_tensors().values():
        tensor.normal_()
    return model


def agrees(model: TaskModel, task: str, file: Path, size: int = 16) -> None:
    images = torch.randn(3, 3, size, size)
    plain = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])  # with no code of the zoo's
    with torch.no_grad():
        expected = model.fuse(task)(images).numpy()
    np.testing.assert_allclose(run(plain, images.numpy()), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("method", SERVED)
def test_a_graph_of_every_method_computes_what_the_fused_network_does(method: str, tmp_path: Path) -> None:
    model = model_of(method)
    for task in model.tasks:
        assert to_shared(model, task, tmp_path / f"{task}.onnx").relative < 1e-4
        agrees(model, task, tmp_path / f"{task}.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.onnx", "b.onnx", "backbone.bin"]


def optimised(file: Path) -> Counter[str]:
    """The operators of what ONNX Runtime runs of a graph."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(file.with_suffix(".optimised"))
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


@pytest.mark.parametrize("method", ["ftn", "series", "finetune"])
def test_what_is_run_of_it_is_the_graph_of_the_fused_network(method: str, tmp_path: Path) -> None:
    model = model_of(method)
    to_shared(model, "a", tmp_path / "a.onnx")
    to_onnx(model.fuse("a"), tmp_path / "fused.onnx", task=model.task("a"))
    assert optimised(tmp_path / "a.onnx") == optimised(tmp_path / "fused.onnx")


def test_a_graph_holds_the_adapters_bytes_and_little_more(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = zoo.adapt(torchvision.models.resnet18(weights=None), {"a": 10}, rank=8)
    to_shared(model, "a", tmp_path / "a.onnx")
    model.save_adapter("a", tmp_path / "a.safetensors")
    tensors, _ = read(tmp_path / "a.safetensors")
    bytes_of_it = sum(t.nbytes for t in tensors.values() if t.is_floating_point())
    assert bytes_of_it < (tmp_path / "a.onnx").stat().st_size < bytes_of_it + 150_000
    weights = sum(t.nbytes for t in model.backbone_tensors().values())
    assert (tmp_path / "backbone.bin").stat().st_size < 1.01 * weights


def test_a_further_task_touches_no_file_and_other_methods_share_it_too(tmp_path: Path) -> None:
    model = model_of("ftn")
    to_shared(model, "a", tmp_path / "a.onnx")
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in tmp_path.iterdir()}
    model.add_task(Task.of("late", 3, SMALL))
    to_shared(model, "late", tmp_path / "late.onnx")
    to_shared(model_of("bn"), "b", tmp_path / "bn_b.onnx")  # on the same backbone, by the same seed
    assert all((file.read_bytes(), file.stat().st_mtime_ns) == known for file, known in before.items())
    assert len(list(tmp_path.iterdir())) == 4


def test_the_folder_moves_as_a_whole_and_says_what_it_is(tmp_path: Path) -> None:
    model, folder = model_of("ftn"), tmp_path / "here"
    to_shared(model, "a", folder / "a.onnx", metadata={"entry": "mine"})
    folder.rename(tmp_path / "there")
    agrees(model, "a", tmp_path / "there" / "a.onnx")
    facts = session(tmp_path / "there" / "a.onnx").get_modelmeta().custom_metadata_map
    assert (facts["shared_file"], facts["entry"], json.loads(facts["classes"])) == ("backbone.bin", "mine", [*"01234"])
    assert str(tmp_path) not in (tmp_path / "there" / "a.onnx").read_bytes().decode("latin1")


@pytest.mark.parametrize("damage", ["altered", "truncated", "swapped", "missing", "longer"])
def test_another_file_of_weights_is_refused(damage: str, tmp_path: Path) -> None:
    model, file = model_of("ftn"), tmp_path / "backbone.bin"
    to_shared(model, "a", tmp_path / "a.onnx")
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    wrong = {"altered": changed, "truncated": whole[:-8], "swapped": bytes(len(whole)), "longer": whole + b"0"}
    file.unlink() if damage == "missing" else file.write_bytes(wrong[damage])
    with pytest.raises(ExportError, match=r"backbone\.bin"):
        session(tmp_path / "a.onnx")


def test_a_file_outside_the_folder_is_never_opened_for_it(tmp_path: Path) -> None:
    to_shared(model_of("ftn"), "a", tmp_path / "in" / "a.onnx")
    shutil.move(tmp_path / "in" / "backbone.bin", tmp_path / "backbone.bin")
    graph = onnx.load(tmp_path / "in" / "a.onnx", load_external_data=False)
    for fact in graph.metadata_props:
        fact.value = "../backbone.bin" if fact.key == "shared_file" else fact.value
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../backbone.bin" if entry.key == "location" else entry.value
    onnx.save(graph, tmp_path / "in" / "a.onnx")
    with pytest.raises(ExportError, match="names a file of weights outside its folder"):
        session(tmp_path / "in" / "a.onnx")


class Tied(nn.Module):
    """One layer in two places, and one parameter by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)
        self.again, self.scale = self.body, nn.Parameter(torch.ones(4, 1, 1))
        self.same = self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.again(self.body(self.stem(x)) * self.scale) * self.same
        made: torch.Tensor = self.head(x.mean((2, 3)))
        return made


def test_a_layer_in_two_places_is_stored_once(tmp_path: Path) -> None:
    model = zoo.adapt(Tied(), {}, rank=1)
    model.add_task(Task.of("a", 3, SMALL))
    disturb(model, "a")
    to_shared(model, "a", tmp_path / "a.onnx")
    agrees(model, "a", tmp_path / "a.onnx")
    assert (tmp_path / "backbone.bin").stat().st_size < 4 * (3 * 4 * 9 + 4 + 4 * 4 + 4 + 4) + 5 * 64


def test_what_cannot_be_leaves_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("ftn")
    with monkeypatch.context() as patched, pytest.raises(ExportError, match="differs"):
        patched.setattr("zoo.export.form.TOLERANCE", -1.0)
        to_shared(model, "a", tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir()), "no file of weights that no graph refers to"
    to_shared(model, "a", tmp_path / "a.onnx")
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    torch.manual_seed(1)
    other = zoo.adapt(SmallNet(), {}, rank=2)
    other.add_task(Task.of("b", 3, SMALL))
    with pytest.raises(ExportError, match=r"backbone\.bin holds other weights"):
        to_shared(other, "b", tmp_path / "b.onnx")
    with pytest.raises(ExportError, match="does not run on inputs"):
        model.add_task(Task.of("c", 3, Preprocessing(16, None, (0.5,), (0.5,))))
        to_shared(model, "c", tmp_path / "c.onnx")
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_networks_without_a_backbone_are_refused_by_name(tmp_path: Path) -> None:
    plan = Network.of(nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 3)), 3)
    model = joined({"a": plan}, "stl", {})
    model.add_task(Task.of("a", 3, Preprocessing(8, None, (0.5,) * 3, (0.5,) * 3)))
    with pytest.raises(ExportError, match="stl have no backbone"):
        to_shared(model, "a", tmp_path / "a.onnx")


def test_dense_tasks_and_preprocessing_in_the_graph(tmp_path: Path) -> None:
    model = four_tasks("ftn", None, rank=2)
    for task in model.tasks[:2]:
        to_shared(model, task, tmp_path / f"{task}.onnx", preprocess=True)
        made = session(tmp_path / f"{task}.onnx")
        assert made.get_inputs()[0].type == "tensor(uint8)"
        assert run(made, np.zeros((1, 24, 40, 3), np.uint8)).shape[2:] == (24, 40)
