"""From names to models: where weights come from, and what the errors say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import zoo
from tests.conftest import equal
from zoo.backbones.resnet_cifar import CifarResNet
from zoo.catalog.registry import default_registry
from zoo.errors import OptionError, UnknownNameError, WeightsError
from zoo.loader import fresh_model

NAME = "resnet20-ftn-r8-shapes"


def test_the_five_lines_of_the_readme(tmp_path: Path) -> None:
    model = zoo.load(NAME)
    images = torch.rand(2, 3, 32, 32)
    logits = model(images, task="sketch")
    plain = model.fuse("sketch")
    parity = zoo.export.to_onnx(plain, tmp_path / "sketch.onnx", task=model.task("sketch"))
    assert logits.shape == (2, 12)
    assert parity.passed
    assert type(plain) is CifarResNet
    same = zoo.load(NAME, task="sketch", fuse=True)
    assert equal(plain.state_dict(), same.state_dict())
    assert model.transforms("sketch")(torch.zeros(3, 50, 60, dtype=torch.uint8)).shape == (3, 32, 32)


def test_one_task_can_be_loaded_alone() -> None:
    assert zoo.load(NAME, task="real").tasks == ("real",)
    with pytest.raises(UnknownNameError, match="Did you mean sketch"):
        zoo.load(NAME, task="sketches")
    with pytest.raises(OptionError, match="Fusing needs a task; those of"):
        zoo.load(NAME, fuse=True)  # type: ignore[call-overload]


def test_weights_none_downloads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.backbones.weights.download", pytest.fail)
    model = zoo.load("resnet34-ftn-r40-domainnet", weights=None)
    assert len(model.tasks) == 6
    assert type(zoo.load("resnet50-ftn-r50-sketch", task="cub", fuse=True, weights=None)).__name__ == "ResNet"


def test_weights_backbone_gives_fresh_adapters_on_the_pretrained_backbone() -> None:
    fresh, packaged = zoo.load(NAME, weights="backbone"), zoo.load(NAME)
    assert fresh.backbone_sha256() == packaged.backbone_sha256()
    assert not equal(fresh.task_tensors("real"), packaged.task_tensors("real"))


def test_the_adapters_name_the_backbone_that_they_were_trained_on() -> None:
    random = zoo.load(NAME, weights=None)
    assert random.backbone_sha256() != zoo.load(NAME).backbone_sha256()


def test_a_path_that_holds_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="No adapter file at"):
        zoo.load(NAME, weights=tmp_path)
    with pytest.raises(WeightsError, match="No adapter file at"):
        zoo.load(NAME, weights=tmp_path / "x.safetensors")


def test_an_adapter_of_another_task_is_refused(tmp_path: Path) -> None:
    model = zoo.load(NAME, task="real")
    model.save_adapter("real", tmp_path / "sketch.safetensors")
    with pytest.raises(WeightsError, match="holds the task 'real', not 'sketch'"):
        zoo.load(NAME, task="sketch", weights=tmp_path)


def test_networks_that_share_refuse_a_choice_of_layers() -> None:
    """But for the head of what stands before them."""
    entry = default_registry().entry("mlp-stl-digits")
    chosen = replace(entry, method={**entry.method, "layers": ["1"]})
    with pytest.raises(OptionError, match="'stl' does not take layers"):
        fresh_model(chosen, default_registry())
