"""Residual adapters against the paper's formulas, in plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import zoo
from tests.conftest import SmallNet, disturb
from zoo.backbones import build
from zoo.errors import OptionError
from zoo.increments import get_method
from zoo.increments.residual import Parallel, Series
from zoo.models.adapted import TaskModel
from zoo.models.layers import AdaptedConv2d, AdaptedLinear
from zoo.models.selection import Selection

FORMS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 3, "padding": 0, "stride": 2},
    {"kernel_size": 3, "padding": 2},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": 3, "padding": 1, "groups": 2},
    {"kernel_size": (1, 5), "padding": (0, 2)},
    {"kernel_size": 5, "padding": "same"},
    {"kernel_size": 5, "padding": "valid"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect", "stride": 2},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 1, "padding": "valid"},
]


def site(layer: nn.Module, method: str, **options: Any) -> tuple[Any, Any]:
    """A layer with one task's increment, away from its start, selected for the task."""
    kind = AdaptedConv2d if isinstance(layer, nn.Conv2d) else AdaptedLinear
    adapted = kind.adopt(layer, Selection())
    adapted.add("t", get_method(method).build(adapted, options))
    for tensor in adapted.tasks["t"].state_dict().values():
        tensor.add_(0.3 * torch.rand_like(tensor))
    return adapted.eval(), adapted.tasks["t"]


def run(adapted: Any, x: Tensor) -> Tensor:
    with adapted.selection.use("t"):
        return adapted(x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("method", ["parallel", "series"])
def test_fused_equals_unfused(method: str, form: dict[str, Any], bias: bool) -> None:
    adapted, _ = site(nn.Conv2d(4, 6, bias=bias, **form), method)
    x = torch.randn(3, 4, 11, 13)
    plain = adapted.plain("t")
    assert type(plain) is nn.Conv2d
    torch.testing.assert_close(plain(x), run(adapted, x), rtol=1e-5, atol=1e-5)


def test_parallel_is_the_papers_formula() -> None:
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1)
    adapted, increment = site(layer, "parallel")
    x = torch.randn(2, 4, 9, 9)
    beside = F.conv2d(x, increment.alpha[:, :, None, None], stride=2)
    torch.testing.assert_close(run(adapted, x), layer(x) + beside)
    delta = increment.delta(layer.weight)
    assert torch.equal(delta[:, :, 1, 1], increment.alpha)
    assert torch.count_nonzero(delta) == torch.count_nonzero(increment.alpha)


def test_series_is_the_papers_module_up_to_a_shift() -> None:
    """Filter bank, batch norm, diag_1(I + α), and the batch norm that follows, in training mode (Fig. 2a)."""
    layer, after = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
    adapted, increment = site(layer, "series")
    adapted.train()
    x = torch.randn(8, 4, 9, 9)
    norm = nn.BatchNorm2d(6).train()
    norm.weight.data.copy_(increment.scale)
    norm.bias.data.normal_()  # of no effect
    y = norm(layer(x))
    expected = after(y + F.conv2d(y, increment.alpha[:, :, None, None]))
    torch.testing.assert_close(after(run(adapted, x)), expected, rtol=1e-3, atol=1e-3)


def test_series_keeps_running_variances_as_batch_norm_does() -> None:
    layer, norm = nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5)
    adapted, increment = site(layer, "series")
    increment.variance.fill_(1)
    adapted.train()
    for _ in range(4):
        x = torch.randn(6, 3, 8, 8)
        norm(layer(x))
        run(adapted, x)
    n = 6 * 6 * 6
    unbiased = (norm.running_var - 0.9**4) * (n - 1) / n + 0.9**4
    torch.testing.assert_close(increment.variance, unbiased)


@pytest.mark.parametrize("method", ["parallel", "series"])
def test_at_the_start_the_network_is_the_backbone_bit_for_bit(method: str) -> None:
    for network in (SmallNet(), torchvision.models.resnet18(), build("zoo/resnet20@shapes")):
        plain = zoo.adapt(network, {"t": 5}, "bn")
        adapted = zoo.adapt(network, {"t": 5}, method)
        head = {k: v for k, v in plain.task_tensors("t").items() if k.startswith(plain.head_paths)}
        adapted.load_task_tensors("t", {**adapted.task_tensors("t"), **head})
        x = torch.randn(2, 3, 32, 32)
        assert torch.equal(adapted(x, task="t"), plain(x, task="t"))
        fused = adapted.fuse("t").state_dict()
        assert all(torch.equal(fused[key], value) for key, value in plain.fuse("t").state_dict().items())


