"""A rank for each layer, and a task's own: what is built, saved, served, exported and counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from zoo.export import run, session, to_adapters, to_mixed, to_onnx, to_shared

import zoo
from tests.conftest import SmallNet, disturb
from zoo.catalog.options import as_patterns, rank_at
from zoo.catalog.registry import default_registry
from zoo.errors import ExportError, OptionError, WeightsError
from zoo.loader import counted_parameters
from zoo.models.adapted import TaskModel

RANKS = {"*": 2, "body.*": 1, "body.0": 0}
METHODS = ["ftn", "tt", "svd", "tucker"]
SMALL = zoo.Preprocessing(12, None)


def model_of(method: str, **more: Any) -> TaskModel:
    """Task "a" leaves body.0 as it is, "b" adapts every layer, "c" none."""
    torch.manual_seed(0)
    model = zoo.adapt(SmallNet(), {}, method, rank=2, **more)
    for name, rank in {"a": RANKS, "b": 3, "c": {"*": 0}}.items():
        model.add_task(zoo.Task.of(name, 4, SMALL), {"rank": rank})
        disturb(model, name)
    return model


def by_hand(model: TaskModel, task: str, images: Tensor) -> Tensor:
    """What a plain copy of the network gives, with ΔW added by the paths of the layers."""
    plain = SmallNet(4).eval()
    state = {**plain.state_dict(), **model.backbone_tensors()}
    own = model.task_tensors(task)
    state |= {name: tensor for name, tensor in own.items() if name in state}
    for path, site in model.adapted():
        if task in site.tasks:
            state[f"{path}.weight"] = site.frozen_weight + site.tasks[task].delta(site.frozen_weight)  # type: ignore[operator]
    plain.load_state_dict(state)
    with torch.no_grad():
        return plain(images)


def test_the_pattern_that_spells_out_most_counts() -> None:
    assert [rank_at(RANKS, path) for path in ("hidden", "body.3", "body.0")] == [2, 1, 0]
    assert rank_at({"layer1.*": 4}, "layer2.0") == 0
    assert rank_at({"b?": 4, "b[cd]": 5, "bc": 16}, "bc") == rank_at({"conv[12]": 4, "conv1": 16}, "conv1") == 16
    ranks = {"a": 2, "b": 2, "c": 0, "d": 5}
    assert as_patterns(ranks) == {"*": 2, "c": 0, "d": 5}
    assert all(rank_at(as_patterns(ranks), path) == rank for path, rank in ranks.items())


@pytest.mark.parametrize("method", METHODS)
def test_every_way_to_serve_agrees(method: str, tmp_path: Path) -> None:
    model, images = model_of(method), torch.randn(6, 3, 12, 12)
    names = [path for path, site in model.sites("a") if site in dict(model.adapted()).values()]
    assert names == ["body.3", "hidden"] and not any("body.0." in name for name in model.task_tensors("a"))
    expected = {task: by_hand(model, task, images) for task in "abc"}
    with torch.no_grad():
        found = [
            {task: model(images, task=task) for task in "abc"}, {task: model.fuse(task)(images) for task in "abc"},
            model(images), model(images),  # the second time in one pass
        ]  # fmt: skip
        mixed = model(images, task=list("abcabc"))
    for outputs in found:
        for task in "abc":
            torch.testing.assert_close(outputs[task], expected[task], rtol=1e-4, atol=1e-4)
    for row, task in enumerate("abcabc"):
        torch.testing.assert_close(mixed[row, :4], expected[task][row], rtol=1e-4, atol=1e-4)
    network = model.fuse("b")
    for task in "ac":
        zoo.swap(network, model, task)
        with torch.no_grad():
            torch.testing.assert_close(network(images), expected[task], rtol=1e-4, atol=1e-4)


def test_graphs_leave_such_layers_as_they_are(tmp_path: Path) -> None:
    model, images = model_of("ftn"), torch.randn(2, 3, 12, 12)
    path = tmp_path / "a.onnx"
    to_onnx(model.fuse("a"), path, task=model.task("a"))
    found = run(session(path), images.numpy())
    torch.testing.assert_close(torch.from_numpy(found), by_hand(model, "a", images), rtol=1e-4, atol=1e-4)
    for task in model.tasks:  # these compare graph and model themselves
        to_shared(model, task, tmp_path / f"shared/{task}.onnx")
    to_mixed(model, tmp_path / "mixed.onnx")
    with pytest.raises(ExportError, match="own the same tensors"):
        to_adapters(model, tmp_path / "adapters")
    model.add_task(zoo.Task.of("d", 3, SMALL), {"rank": RANKS})
    to_adapters(model, tmp_path / "adapters", tasks=["a", "d"])


def test_a_file_states_its_ranks_and_is_refused_by_others(tmp_path: Path) -> None:
    model, file = model_of("ftn"), tmp_path / "a.safetensors"
    model.save_adapter("a", file)
    model.remove_task("a")
    before = set(model.tasks)
    model.load_adapter(file)
    assert set(model.tasks) - before == {"a"} and model.task_options("a")["rank"] == RANKS
    uniform = zoo.adapt(SmallNet(), {"a": 4}, rank=2)
    with pytest.raises(WeightsError):
        uniform.begin_task("a", file)


def test_an_entry_counts_each_task() -> None:
    known = default_registry().entry("resnet20-ftn-r4-shapes")
    own = replace(
        known, method={"name": "ftn", "rank": {"layer3.*": 4, "*": 1}}, task_methods={"real": {"rank": {"layer1.*": 2}}}
    )
    counted = counted_parameters(own, default_registry())
    layers = {1: [(16, 16)] * 6, 2: [(16, 32)] + [(32, 32)] * 5, 3: [(32, 64)] + [(64, 64)] * 5}
    size = {stage: sum(a + b + 9 for a, b in pairs) for stage, pairs in layers.items()}
    norms = 1376
    assert counted.of("sketch").per_task == norms + size[1] + size[2] + 4 * size[3]
    assert counted.of("real").per_task == norms + 2 * size[1]
    assert own.rank is None and known.rank == 4


@pytest.mark.parametrize(
    ("ranks", "words"),
    [({"layer9.*": 2}, "'layer9.*' is no adapted layer's"), ({"*": -1}, "0 for none"), ({"*": True}, "0 for none"),
     ({"*": 1.5}, "0 for none"), ({1: 2}, "must be a whole number"), ({}, "names no layer")],
)  # fmt: skip
def test_what_is_no_rank_is_told(ranks: dict[Any, Any], words: str) -> None:
    model = zoo.adapt(SmallNet(), {}, rank=2)
    with pytest.raises(OptionError, match=words.replace("*", r"\*")):
        model.add_task(zoo.Task.of("a", 4), {"rank": ranks})
    assert not model.tasks
