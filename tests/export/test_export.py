"""ONNX graphs: the same numbers as torch, any batch, and a refusal where they differ."""

from __future__ import annotations

import gc
import json
import linecache
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from zoo.export import compare, run, session, to_onnx
from zoo.export.form import Form

import zoo
from tests.conftest import SmallNet, disturb
from zoo.catalog.registry import default_registry
from zoo.catalog.task import Preprocessing, Task
from zoo.deployment import export_entry
from zoo.errors import ExportError, OptionError
from zoo.models.adapted import TaskModel

TASK = Task("a", ("x", "y", "z"), Preprocessing(16, None, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)))


@pytest.fixture(scope="module")
def model() -> TaskModel:
    torch.manual_seed(0)
    model = zoo.adapt(SmallNet(), {}, rank=2)
    model.add_task(TASK)
    disturb(model, "a")
    return model


def test_the_graph_computes_the_same_on_any_batch(model: TaskModel, tmp_path: Path) -> None:
    plain, file = model.fuse("a"), tmp_path / "a.onnx"
    parity = to_onnx(plain, file, task=TASK)
    assert parity.relative < 1e-4
    made = session(file)
    assert [i.name for i in made.get_inputs()] == ["images"]
    assert [o.name for o in made.get_outputs()] == ["logits"]
    for batch in (1, 2, 7):
        images = torch.randn(batch, 3, 16, 16)
        with torch.no_grad():
            np.testing.assert_allclose(run(made, images.numpy()), plain(images).numpy(), rtol=1e-4, atol=1e-5)


def test_preprocessing_inside_the_graph_equals_torchvisions(model: TaskModel, tmp_path: Path) -> None:
    plain, file = model.fuse("a"), tmp_path / "a.onnx"
    to_onnx(plain, file, task=TASK, preprocess=True)
    images = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)
    inputs = torch.stack([TASK.preprocessing.transform()(image.permute(2, 0, 1)) for image in images])
    with torch.no_grad():
        np.testing.assert_allclose(run(session(file), images.numpy()), plain(inputs).numpy(), rtol=1e-4, atol=1e-5)


def test_float16_computes_in_float16_and_stays_close(model: TaskModel, tmp_path: Path) -> None:
    file = tmp_path / "a.onnx"
    parity = to_onnx(model.fuse("a"), file, task=TASK, half=True)
    assert 1e-7 < parity.relative < 1e-2
    types = {t.data_type for t in onnx.load(file).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types
    assert onnx.TensorProto.FLOAT not in types
    assert session(file).get_inputs()[0].type == "tensor(float)"


def test_the_file_says_what_it_is(model: TaskModel, tmp_path: Path) -> None:
    to_onnx(model.fuse("a"), tmp_path / "a.onnx", task=TASK, metadata={"entry": "my-entry", "list": [1, 2]})
    facts = session(tmp_path / "a.onnx").get_modelmeta().custom_metadata_map
    assert facts["task"] == "a"
    assert facts["entry"] == "my-entry"
    assert json.loads(facts["list"]) == [1, 2]
    assert json.loads(facts["classes"]) == ["x", "y", "z"]
    assert Preprocessing.from_data(json.loads(facts["preprocessing"])) == TASK.preprocessing


# What clients may rely on: docs/exported-graphs.md says the same, and examples/onnx_client.py goes by it.
METADATA = {
    "ftn_zoo_version", "precision", "task", "kind", "classes", "preprocessing", "preprocessing_in_graph", "entry",
    "adapter_sha256", "backbone", "backbone_sha256", "recipe", "method",
}  # fmt: skip
OTHERS = {"shared_file", "shared_sha256", "tasks", "base_sha256", "int8", "latents"}  # of graphs of other forms


@pytest.mark.parametrize(("preprocess", "said"), [(False, "no"), (True, "scale"), ("scale", "scale"), ("full", "full")])
def test_metadata_have_the_keys_that_are_documented(
    model: TaskModel, tmp_path: Path, preprocess: bool | str, said: str
) -> None:
    to_onnx(model.fuse("a"), tmp_path / "a.onnx", task=TASK, preprocess=preprocess)
    facts = session(tmp_path / "a.onnx").get_modelmeta().custom_metadata_map
    assert facts["preprocessing_in_graph"] == said
    page = (Path(__file__).parents[2] / "docs" / "exported-graphs.md").read_text()
    documented = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert documented == METADATA | OTHERS
    assert set(facts) <= documented
    keys = set(json.loads(facts["preprocessing"]))
    assert keys == {"size", "width", "frames", "resize", "interpolation", "mean", "std"}
    assert all(f"`{key}`" in page for key in keys)


def test_an_entrys_graph_names_its_provenance(tmp_path: Path) -> None:
    export_entry(default_registry().entry("resnet20-bn-shapes"), default_registry(), ["sketch"], tmp_path)
    facts = session(tmp_path / "sketch.onnx").get_modelmeta().custom_metadata_map
    assert set(facts) == METADATA


class Broken:
    """A session whose graph gives no numbers, as an overflow in float16 would."""

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="images")]

    def run(self, outputs: object, feed: dict[str, np.ndarray]) -> list[np.ndarray]:  # type: ignore[type-arg]
        return [np.full((len(feed["images"]), 3), np.nan, np.float32)]


