"""What tasks add to each layer: against the fused network's weights, whatever the method; and its pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

import zoo
from tests.conftest import SmallNet, disturb
from tests.models.test_mixing import OPTIONS
from zoo.cli.base import main
from zoo.compression.layers import deltas, factor_norms, norms, scaled, similarity
from zoo.errors import OptionError
from zoo.increments.base import Increment

METHODS = ["ftn", "tt", "svd", "tucker", "finetune", "parallel", "series"]


def model_of(method: str) -> zoo.models.TaskModel:
    torch.manual_seed(0)
    model = zoo.adapt(SmallNet(), {"a": 3, "b": 4, "c": 2}, method, **OPTIONS.get(method, {}))
    for task in model.tasks:
        disturb(model, task)
    return model


@pytest.mark.parametrize("method", METHODS)
def test_norms_are_those_of_what_the_fused_network_has_more(method: str) -> None:
    model = model_of(method)
    fused, frozen = model.fuse("a"), model.backbone_tensors()
    expected = {
        path: float((fused.get_parameter(f"{path}.weight").detach() - frozen[f"{path}.weight"]).norm())
        for path, _ in model.adapted()
    }
    assert norms(model, "a") == pytest.approx(expected, rel=1e-4)
    own = {p: s.tasks["a"] for p, s in model.adapted()}
    assert factor_norms(model, "a") == pytest.approx(
        {p: math.sqrt(sum(float(f.detach().square().sum()) for f in each.parameters())) for p, each in own.items()},
        rel=1e-5,
    )
    brought = scaled(expected)
    assert min(brought.values()) == 0 and max(brought.values()) == 1
    assert sorted(brought, key=brought.__getitem__) == sorted(expected, key=expected.__getitem__)


def test_a_layer_that_is_left_as_it_is_adds_nothing() -> None:
    model = zoo.adapt(SmallNet(), {}, rank=2)
    model.add_task(zoo.Task.of("a", 3), {"rank": {"hidden": 2}})
    disturb(model, "a")
    found = norms(model, "a")
    assert found["body.0"] == found["body.3"] == 0 < found["hidden"]
    assert scaled({"x": 2.0, "y": 2.0}) == {"x": 0, "y": 0}


def test_cosines_and_angles() -> None:
    model = model_of("ftn")
    vectors = {task: torch.cat([d.flatten() for _, d in deltas(model, task)]) for task in model.tasks}
    cosines = similarity(model)
    assert float(cosines["all"][0, 1]) == pytest.approx(
        float(nn.functional.cosine_similarity(vectors["a"], vectors["b"], dim=0))
    )
    for matrix in cosines.values():
        torch.testing.assert_close(matrix.diagonal(), torch.ones(3, dtype=torch.float64))
        torch.testing.assert_close(matrix, matrix.T)
    sites = dict(model.adapted())
    hidden = sites["hidden"].tasks
    with torch.no_grad():  # a and b write to the same two output channels, c to two others
        for task, rows in (("a", (0, 1)), ("b", (0, 1)), ("c", (2, 3))):
            increment = hidden[task]
            assert isinstance(increment, Increment)
            increment.get_parameter("out_factor").zero_()
            for column, row in enumerate(rows):
                increment.get_parameter("out_factor")[row, column] = 1 + column
    angles = similarity(model, "angle")
    assert float(angles["hidden"][0, 1]) == pytest.approx(0, abs=1e-2)
    assert float(angles["hidden"][0, 2]) == pytest.approx(90, abs=1e-2)
    torch.testing.assert_close(angles["body.0"].diagonal(), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-3)
    with torch.no_grad():
        for factor in hidden["c"].parameters():
            factor.zero_()
    assert math.isnan(float(similarity(model)["hidden"][0, 2])) and math.isnan(
        float(similarity(model, "angle")["hidden"][2, 2])
    )


def test_what_cannot_be_looked_at_is_told() -> None:
    for call in (lambda m: norms(m, "a"), similarity):
        with pytest.raises(OptionError, match="adds nothing to any weight"):
            call(zoo.adapt(SmallNet(), {"a": 3, "b": 2}, "bn"))
    with pytest.raises(OptionError, match="Two tasks"):
        similarity(zoo.adapt(SmallNet(), {"a": 3}, rank=1))


def run(*words: str) -> Any:
    done = CliRunner().invoke(main, ["plot", *words])
    assert done.exit_code == 0, done.output
    return done


def test_pictures_and_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = json.loads(run("norms", "resnet20-ftn-r4-shapes", "--json", "--absolute").stdout)
    model = zoo.load("resnet20-ftn-r4-shapes")
    assert [row.pop("column") for row in one] == list(model.tasks)
    assert one[1] == pytest.approx(norms(model, "sketch"))
    ranks = json.loads(run("norms", "resnet20-ftn-r[24]-shapes", "--json", "-o", "ranks").stdout)
    assert [row["column"] for row in ranks] == ["R = 2", "R = 4"] and max(ranks[0].values(), key=str) is not None
    run("similarity", "resnet20-ftn-r4-shapes", "--of", "angle")
    for name in ("norms", "ranks", "similarity"):
        with Image.open(f"{name}.png") as picture:
            assert min(picture.size) > 300 and len(picture.convert("RGB").resize((64, 64)).getcolors(4096) or ()) > 50
        assert Path(f"{name}.svg").stat().st_size > 10_000
    for words in (
        ["norms", "resnet20-bn-shapes"],
        ["norms", "nothing*"],
        ["norms", "resnet20-ftn-r[24]-shapes", "--task", "x"],
    ):
        assert CliRunner().invoke(main, ["plot", *words]).exit_code == 2
    assert CliRunner().invoke(main, ["plot", "norms", "*-ftn-r4-shapes", "--task", "dragons"]).exit_code == 2
