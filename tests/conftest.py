"""Small models and folders that several tests use."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import zoo
from tests.hub import LoopbackHub
from zoo.models.adapted import TaskModel

torch.set_num_threads(1)  # tests run on several workers, whose threads would wait for each other


class OneThread(onnxruntime.SessionOptions):  # type: ignore[misc]
    """ONNX Runtime's options, which would else give a session a thread per core."""

    def __init__(self) -> None:
        super().__init__()
        self.intra_op_num_threads = 1


onnxruntime.SessionOptions = OneThread


def pytest_configure() -> None:
    """Keep what is read before the first test, when tests are collected, out of the user's cache too."""
    os.environ["ZOO_CACHE"] = tempfile.mkdtemp(prefix="zoo-tests-")
    atexit.register(shutil.rmtree, os.environ["ZOO_CACHE"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first, so that no worker is left with one when the others are done."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep the user's own store and cache out of the tests."""
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    yield


class SmallNet(nn.Module):
    """A user's own network, with every kind of layer that the zoo treats apart."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.body = nn.Sequential(
            nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 12, 3, padding=1, groups=4), nn.BatchNorm2d(12), nn.ReLU(),
        )  # fmt: skip
        self.hidden = nn.Linear(12, 16)
        self.classifier = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(torch.relu(self.bn(self.stem(x)))).mean((2, 3))
        logits: Tensor = self.classifier(torch.relu(self.hidden(x)))
        return logits


@pytest.fixture
def small_model() -> TaskModel:
    """Two tasks of different class counts, each with norms and increments away from their start."""
    model = zoo.adapt(SmallNet(), {"a": 5, "b": 7}, rank=3)
    for task in model.tasks:
        disturb(model, task)
    return model


def disturb(model: TaskModel, task: str) -> None:
    """Give every tensor of a task values of its own, as training would: smaller ones where many are added up."""
    for name, tensor in model.task_tensors(task).items():
        if tensor.is_floating_point():
            noise = torch.rand_like(tensor) if "running_var" in name else torch.randn_like(tensor)
            summed = tensor[0].numel() if tensor.ndim > 1 else 1
            tensor.add_(0.1 * noise * min(1, (64 / summed) ** 0.5))


def write_images(root: Path, domains: dict[str, list[str]], per_class: int = 4, size: int = 40) -> Path:
    """A folder `<domain>/{train,test}/<class>/*.jpg`; a class shows as its own brightness."""
    rng = np.random.RandomState(0)
    for domain, classes in domains.items():
        for split in ("train", "test"):
            for label, name in enumerate(classes):
                folder = root / domain / split / name
                folder.mkdir(parents=True)
                for i in range(per_class):
                    pixels = rng.randint(0, 60, (size, size + 8, 3)) + 150 * label // max(1, len(classes) - 1)
                    Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.jpg")
    return root


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two sets of tensors agree bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def snapshot(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A hub of this machine's, and a cache that knows nothing of it."""
    for variable, folder in (("ZOO_CACHE", "cache"), ("ZOO_HOME", "home"), ("HF_HOME", "huggingface")):
        monkeypatch.setenv(variable, str(tmp_path / folder))
    monkeypatch.setenv("HF_TOKEN", "hf_loopback")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with LoopbackHub() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        )
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between its trials
        yield server
