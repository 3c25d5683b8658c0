"""Joint entries from recipe to files: trained, resumed, begun with others, verified, exported, searched, predicted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from zoo.export import run, session

import zoo
from tests.datasets import joint_layouts
from zoo.catalog.entry import Entry
from zoo.catalog.registry import Registry, default_registry, register
from zoo.catalog.store import SHARED
from zoo.cli.base import main
from zoo.datasets import get_benchmark
from zoo.deployment import latencies
from zoo.errors import OptionError
from zoo.joint import JointModel
from zoo.storage import tensors
from zoo.training import runs
from zoo.training.options import RunOptions
from zoo.training.runs import train_entry

RECIPE = """
summary: a quick one
epochs: {epochs}
batch: 32
threads: 1
rest: {{name: adam, lr: 0.003}}
samples: 64
input: {{size: 8, resize: null, mean: [0.5], std: [0.5]}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    file = tmp_path / "quick.yaml"
    file.write_text(RECIPE.format(epochs=3))
    return str(file)


def command(*arguments: object, status: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result


def entry(name: str = "mlp-trmtl_410-digits", /, **changes: Any) -> Entry:
    """An entry of the zoo without what is published of it."""
    known = default_registry().entry(name)
    return replace(known, **{"weights": None, "shared": None, "measured": None, **changes})


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp-trmtl_410-digits", "mlp-mrn-digits", "mlp-stl-digits"])
def test_a_stopped_run_goes_on_to_the_same_weights(
    name: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, options = entry(name), RunOptions(recipe=recipe, quiet=True)
    train_entry(one, Registry(), one.tasks, tmp_path / "whole", options)
    saved = runs.loop.checkpoint.save

    def stop(*arguments: Any) -> None:
        saved(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(runs.loop.checkpoint, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        train_entry(one, Registry(), one.tasks, tmp_path / "parts", options)
    monkeypatch.setattr(runs.loop.checkpoint, "save", saved)
    with pytest.raises(OptionError, match="--resume goes on"):
        train_entry(one, Registry(), one.tasks, tmp_path / "parts", options)
    train_entry(one, Registry(), one.tasks, tmp_path / "parts", replace(options, resume=True))
    whole, parts = files_of(tmp_path / "whole"), files_of(tmp_path / "parts")
    assert set(whole) == {"odd.safetensors", "even.safetensors"} | ({SHARED} if "stl" not in name else set())
    assert parts == whole
    assert [path.name for path in (tmp_path / "parts").iterdir() if path.name.startswith(".")] == []


def test_headers_tell_each_task_s_figures_and_what_it_stands_on(recipe: str, tmp_path: Path) -> None:
    one = entry()
    files = train_entry(one, Registry(), one.tasks, tmp_path, RunOptions(recipe=recipe, quiet=True))
    shared, shared_header = tensors.read(tmp_path / SHARED)
    assert set(shared) == {"layers.1.1", "layers.1.2", "layers.1.3", "layers.1.4", "layers.2.1"}
    assert shared_header["entry"] == one.name
    for task, file in files.items():
        _, header = tensors.read(file)
        assert header["shared_sha256"] == tensors.fingerprint(shared)
        assert "backbone" not in header
        assert set(header["metrics"]) == {"train_loss", "train_accuracy", "accuracy"}
        assert header["method"] == one.method
        assert header["task"] == task
    assert len({json.dumps(tensors.read(file)[1]["metrics"]) for file in files.values()}) == 2


def test_tasks_that_share_are_trained_together_or_not_at_all(recipe: str, tmp_path: Path) -> None:
    done = command("train", "mlp-trmtl_410-digits", "--task", "odd", "--recipe", recipe, "--out", tmp_path, status=2)
    assert "odd, even, are trained together" in done.output
    one = entry()
    train_entry(one, Registry(), one.tasks, tmp_path, RunOptions(recipe=recipe, quiet=True))
    before = files_of(tmp_path)
    train_entry(one, Registry(), one.tasks, tmp_path, RunOptions(recipe=recipe, quiet=True))  # finished: nothing to do
    (tmp_path / "even.safetensors").unlink()
    train_entry(one, Registry(), one.tasks, tmp_path, RunOptions(recipe=recipe, quiet=True))  # all again
    assert files_of(tmp_path) == before
    with pytest.raises(OptionError, match="is of another run"):
        train_entry(one, Registry(), one.tasks, tmp_path, RunOptions(recipe=recipe, quiet=True, seed=5))


def test_samples_of_a_task_may_be_fewer(tmp_path: Path) -> None:
    file = tmp_path / "unbalanced.yaml"
    file.write_text(RECIPE.format(epochs=1) + "tasks: {even: {samples: 20}}\n")
    settings = RunOptions(recipe=str(file))
    loaded = runs.recipe_of("x", settings)
    counts = {
        task: len(runs.given(runs.splits_of(entry(), task, settings), task, loaded, settings).train)  # type: ignore[arg-type]
        for task in ("odd", "even")
    }
    assert counts == {"odd": 64, "even": 20}
    file.write_text(RECIPE.format(epochs=1).replace("64", "1"))
    with pytest.raises(Exception, match="samples >= 2, not 1"):
        runs.recipe_of("x", settings)


def test_held_out_images_validate_each_task_after_each_epoch(recipe: str, tmp_path: Path) -> None:
    one = entry()
    options = RunOptions(recipe=recipe, quiet=True, hold_out=0.25)
    files = train_entry(one, Registry(), one.tasks, tmp_path, options)
    for file in files.values():
        metrics = tensors.read(file)[1]["metrics"]
        assert metrics["train_validation"] == metrics["accuracy"]  # of the last epoch, on the same images


@pytest.mark.parametrize("name", ["mlp-dmtrl_tt-digits", "mlp-dmtrl_tucker-digits"])
def test_dmtrl_begins_with_the_trained_single_tasks(name: str, recipe: str, tmp_path: Path) -> None:
    single = entry("mlp-stl-digits", name="single")
    one = entry(name, source="single", method={**default_registry().entry(name).method, "rank": 256})
    registry, options = Registry([single, one]), RunOptions(recipe=recipe, quiet=True)
    with pytest.raises(zoo.ZooError, match="No weights of single"):
        train_entry(one, registry, one.tasks, tmp_path / "one", options)
    train_entry(single, registry, single.tasks, Path(zoo.storage.resources.store_dir()) / "single", options)  # type: ignore[attr-defined]
    train_entry(one, registry, one.tasks, tmp_path / "one", options)
    begun = zoo.load(one.name, weights=tmp_path / "one" / "compressed", registry=registry)
    trained = zoo.load(one.name, weights=tmp_path / "one", registry=registry)
    plain = zoo.load("single", registry=registry)
    images = torch.randn(4, 1, 8, 8)
    for task in one.tasks:  # at full rank the beginning is the single task's network
        torch.testing.assert_close(begun(images, task=task), plain(images, task=task), rtol=1e-3, atol=1e-3)
        assert not torch.allclose(trained(images, task=task), plain(images, task=task), atol=1e-3)


# -- used like any other entry ----------------------------------------------------------------------------------------


def test_the_commands_know_joint_entries(recipe: str, tmp_path: Path) -> None:
    out, name = tmp_path / "out", "mlp-trmtl_21-digits_sizes"
    file = tmp_path / "sizes.yaml"
    file.write_text(Path(recipe).read_text() + "tasks: {even: {input: {size: 16}}}\n")
    command("train", name, "--recipe", file, "--out", out, "--quiet")
    rows = json.loads(command("eval", name, "--weights", out, "--json").stdout)
    assert [row["task"] for row in rows] == ["odd", "even", "mean"]
    stated = tensors.read(out / "odd.safetensors")[1]["metrics"]["accuracy"]
    assert rows[0]["accuracy %"] == pytest.approx(stated, abs=0.01)
    command("export", name, "--all-tasks", "--weights", out, "-o", tmp_path / "onnx")
    model = zoo.load(name, weights=out)
    for task, side in (("odd", 8), ("even", 16)):
        images = torch.randn(3, 1, side, side)
        found = run(session(tmp_path / "onnx" / f"{task}.onnx"), images.numpy())
        torch.testing.assert_close(torch.from_numpy(found), model(images, task=task), rtol=1e-4, atol=1e-4)
    picture = tmp_path / "digit.png"
    Image.new("L", (20, 20), 90).save(picture)
    answer = command("predict", name, picture, "--task", "even", "--weights", out, "--top", 5, "--json").stdout
    assert set(json.loads(answer)[0]["classes"]) == set("02468")
    assert "networks: odd digits_mlp, even digits16_mlp" in command("info", name).stdout


def test_published_files_are_verified(recipe: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    one = replace(entry(), name="mine", recipe=recipe, folder=tmp_path)
    registry = Registry([one])
    files = train_entry(one, registry, one.tasks, out, RunOptions(quiet=True))
    from zoo.training.publishing import publish

    registry.update(publish(one, files, "file:out/"))
    file = tmp_path / "registry.yaml"
    registry.write(file)
    done = command("--registry", file, "verify", "mine", "--retrain").stdout
    assert done.count("bit for bit the same") == 2
    assert "shared" in done
    shared = out / SHARED
    kept, header = tensors.read(shared)
    tensors.write(shared, {name: tensor + 1 for name, tensor in kept.items()}, header)
    assert "was altered" in command("--registry", file, "verify", "mine", status=1).output


def test_clips_are_predicted_and_exported_recurrence_and_all(tmp_path: Path) -> None:
    out, name = tmp_path / "out", "lstm-trmtl_4-clips"
    command("train", name, "--max-steps", 2, "--out", out, "--quiet", "--seed", 1)
    command("export", name, "--all-tasks", "--weights", out, "-o", tmp_path / "onnx", "--preprocess")
    model = zoo.load(name, weights=out)
    clip, _ = get_benchmark("clips").splits("six", None).test[4]
    for batch in (1, 3):  # of any size
        frames = clip.movedim(-3, -1)[None].repeat(batch, 1, 1, 1, 1)  # (B, T, H, W, C), as decoded
        found = run(session(tmp_path / "onnx" / "six.onnx"), frames.numpy())
        with torch.no_grad():
            expected = model(model.transforms("six")(clip)[None].repeat(batch, 1, 1, 1, 1), task="six")
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
    moving = joint_layouts.video(tmp_path / "clip.avi", 8)
    rows = json.loads(command("predict", name, moving, "--all-tasks", "--weights", out, "--json").stdout)
    assert [row["task"] for row in rows] == ["five", "six"]
    still = tmp_path / "none.avi"
    assert "There is no clip" in command("predict", name, still, "--task", "five", "--weights", out, status=1).output


def test_timings_compare_with_the_network_itself() -> None:
    rows = latencies(default_registry().entry("mlp-trmtl_410-digits"), default_registry(), batch=2, rounds=2)
    assert [row["network"] for row in rows] == [
        "torch plain", "torch fused", "torch unfused", "onnx plain", "onnx fused",
    ]  # fmt: skip


def test_loading_has_one_interface() -> None:
    model = zoo.load("mlp-trmtl_410-digits", weights=None)
    assert isinstance(model, JointModel)
    assert model.tasks == ("odd", "even")
    plain = zoo.load("mlp-trmtl_410-digits", task="odd", fuse=True, weights=None)
    assert {type(part) for part in plain.modules()} == {
        torch.nn.Sequential,
        torch.nn.Flatten,
        torch.nn.Linear,
        torch.nn.ReLU,
    }
    ways = {"networks": {"a": "digits_mlp"}, "method": {"name": "stl"}, "benchmark": "digits", "recipe": "digits/stl"}
    with pytest.raises(zoo.ZooError, match="networks must name those of all tasks: a, b"):
        register("mine", classes={"a": 2, "b": 2}, **ways)
    with pytest.raises(zoo.ZooError, match="needs a backbone, or networks"):
        register("mine", classes={"a": 2}, **{**ways, "networks": {}})
    with pytest.raises(zoo.ZooError, match="rank must be a whole number"):
        register("mine", classes={"a": 2}, **{**ways, "method": {"name": "trmtl", "rank": [2, 0]}})


# -- the search for a pattern -----------------------------------------------------------------------------------------
