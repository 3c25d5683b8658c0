"""The rank of each layer: against every smaller rank, every other split, and what was planted."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.compression.test_fine_tuned import increment_of, tuned_net
from tests.increments.test_decomposed import LAYERS
from zoo.compression import ranks
from zoo.compression.fine_tuned import factorise
from zoo.compression.forms import FORMS, fill, largest
from zoo.compression.ranks import Choice, Curve, split
from zoo.errors import OptionError
from zoo.increments.forms import weight_of


def delta_of(layer: nn.Module, seed: int = 0) -> Tensor:
    return torch.randn(weight_of(layer).shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=20, deadline=None)
@given(layer=st.sampled_from(LAYERS), form=st.sampled_from(sorted(FORMS)))
def test_at_the_largest_rank_nothing_is_lost(layer: nn.Module, form: str) -> None:
    delta = delta_of(layer)
    most = largest(form, delta.shape)
    assert fill(increment_of(layer, form, most), delta)[1] < 1e-5
    if form != "cp" and most > 1:  # whose bound is no exact one
        assert fill(increment_of(layer, form, most - 1), delta)[1] > 1e-4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_share_is_kept_by_no_smaller_rank(form: str, share: float) -> None:
    layer = nn.Conv2d(5, 6, 3)
    delta = delta_of(layer)
    found = Curve(form, lambda rank: increment_of(layer, form, rank), delta).smallest(share)
    lost = [fill(increment_of(layer, form, rank), delta)[1] ** 2 for rank in range(1, found + 1)]
    assert lost[-1] <= 1 - share + 1e-6
    assert all(each > 1 - share for each in lost[:-1])


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.lists(st.floats(0.01, 9), min_size=1, max_size=4), min_size=2, max_size=3),
    price=st.integers(1, 5),
    data=st.data(),
)
def test_no_other_split_of_equal_components_loses_less(
    values: list[list[float]], price: int, data: st.DataObject
) -> None:
    layers = {}
    for number, each in enumerate(values):
        ordered = sorted(each, reverse=True)
        layers[str(number)] = [Choice(r, price * r, sum(ordered[r:])) for r in range(len(ordered) + 1)]
    budget = data.draw(st.integers(price, price * 13))
    found = split(layers, budget)
    lost = sum(layers[path][rank].lost for path, rank in found.items())
    assert sum(layers[path][rank].parameters for path, rank in found.items()) <= budget
    others = itertools.product(*layers.values())
    best = min(sum(c.lost for c in each) for each in others if sum(c.parameters for c in each) <= budget)
    assert lost <= best + 1e-9


@pytest.mark.parametrize("form", ["cp", "svd", "tt"])
def test_what_was_planted_comes_back(form: str) -> None:
    base, tuned = tuned_net()
    planted = {"body.0": 3, "body.3": 1, "hidden": 1}
    with torch.no_grad():
        for path, rank in planted.items():
            layer = base.get_submodule(path)
            own = increment_of(layer, form, rank)
            for parameter in own.parameters():
                parameter.normal_()
            tuned.get_submodule(path).weight.copy_(layer.weight + own.delta(layer.weight))  # type: ignore[operator]
    found = {layer.path: layer.rank for layer in factorise(tuned, base, form, 0.9999).layers}
    assert found == planted
    size = sum(layer.parameters for layer in factorise(tuned, base, form, 0.9999).layers)
    made = factorise(tuned, base, form, budget=size)
    assert {layer.path: layer.rank for layer in made.layers} == planted and made.error < 1e-3
    less = factorise(tuned, base, form, budget=size - 1)
    assert sum(layer.parameters for layer in less.layers) < size and less.error > made.error


def test_a_budget_that_is_too_small_or_no_number_is_told() -> None:
    base, tuned = tuned_net()
    with pytest.raises(
        OptionError, match=r"3 parameters are too few: the first component of the cheapest layer has 28\."
    ):  # Linear(12, 16)
        factorise(tuned, base, "svd", budget=3)
    for rank in (0.0, 1.5, -1, True, 1.0):
        with pytest.raises(OptionError, match="rank"):
            factorise(tuned, base, "svd", rank)
    with pytest.raises(OptionError, match="budget"):
        factorise(tuned, base, "svd", budget=0)


@pytest.mark.parametrize("form", FORMS)
def test_the_rest_is_kept_exactly(form: str) -> None:
    base, tuned = tuned_net()
    made = factorise(tuned, base, form, 2, keep_rest=True)
    assert not made.left
    fused = made.model.fuse("task")
    for name in ("stem.weight", "stem.bias", "body.3.bias", "hidden.bias"):
        torch.testing.assert_close(fused.get_parameter(name), tuned.get_parameter(name), rtol=0, atol=1e-6)
    with pytest.raises(OptionError, match="layers"):
        factorise(tuned, base, form, 2, keep_rest=True, layers=["*"])


@settings(max_examples=10, deadline=None)
@given(form=st.sampled_from(sorted(FORMS)), budget=st.integers(1, 3000))
def test_a_budget_holds_whatever_is_kept_in_any_case(form: str, budget: int) -> None:
    """The stem, and a component of each layer whose bias changed, with that bias; more is told with its number."""
    base, tuned = tuned_net()
    try:
        made = factorise(tuned, base, form, budget=budget, keep_rest=True)
    except OptionError as error:
        told = int(str(error).rsplit(" ", 4)[-1].rstrip(".").replace(",", "")) if "in any case has" in str(error) else 0
        assert told > budget or "the first component of the cheapest layer has" in str(error)
        return
    own = made.model.task_tensors("task")
    factors = [tensor for name, tensor in own.items() if name.endswith(("factor", "core", "first", "middle", "last"))]
    biases = [tensor for name, tensor in own.items() if name.endswith("shift")]
    assert len(biases) == 3 and not made.left
    counted = sum(layer.parameters for layer in made.layers)
    assert counted <= budget and counted >= sum(t.numel() for t in [*factors, *biases])
    fused = made.model.fuse("task")
    for name in ("stem.weight", "stem.bias", "body.3.bias", "hidden.bias"):
        torch.testing.assert_close(fused.get_parameter(name), tuned.get_parameter(name), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [{"budget": 2000}, {"rank": 4}, {"rank": 0.9}], ids=str)
@pytest.mark.parametrize("changed", ["classifier.weight", "hidden.bias", "stem.bias", "stem.weight", "body.0.weight"])
def test_what_did_not_change_needs_nothing(changed: str, size: dict[str, Any]) -> None:
    base, _ = tuned_net()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.get_parameter(changed).add_(0.5)
    made = factorise(tuned, base, "svd", keep_rest=True, **size)
    path = changed.rsplit(".", 1)[0]
    if "rank" not in size or size["rank"] != 4:  # of which every layer has four
        assert {layer.path for layer in made.layers if layer.rank} == {path} - {"classifier"}
    x = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(made.model.fused("task")(x), tuned.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["cp", "tucker"])
def test_no_more_ranks_are_tried_of_a_layer_that_keeps_one(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, fits = nn.Conv2d(8, 8, 3), []
    monkeypatch.setattr(ranks, "fill", lambda increment, delta: fits.append(increment.rank) or (1.0, 0.5))
    tried = []
    for least in (0, 1):
        Curve(form, lambda rank: increment_of(layer, form, rank), delta_of(layer)).choices(10**6, least)
        tried.append(list(fits))
        fits.clear()
    assert len(tried[1]) <= len(tried[0]) + 1 < 20


def test_a_budget_that_just_fits_is_enough() -> None:
    """Where two components save more than twice what one does, and only one can be had beside what is kept."""
    choices = [Choice(0, 0, 10.0), Choice(1, 8, 9.0), Choice(2, 16, 0.0)]
    layers = {"kept": [Choice(3, 480, 0.0)], "free": choices}
    assert split(layers, 488) == {"kept": 3, "free": 1}
    assert split(layers, 496) == {"kept": 3, "free": 2}
    with pytest.raises(OptionError, match="first component of the cheapest layer has 8, beside 480"):
        split(layers, 487)
    with pytest.raises(OptionError, match="kept in any case has 480"):
        split(layers, 479)