@pytest.mark.parametrize("method", ["parallel", "series"])
def test_nothing_drifts_and_the_backbone_stays(method: str) -> None:
    model = zoo.adapt(SmallNet(), {"a": 3, "b": 4}, method)
    for task in model.tasks:
        disturb(model, task)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(4, 3, 16, 16)
    for _ in range(20):
        for task in model.tasks:
            torch.testing.assert_close(model.fuse(task)(x), model(x, task=task), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_sizes_follow_the_papers_laws() -> None:
    """An adapter is 1/L² of its filter bank; its low-rank form has 2KC parameters (Sections 3.1.1, 3.4)."""
    layer = nn.Conv2d(64, 64, 3, padding=1, bias=False)
    sizes = [sum(p.numel() for p in Parallel(layer, **o).parameters()) for o in ({}, {"rank": 8})]
    assert sizes == [layer.weight.numel() // 9, 2 * 8 * 64]
    assert Series(layer).alpha.numel() == layer.weight.numel() // 9


def test_the_low_rank_form_is_a_product() -> None:
    adapted, increment = site(nn.Conv2d(6, 4, 3, padding=1), "parallel", rank=2)
    delta = increment.delta(adapted.weight)[:, :, 1, 1]
    torch.testing.assert_close(delta, increment.beta @ increment.gamma.T)
    assert torch.linalg.matrix_rank(delta) == 2


@pytest.mark.parametrize("method", ["parallel", "series"])
def test_linear_layers_can_be_adapted_if_asked_for(method: str) -> None:
    adapted, _ = site(nn.Linear(7, 5), method)
    x = torch.randn(3, 7)
    torch.testing.assert_close(adapted.plain("t")(x), run(adapted, x))
    model = zoo.adapt(SmallNet(), {"t": 3}, method)
    assert not any("hidden" in name for name, _ in model.task_parameters("t"))
    model = zoo.adapt(SmallNet(), {"t": 3}, method, layers=["hidden"])
    assert any("hidden" in name for name, _ in model.task_parameters("t"))


def test_dropout_acts_on_the_second_convolution_of_a_block_in_training() -> None:
    model = zoo.adapt(build("zoo/resnet20@shapes"), {"t": 3}, "parallel", dropout=0.5)
    rates = {p: s.tasks["t"].dropout for p, s in model._sites if isinstance(s, AdaptedConv2d)}
    assert {rate for path, rate in rates.items() if path.endswith("conv2")} == {0.5}
    assert {rate for path, rate in rates.items() if path.endswith("conv1")} == {0.0}
    disturb(model, "t")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x, task="t"), model(x, task="t"))
    conv = model.backbone.get_submodule("layer1.0.conv2").train()
    y = torch.randn(2, 16, 8, 8)
    assert not torch.equal(run_as(model, conv, y), run_as(model, conv, y))


def run_as(model: TaskModel, layer: nn.Module, x: Tensor) -> Tensor:
    with model.selection.use("t"):
        output: Tensor = layer(x)
    return output


@pytest.mark.parametrize(
    ("placement", "adapted"),
    [
        ("early", {"layer1"}),
        ("mid", {"layer2", "layer3"}),
        ("late", {"layer4"}),
        ("all", {f"layer{i}" for i in (1, 2, 3, 4)}),
    ],
)
def test_placements_by_stage(placement: str, adapted: set[str]) -> None:
    model = zoo.adapt(torchvision.models.resnet18(), {"t": 3}, "parallel", placement=placement)
    assert {path.split(".")[0] for path, s in model._sites if isinstance(s, AdaptedConv2d)} == adapted


def test_half_is_the_second_convolution_of_each_block() -> None:
    model = zoo.adapt(torchvision.models.resnet50(), {"t": 3}, "parallel", placement="half")
    assert {path.split(".")[-1] for path, s in model._sites if isinstance(s, AdaptedConv2d)} == {"conv2"}
    full = zoo.adapt(build("zoo/resnet20@shapes"), {"t": 3}, "parallel").count_parameters("t").per_task - 1376
    half = (
        zoo.adapt(build("zoo/resnet20@shapes"), {"t": 3}, "parallel", placement="half").count_parameters("t").per_task
        - 1376
    )
    assert 0.5 < half / full < 0.6  # the first convolution of a stage has fewer input channels


def test_what_cannot_be_adapted_is_named() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 2), nn.Conv2d(4, 5, 1))
    with pytest.raises(OptionError, match=r"^1: .*centre of a kernel; one of 2×2 has none"):
        zoo.adapt(network, {"t": 3}, "parallel")
    assert zoo.adapt(network, {"t": 3}, "series").tasks == ("t",)
    with pytest.raises(OptionError, match="must be one of all, early"):
        zoo.adapt(SmallNet(), {"t": 3}, "parallel", placement="middle")
    with pytest.raises(OptionError, match="needs three stages"):
        zoo.adapt(SmallNet(), {"t": 3}, "parallel", placement="early")
    with pytest.raises(OptionError, match="0 <= dropout < 1"):
        zoo.adapt(SmallNet(), {"t": 3}, "parallel", dropout=1.0)


def test_series_in_double_precision_and_on_layers_of_their_own_kind() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    model = zoo.adapt(SmallNet().double(), {"t": 3}, "series").train()
    assert model(torch.randn(4, 3, 16, 16).double(), task="t").dtype == torch.float64
    network = nn.Sequential(nn.Conv2d(3, 4, 3), Standardised(4, 4, 3), nn.Conv2d(4, 5, 1))
    with pytest.raises(OptionError, match=r"^1: .*has its own forward"):
        zoo.adapt(network, {"t": 3}, "series")


def test_half_of_a_network_without_such_blocks_is_an_error() -> None:
    with pytest.raises(OptionError, match="No block has several"):
        zoo.adapt(torchvision.models.mobilenet_v2(), {"t": 3}, "series", placement="half")


def test_resnet26_takes_sides_that_are_not_multiples_of_eight() -> None:
    assert build("zoo/resnet26x0.5")(torch.randn(1, 3, 36, 60)).shape == (1, 1000)
