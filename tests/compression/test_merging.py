"""Tasks made of tasks: the sums against loops over their entries, the statistics against torch's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import zoo
from tests.conftest import SmallNet, disturb
from zoo.catalog.registry import Registry, default_registry
from zoo.cli.base import main
from zoo.compression.layers import deltas
from zoo.compression.merging import dare, merged, re_estimate, ties
from zoo.errors import OptionError
from zoo.loader import counted_parameters, load
from zoo.models.adapted import TaskModel

SMALL = zoo.Preprocessing(12, None)


def model_of(method: str = "ftn", **options: int) -> TaskModel:
    torch.manual_seed(0)
    model = zoo.adapt(SmallNet(), {"a": 3, "b": 4}, method, preprocessing=SMALL, **options)
    for task in model.tasks:
        disturb(model, task)
    return model


@pytest.mark.parametrize(
    ("method", "form"), [("ftn", "svd"), ("tt", "svd"), ("svd", "svd"), ("finetune", "svd"), ("finetune", "cp")]
)
def test_a_sum_of_a_large_enough_rank_is_the_sum(method: str, form: str) -> None:
    options = {} if method == "finetune" else {"rank": 2}
    model = model_of(method, **options)
    made = merged(model, {"a": 0.5, "b": -0.25}, "both", rank=80, form=form)
    parts = [dict(deltas(model, task)) for task in "ab"]
    for path, delta in deltas(made, "both"):
        whole = 0.5 * parts[0][path] - 0.25 * parts[1][path]
        torch.testing.assert_close(delta, whole, rtol=0, atol=1e-4 * float(whole.abs().max()))
    images = torch.randn(2, 3, 12, 12)
    assert made.task("both").classes == ("a: 0", "a: 1", "a: 2", "b: 0", "b: 1", "b: 2", "b: 3")
    own = made.task_tensors("both")
    for part, rows in (("a", slice(0, 3)), ("b", slice(3, 7))):
        torch.testing.assert_close(own["classifier.weight"][rows], model.task_tensors(part)["classifier.weight"])
    expected = (model.task_tensors("a")["bn.weight"] + model.task_tensors("b")["bn.weight"]) / 2
    torch.testing.assert_close(own["bn.weight"], expected)
    with torch.no_grad():
        torch.testing.assert_close(made.fuse("both")(images), made(images, task="both"), rtol=1e-4, atol=1e-4)
    assert made.backbone_sha256() == model.backbone_sha256()
    one = merged(model, {"a": 1, "b": 1}, "both", rank=2, head="b")
    assert one.task("both").classes == model.task("b").classes


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.floats(0.1, 1), st.lists(st.sampled_from([-1.0, 0.5, 1.0, 2.0]), min_size=2, max_size=3))
def test_ties_is_what_its_paper_says_of_each_entry(seed: int, density: float, weights: list[float]) -> None:
    draws = torch.Generator().manual_seed(seed)
    each = [torch.randn(3, 4, generator=draws, dtype=torch.float64) for _ in weights]
    found = ties(each, weights, density, draws)
    number = max(1, round(density * 12))
    kept = []
    for weight, delta in zip(weights, each, strict=True):
        least = sorted(abs(float(v)) for v in delta.flatten())[-number]
        kept.append([weight * float(v) if abs(float(v)) >= least else 0.0 for v in delta.flatten()])
    for place, value in enumerate(found.flatten()):
        column = [task[place] for task in kept]
        sign = 1 if sum(column) > 0 else -1 if sum(column) < 0 else 0
        same = [v for v in column if v and (v > 0) == (sign > 0) and sign]
        assert float(value) == pytest.approx(sum(same) / len(same) if same else 0)


def test_dare_drops_at_random_and_keeps_the_mean() -> None:
    delta = torch.ones(200, 200, dtype=torch.float64)
    found = dare([delta], [2.0], 0.25, torch.Generator().manual_seed(0))
    assert set(found.flatten().tolist()) == {0.0, 8.0}
    assert float(found.mean()) == pytest.approx(2, rel=0.05)
    again = dare([delta], [2.0], 0.25, torch.Generator().manual_seed(0))
    assert torch.equal(found, again)


def test_statistics_are_those_of_the_batches() -> None:
    made = merged(model_of(rank=2), {"a": 1, "b": 1}, "both", rank=4)
    batches = [torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(s)) for s in range(3)]
    plain = made.fuse("both")
    weights = {
        name: t.clone()
        for name, t in made.task_tensors("both").items()
        if "running" not in name and "tracked" not in name
    }
    re_estimate(made, "both", batches)
    for norm in plain.modules():  # the same by hand
        if isinstance(norm, nn.BatchNorm2d):
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
    with torch.no_grad():
        for batch in batches:
            plain(batch)
    own = made.task_tensors("both")
    for name, tensor in plain.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(own[name], tensor, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(own[name], tensor) for name, tensor in weights.items())
    assert not any(module.training for module in made.modules())


def test_what_cannot_be_merged_is_told() -> None:
    model = model_of(rank=2)
    for weights, options, words in (
        ({"a": 1}, {}, "two tasks"), ({"a": 1, "b": 1}, {"how": "mean"}, "sum, ties, dare"),
        ({"a": 1, "b": 1}, {"head": "c"}, "side-by-side"), ({"a": 1, "b": 1}, {"density": 0}, "density"),
        ({"a": 1, "b": 1}, {"form": "zzz"}, "cp, tt, svd, tucker"),
    ):  # fmt: skip
        with pytest.raises(OptionError, match=words):
            merged(model, weights, "both", **options)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="name the one to merge to"):
        merged(model_of("finetune"), {"a": 1, "b": 1}, "both")
    model.add_task(zoo.Task.of("large", 3, zoo.Preprocessing(16, None)))
    with pytest.raises(OptionError, match=r"large .* prepares its images otherwise"):
        merged(model, {"a": 1, "large": 1}, "both")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["merge", "resnet20-ftn-r4-shapes", "--tasks", "sketch", "clipart:0.5", "--as", "both", "-o", "out"]
    done = CliRunner().invoke(main, [*words, "--head", "sketch", "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    entry = default_registry().entry("resnet20-ftn-r4-shapes")
    assert {row["task"]: row["by itself"] for row in rows} == {t: entry.measured[t] for t in ("sketch", "clipart")}  # type: ignore[index]
    assert all(row["statistics anew"] > row["merged"] for row in rows)  # of weights that are more than the mean's
    registry = default_registry().merged(Registry.read(Path("out/registry.yaml")))
    made = registry.entry("resnet20-ftn-r4-shapes-both")
    assert counted_parameters(made, registry) == made.parameters
    model = load(made.name, registry=registry)
    assert model.task("both").classes == zoo.load("resnet20-ftn-r4-shapes", task="sketch").task("sketch").classes
    for parts, told in (
        (["sketch"], "two tasks"),
        (["sketch", "dragons"], "dragons"),
        (["sketch:x", "real"], "no TASK"),
    ):
        bad = CliRunner().invoke(main, ["merge", "resnet20-ftn-r4-shapes", *parts, "--as", "x", "-o", "no"])
        assert bad.exit_code == 2 and told in bad.stderr and not Path("no").exists()
