"""Layers left out: which, at what cost, and the entry that is written of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import zoo
from zoo.catalog.registry import Registry, default_registry
from zoo.catalog.task import Metric
from zoo.cli.base import main
from zoo.compression.layers import norms
from zoo.errors import OptionError
from zoo.loader import counted_parameters, load
from zoo.search.pruning import Step, pruned, smallest, thresholds

NAME = "resnet20-ftn-r2-shapes"


def test_thresholds_are_equally_spaced_from_the_smallest_to_the_largest() -> None:
    assert thresholds([3.0, 1.0, 2.0], 5) == [1.0, 1.5, 2.0, 2.5, 3.0]


def test_layers_fall_in_the_order_of_their_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    entry, model = default_registry().entry(NAME), zoo.load(NAME, task="sketch")
    sizes = norms(model, "sketch")
    found = list(pruned(entry, default_registry(), "sketch", 4))
    assert found[0].dropped == () and found[0].figure == pytest.approx(entry.measured["sketch"], abs=0.01)  # type: ignore[index]
    for step in found:
        assert set(step.dropped) == {path for path, size in sizes.items() if size < step.threshold}
        assert step.layers == 18 - len(step.dropped) and step.chosen_by is None
    assert found[-1].layers == 1  # the largest norm is at no threshold below itself
    factors = sum(p.numel() for p in model.increment_parameters("sketch"))  # type: ignore[attr-defined]
    kept = max(sizes, key=sizes.__getitem__)
    last = sum(p.numel() for name, p in model.task_parameters("sketch") if name.startswith(f"{kept}."))
    assert found[0].parameters - found[-1].parameters == factors - last


def test_the_smallest_that_loses_no_more_is_chosen() -> None:
    entry = default_registry().entry(NAME)
    steps = [Step("sketch", t, (), 9 - t, 100 - t, 0.0, figure) for t, figure in enumerate([90, 91, 89.6, 88, 90])]
    assert [smallest(entry, steps, within).threshold for within in (0, 0.5, 1.9, 2)] == [1, 2, 2, 4]
    assert Metric("RMSE", "m", higher_is_better=False).worse(0.52, 0.5) == pytest.approx(4)


def test_the_command_writes_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["prune", NAME, "--task", "sketch", "--task", "clipart", "--steps", "4", "--keep-within", "3", "-o", "out"]
    done = CliRunner().invoke(main, [*words, "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert len(rows) == 8 and Path("out/pruned.png").exists() and Path("out/pruned.svg").exists()
    registry = default_registry().merged(Registry.read(Path("out/registry.yaml")))
    entry = registry.entry(f"{NAME}-pruned")
    assert entry.tasks == ("sketch", "clipart") and counted_parameters(entry, registry) == entry.parameters
    for task in entry.tasks:
        chosen = [
            row
            for row in rows
            if row["task"] == task
            and row["on training images"] >= rows[0 if task == "sketch" else 4]["on training images"] - 3
        ]
        assert entry.parameters is not None and entry.measured is not None
        assert (entry.parameters.of(task).per_task, entry.measured[task]) in [
            (r["parameters"], r["accuracy"]) for r in chosen
        ]
    model, whole = load(entry.name, registry=registry), zoo.load(NAME)
    dropped = [path for path, size in norms(model, "sketch").items() if size == 0]
    own = model.task_tensors("sketch")
    assert not any(name.startswith(f"{path}.") for name in own for path in dropped)
    assert all(torch.equal(tensor, whole.task_tensors("sketch")[name]) for name, tensor in own.items())
    checked = CliRunner().invoke(main, ["verify", entry.name, "--registry", "out"])
    assert checked.exit_code == 0, checked.output


def test_what_cannot_be_pruned_is_told(tmp_path: Path) -> None:
    for name, words in (("resnet20-bn-shapes", "adds nothing"), ("resnet20-parallel-shapes", "has no rank"),
                        ("vit_micro-kadaptation-r4-shapes", "share factors")):  # fmt: skip
        done = CliRunner().invoke(main, ["prune", name, "--task", "sketch", "-o", str(tmp_path / "no")])
        assert done.exit_code == 2 and words in done.stderr, done.output
    done = CliRunner().invoke(main, ["prune", "resnet20-ftn-r8-rooms", "-o", str(tmp_path / "no")])
    assert done.exit_code == 2 and "name those of one metric" in done.stderr
    with pytest.raises(OptionError, match="two steps"):
        list(pruned(default_registry().entry(NAME), default_registry(), "sketch", 1))
