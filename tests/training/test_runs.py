"""Whole runs: several processes, publishing, and verification by training again."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from tests.conftest import equal
from zoo.catalog.recipe import recipe_file
from zoo.catalog.registry import Registry, default_registry
from zoo.catalog.store import SHARED
from zoo.cli.base import main
from zoo.storage import resources
from zoo.storage.tensors import read

MINE = """
  mine:
    backbone: zoo/resnet20@shapes
    method: {{name: bn}}
    benchmark: shapes
    classes: {{sketch: 12}}
    recipe: {recipe}
"""


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    """A recipe of two short epochs on 96 images."""
    text = recipe_file("shapes/bn").read_text()
    path = tmp_path / "quick.yaml"
    path.write_text(text.replace("epochs: 40", "epochs: 2\nsamples: 96"))
    return path


PACKAGED = resources.packaged_weights_dir()


@pytest.fixture
def checkout(tmp_path: Path, quick: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry and packaged weights of our own in place of the zoo's."""
    registry, weights = tmp_path / "registry.yaml", tmp_path / "weights"
    weights.mkdir()
    shutil.copy(resources.packaged_weights_dir() / "zoo_resnet20_shapes.safetensors", weights)
    registry.write_text(resources.registry_file().read_text() + MINE.format(recipe=quick))
    monkeypatch.setattr(resources, "registry_file", lambda: registry)
    monkeypatch.setattr(resources, "packaged_weights_dir", lambda: weights)
    default_registry.cache_clear()
    yield tmp_path
    default_registry.cache_clear()


