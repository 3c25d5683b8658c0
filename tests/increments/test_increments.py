"""FTN's increments against plain torch computations: the outer-product sum of Eq. 2, and torch's own convolution."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.errors import OptionError, UnknownNameError
from zoo.increments import get_method, methods
from zoo.increments.cp import CP, ROUTES, cheapest_route
from zoo.increments.pointwise import suits
from zoo.models.layers import AdaptedConv2d, AdaptedLinear
from zoo.models.selection import Selection


def outer_product_sum(cp: CP, c_out: int, c_in: int, k: tuple[int, int]) -> Tensor:
    """Eq. 2 as written: a sum of R outer products of three vectors."""
    delta = torch.zeros(c_out, c_in, k[0] * k[1])
    for r in range(cp.rank):
        delta += torch.einsum("o,c,k->ock", cp.out_factor[:, r], cp.in_factor[r], cp.spatial_factor[r])
    return delta.view(c_out, c_in, *k)


def adapted(layer: nn.Conv2d | nn.Linear, rank: int = 3, route: str = "auto") -> tuple[Any, CP]:
    selection = Selection()
    site = (AdaptedConv2d if isinstance(layer, nn.Conv2d) else AdaptedLinear).adopt(layer, selection)
    cp = CP(layer, rank, route)
    site.add("t", cp)
    return site, cp


def test_a_start_at_zero_leaves_the_layer_as_it_is_and_learns() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 5, groups=8)
    assert CP(layer, 2).delta(layer.weight).abs().max() > 0.1  # which is far from zero
    cp = CP(layer, 2, start="zero")
    assert torch.equal(cp.delta(layer.weight), torch.zeros_like(layer.weight))
    cp.delta(layer.weight).sum().backward()
    assert cp.out_factor.grad is not None
    assert (cp.out_factor.grad != 0).all()
    with pytest.raises(OptionError, match="start of FTN must be one of xavier, zero, not 'ones'"):
        CP(layer, 2, start="ones")


def run(site: Any, x: Tensor, route: str) -> Tensor:
    site.tasks["t"].route = route
    with site.selection.use("t"):
        out: Tensor = site(x)
    return out


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Conv2d:
    """Every form of Conv2d: strides, dilations, paddings, groups, depthwise, rectangular kernels, bias."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    c_in, c_out = groups * draw(st.integers(1, 4)), groups * draw(st.integers(1, 4))
    if draw(st.booleans()) and groups > 1:
        c_in = groups  # depthwise
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    padding: Any = draw(st.one_of(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.sampled_from(["same", "valid"])))
    stride = (1, 1) if padding == "same" else draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    return nn.Conv2d(
        c_in, c_out, kernel, stride, padding, draw(st.tuples(st.integers(1, 2), st.integers(1, 2))), groups,
        draw(st.booleans()), draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"])),
    )  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(conv=convolutions(), rank=st.integers(1, 5), seed=st.integers(0, 99))
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_every_conv_form_equals_torchs_convolution_with_the_sum(conv: nn.Conv2d, rank: int, seed: int) -> None:
    torch.manual_seed(seed)
    site, cp = adapted(conv.requires_grad_(False), rank)
    x = torch.randn(2, conv.in_channels, 12, 11)
    reference = nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,  # type: ignore[arg-type]
        conv.groups, conv.bias is not None, conv.padding_mode,  # type: ignore[arg-type]
    )  # fmt: skip
    delta = outer_product_sum(cp, conv.out_channels, conv.in_channels // conv.groups, conv.kernel_size)  # type: ignore[arg-type]
    reference.load_state_dict({**conv.state_dict(), "weight": conv.weight + delta.detach()})
    with torch.no_grad():
        expected = reference(x)
        fused = site.plain("t")(x)
        for out in (*(run(site, x, route) for route in ROUTES), fused):
            torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert type(site.plain("t")) is nn.Conv2d


@settings(max_examples=60, deadline=None)
@given(conv=convolutions(), rank=st.integers(1, 4), seed=st.integers(0, 99))
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_all_routes_give_the_same_gradients(conv: nn.Conv2d, rank: int, seed: int) -> None:
    torch.manual_seed(seed)
    conv = conv.double().requires_grad_(False)
    site, cp = adapted(conv, rank)
    cp.double()
    grads = []
    for route in ROUTES:
        x = torch.randn(2, conv.in_channels, 9, 10, dtype=torch.double, generator=torch.Generator().manual_seed(1))
        x.requires_grad_()
        run(site, x, route).sin().sum().backward()
        grads.append([x.grad, *(p.grad.clone() for p in cp.parameters())])  # type: ignore[union-attr]
        cp.zero_grad()
    for found in grads[1:]:
        torch.testing.assert_close(found, grads[0])
    assert conv.weight.grad is None


@pytest.mark.parametrize("shape", [(7,), (2, 7), (2, 3, 7)])
def test_linear_equals_torchs_linear_with_the_sum(shape: tuple[int, ...]) -> None:
    site, cp = adapted(nn.Linear(7, 5).requires_grad_(False))
    x = torch.randn(shape)
    delta = torch.einsum("or,rc->oc", cp.out_factor, cp.in_factor * cp.spatial_factor)
    with torch.no_grad():
        expected = F.linear(x, site.weight + delta, site.bias)
        for out in (*(run(site, x, route) for route in ROUTES), site.plain("t")(x)):
            torch.testing.assert_close(out, expected)


THIN = [
    nn.Conv2d(12, 20, 1), nn.Conv2d(12, 20, 1, stride=2, bias=False), nn.Conv2d(12, 20, 1, stride=(1, 3)),
    nn.Linear(12, 20), nn.Linear(12, 20, bias=False),
]  # fmt: skip


@pytest.mark.parametrize("layer", THIN, ids=str)
@pytest.mark.parametrize(
    "way", ["plain", "channels_last", "bf16", "checkpointed", "compiled", "compiled bf16", "frozen input", "in place"]
)
def test_thin_products_give_the_folded_gradients(layer: Any, way: str) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    site, cp = adapted(layer.requires_grad_(False), rank=4)
    found = []
    for route in ("folded", "thin"):
        shape = (3, 12, 8, 9) if isinstance(layer, nn.Conv2d) else (3, 5, 12)
        x = torch.linspace(-1, 1, math.prod(shape)).view(shape)
        if way == "channels_last" and x.ndim == 4:
            x = x.to(memory_format=torch.channels_last)
        x.requires_grad_(way != "frozen input")
        called = torch.compile(site, backend="aot_eager") if "compiled" in way else site
        cp.route = route
        with site.selection.use("t"), torch.autocast("cpu", torch.bfloat16, enabled="bf16" in way):
            out = checkpoint(called, x, use_reentrant=False) if way == "checkpointed" else called(x)
            out = out.relu_() if way == "in place" else out
            site.selection.follow(out, "t")
        out.float().square().mean().backward()
        found.append([out.detach(), x.grad, *(p.grad.clone() for p in cp.parameters())])  # type: ignore[union-attr]
        cp.zero_grad()
    assert found[0][0].dtype == found[1][0].dtype
    tolerance = {"rtol": 3e-2, "atol": 3e-2} if "bf16" in way else {"rtol": 1e-5, "atol": 1e-5}
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, **tolerance) if a is not None else None  # type: ignore[arg-type]
    assert (found[1][1] is None) == (way == "frozen input")


