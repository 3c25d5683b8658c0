"""Exports that cannot be say why in a sentence, and weights of any size lie beside their graph, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from zoo.export import run, session, to_onnx

import zoo
from zoo.cli.base import main
from zoo.errors import ExportError


class Net(nn.Module):
    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.conv, self.fc = nn.Conv2d(channels, 16, 3), nn.Conv2d(16, 64, 3), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.fc(self.conv(self.stem(x)).mean((2, 3)))
        return made


TASK = zoo.Task.of("a", 5, zoo.Preprocessing(8, None))


class Loops(Net):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super(Loops, self).forward(row[None]) for row in x])


class Several(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


@pytest.mark.parametrize(
    ("net", "task", "message"),
    [
        (Loops(), TASK, r"the batch of the graph is fixed at 2|cannot export Loops"),
        (Net(4), TASK, r"does not run on inputs of the shape \(1, 3, 8, 8\)"),
        (Several(), TASK, "gives tuple, not one tensor"),
    ],
)
def test_what_cannot_be_exported_says_why_in_a_sentence(
    net: nn.Module, task: zoo.Task, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message) as told:
        to_onnx(net, tmp_path / "a.onnx", task=task)
    assert len(str(told.value).splitlines()) == 1
    assert len(str(told.value)) < 500
    assert not list(tmp_path.iterdir())


def test_an_unfused_model_is_to_be_fused_first(tmp_path: Path) -> None:
    model = zoo.adapt(Net(), {"a": 3, "b": 2}, rank=2)
    for whole in (model, nn.Sequential(model)):
        with pytest.raises(ExportError, match=r"Fuse one first: .*model\.fuse\(task\).* of a, b"):
            to_onnx(whole, tmp_path / "a.onnx", task=TASK)
    with pytest.raises(ExportError, match="inside of a TaskModel"):
        to_onnx(model.backbone, tmp_path / "a.onnx", task=TASK)


def test_onnx_runtimes_errors_arrive_in_a_sentence(tmp_path: Path) -> None:
    to_onnx(Net(), tmp_path / "a.onnx", task=TASK)
    with pytest.raises(ExportError, match=r"cannot run images of \(1, 2, 3\)"):
        run(session(tmp_path / "a.onnx"), np.zeros((1, 2, 3), np.float32))


def test_weights_past_the_limit_lie_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, images = Net().eval(), torch.randn(3, 3, 8, 8)
    file = tmp_path / "a.onnx"
    to_onnx(net, file, task=TASK, largest=100)
    (data,) = tmp_path.glob("*.data")
    assert file.stat().st_size < data.stat().st_size
    onnx.checker.check_model(str(file), full_check=True)
    with torch.no_grad():
        expected = net(images)
    np.testing.assert_allclose(run(session(file), images.numpy()), expected, rtol=1e-4, atol=1e-5)
    # another network in its place: a graph never stands beside weights of another one
    with torch.no_grad():
        net.fc.weight.mul_(2)
    to_onnx(net, file, task=TASK, largest=100)
    (other,) = tmp_path.glob("*.data")
    assert other.name != data.name
    np.testing.assert_allclose(run(session(file), images.numpy()), net(images).detach(), rtol=1e-4, atol=1e-5)
    # one that fails leaves what is there
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("zoo.export.form.TOLERANCE", -1.0)
    with pytest.raises(ExportError, match="differs from its source"):
        to_onnx(Net(), file, task=TASK, largest=100)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.undo()
    to_onnx(net, file, task=TASK)  # small again
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_volumes_are_exported_by_the_shape_of_real_ones(tmp_path: Path) -> None:
    net = nn.Sequential(
        nn.Conv3d(2, 4, 3),
        nn.ReLU(),
        nn.ConvTranspose3d(4, 4, 3),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    model = zoo.adapt(net, {"a": 3}, rank=4)
    volumes = torch.randn(2, 2, 5, 6, 7)
    parity = to_onnx(model.fuse("a"), tmp_path / "a.onnx", task=model.task("a"), images=volumes)
    assert parity.passed
    with torch.no_grad():
        expected = model(volumes[:1], task="a")
    np.testing.assert_allclose(run(session(tmp_path / "a.onnx"), volumes[:1].numpy()), expected, rtol=1e-4, atol=1e-5)


def test_the_long_page_is_shown_with_debug(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def breaks(*_: Any, **__: Any) -> None:
        raise ValueError("short\n" + "a long page\n" * 50)

    monkeypatch.setattr(torch.onnx, "export", breaks)
    words = ["export", "resnet20-ftn-r1-shapes", "--task", "sketch", "-o", str(tmp_path)]
    told = CliRunner().invoke(main, words)
    assert told.exit_code == 1
    assert "cannot export ResNetCifar: short" in told.output or "short" in told.output
    assert "a long page" not in told.output
    assert "a long page" in str(CliRunner().invoke(main, ["--debug", *words]).exception.__cause__)  # type: ignore[union-attr]
