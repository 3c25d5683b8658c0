"""Backbones by name."""

from __future__ import annotations

import pytest
import torch

from zoo.backbones import build, pretrained_tensors
from zoo.catalog.registry import Registry, default_registry
from zoo.errors import UnknownNameError, WeightsError


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
