"""Repositories of models for Triton's server, read by its own definitions and run as they say."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig
from zoo.export import to_onnx

import zoo
from tests.conftest import SmallNet
from zoo.catalog.registry import default_registry
from zoo.catalog.task import Preprocessing
from zoo.cli.base import main
from zoo.deployment import export_entry, triton
from zoo.models.multitask import MultiTaskModel

ROWS = 3


def read(folder: Path) -> ModelConfig:
    return text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())


def shape(tensor: Any) -> list[int]:
    """Of what the graph takes or gives for some rows, as the server makes it of the configuration."""
    dims = list(tensor.reshape.shape) if tensor.HasField("reshape") else list(tensor.dims)
    return [ROWS, *(24 if dim == -1 else dim for dim in dims)]


def answered(folder: Path, tasks: int = 1) -> tuple[dict[str, np.ndarray], np.ndarray]:  # type: ignore[type-arg]
    """What is asked of a model by the names, types and shapes of its configuration, and what it answers."""
    config = read(folder)
    assert config.name == folder.name and config.backend == "onnxruntime" and config.max_batch_size >= ROWS
    assert config.HasField("dynamic_batching") and config.instance_group[0].count == 1
    draw, asked = np.random.default_rng(0), {}
    drawn = {"TYPE_FP32": lambda s: draw.standard_normal(s, dtype=np.float32),
             "TYPE_UINT8": lambda s: draw.integers(0, 256, s, dtype=np.uint8),
             "TYPE_INT64": lambda s: draw.integers(0, tasks, s, dtype=np.int64)}  # fmt: skip
    for each in config.input:
        asked[each.name] = drawn[DataType.Name(each.data_type)](shape(each))
    session = onnxruntime.InferenceSession(str(folder / "1/model.onnx"), providers=["CPUExecutionProvider"])
    (output,) = config.output
    (found,) = session.run([output.name], asked)
    assert list(found.shape) == shape(output)
    if output.label_filename:
        assert len((folder / output.label_filename).read_text().splitlines()) == found.shape[1]
    return asked, found


def near(found: np.ndarray, expected: torch.Tensor) -> None:  # type: ignore[type-arg]
    known = ~np.isneginf(found)
    wanted = expected.numpy()
    np.testing.assert_allclose(found[known], wanted[known], rtol=1e-4, atol=1e-4 * np.abs(wanted[known]).max())


def expected(model: MultiTaskModel, task: str, images: np.ndarray) -> torch.Tensor:  # type: ignore[type-arg]
    with torch.no_grad():
        return model.fuse(task)(torch.from_numpy(images))  # type: ignore[no-any-return]


def test_a_model_for_each_task_and_one_for_all(tmp_path: Path) -> None:
    name, tasks = "resnet20-ftn-r8-shapes", ("sketch", "real")
    asked = [word for task in tasks for word in ("--task", task)]
    result = CliRunner().invoke(main, ["export", name, *asked, "--triton", str(tmp_path / "models")])
    assert result.exit_code == 0, result.output
    folder, model = tmp_path / "models", zoo.load(name)
    assert sorted(path.name for path in folder.iterdir()) == [name, f"{name}-real", f"{name}-sketch"]
    for task in tasks:
        given, found = answered(folder / f"{name}-{task}")
        near(found, expected(model, task, given["images"]))
        labels = (folder / f"{name}-{task}/labels.txt").read_text().splitlines()
        assert labels == list(model.task(task).classes)
    given, found = answered(folder / name, tasks=2)
    order = json.loads(read(folder / name).parameters["tasks"].string_value)
    assert order == list(tasks) and not read(folder / name).output[0].label_filename
    for image, number, row in zip(given["images"], given["task"], found, strict=True):
        near(row[None], expected(model, order[number], image[None]))


def test_images_of_any_size_are_taken_where_the_graph_prepares_them(tmp_path: Path) -> None:
    registry = default_registry()
    name = "resnet20-ftn-r8-shapes"
    export_entry(registry.entry(name), registry, ["sketch", "real"], tmp_path, form="triton", preprocess="full")
    (images,) = read(tmp_path / f"{name}-real").input
    assert list(images.dims) == [-1, -1, 3]
    for each in (f"{name}-real", name):
        answered(tmp_path / each, tasks=2)


@pytest.mark.long
def test_maps_and_networks_of_their_own(tmp_path: Path) -> None:
    registry = default_registry()
    dense, joint = "resnet20-ftn-r8-rooms", "mlp-trmtl_410-digits"
    export_entry(registry.entry(dense), registry, ["depth"], tmp_path, form="triton")
    given, found = answered(tmp_path / f"{dense}-depth")
    near(found, expected(zoo.load(dense, task="depth"), "depth", given["images"]))
    assert not (tmp_path / f"{dense}-depth/labels.txt").exists()
    tasks = registry.entry(joint).tasks[:2]
    made = export_entry(registry.entry(joint), registry, tasks, tmp_path, form="triton")
    assert list(made) == list(tasks)  # and no model of both
    for task in tasks:
        given, found = answered(tmp_path / f"{joint}-{task}")
        near(found, expected(zoo.load(joint), task, given["images"]))


def test_names_are_quoted_and_a_label_has_one_line(tmp_path: Path) -> None:
    preprocessing = Preprocessing(16, None)
    entry = 'a "model" of \\ 😀'
    model = zoo.adapt(SmallNet(), {"a": ["one", "line\nbreak", "ünï"]}, method="bn", preprocessing=preprocessing)
    leaving = SimpleNamespace(
        names=["a"], model=model, preprocess=False, entry=SimpleNamespace(name=entry),
        whole=lambda task, path: to_onnx(model.fuse(task), path, task=model.task(task)),
    )  # fmt: skip
    triton.repository(leaving, tmp_path)  # type: ignore[arg-type]
    folder = tmp_path / f"{entry}-a"
    answered(folder)
    assert (folder / "labels.txt").read_text().splitlines() == ["one", "line break", "ünï"]


def test_what_is_left_of_an_earlier_export_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    registry, name = default_registry(), "resnet20-bn-shapes"
    (tmp_path / name).mkdir()
    with caplog.at_level("INFO", logger="zoo"):
        export_entry(registry.entry(name), registry, ["sketch"], tmp_path, form="triton")
    assert f"{name} is of an earlier export" in caplog.text
