"""Ranks of a budget: what was planted comes back, the measures against autograd, and the command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

import zoo
from tests.conftest import SmallNet, disturb
from tests.models.test_mixing import Forms
from zoo.catalog.options import as_patterns
from zoo.catalog.recipe import load_recipe
from zoo.catalog.registry import default_registry
from zoo.cli.base import main
from zoo.compression.ranks import split
from zoo.datasets import Splits
from zoo.loader import fresh_model
from zoo.models.adapted import TaskModel
from zoo.search.budget import BATCH, MEASURES, _choices, _cut, component_costs
from zoo.storage.tensors import read
from zoo.training.options import RunOptions

RECIPE = load_recipe("shapes/ftn")
SMALL = zoo.Preprocessing(12, None)


def planted(ranks: dict[str, int], most: int = 8) -> TaskModel:
    """A model at a rank of 8 whose ΔW have other ranks, each of components of the size 1."""
    torch.manual_seed(0)
    model = zoo.adapt(SmallNet(), {"a": 4}, rank=most, preprocessing=SMALL)
    for path, site in model.adapted():
        increment: Any = site.tasks["a"]
        with torch.no_grad():
            rows = torch.linalg.qr(torch.randn(*increment.out_factor.shape)).Q
            increment.out_factor.copy_(rows * (torch.arange(most) < ranks[path]))
            columns = (
                torch.linalg.qr(torch.randn(increment.in_factor.shape[1], most)).Q
                if increment.in_factor.shape[1] >= most
                else torch.randn(increment.in_factor.shape[1], most)
            )
            increment.in_factor.copy_(columns.T[:most] / columns.T[:most].norm(dim=1, keepdim=True))
            increment.spatial_factor.copy_(
                torch.eye(most, increment.spatial_factor.shape[1])
                if increment.spatial_factor.shape[1] >= most
                else torch.ones(most, increment.spatial_factor.shape[1])
            )
    return model


def images(number: int = 2 * BATCH) -> Splits:
    draws = torch.Generator().manual_seed(0)
    each = [(torch.randint(0, 255, (3, 12, 12), dtype=torch.uint8, generator=draws), n % 4) for n in range(number)]
    return Splits(("0", "1", "2", "3"), each, each)  # type: ignore[arg-type]


@pytest.mark.parametrize("by", MEASURES)
def test_what_was_planted_comes_back(by: str) -> None:
    ranks = {"body.0": 8, "body.3": 1, "hidden": 1}
    model = planted(ranks)
    costs = component_costs(model, "a", images(), by, RECIPE)
    choices = {path: _choices(model, path, each) for path, each in costs.items()}
    size = sum(choices[path][rank].parameters for path, rank in ranks.items())
    assert split(choices, size) == ranks
    for path, rank in ranks.items():
        assert choices[path][rank].lost <= 1e-6 * choices[path][0].lost


def test_measures_are_what_autograd_says() -> None:
    model, data = planted({"body.0": 5, "body.3": 2, "hidden": 3}), images(2 * BATCH)
    with torch.no_grad():  # singular values that differ, and so vectors that are no others'
        for _, site in model.adapted():
            increment: Any = site.tasks["a"]
            increment.out_factor.mul_(torch.arange(1, 9))
    inputs = torch.stack([SMALL.transform()(image) for image, _ in data.test])  # type: ignore[attr-defined]
    labels = torch.tensor([label for _, label in data.test])  # type: ignore[attr-defined]
    order = torch.randperm(2 * BATCH, generator=torch.Generator().manual_seed(RECIPE.seed))
    inputs, labels = inputs[order], labels[order]
    found = {by: component_costs(model, "a", data, by, RECIPE)["hidden"] for by in MEASURES}
    plain = model.fused("a")
    layer: Any = plain.get_submodule("hidden")
    frozen = model.backbone_tensors()["hidden.weight"]
    left, values, right = torch.linalg.svd((layer.weight.detach() - frozen).double(), full_matrices=False)
    squares, products = [], []
    for start in (0, BATCH):
        parts = [part.detach().clone().float().requires_grad_() for part in (left, values, right)]
        weight = frozen + (parts[0] * parts[1]) @ parts[2]
        weight.retain_grad()
        state = dict(plain.named_parameters()) | {"hidden.weight": weight}
        logits = torch.func.functional_call(plain, state, inputs[start : start + BATCH])
        F.cross_entropy(logits, labels[start : start + BATCH]).backward()  # type: ignore[no-untyped-call]
        squares.append(float(weight.grad.square().mean()))  # type: ignore[union-attr]
        u, s, v = ((part * part.grad).detach() for part in parts)  # type: ignore[operator]
        products.append(s.abs() + u.abs().mean(0) + v.abs().mean(1))
    expected = {
        "energy": values.square(), "sensitivity": values.square() * sum(squares) / 2,
        "adalora": torch.stack(products).mean(0).sort(descending=True).values,
    }  # fmt: skip
    for by, wanted in expected.items():
        torch.testing.assert_close(found[by].float(), wanted.float(), rtol=1e-3, atol=1e-5 * float(wanted.max()))


def test_the_command_keeps_to_its_budget_and_its_ranks_reload(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["train", "resnet20-ftn-r4-shapes", "--task", "sketch", "--task", "clipart", "--rank", "auto", "--quiet"]
    words += ["--budget", "3k", "--max-steps", "4", "--out", str(out)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert " of 3,000 parameters" in done.stdout
    model = zoo.load("resnet20-ftn-r4-shapes", weights=out, task="sketch")
    sizes = []
    for task in ("sketch", "clipart"):
        header = read(out / f"{task}.safetensors")[1]
        assert isinstance(header["method"]["rank"], dict) and header["recipe"]["begun_with"]
        sizes.append(sum(t.numel() for n, t in read(out / f"{task}.safetensors")[0].items() if n.endswith("_factor")))
    assert 2800 < sum(sizes) <= 3000
    assert model.task_options("sketch")["rank"] == read(out / "sketch.safetensors")[1]["method"]["rank"]  # type: ignore[attr-defined]
    again = CliRunner().invoke(main, words)  # finished: nothing is trained, and the same is told
    assert again.exit_code == 0 and again.stdout == done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [(["--budget", "3k"], "belong to --rank auto"), (["--rank", "auto", "--budget", "3k", "--margin", "1"], "--margin"),
     (["--rank", "auto", "--by", "energy"], "perhaps with --by")],
)  # fmt: skip
def test_what_does_not_go_together_is_told(words: list[str], told: str) -> None:
    done = CliRunner().invoke(main, ["train", "resnet20-ftn-r4-shapes", *words])
    assert done.exit_code == 2 and told in done.stderr, done.output
    done = CliRunner().invoke(main, ["train", "resnet20-parallel-shapes", "--rank", "auto", "--budget", "3k"])
    assert done.exit_code == 2 and "Ranks are chosen for the methods" in done.stderr


def test_what_cannot_be_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    for words, told in ((["20"], "20 parameters are too few"), (["3k", "--distil"], "from the labels")):
        command = [
            "train",
            "resnet20-ftn-r4-shapes",
            "--rank",
            "auto",
            "--out",
            str(tmp_path / "no"),
            "--budget",
            *words,
        ]
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 2 and told in done.stderr and not (tmp_path / "no").exists(), done.output


def test_a_bias_of_the_tasks_own_stays(tmp_path: Path) -> None:
    """A layer with one keeps a component, which it is part of; and what is cut has it to the bit."""
    method = {"name": "ftn", "rank": 4, "bias": True}
    most = replace(default_registry().entry("vit_micro-ftn_o-r4-shapes"), method=method)
    model = fresh_model(most, default_registry())
    assert isinstance(model, TaskModel)
    model.add_task(zoo.Task.of("sketch", 12))
    disturb(model, "sketch")
    model.save_adapter("sketch", tmp_path / "sketch.safetensors")
    ranks = {path: 1 + number % 3 for number, (path, _) in enumerate(model.adapted())}
    costs = torch.ones(4)
    for path, site in model.adapted():
        assert _choices(model, path, costs)[0].rank == int(site.frozen_bias is not None)
    made = replace(most, task_methods={"sketch": {"rank": as_patterns(ranks)}})
    options = RunOptions()
    _cut(
        made, most, default_registry(), "sketch", tmp_path / "sketch.safetensors", tmp_path / "cut.safetensors", options
    )
    before, after = (read(tmp_path / f"{name}.safetensors")[0] for name in ("sketch", "cut"))
    names = [name for name in before if name.endswith(".shift")]
    assert names and all(torch.equal(before[name], after[name]) for name in names)


@pytest.mark.parametrize("by", MEASURES)
@pytest.mark.parametrize("method", ["ftn", "svd", "tt"])
def test_every_form_of_layer_has_its_components(by: str, method: str) -> None:
    model = zoo.adapt(Forms(), {"a": 4}, method, rank=2, preprocessing=SMALL)
    disturb(model, "a")
    for path, costs in component_costs(model, "a", images(8), by, RECIPE).items():
        assert float(costs.sum()) > 0 and bool((costs[:-1] >= costs[1:]).all()), path