def zoo(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    default_registry.cache_clear()
    return result.stdout


def test_training_packing_and_verifying_by_training_again(checkout: Path) -> None:
    opening = (checkout / "registry.yaml").read_text().partition("format:")[0]
    zoo("train", "mine", "--quiet")
    zoo("pack", "mine")
    entry = Registry.read(checkout / "registry.yaml").entry("mine")
    assert entry.weights is not None
    assert entry.weights["sketch"].uri == "package:mine/sketch.safetensors"
    assert (checkout / "weights" / "mine" / "sketch.safetensors").stat().st_size == entry.weights["sketch"].size
    assert (checkout / "registry.yaml").read_text().startswith(opening)
    left = resources.store_dir() / "mine" / "sketch.safetensors"  # as where it ended before it had emptied the store
    shutil.copy(checkout / "weights" / "mine" / "sketch.safetensors", left)
    zoo("pack", "mine", "--figures-only")
    assert left.exists()
    (checkout / "weights" / "mine" / "sketch.safetensors").rename(checkout / "gone")
    zoo("pack", "mine")  # what the registry states is not there, and so is packed
    assert (checkout / "gone").read_bytes() == (checkout / "weights" / "mine" / "sketch.safetensors").read_bytes()
    shutil.copy(checkout / "gone", left)
    zoo("pack", "mine")
    assert not left.exists()
    assert Registry.read(checkout / "registry.yaml").entry("mine") == entry
    shutil.copy(PACKAGED / "resnet20-bn-shapes" / "real.safetensors", left)
    told = CliRunner().invoke(main, ["pack", "mine"])
    assert (told.exit_code, "is no file of sketch that was trained" in told.stderr) == (1, True)
    left.unlink()
    out = zoo("verify", "mine", "--retrain")
    assert "bit for bit the same" in out
    assert "not bit for bit" not in out


def test_some_tasks_are_packed_and_of_others_the_figures(checkout: Path, quick: Path) -> None:
    registry = checkout / "registry.yaml"
    registry.write_text(registry.read_text().replace("classes: {sketch: 12}", "classes: {sketch: 12, real: 12}"))
    default_registry.cache_clear()
    zoo("train", "mine", "--quiet")
    zoo("pack", "mine", "--figures-only")
    before = Registry.read(registry).entry("mine")
    assert set(before.measured or {}) == {"sketch", "real"}
    assert before.weights is None
    zoo("pack", "mine", "--task", "real")
    entry = Registry.read(registry).entry("mine")
    assert entry.measured == before.measured
    assert set(entry.weights or {}) == {"real"}
    assert [path.name for path in (checkout / "weights" / "mine").iterdir()] == ["real.safetensors"]
    out = zoo("verify", "mine")
    assert "real" in out
    assert "sketch" not in out
    shutil.rmtree(resources.store_dir() / "mine")
    result = CliRunner().invoke(main, ["eval", "mine", "--task", "sketch"])
    assert "No weights of mine are published or in the local store for sketch" in result.stderr


def test_a_try_is_not_published(checkout: Path) -> None:
    zoo("train", "mine", "--quiet", "--max-steps", "1")
    result = CliRunner().invoke(main, ["pack", "mine"])
    assert result.exit_code == 1
    assert "not published" in result.stderr
    assert Registry.read(checkout / "registry.yaml").entry("mine").weights is None


@pytest.mark.long
def test_two_processes_end_where_one_does(quick: Path, tmp_path: Path) -> None:
    """Two tasks, their images in batches of 120 or of 2 × 60, nothing drawn at random but their order."""
    text = re.sub("augment: .*", "augment: {crop: none}", quick.read_text())
    text = text.replace("batch: 32", "batch: 120")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29611"]
    tasks = ["--task", "clipart", "--task", "sketch"]
    for method, samples, accuracy, loss in (("features", 240, 0.0, 1e-4), ("bn", 720, 2.0, 0.05)):
        quick.write_text(text.replace("samples: 96", f"samples: {samples}"))
        train = ["train", f"resnet20-{method}-shapes", *tasks, "--recipe", str(quick), "--cpu", "--quiet", "--out"]
        one, two = tmp_path / f"{method}-one", tmp_path / f"{method}-two"
        zoo(*train, str(one))
        subprocess.run([*launch, "-m", "zoo", *train, str(two)], check=True, timeout=300)
        for task in ("clipart", "sketch"):
            metrics = [read(folder / f"{task}.safetensors")[1]["metrics"] for folder in (one, two)]
            assert metrics[1]["accuracy"] == pytest.approx(metrics[0]["accuracy"], abs=accuracy)
            assert metrics[1]["train_accuracy"] == pytest.approx(metrics[0]["train_accuracy"], abs=accuracy)
            assert metrics[1]["train_loss"] == pytest.approx(metrics[0]["train_loss"], abs=loss)
        assert len(list(two.iterdir())) == 2


def test_the_package_runs_as_a_module() -> None:
    out = subprocess.run([sys.executable, "-m", "zoo", "--version"], check=True, capture_output=True, text=True).stdout
    assert out.startswith("zoo, version ")


def test_two_processes_search_ranks(tmp_path: Path) -> None:
    """Several trainings in one run of torchrun."""
    recipe = tmp_path / "quick.yaml"
    recipe.write_text(recipe_file("shapes/ftn").read_text().replace("epochs: 40", "epochs: 1\nsamples: 96"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29612"]
    train = [
        "train",
        "resnet20-ftn-r4-shapes",
        "--rank",
        "auto",
        "--margin",
        "100",
        "--task",
        "clipart",
        "--max-steps",
        "1",
    ]
    out = tmp_path / "out"
    command = [*launch, "-m", "zoo", *train, "--recipe", str(recipe), "--cpu", "--quiet", "--out", str(out)]
    subprocess.run(command, check=True, timeout=300)
    assert read(out / "clipart.safetensors")[1]["method"]["rank"] == 1


ADAPTERS = """format: 1
entries:
  net-parallel-shapes:
    backbone: zoo/resnet20@shapes
    method: {{name: parallel}}
    benchmark: shapes
    classes: {{clipart: 12, sketch: 12}}
    recipe: {recipe}
"""


def test_adapters_are_compressed_and_trained_on(quick: Path, tmp_path: Path) -> None:
    """Train two tasks, compress them jointly, evaluate, train on from there; add one that the basis has not seen."""
    file, out = tmp_path / "own.yaml", tmp_path / "out"
    file.write_text(ADAPTERS.format(recipe=quick))
    zoo("--registry", str(file), "train", "net-parallel-shapes", "--quiet")
    printed = zoo("--registry", str(file), "compress", "net-parallel-shapes", "-o", str(out))
    assert "layer3.2.conv2" in printed
    made = Registry.read(out / "registry.yaml").entry("net-parallel_svd-shapes")
    assert made.parameters is not None
    assert (made.parameters.per_task, made.parameters.shared) == (16224, 16128)
    folder = out / made.name
    assert {p.name for p in folder.iterdir()} == {"shared.safetensors", "clipart.safetensors", "sketch.safetensors"}

    text = (out / "registry.yaml").read_text().partition("entries:")[2]
    text = text.replace("classes: {clipart: 12, sketch: 12}", "classes: {clipart: 12, sketch: 12, real: 12}")
    file.write_text(file.read_text() + text.replace("file:net", "file:out/net"))
    rows = zoo("--registry", str(file), "eval", made.name, "--task", "clipart")
    assert "accuracy" in rows
    command = ["--registry", str(file), "train", made.name, "--task", "sketch", "--task", "real", "--quiet"]
    zoo(*command, "--recipe", str(quick), "--out", str(tmp_path / "on"))
    on = tmp_path / "on"
    begun, ended = (read(f / "sketch.safetensors")[0] for f in (folder, on))
    assert any(not torch.equal(begun[key], ended[key]) for key in begun if key.endswith("gamma"))
    assert equal(read(on / "shared.safetensors")[0], read(folder / "shared.safetensors")[0])
    assert read(on / "real.safetensors")[1]["shared_sha256"] == read(on / "sketch.safetensors")[1]["shared_sha256"]


def test_another_form_of_compression_begins_anew(quick: Path, tmp_path: Path) -> None:
    """What was compressed for another rank, or cut short, is not gone on with; finished tasks keep their basis."""
    file, out = tmp_path / "own" / "registry.yaml", tmp_path / "on"
    file.parent.mkdir()
    quick.write_text(quick.read_text().replace("epochs: 2", "epochs: 1"))
    file.write_text(ADAPTERS.format(recipe=quick))
    zoo("--registry", str(file), "train", "net-parallel-shapes", "--quiet", "--max-steps", "1")
    for rank in ("2", "4"):
        zoo("--registry", str(file), "compress", "net-parallel-shapes", "--rank", rank, "-o", str(file.parent))
    train = ["--registry", str(file), "train", "--max-steps", "1", "--quiet", "--out", str(out)]
    zoo(*train, "net-parallel_svd_r2-shapes", "--task", "clipart")
    assert read(out / SHARED)[0]["layer1.0.conv1.shared.beta"].shape == (16, 2)
    mixed = CliRunner().invoke(main, [*train, "net-parallel_svd_r4-shapes", "--task", "sketch"])
    assert mixed.exit_code == 2
    assert "was trained on another basis" in mixed.stderr
    zoo(*train, "net-parallel_svd_r4-shapes", "--overwrite")
    assert {read(out / f"{task}.safetensors")[1]["method"]["rank"] for task in ("clipart", "sketch")} == {4}
    escape = CliRunner().invoke(
        main, ["--registry", str(file), "compress", "net-parallel-shapes", "--name", "../x", "-o", "o"]
    )
    assert "cannot name an entry" in escape.stderr


def test_only_parallel_adapters_are_compressed() -> None:
    result = CliRunner().invoke(main, ["compress", "resnet20-bn-shapes", "-o", "x"])
    assert result.exit_code == 2
    assert "has no parallel adapters to compress" in result.stderr