def test_values_that_are_not_finite_never_pass(model: TaskModel) -> None:
    with pytest.raises(ExportError, match="not finite"):
        compare(model.fuse("a"), Broken(), [torch.randn(2, 3, 16, 16)], 1e-2)  # type: ignore[arg-type]


def test_a_graph_that_differs_is_refused_and_not_kept(
    model: TaskModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.onnx"
    to_onnx(model.fuse("a"), file, task=TASK)
    before = file.read_bytes()
    real = Form.exported

    def altered(*args: Any) -> ir.Model:
        model = real(*args)
        weight = max((v.const_value for v in model.graph.initializers.values() if v.const_value), key=lambda t: t.size)
        weight.numpy()[...] *= np.float32(1.001)
        return model

    monkeypatch.setattr(Form, "exported", altered)
    with pytest.raises(ExportError, match=r"differs from its source by more than 0\.0001"):
        to_onnx(model.fuse("a"), file, task=TASK)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_the_module_is_left_as_it_was(model: TaskModel, tmp_path: Path) -> None:
    plain = model.fuse("a").train()
    dtype = next(plain.parameters()).dtype
    to_onnx(plain, tmp_path / "a.onnx", task=TASK, half=True)
    assert plain.training
    assert next(plain.parameters()).dtype == dtype


class Unexportable(nn.Module):
    """Control flow that depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if float(x.sum()) > 0 else x.amax((2, 3))


def test_an_export_leaves_nothing_behind(model: TaskModel, tmp_path: Path) -> None:
    """torch's exporter keeps shapes and sources of each for ever, by which a service would grow."""
    held = []
    for _ in range(4):  # onnxscript's rules remember what they matched last
        to_onnx(model.fuse("a"), tmp_path / "graph.onnx", task=TASK)
        gc.collect()
        shapes = sum(type(each).__name__ == "ShapeEnv" for each in gc.get_objects())
        held.append((shapes, sum(name.startswith("<eval_with_key>") for name in linecache.cache)))
    assert held[1:] == held[1:2] * 3


def test_what_cannot_be_exported_says_so(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot export Unexportable"):
        to_onnx(Unexportable(), tmp_path / "x.onnx", task=TASK)
    assert list(tmp_path.iterdir()) == []


def test_providers_that_are_not_here_say_so(model: TaskModel, tmp_path: Path) -> None:
    file = tmp_path / "a.onnx"
    to_onnx(model.fuse("a"), file, task=TASK)
    with pytest.raises(OptionError, match="choose one of cpu, cuda, tensorrt"):
        session(file, "tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ExportError, match="not available here"):
            session(file, "cuda")
    (tmp_path / "b.onnx").write_bytes(b"nonsense")
    with pytest.raises(ExportError, match="cannot run"):
        session(tmp_path / "b.onnx")
