"""All tasks in one graph: each row is what its task's fused network gives, for any mixture of tasks and any batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from zoo.export import run, session, to_mixed

import zoo
from tests.conftest import disturb
from tests.export.test_shared import SERVED
from tests.models.test_dense import four_tasks
from tests.models.test_mixing import Forms, model_of, row_by_row
from zoo.catalog.task import Preprocessing, Task
from zoo.errors import ExportError
from zoo.joint import Network, joined


def agrees(file: Path, images: torch.Tensor, numbers: list[int], expected: torch.Tensor) -> None:
    plain = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])  # with no code of the zoo's
    found = run(plain, images.numpy(), np.array(numbers))
    known = np.isfinite(expected.numpy())
    assert np.array_equal(known, np.isfinite(found))
    largest = np.abs(expected.numpy()[known]).max()
    np.testing.assert_allclose(found[known], expected.numpy()[known], rtol=0, atol=1e-4 * largest)


@pytest.mark.parametrize("method", SERVED)
@torch.no_grad()
def test_each_row_is_what_its_tasks_fused_network_gives(method: str, tmp_path: Path) -> None:
    model, file = model_of(method), tmp_path / "all.onnx"
    assert to_mixed(model, file).relative < 1e-4
    images = torch.randn(7, 3, 12, 12)
    for numbers in ([2, 0, 1, 1, 0, 2, 2], [1] * 7):
        agrees(file, images, numbers, row_by_row(model, images, numbers))
    agrees(file, images[:1], [2], row_by_row(model, images[:1], [2]))


@torch.no_grad()
def test_some_tasks_in_an_order_of_ones_own_and_nothing_kept_whole(tmp_path: Path) -> None:
    model, file, images = model_of("ftn"), tmp_path / "two.onnx", torch.randn(2, 3, 12, 12)
    to_mixed(model, file, tasks=["c", "a"], stack_limit=0, metadata={"entry": "mine"})
    found = run(session(file), images.numpy(), np.array([0, 1]))
    np.testing.assert_allclose(found[0, :3], model.fuse("c")(images[:1])[0].numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], model.fuse("a")(images[1:])[0].numpy(), rtol=1e-4, atol=1e-5)
    facts = session(file).get_modelmeta().custom_metadata_map
    assert [each["task"] for each in json.loads(facts["tasks"])] == ["c", "a"]
    assert json.loads(facts["tasks"])[0]["classes"] == ["0", "1", "2"]
    assert facts["entry"] == "mine"
    assert not {"task", "classes", "kind"} & set(facts)


@pytest.mark.parametrize("preprocess", ["scale", "full"])
@torch.no_grad()
def test_preprocessing_in_the_graph(preprocess: str, tmp_path: Path) -> None:
    model, file = model_of("ftn"), tmp_path / "all.onnx"
    assert to_mixed(model, file, preprocess=preprocess).passed
    size = (12, 12) if preprocess == "scale" else (31, 20)
    images = torch.randint(0, 256, (3, *size, 3), dtype=torch.uint8)
    inputs = torch.stack([model.transforms("a")(image.permute(2, 0, 1)) for image in images])
    found = run(session(file), images.numpy(), np.array([1, 2, 0]))
    expected = row_by_row(model, inputs, [1, 2, 0]).numpy()
    known = np.isfinite(expected)
    np.testing.assert_allclose(found[known], expected[known], atol=(1e-4 if preprocess == "scale" else 2e-2))


def test_a_number_that_no_task_has_is_an_error_of_onnx_runtimes(tmp_path: Path) -> None:
    to_mixed(model_of("ftn"), tmp_path / "all.onnx")
    with pytest.raises(ExportError, match="out of"):
        run(session(tmp_path / "all.onnx"), np.zeros((1, 3, 12, 12), np.float32), np.array([3]))


@torch.no_grad()
def test_dense_tasks_of_any_size(tmp_path: Path) -> None:
    model, file = four_tasks("ftn", None, rank=2).eval(), tmp_path / "all.onnx"
    to_mixed(model, file)
    images, numbers = torch.randn(4, 3, 24, 40), [3, 1, 2, 0]
    agrees(file, images, numbers, row_by_row(model, images, numbers))


def with_tasks(**tasks: Task) -> zoo.TaskModel:
    model = zoo.adapt(Forms(), {}, rank=2)
    for task in tasks.values():
        model.add_task(task)
        disturb(model, task.name)
    return model


SIZE = Preprocessing(12, None)
OTHERS: dict[str, tuple[Task, Any]] = {
    "prepared otherwise": (Task.of("b", 3, Preprocessing(16, None)), False),
    "prepared otherwise: scaled": (Task.of("b", 3, Preprocessing(12, None, (0.1,) * 3)), True),
    "cannot do both": (Task.of("b", 3, SIZE, "segmentation"), False),
}


@pytest.mark.parametrize("words", OTHERS)
def test_tasks_that_no_one_batch_can_hold_are_refused(words: str, tmp_path: Path) -> None:
    other, preprocess = OTHERS[words]
    with pytest.raises(ExportError, match=words.partition(":")[0]):
        to_mixed(with_tasks(a=Task.of("a", 3, SIZE), b=other), tmp_path / "all.onnx", preprocess=preprocess)
    assert not list(tmp_path.iterdir())


def test_networks_without_a_backbone_are_refused_by_name(tmp_path: Path) -> None:
    plan = Network.of(nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 3)), 3)
    model = joined({"a": plan}, "stl", {})
    model.add_task(Task.of("a", 3, Preprocessing(8, None)))
    with pytest.raises(ExportError, match="stl have no backbone"):
        to_mixed(model, tmp_path / "all.onnx")
