"""`zoo factorise`: checkpoints in, an entry of small files out, and what is wrong told."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

import zoo
from zoo.catalog.handover import put_in
from zoo.catalog.registry import Registry, default_registry
from zoo.catalog.store import adapter_files
from zoo.cli.base import main
from zoo.compression.factors import compress_entry
from zoo.errors import OptionError
from zoo.loader import counted_parameters, load
from zoo.storage.files import weights_file
from zoo.storage.tensors import read

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
    assert len(rows) == 18 and {"task", "layer", "rank", "parameters", "‖ΔW‖", "relative error"} == set(rows[0])
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


def test_ranks_shares_and_budgets(caplog: pytest.LogCaptureFixture) -> None:
    words = [f"{TUNED}/sketch", f"{TUNED}/painting", "--backbone", BACKBONE, "--form", "svd", "-o", "out"]
    for name, more in (("share", ["--rank", "0.9"]), ("budget", ["--budget", "20k"]), ("rest", ["--keep-rest"])):
        done = CliRunner().invoke(main, ["factorise", *words, "--name", name, *more])
        assert done.exit_code == 0, done.output
    registry = default_registry().merged(Registry.read(Path("out/registry.yaml")))
    share, budget = registry.entry("share"), registry.entry("budget")
    assert (share.benchmark, share.recipe) == ("shapes", "shapes/ftn") and set(share.task_methods) == {"painting"}
    for entry in (share, budget, registry.entry("rest")):
        model = load(entry.name, registry=registry)
        assert entry.parameters is not None
        assert {task: entry.parameters.of(task) for task in model.tasks} == {
            task: model.count_parameters(task) for task in model.tasks
        }
        assert counted_parameters(entry, registry) == entry.parameters
    norms = 1376
    assert budget.parameters is not None and 19_000 < budget.parameters.of("sketch").per_task - norms <= 20_000
    stem = load("rest", task="sketch", registry=registry).fuse("sketch").get_parameter("conv1.weight")
    tuned = zoo.load(TUNED, task="sketch", fuse=True).get_parameter("conv1.weight")
    torch.testing.assert_close(stem, tuned, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "told"),
    [(["--rank", "1.5"], "share between 0 and 1"), (["--rank", "0"], "share"), (["--budget", "some"], "200k"),
     (["--budget", "0"], "200k"), (["--rank", "4", "--budget", "20k"], "either --rank or --budget"),
     (["--apart"], "belongs to --joint"), (["--joint"], "--joint takes one entry")],
)  # fmt: skip
def test_what_does_not_go_together_is_told(words: list[str], told: str) -> None:
    done = CliRunner().invoke(
        main, ["factorise", f"{TUNED}/sketch", "--backbone", BACKBONE, "--name", "mine", "-o", "out", *words]
    )
    assert done.exit_code == 2 and told in done.stderr, done.output
    assert not Path("out").exists()


def test_compress_is_its_joint_form() -> None:
    outputs = [
        CliRunner().invoke(
            main, [*words, "resnet20-parallel-shapes", "--rank", "4", "--name", "one", "-o", out, "--json"]
        )
        for words, out in ((["compress"], "a"), (["factorise", "--joint"], "b"))
    ]
    assert outputs[0].exit_code == 0 and outputs[0].stdout == outputs[1].stdout
    assert Path("a/one/shared.safetensors").read_bytes() == Path("b/one/shared.safetensors").read_bytes()


def test_training_goes_on_from_the_labels_or_from_the_fine_tuned_networks() -> None:
    done = run(f"{TUNED}/sketch")
    assert done.exit_code == 0, done.output
    common = ["train", "mine", "--registry", "out", "--from", "out/mine", "--steps-per-epoch", "20", "--epochs", "1"]
    for out, more in (("labels", []), ("learnt", ["--distil"])):
        done = CliRunner().invoke(main, [*common, "--out", out, "--quiet", *more])
        assert done.exit_code == 0, done.output
    before, labels, learnt = (read(Path(d) / "sketch.safetensors") for d in ("out/mine", "labels", "learnt"))
    assert learnt[1]["recipe"]["distil"] is True and "distil" not in labels[1]["recipe"]
    assert any(not torch.equal(t, labels[0][name]) for name, t in before[0].items())
    assert any(not torch.equal(t, labels[0][name]) for name, t in learnt[0].items())
    images = torch.rand(64, 3, 32, 32)
    tuned = zoo.load(TUNED, task="sketch", fuse=True)
    registry = default_registry().merged(Registry.read(Path("out/registry.yaml")))
    with torch.no_grad():
        wanted = tuned(images).softmax(1)
        off = [
            float(
                (
                    load("mine", weights=d, fuse=True, task="sketch", registry=registry)(images).softmax(1) - wanted
                ).norm()
            )
            for d in ("out/mine", "learnt")
        ]
    assert off[1] < off[0]
    for words, told in ((["--overwrite"], "needs --from"), (["--from", "labels"], "does not say what it was made of")):
        done = CliRunner().invoke(main, ["train", "mine", "--registry", "out", "--out", "x", "--distil", *words])
        assert done.exit_code == 2 and told in done.stderr, done.output


def test_an_entry_of_a_form_is_its_source_factorised(tmp_path: Path) -> None:
    entry = default_registry().entry("resnet20-post_svd-r8-shapes")
    assert (entry.form, entry.source) == ("svd", TUNED)
    tuned, base = (zoo.load(name, task="sketch", fuse=True) for name in (TUNED, "resnet20-features-shapes"))
    made = zoo.factorise(tuned, base, "svd", 8, task="sketch").model.task_tensors("sketch")
    published = read(adapter_files(entry, ("sketch",), "published")["sketch"])
    for name, tensor in made.items():
        torch.testing.assert_close(published[0][name], tensor, rtol=1e-4, atol=1e-6)
    assert (published[1]["source"], published[1]["form"]) == (TUNED, "svd")
    done = CliRunner().invoke(main, ["train", entry.name, "--out", "x", "--epochs", "3"])
    assert done.exit_code == 2 and "has no training" in done.stderr
    with pytest.raises(OptionError, match="svd by the method svd"):
        compress_entry(replace(entry, form="tt"), default_registry(), tmp_path)


def test_a_file_s_images_are_prepared_as_the_zoo_s_backbone_wants_them() -> None:
    save_file(zoo.load(TUNED, task="sketch", fuse=True).state_dict(), "drawings.safetensors")
    assert run("drawings.safetensors").exit_code == 0
    registry = default_registry().merged(Registry.read(Path("out/registry.yaml")))
    known = zoo.load(TUNED, task="sketch").task("sketch").preprocessing
    assert load("mine", registry=registry).task("drawings").preprocessing == known  # type: ignore[attr-defined]


def test_backbone_weights_of_one_s_own_go_along(tmp_path: Path) -> None:
    """From an entry of a folder whose backbone lies beside its registry, into another folder."""
    Path("first").mkdir()
    model = zoo.load("resnet20-ftn-r4-shapes", task="sketch")
    with torch.no_grad():
        model.backbone_tensors()["conv1.weight"].mul_(1.5)
    save_file({k: t.contiguous() for k, t in model.backbone_tensors().items()}, "first/own.safetensors")
    model.save_adapter("sketch", "first/mine/sketch.safetensors", {"entry": "mine"})
    own = weights_file(Path("first/own.safetensors"), "file:own.safetensors")
    entry = replace(
        default_registry().entry("resnet20-ftn-r4-shapes"),
        name="mine",
        backbone_weights=own,
        weights=None,
        folder=Path("first"),
        classes={"sketch": 12},
        measured=None,
    )
    put_in(Path("first"), entry, {"sketch": Path("first/mine/sketch.safetensors")})
    images = torch.rand(2, 3, 32, 32)
    expected = model(images, task="sketch")
    whole = ["factorise", "mine/sketch", "--backbone", BACKBONE, "--form", "svd", "--rank", "500", "--name", "again"]
    for command in (whole, ["prune", "mine", "--steps", "2", "--keep-within", "100", "--name", "again"]):
        done = CliRunner().invoke(main, [*command, "-o", command[0], "--registry", "first"])
        assert done.exit_code == 0, done.output
        registry = default_registry().merged(Registry.read(Path(command[0]) / "registry.yaml"))
        found = load("again", registry=registry)
        assert found.backbone_sha256() == model.backbone_sha256()
        if command[0] == "factorise":
            torch.testing.assert_close(found(images, task="sketch"), expected, rtol=1e-3, atol=1e-3)
