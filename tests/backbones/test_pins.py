"""Which file a library's weights are: stated by what was read, held to ever after."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import yaml
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save

import zoo
from tests.hub import LoopbackHub, Repo
from zoo.backbones.weights import pretrained_tensors
from zoo.catalog.registry import Registry
from zoo.cli.base import main
from zoo.errors import WeightsError
from zoo.storage.files import sha256

NAME = "timm/test_resnet.r160_in1k"
ENTRY = """
format: 1
entries:
  mine:
    backbone: timm/test_resnet.r160_in1k
    method: {name: bn}
    benchmark: shapes
    classes: {sketch: 12}
    recipe: shapes/bn
"""


def weights(seed: int) -> bytes:
    torch.manual_seed(seed)
    return save(timm.create_model(NAME.removeprefix("timm/")).state_dict())


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words), catch_exceptions=False)


@pytest.fixture
def publish(hub: LoopbackHub) -> Callable[[int], str]:
    """What timm's repository has from now on."""
    repo = hub.repos[NAME] = Repo()
    return lambda seed: repo.commit({"model.safetensors": weights(seed)}, {"summary": str(seed)})


def test_a_pin_is_what_was_read_and_stays(
    publish: Callable[[int], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "registry.yaml"
    file.write_text(ENTRY)
    commit, content = publish(0), weights(0)
    assert "not pinned" in run("info", "mine", "--registry", str(file)).output
    done = run("pin", "mine", "--registry", str(file))
    assert done.exit_code == 0, done.output
    pin = Registry.read(tmp_path).pins[NAME]
    (tmp_path / "same").write_bytes(content)
    assert dataclasses.asdict(pin) == {
        "uri": f"hf://{NAME}@{commit}/model.safetensors", "sha256": sha256(tmp_path / "same"), "size": len(content),
    }  # fmt: skip
    assert yaml.safe_load(file.read_text())["entries"] == yaml.safe_load(ENTRY)["entries"]
    assert commit in run("info", "mine", "--registry", str(file)).output

    publish(1)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "empty"))
    tensors = pretrained_tensors(NAME, Registry.read(file))
    torch.manual_seed(0)
    for name, tensor in timm.create_model(NAME.removeprefix("timm/")).state_dict().items():
        assert torch.equal(tensors[name], tensor)


def test_another_content_under_the_pinned_commit_is_refused(
    publish: Callable[[int], str], hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "registry.yaml"
    file.write_text(ENTRY)
    commit = publish(0)
    assert run("pin", NAME, "--registry", str(file)).exit_code == 0
    hub.repos[NAME].commits[commit] = {"model.safetensors": weights(1)}
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "empty"))
    with pytest.raises(WeightsError, match="it was altered"):
        pretrained_tensors(NAME, Registry.read(file))


def test_what_cannot_be_reached_stays_unpinned(tmp_path: Path, hub: LoopbackHub) -> None:
    file = tmp_path / "registry.yaml"
    file.write_text(ENTRY)
    done = run("pin", "mine", "--registry", str(tmp_path))
    assert done.exit_code == 1
    assert "cannot be downloaded" in done.output
    assert file.read_text() == ENTRY
    done = run("pin", "zoo/resnet20@shapes", "--registry", str(tmp_path))
    assert done.exit_code == 2
    assert file.read_text() == ENTRY


def test_an_entry_of_ones_own_stays_with_the_weights_that_it_was_trained_on(
    publish: Callable[[int], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = publish(0)
    for split in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            (tmp_path / "images" / "photo" / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (40, 40), (200 * number, 30 * i, 0)).save(
                    tmp_path / "images" / "photo" / split / name / f"{i}.png"
                )
    out = tmp_path / "out"
    done = run(
        "train", "--backbone", NAME, "--data", str(tmp_path / "images"), "--out", str(out), "--method", "bn", "--name",
        "mine", "--max-steps", "1", "--image-size", "32",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    stated = Registry.read(out).entry("mine").backbone_weights
    assert stated is not None
    assert stated.uri == f"hf://{NAME}@{commit}/model.safetensors"
    publish(1)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "empty"))
    assert zoo.load("mine", registry=out).tasks
