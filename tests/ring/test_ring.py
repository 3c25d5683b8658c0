"""Weights in tensor-ring format: against explicit sums over indices, torch's own layers, and the derivations."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from zoo.errors import OptionError
from zoo.models.composed import LAYERS
from zoo.ring import TRLSTM, Ring, RingLayer, TRConv2d, TRLinear, balanced, balanced_pair
from zoo.ring.cores import core_shapes
from zoo.ring.layers import chosen_modes, xavier_variance
from zoo.ring.routes import build_cost, cheaper_route, contraction_cost
from zoo.ring.svd import convert, ring_svd, to_ring

# -- modes ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 400), st.integers(1, 4))
@settings(deadline=None)
def test_modes_are_as_balanced_as_can_be(size: int, count: int) -> None:
    """Of the least sum among all products, by trying all."""
    modes = balanced(size, count)
    divisors = [d for d in range(1, size + 1) if size % d == 0]
    sums = [sum(c) for c in itertools.combinations_with_replacement(divisors, count) if math.prod(c) == size]
    assert (math.prod(modes), len(modes), sum(modes)) == (size, count, min(sums))
    assert list(modes) == sorted(modes, reverse=True)


def test_modes_of_the_papers_sizes() -> None:
    assert balanced(1024, 4) == (8, 8, 4, 4)
    assert balanced(113, 3) == (113, 1, 1)
    assert balanced_pair(784, 1296, 4) == ((7, 7, 4, 4), (6, 6, 6, 6))
    ins, outs = balanced_pair(512, 128, 3)
    assert [m * n for m, n in zip(ins, outs, strict=True)] == [32, 32, 64]  # and not 64, 32, 32
    with pytest.raises(OptionError, match="at least 1, not 0 and 2"):
        balanced(0, 2)


# -- the format -----------------------------------------------------------------------------------------------------

CASES = [
    ((3, 2, 2), (2, 2, 3), (2, 3, 4)),
    ((2, 3), (3, 2), (2, 3)),
    ((2, 2, 2, 2), (1, 3, 2, 1), 2),
    ((4,), (3,), 2),
]


def explicit(ring: Ring) -> Tensor:
    """Eq. 1, element by element: the trace of a product of slices."""
    ins, outs = ([shape[axis] for shape in ring.shapes] for axis in (1, 2))
    found = torch.empty(math.prod(ins), math.prod(outs))
    for row, i in enumerate(itertools.product(*map(range, ins))):
        for column, j in enumerate(itertools.product(*map(range, outs))):
            product = torch.eye(ring.shapes[0][0])
            for core, m, n in zip(ring.cores, i, j, strict=True):
                product = product @ core[:, m, n]
            found[row, column] = product.trace()
    return found


@pytest.mark.parametrize(("ins", "outs", "ranks"), CASES)
def test_contracting_equals_the_explicit_sum(ins: Any, outs: Any, ranks: Any) -> None:
    ring = Ring(core_shapes(ins, outs, ranks))
    ring.reset(1.0)
    expected, x = explicit(ring), torch.randn(5, math.prod(ins))
    torch.testing.assert_close(ring.dense(), expected, rtol=1e-5, atol=1e-5)
    for backwards in (False, True):
        torch.testing.assert_close(ring.contract(x, backwards), x @ expected, rtol=1e-5, atol=1e-5)


def test_a_kernel_is_the_papers_equation_3() -> None:
    layer = TRConv2d([2, 3], [4, 1], (3, 2), (2, 3, 4))
    spatial, first, second = layer.ring.cores
    kernel = torch.einsum("ahwb,biok,kjpa->opijhw", spatial, first, second).reshape(4, 6, 3, 2)
    torch.testing.assert_close(layer.weight(), kernel, rtol=1e-5, atol=1e-6)


def test_ranks_that_do_not_meet_are_named() -> None:
    with pytest.raises(OptionError, match="Core 1 ends with rank 3, and the next begins with 2"):
        Ring([(2, 2, 2, 3), (2, 2, 2, 2)])
    with pytest.raises(OptionError, match="as many input modes as output modes"):
        TRLinear([2, 2], [2, 2, 2], 2)
    with pytest.raises(OptionError, match="come to 4 → 4, where the layer has 5 inputs and 4 outputs"):
        RingLayer.like.__func__(TRLinear, nn.Linear(5, 4), ([2, 2], [2, 2]), 2)  # type: ignore[attr-defined]


# -- layers: two routes, one output -----------------------------------------------------------------------------------


def layers() -> dict[str, tuple[RingLayer, Tensor]]:
    torch.manual_seed(1)
    image = torch.randn(3, 8, 9, 11)
    return {
        "linear": (TRLinear([3, 2, 2], [2, 2, 3], [2, 3, 4]), torch.randn(5, 12)),
        "linear of sequences, no bias": (TRLinear([4, 3], [2, 3], 3, bias=False), torch.randn(2, 7, 12)),
        "one core": (TRLinear([6], [4], 3), torch.randn(5, 6)),
        "convolution": (TRConv2d([2, 4], [4, 2], 3, 3, padding=1), image),
        "strides": (TRConv2d([4, 2], [2, 3], (3, 5), (2, 3, 4), stride=(2, 3), padding=(1, 2), bias=False), image),
        "dilation": (TRConv2d([8], [6], 3, 2, dilation=2, padding="same"), image),
        "valid": (TRConv2d([8], [6], 2, 2, padding="valid"), image),
        "reflected": (TRConv2d([8], [6], 3, 2, padding=1, padding_mode="reflect"), image),
        "lstm": (TRLSTM([3, 4], [2, 5], [2, 3]), torch.randn(2, 7, 12)),
        "backwards": (TRLinear([2, 3, 5], [6, 3, 1], [2, 3, 4]), torch.randn(5, 30)),
        "lstm, no bias": (TRLSTM([3, 4], [2, 5], 2, bias=False), torch.randn(2, 7, 12)),
    }


@pytest.mark.parametrize("case", layers())
def test_both_routes_give_one_output_and_one_gradient(case: str) -> None:
    layer, x = layers()[case]
    found = {}
    for route in ("built", "contracted"):
        layer.zero_grad()
        layer.route = route
        inputs = x.clone().requires_grad_()
        outputs = layer(inputs)
        leaves = [outputs] if isinstance(outputs, Tensor) else [outputs[0], *outputs[1]]
        sum((leaf * torch.arange(leaf.numel()).view_as(leaf).cos()).sum() for leaf in leaves).backward()
        found[route] = [*leaves, inputs.grad, *(p.grad for p in layer.parameters())]
    for built, contracted in zip(found["built"], found["contracted"], strict=True):
        torch.testing.assert_close(built, contracted, rtol=1e-5, atol=1e-5)


def test_a_ring_is_gone_round_where_it_shrinks_first() -> None:
    assert layers()["backwards"][0].backwards
    assert not layers()["linear"][0].backwards


@pytest.mark.parametrize("case", layers())
def test_a_plain_layer_is_torchs_own_and_does_the_same(case: str) -> None:
    layer, x = layers()[case]
    layer.route = "contracted"
    plain = layer.plain()
    assert type(plain) in LAYERS
    own, theirs = layer(x), plain(x)
    if isinstance(own, tuple):
        own, theirs = own[0], theirs[0]
    torch.testing.assert_close(theirs, own, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    torch.testing.assert_close(layer(x)[0] if isinstance(layer, TRLSTM) else layer(x), own)  # nothing is held in common


def test_copies_and_other_types_keep_an_lstm_whole() -> None:
    layer = TRLSTM([3, 4], [2, 5], 2)
    x = torch.randn(2, 7, 12)
    copied = copy.deepcopy(layer).double()
    torch.testing.assert_close(copied(x.double())[0], layer(x)[0].double(), rtol=1e-5, atol=1e-5)
    copied.frame.bias_hh_l0.data += 1
    assert not torch.allclose(copied(x.double())[0].float(), layer(x)[0])


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), "in 2 groups"),
        (nn.LSTM(4, 4, num_layers=2), "of one layer"),
        (nn.LSTM(4, 4, bidirectional=True), "in one direction"),
        (nn.GRU(4, 4), "A GRU cannot share"),
    ],
)
def test_layers_that_cannot_be_rings_are_named(layer: nn.Module, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        RingLayer(layer, Ring(core_shapes([4], [4], 2)))
    with pytest.raises(OptionError, match="route must be one of"):
        TRLinear([2], [2], 1, route="fast")


# -- where it starts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 4, 6])
@pytest.mark.parametrize("rank", [1, 3, 10])
def test_the_weight_starts_with_xaviers_variance_at_any_depth_and_rank(count: int, rank: int) -> None:
    """2 / (fan in + fan out), on average over many rings: small ones vary, for an element is a product of many."""
    modes = balanced(64, count), balanced(144, count)
    rings = [TRLinear(*modes, rank).weight().detach().square().mean() for _ in range(400 if rank == 1 else 60)]
    assert float(torch.stack(rings).mean()) == pytest.approx(2 / (64 + 144), rel=0.35)


def test_own_cores_make_up_for_borrowed_ones() -> None:
    layer, modes = nn.Linear(256, 81, bias=False), ((4, 4, 4, 4), (3, 3, 3, 3))
    for size in (0.01, 1.0, 30.0):
        lent = nn.Parameter(size * torch.randn(5, 12, 5))
        made = [TRLinear.like(layer, modes, 5, {1: lent}).weight().detach().square().mean() for _ in range(30)]
        assert float(torch.stack(made).mean()) == pytest.approx(xavier_variance(layer), rel=0.3)
    all_lent = {k: nn.Parameter(torch.randn(5, 12, 5)) for k in range(4)}
    assert not list(TRLinear.like(layer, modes, 5, all_lent).parameters())
    with pytest.raises(OptionError, match=r"Core 2 is \(5, 11, 5\) where \(5, 12, 5\) is needed"):
        TRLinear.like(layer, modes, 5, {1: nn.Parameter(torch.randn(5, 11, 5))})


def test_fans_are_those_of_a_gate_and_of_a_kernel() -> None:
    assert xavier_variance(nn.LSTM(30, 10)) == 2 / 40
    assert xavier_variance(nn.Conv2d(8, 16, 3)) == 2 / (9 * 24)


# -- dense layers brought in ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [nn.Linear(24, 36), nn.Conv2d(6, 8, 3, stride=2), nn.LSTM(12, 8, batch_first=True)])
def test_tr_svd_is_exact_at_full_rank_and_tells_its_error(layer: nn.Module) -> None:
    ring, error = to_ring(layer, 40, cores=3)
    assert error < 1e-5
    name = "weight_ih_l0" if isinstance(layer, nn.LSTM) else "weight"
    weight = layer.get_parameter(name).detach()
    torch.testing.assert_close(ring.weight(), weight, rtol=1e-4, atol=1e-5)
    errors = []
    for rank in (1, 2, 4, 8, 16):
        ring, error = to_ring(layer, rank, cores=3)
        assert error == pytest.approx(float((ring.weight().detach() - weight).norm() / weight.norm()), rel=1e-4)
        errors.append(error)
    assert errors == sorted(errors, reverse=True)


def test_tr_svd_of_a_rank_one_tensor_finds_it() -> None:
    a, b, c = torch.randn(6), torch.randn(4), torch.randn(10)
    tensor = torch.einsum("i,j,k->ijk", a, b, c).view(3, 2, 2, 2, 5, 2)  # m, n of each core in turn
    matrix = tensor.permute(0, 2, 4, 1, 3, 5).reshape(30, 8)
    cores = ring_svd(matrix, core_shapes((3, 2, 5), (2, 2, 2), 1))
    found = torch.einsum("amnb,bijc,cpqa->mipnjq", *cores).reshape(30, 8)
    torch.testing.assert_close(found, matrix, rtol=1e-4, atol=1e-5)


def test_a_network_is_converted_by_the_papers_rule_and_stays_as_it_was() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5)
    )
    before = copy.deepcopy(network.state_dict())
    made, errors = convert(network, 200, cores=3)
    assert set(errors) == {"2", "4"}  # neither the stem nor the head
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(made(x), network(x), rtol=1e-4, atol=1e-4)
    made.get_submodule("4").ring.own["0"].data.zero_()  # type: ignore[union-attr, operator]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    small, _ = convert(network, 2, modes={"4": ((4, 4), (4, 8))})
    assert sum(isinstance(part, RingLayer) for part in small.modules()) == 1
    with pytest.raises(OptionError, match="'5' is no Linear"):
        convert(network, 2, modes={"5": ((4, 4), (4, 8))})
    with pytest.raises(OptionError, match="a spatial core and another at least"):
        chosen_modes(nn.Conv2d(4, 4, 3), 1)


# -- the cost model ---------------------------------------------------------------------------------------------------


def test_the_model_builds_for_large_batches_and_contracts_for_low_ranks() -> None:
    wide = core_shapes((8, 8, 8, 7, 7), (4, 4, 4, 5, 5), 2)
    assert cheaper_route(wide, 8) == "contracted"
    assert cheaper_route(core_shapes((7, 7, 4, 4), (6, 6, 6, 6), 15), 4096) == "built"
    costs = [contraction_cost(wide, rows) for rows in (1, 10, 100)]
    assert costs == sorted(costs)
    assert [build_cost(core_shapes((4,) * 4, (4,) * 4, rank)) for rank in (2, 5, 10)] == sorted(
        build_cost(core_shapes((4,) * 4, (4,) * 4, rank)) for rank in (2, 5, 10)
    )


@pytest.mark.parametrize("case", layers())
def test_auto_takes_the_route_that_the_model_names(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = layers()[case]
    taken = []
    monkeypatch.setattr(
        type(layer), "contracted", lambda self, x: taken.append("contracted") or self.run(x, self.weight())
    )
    for answer in ("built", "contracted"):
        monkeypatch.setattr("zoo.ring.layers.cheaper_route", lambda *_, answer=answer: answer)
        layer(x)
    assert taken == ([] if case == "reflected" else ["contracted"])  # a padding that is not zeros is built
