"""`zoo factorise`: checkpoints in, an entry of small files out, and what is wrong told."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

import zoo
from zoo.catalog.registry import Registry, default_registry
from zoo.cli.base import main
from zoo.loader import load

BACKBONE, TUNED = "zoo/resnet20@shapes", "resnet20-finetune-shapes"


def run(*words: str | Path) -> Result:
    default = ("--backbone", BACKBONE, "--form", "svd", "--rank", "4", "--name", "mine", "-o", "out")
    return CliRunner().invoke(main, ["factorise", *map(str, words), *default])


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_several_networks_become_one_entry_with_a_small_file_each(caplog: pytest.LogCaptureFixture) -> None:
    tuned = zoo.load(TUNED, task="sketch", fuse=True)
    save_file(tuned.state_dict(), "drawings.safetensors")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in tuned.state_dict().items()}}, "again.pth")
    with caplog.at_level("INFO", logger="zoo"):
        done = run(f"{TUNED}/sketch", "drawings.safetensors", "again.pth")
    assert done.exit_code == 0, done.output
    assert "conv1.weight (0.683)" in done.stdout and "again.pth: SHA-256" in caplog.text
    registry = Registry.read(Path("out/registry.yaml"))
    model = load("mine", registry=default_registry().merged(registry))
    known = zoo.load(TUNED, task="sketch").task("sketch")
    assert (model.task("sketch").classes, model.task("sketch").preprocessing) == (known.classes, known.preprocessing)
    assert model.task("drawings").classes == tuple(map(str, range(12)))
    images = torch.rand(2, 3, 32, 32)
    found = [model(images, task=task) for task in ("sketch", "drawings", "again")]
    base = zoo.load("resnet20-features-shapes", task="sketch").fuse("sketch")
    expected = zoo.factorise(tuned, base, "svd", 4).model(images, task="task")
    for each in found:
        torch.testing.assert_close(each, expected, rtol=1e-4, atol=1e-4)
    sizes = [Path(f"out/mine/{task}.safetensors").stat().st_size for task in model.tasks]
    assert max(sizes) < 100_000 < Path("drawings.safetensors").stat().st_size / 10


def test_the_table_as_json() -> None:
    words = ["--backbone", BACKBONE, "--form", "tt", "--name", "other", "-o", "out", "--json"]
    rows = json.loads(CliRunner().invoke(main, ["factorise", f"{TUNED}/sketch", *words]).stdout)
    assert len(rows) == 18 and {"task", "layer", "parameters", "‖ΔW‖", "relative error"} == set(rows[0])
    assert all(0 < row["relative error"] < 1 for row in rows)


def test_what_cannot_be_read_is_told_and_nothing_is_written() -> None:
    with open("evil.pth", "wb") as file:
        pickle.dump({"fc.weight": print}, file)
    torch.save([1, 2], "list.pth")
    Path("cut.pt").write_bytes(b"PK\x03\x04 and no more")
    save_file({"fc.weight": torch.zeros(3, 4)}, "other.safetensors")
    save_file({"fc.weight": torch.full((3, 4), torch.nan)}, "nan.safetensors")
    for source, words, status in (
        ("evil.pth", "restricted reader", 1), ("list.pth", "no state dict", 1), ("cut.pt", "cannot be read", 1),
        ("other.safetensors", "does not fit", 1), ("nan.safetensors", "not finite", 1), ("none.pth", "no file", 1),
        (f"{TUNED}/dragons", "dragons", 2),
    ):  # fmt: skip
        done = run(source)
        assert done.exit_code == status and words in done.stderr, (source, done.output)
        assert "Traceback" not in done.output
    assert not Path("out").exists()
    for name in ("a", "b"):
        Path(name).mkdir()
        save_file(zoo.load(TUNED, task="sketch", fuse=True).state_dict(), f"{name}/one.safetensors")
    assert "Two sources make the task one" in run("a/one.safetensors", "b/one.safetensors").stderr