@pytest.mark.parametrize("layer", [*THIN, nn.Conv2d(12, 20, 3)], ids=str)
def test_the_choice_of_a_route_compiles_into_one_graph_for_any_number_of_images(layer: Any) -> None:
    site, _ = adapted(layer.requires_grad_(False), rank=4)
    torch._dynamo.reset()
    compiled = torch.compile(site, backend="aot_eager", fullgraph=True)
    for images in (2, 3, 5):  # from the second on, their number is a symbol
        x = torch.randn(images, 12, 8, 9) if isinstance(layer, nn.Conv2d) else torch.randn(images, 5, 12)
        with site.selection.use("t"):
            site.selection.follow(compiled(x), "t")
            torch.testing.assert_close(compiled(x), site(x))


def test_the_thin_route_is_for_batches_and_layers_of_one_tap() -> None:
    x = torch.zeros(2, 4, 5, 5)
    for layer in (nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 1, padding=1), nn.Conv1d(4, 4, 1)):
        assert not suits(layer, x)
    assert all(suits(layer, x) for layer in THIN)
    assert not suits(THIN[0], x[0])
    assert not suits(THIN[3], x.to("meta"))


def test_parameters_are_counted_by_the_papers_formula() -> None:
    for conv in (nn.Conv2d(8, 12, 3), nn.Conv2d(8, 12, (1, 5), groups=4), nn.Conv2d(6, 6, 3, groups=6)):
        _, cp = adapted(conv, rank=4)
        kh, kw = conv.kernel_size
        expected = 4 * (conv.out_channels + conv.in_channels // conv.groups + kh * kw)
        assert sum(p.numel() for p in cp.parameters()) == expected


def test_factors_start_xavier_uniform() -> None:
    cp = CP(nn.Conv2d(400, 600, 3), rank=50)
    for factor in cp.parameters():
        bound = (6 / sum(factor.shape)) ** 0.5
        assert factor.abs().max() <= bound
        assert factor.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


@pytest.mark.parametrize("rank", [0, -1, 2.5, "8", True, None])
def test_a_rank_that_is_no_positive_whole_number_is_refused(rank: Any) -> None:
    with pytest.raises(OptionError, match="whole number of at least 1"):
        CP(nn.Conv2d(3, 4, 3), rank)


def test_an_unknown_route_and_an_unknown_method_are_refused() -> None:
    with pytest.raises(OptionError, match="folded"):
        CP(nn.Conv2d(3, 4, 3), 1, route="fast")
    with pytest.raises(UnknownNameError, match="finetune"):
        get_method("fine-tune")


def test_methods_are_found_in_their_files() -> None:
    assert {"ftn", "bn", "features", "finetune", "scratch"} <= methods().keys()


def test_cost_model_folds_thin_layers_and_factors_wide_ones() -> None:
    assert cheapest_route(64, 64, 1, 50, 1, 16 * 40 * 40, training=True) == "folded"
    assert cheapest_route(512, 512, 9, 40, 1, 16 * 5 * 5, training=True) == "factored"
    assert cheapest_route(320, 1152, 1, 8, 1, 32 * 9, training=True, suited=True) == "thin"
    assert cheapest_route(320, 1152, 1, 8, 1, 32 * 9, training=False, suited=True) == "folded"
    assert cheapest_route(96, 16, 1, 8, 1, 32 * 48 * 48, training=True, suited=True) == "folded"
    assert cheapest_route(64, 1, 9, 8, 64, 16 * 40 * 40, training=True) == "folded"  # depthwise


def test_a_layer_with_a_forward_of_its_own_is_folded_by_that_forward() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = (self.weight - self.weight.mean()) / self.weight.std()
            return F.conv2d(x, weight, self.bias)

    conv = Standardised(3, 4, 3).requires_grad_(False)
    site, cp = adapted(conv, route="factored")
    x = torch.randn(1, 3, 8, 8)
    weight = conv.weight + cp.delta(conv.weight)
    with torch.no_grad():
        expected = F.conv2d(x, (weight - weight.mean()) / weight.std(), conv.bias)
        torch.testing.assert_close(run(site, x, "factored"), expected)
        torch.testing.assert_close(site.plain("t")(x), expected)
    assert type(site.plain("t")) is Standardised
