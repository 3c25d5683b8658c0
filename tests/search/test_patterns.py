"""Patterns of sharing: what a search takes, and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import zoo
from tests.training.test_joint_runs import RECIPE, command, entry
from zoo.catalog.registry import Registry
from zoo.datasets import get_benchmark
from zoo.joint import JointModel
from zoo.joint.trmtl import TRMTL
from zoo.search import patterns
from zoo.training import runs
from zoo.training.options import RunOptions


def test_greedy_takes_the_best_number_layer_by_layer() -> None:
    able = [[1, 2, 3, 4], [1, 2, 4], [1]]
    asked = []

    def good(pattern: patterns.Pattern) -> float:
        """Best at 2, 2, 1; the third layer alone would rather be alone where the second shares nothing."""
        asked.append(patterns.short(pattern))
        counts = [len(places) for places in pattern]
        return -abs(counts[0] - 2) - abs(counts[1] - 2) - abs(counts[2] - (counts[1] > 0))

    assert patterns.greedy(able, good) == [[1, 2], [1, 2], [1]]
    assert asked == ["000", "100", "200", "300", "400", "200", "210", "220", "220", "221"]
    assert patterns.greedy(able, lambda p: -good(p), higher_is_better=False) == [[1, 2], [1, 2], [1]]
    assert patterns.greedy([[1, 2], [1, 2]], lambda p: float(len(p[1]) - len(p[0])), bottom_heavy=True) == [[], []]
    assert patterns.greedy([[1, 2], [1, 2]], lambda p: 0.0) == [[1, 2], [1, 2]]  # all alike: share
    assert patterns.short([[1, 3], [], [1, 2]]) == "1.3-0-1.2"


def test_reactions_are_alike_for_the_same_network_and_differ_otherwise() -> None:
    one = entry("mlp-trmtl_410-digits", method={"name": "trmtl", "pattern": "000", "rank": 3})
    registry = Registry([one])
    model = zoo.load(one.name, weights=None, registry=registry)
    assert isinstance(model, JointModel)
    assert isinstance(model.sharing, TRMTL)
    splits = get_benchmark("digits").splits("odd", None)
    recipe = runs.recipe_of("digits/trmtl", RunOptions())
    able = model.sharing.shareable()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    apart = patterns.reactions(model, {"odd": splits, "even": splits}, recipe, able)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert set(apart) == {(layer, core) for layer in (1, 2, 3) for core in (1, 2, 3, 4)}
    assert max(apart.values()) > 0.5
    model.load_task_tensors("even", model.task_tensors("odd"))
    alike = patterns.reactions(model, {"odd": splits, "even": splits}, recipe, able)
    assert max(alike.values()) == 0


@pytest.mark.parametrize("strategy", ["greedy", "bottom-heavy", "similarity"])
def test_search_sharing_ends_with_an_entry_of_its_own(strategy: str, tmp_path: Path) -> None:
    file, out = tmp_path / "sizes.yaml", tmp_path / "out"
    file.write_text(RECIPE.format(epochs=1) + "tasks: {even: {input: {size: 16}}}\n")
    name = "mlp-trmtl_21-digits_sizes"
    arguments = ["search-sharing", name, "--strategy", strategy, "--recipe", file, "-o", out]
    done = command(*arguments)
    (made,) = Registry.read(out / "registry.yaml").names()
    assert f"Wrote {made}" in done.output
    found = Registry.read(out / "registry.yaml").entry(made)
    tried = sorted(path.name for path in (out / "tried").iterdir())
    assert patterns.short(found.method["pattern"]) in tried
    assert found.parameters
    if strategy == "greedy":
        assert {"000", "100", "200"} <= set(tried)  # cores 3 and 4 of the first layer differ in shape
    elif strategy == "bottom-heavy":
        assert all(list(each) == sorted(each, reverse=True) for each in tried)
    else:
        assert "difference" in done.output
    rows = json.loads(command(*arguments, "--json").stdout)  # nothing is trained twice
    assert sorted(row["pattern"] for row in rows) == tried
    again = command("--registry", out / "registry.yaml", "eval", made, "--json").stdout
    assert json.loads(again)[0]["accuracy %"] == pytest.approx((found.measured or {})["odd"], abs=0.01)


def test_search_sharing_refuses_what_shares_no_cores(tmp_path: Path) -> None:
    assert "not 'trmtl'" in command("search-sharing", "mlp-stl-digits", "-o", tmp_path, status=2).output
    assert "not 'trmtl'" in command("search-sharing", "resnet20-bn-shapes", "-o", tmp_path, status=2).output
