"""Graphs in eight bits: layers of whole numbers, the same answers, images prepared in float."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper
from torch import nn
from zoo.export import run, session, to_int8, to_onnx
from zoo.export.parity import metadata_of

import zoo
from tests.conftest import SmallNet, disturb
from zoo.catalog.registry import default_registry
from zoo.catalog.task import METRICS, Preprocessing, Task
from zoo.cli.base import main
from zoo.datasets import benchmark_of
from zoo.deployment import export_entry, int8
from zoo.errors import CheckFailed, DataError, ExportError, OptionError

ENTRY, TASK = "resnet20-ftn-r8-shapes", "sketch"
SMALL = Task.of("a", 5, Preprocessing(16, None, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)))


def inputs(count: int = 4, size: int = 16) -> list[torch.Tensor]:
    return [torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(i)) for i in range(count)]


@pytest.fixture
def float_graph(tmp_path: Path) -> Path:
    model = zoo.adapt(SmallNet().eval(), {}, method="ftn", rank=2)
    model.add_task(SMALL)
    disturb(model, "a")
    to_onnx(model.fuse("a"), tmp_path / "float.onnx", task=SMALL, metadata={"entry": "mine"})
    return tmp_path / "float.onnx"


def test_every_layer_has_weights_of_seven_bits_with_a_scale_for_each_channel(float_graph: Path, tmp_path: Path) -> None:
    to_int8(float_graph, tmp_path / "int8.onnx", inputs())
    graph, whole = onnx.load(tmp_path / "int8.onnx").graph, onnx.load(float_graph).graph
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    given = {tensor.name: numpy_helper.to_array(tensor) for tensor in whole.initializer}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert len(layers) == sum(node.op_type in ("Conv", "Gemm", "MatMul") for node in whole.node) >= 3
    for layer in layers:
        back = made[layer.input[1]]
        assert back.op_type == "DequantizeLinear"
        weight, scale = held[back.input[0]], held[back.input[1]]
        axis = next((a.i for a in back.attribute if a.name == "axis"), 0) % weight.ndim
        assert weight.dtype == np.int8 and np.abs(weight.astype(int)).max() <= 64
        assert scale.shape == (weight.shape[axis],)
        spread = scale.reshape([-1 if place == axis else 1 for place in range(weight.ndim)])
        (near,) = (
            w
            for w in given.values()
            if w.shape == weight.shape and np.allclose(w, weight * spread, atol=0.51 * scale.max())
        )
        assert (np.abs(near - weight * spread) <= 0.51 * spread).all()


@pytest.mark.parametrize(("inside", "size"), [("scale", 16), ("full", 16), ("full", 40)])
def test_images_in_the_graph_are_prepared_in_float32(float_graph: Path, tmp_path: Path, inside: str, size: int) -> None:
    to_int8(float_graph, tmp_path / "bare.onnx", inputs())
    to_int8(float_graph, tmp_path / "int8.onnx", inputs(), preprocess=inside)
    nodes = onnx.load(tmp_path / "int8.onnx").graph.node
    before = [node for node in nodes if not any(name.startswith("network/") for name in node.output)]
    assert before and not [node for node in before if "Quantize" in node.op_type and "logits" not in node.output]
    images = torch.randint(0, 256, (3, size, size, 3), dtype=torch.uint8)
    to_onnx(nn.Identity(), tmp_path / "prepare.onnx", task=SMALL, preprocess=inside)
    prepared = run(session(tmp_path / "prepare.onnx"), images.numpy())
    found = run(session(tmp_path / "int8.onnx"), images.numpy())
    expected = run(session(tmp_path / "bare.onnx"), prepared)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    if size == SMALL.preprocessing.size:
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (SMALL.preprocessing.mean, SMALL.preprocessing.std))
        np.testing.assert_allclose(prepared, ((images.movedim(-1, 1) / 255 - mean) / std).numpy(), atol=1e-5)
    facts = metadata_of(tmp_path / "int8.onnx")
    assert facts["precision"] == "int8" and facts["preprocessing_in_graph"] == inside and facts["entry"] == "mine"
    assert json.loads(facts["classes"]) == list(SMALL.classes)


def test_networks_whose_inputs_no_preprocessing_describes(tmp_path: Path) -> None:
    network = nn.Sequential(
        nn.Conv1d(2, 8, 5), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3)
    ).eval()
    sound = [torch.randn(4, 2, 50) for _ in range(3)]
    to_onnx(network, tmp_path / "float.onnx", images=sound[0])
    to_int8(tmp_path / "float.onnx", tmp_path / "int8.onnx", sound)
    found, expected = (run(session(tmp_path / name), sound[0].numpy()) for name in ("int8.onnx", "float.onnx"))
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())
    to_onnx(SmallNet(5).eval(), tmp_path / "inside.onnx", preprocess=True)
    with pytest.raises(ExportError, match="without preprocessing"):
        to_int8(tmp_path / "inside.onnx", tmp_path / "no.onnx", [torch.randn(1, 3, 224, 224)])


def test_what_an_image_says_is_told(float_graph: Path, tmp_path: Path) -> None:
    def batches() -> Iterator[torch.Tensor]:
        yield inputs()[0]
        raise DataError("The image cat.jpg does not decode.")

    with pytest.raises(DataError, match=r"cat\.jpg"):
        to_int8(float_graph, tmp_path / "int8.onnx", batches())
    assert not (tmp_path / "int8.onnx").exists()


def test_a_source_that_is_no_bare_float_graph_is_refused(float_graph: Path, tmp_path: Path) -> None:
    made = tmp_path / "int8.onnx"
    for name, options in (("half", {"half": True}), ("inside", {"preprocess": True})):
        to_onnx(SmallNet(5).eval(), tmp_path / f"{name}.onnx", task=SMALL, **options)
        with pytest.raises(ExportError, match="in float32"):
            to_int8(tmp_path / f"{name}.onnx", made, inputs())
    (tmp_path / "none.onnx").write_bytes(b"\xff" * 50)
    with pytest.raises(ExportError, match="cannot be read"):
        to_int8(tmp_path / "none.onnx", made, inputs())
    with pytest.raises(ExportError, match="there is none"):
        to_int8(float_graph, made, [])
    with pytest.raises(ExportError, match="cannot be converted to int8"):
        to_int8(float_graph, made, [torch.randn(1, 5, 16, 16)])
    assert not made.exists()


def test_what_is_judged_too_bad_is_not_written(float_graph: Path, tmp_path: Path) -> None:
    made = tmp_path / "int8.onnx"
    made.write_text("what stood there")

    def judged(whole: Path, small: Path) -> dict[str, str]:
        assert {run(session(file), inputs()[0].numpy()).shape for file in (whole, small)} == {(4, 5)}
        raise CheckFailed("too bad")

    with pytest.raises(CheckFailed, match="too bad"):
        to_int8(float_graph, made, inputs(), judged=judged)
    assert made.read_text() == "what stood there" and not list(tmp_path.glob(".int8*"))


def test_quantising_leaves_logging_as_it_was(
    float_graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    to_int8(float_graph, tmp_path / "int8.onnx", inputs())
    assert logging.root.handlers == []


def test_a_packaged_task_keeps_its_accuracy_in_a_third_of_the_bytes(tmp_path: Path) -> None:
    registry = default_registry()
    made = export_entry(registry.entry(ENTRY), registry, [TASK], tmp_path / "out", precision="int8")[TASK]
    folder = made.path.parent
    assert made.path == tmp_path / "out" / f"{TASK}.int8.onnx" and made.int8
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sizes[f"{TASK}.int8.onnx"] < 0.35 * sizes[f"{TASK}.onnx"]
    test = benchmark_of(registry.entry(ENTRY)).splits(TASK, None).test
    model = zoo.load(ENTRY, task=TASK)
    images = torch.stack([model.transforms(TASK)(test[i][0]) for i in range(200)])
    labels = np.array([test[i][1] for i in range(200)])
    right = {name: run(session(folder / name), images.numpy()).argmax(1) == labels for name in sizes}
    assert abs(right[f"{TASK}.onnx"].mean() - right[f"{TASK}.int8.onnx"].mean()) <= 0.01
    told = json.loads(metadata_of(made.path)["int8"])
    assert told == made.int8 and told["images"] == len(test)  # type: ignore[arg-type]
    assert abs(told["float32"] - registry.entry(ENTRY).measured[TASK]) < 0.01
    assert set(told["latency"]) == {"1", "8"} and all(ratio > 0 for ratio in told["latency"].values())


def test_more_than_may_be_lost_keeps_the_float_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrated on black images, activations have no room."""
    monkeypatch.setattr(int8, "_calibration", lambda *_: iter([torch.zeros(1, 3, 32, 32)]))
    (tmp_path / f"{TASK}.int8.onnx").write_text("of an earlier export")
    words = ["export", ENTRY, "--task", TASK, "--precision", "int8", "-o", str(tmp_path)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1
    assert re.search(r"sketch does \d+\.\d\d points worse.*and 1 are allowed. Allow more with --max-drop", done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == [f"{TASK}.onnx"]
    assert metadata_of(tmp_path / f"{TASK}.onnx")["precision"] == "float32"


def test_worse_is_in_points_or_in_per_cent_of_an_error() -> None:
    assert METRICS["classification"].worse(90, 92) == 2 and METRICS["classification"].worse(92, 90) == -2
    assert METRICS["depth"].worse(0.55, 0.5) == pytest.approx(10)
    assert replace(METRICS["depth"], unit="m").worse(0.4, 0.5) == pytest.approx(-20)


@pytest.mark.parametrize(("options", "words"), [
    ({"form": "mixed", "precision": "int8"}, "Graphs in int8"),
    ({"form": "shared", "precision": "fp16"}, "Graphs in fp16"),
    ({"max_drop": 2.0}, "int8 alone"), ({"precision": "int4"}, "fp32, fp16, int8"), ({"form": "tarball"}, "fused"),
    ({"stack_limit": 1}, "mixed graphs"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(options: dict[str, object], words: str, tmp_path: Path) -> None:
    registry = default_registry()
    with pytest.raises(OptionError, match=words):
        export_entry(registry.entry(ENTRY), registry, [TASK], tmp_path, **options)  # type: ignore[arg-type]
