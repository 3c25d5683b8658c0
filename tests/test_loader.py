"""From names to models: where weights come from, and what the errors say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import zoo
from tests.conftest import equal
from zoo.backbones import build, pretrained_tensors
from zoo.backbones.resnet_cifar import CifarResNet
from zoo.catalog.registry import Registry, default_registry
from zoo.errors import OptionError, UnknownNameError, WeightsError

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


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("torchvision/resnet181", "torchvision/resnet18"),
        ("timm/resnet181", "timm/resnet18"),
        ("zoo/resnet21", "zoo/resnet20"),
        ("keras/resnet18", "torchvision/…"),
    ],
)
def test_unknown_backbones_name_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UnknownNameError, match=hint):
        build(name)


def test_backbones_without_weights_say_so() -> None:
    with pytest.raises(WeightsError, match="zoo/resnet20@shapes"):
        pretrained_tensors("zoo/resnet20", default_registry())
    with pytest.raises(UnknownNameError, match="IMAGENET1K_V1"):
        pretrained_tensors("torchvision/resnet18@IMAGENET1K_V9", Registry())
    with pytest.raises(WeightsError, match="Hugging Face Hub"):
        pretrained_tensors("timm/resnet18.nothing", Registry())


def test_resnet20_is_the_papers_network() -> None:
    """He et al. 2016, Table 6: 0.27 M parameters; 32×32 images, 64 features at 8×8."""
    net = build("zoo/resnet20")
    assert sum(p.numel() for p in net.parameters()) == 269_072 + 64 * 10 + 10
    assert len([m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]) == 19
    features = []
    net.layer3.register_forward_hook(lambda *args: features.append(args[2].shape))
    net(torch.zeros(1, 3, 32, 32))
    assert features == [(1, 64, 8, 8)]
