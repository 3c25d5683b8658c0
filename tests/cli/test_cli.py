"""The command line: each command, each way of using it wrongly, exit statuses, and nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

import zoo as package
from tests.conftest import equal, write_images
from zoo.backbones import build
from zoo.catalog.entry import Entry
from zoo.cli.base import COMMANDS, MEANT, SECTIONS, main
from zoo.datasets.twins.shapes import render
from zoo.errors import DataError, UnknownNameError
from zoo.storage import resources
from zoo.storage.tensors import read, read_header
from zoo.verification.claims import evaluate

NAME = "resnet20-ftn-r8-shapes"


def zoo(*arguments: object, status: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result


def out(*arguments: object) -> list[dict[str, object]]:
    data: list[dict[str, object]] = json.loads(zoo(*arguments, "--json").stdout)
    return data


def error(*arguments: object, status: int = 2) -> str:
    result = zoo(*arguments, status=status)
    assert "Traceback" not in result.output
    return result.stderr


def test_each_command_stands_in_the_file_that_the_table_says() -> None:
    for name, home in COMMANDS.items():
        command = main.get_command(click.Context(main), name)
        assert command is not None
        assert command.callback is None or command.callback.__module__ == f"zoo.cli.{home}"
    assert set(main.commands) == set(COMMANDS)


def test_ls_lists_and_filters() -> None:
    names = [row["name"] for row in out("ls", "resnet20-*-shapes")]
    assert NAME in names
    assert "resnet34-ftn-r40-domainnet" not in names
    assert NAME in zoo("ls").stdout
    assert "No model's name matches 'x*'" in error("ls", "x*")


def test_ls_shows_models_with_weights_first_or_alone() -> None:
    rows, alone = out("ls"), out("ls", "--with-weights")
    sizes = [row["KB per task"] is not None for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert alone == rows[: sum(sizes)]
    assert 0 < sum(sizes) < len(rows) == len(package.list_models())
    assert "None of the 7 models" in error("ls", "resnet50-ftn-*-sketch", "--with-weights")


def test_info_shows_the_entry_or_the_nearest_names() -> None:
    assert "FTN, Table 2" in zoo("info", "resnet34-ftn-r40-domainnet").stdout
    assert json.loads(zoo("info", NAME, "--json").stdout)["method"] == {"name": "ftn", "rank": 8}
    assert zoo("info", "zoo/resnet20@shapes").stdout.startswith("zoo/resnet20@shapes")
    assert f"Did you mean {NAME}" in error("info", "resnet20-ftn-8-shapes")


def test_eval_and_verify_agree_with_the_registry() -> None:
    measured = json.loads(zoo("info", NAME, "--json").stdout)["measured"]
    (row,) = out("eval", NAME, "--task", "sketch")
    assert abs(float(str(row["accuracy %"])) - measured["sketch"]) <= 0.5
    checks = out("verify", NAME)
    assert all(check["passed"] for check in checks)
    assert {check["check"] for check in checks} == {"file", "parameters", "accuracy"}
    assert "Unknown task of" in error("eval", NAME, "--task", "sketchy")


def test_verify_finds_an_altered_file_and_a_wrong_figure(tmp_path: Path) -> None:
    folder = tmp_path / NAME
    shutil.copytree(resources.packaged_weights_dir() / NAME, folder)
    entry = json.loads(zoo("info", NAME, "--json").stdout)
    entry.pop("name")
    for weights in entry["weights"].values():
        weights["uri"] = weights["uri"].replace("package:", "file:")
    entry["measured"]["real"] -= 5
    registry = tmp_path / "registry.yaml"
    registry.write_text(json.dumps({"format": 1, "entries": {"mine": entry}}))
    assert "1 of 13 checks of mine failed" in error("--registry", registry, "verify", "mine", status=1)
    file = folder / "sketch.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"abcd")
    assert "it was altered" in error("--registry", registry, "verify", "mine", status=1)


def test_export_writes_checked_graphs(tmp_path: Path) -> None:
    rows = out("export", NAME, "--task", "sketch", "--task", "real", "-o", tmp_path, "--preprocess")
    assert [row["task"] for row in rows] == ["sketch", "real"]
    assert {p.name for p in tmp_path.glob("*.onnx*")} == {"sketch.onnx", "real.onnx"}
    assert "largest difference" in str(rows[0]["parity"])
    assert "--task or --all-tasks" in error("export", NAME, "-o", tmp_path)
    assert "choose one of cpu" in error("export", NAME, "--task", "real", "-o", tmp_path, "--provider", "tpu")
    (tmp_path / "file").write_text("")
    unwritable = error("export", NAME, "--task", "real", "-o", tmp_path / "file" / "x", status=1)
    assert "Cannot write" in unwritable


def test_the_client_without_torch_finds_what_predict_finds(tmp_path: Path) -> None:
    """By graphs that resize straight to the input's size, and by the crop of a resized image."""
    from PIL import Image

    photo = tmp_path / "photo.jpg"
    Image.fromarray(render("real", "test", 3)).resize((61, 47), Image.Resampling.BICUBIC).save(photo, quality=95)
    client = Path(__file__).parents[2] / "examples" / "onnx_client.py"
    for name, task in ((NAME, "real"), ("efficientnet_lite0-ftn-r4-pictures", "weather")):
        (row,) = out("export", name, "--task", task, "-o", tmp_path)
        assert str(row["input"]).startswith("images: float32 (batch, 3, ")
        assert str(row["output"]).startswith("logits: float32 (batch, ")
        command = [sys.executable, client, tmp_path / f"{task}.onnx", photo]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        (seen,) = out("predict", name, "--task", task, photo)
        found = {line.partition("  ")[0]: float(line.partition("  ")[2].rstrip(" %")) / 100 for line in said}
        assert found == pytest.approx(seen["classes"], abs=0.02)
        assert all(module not in client.read_text() for module in ("import torch", "import zoo"))


def test_threads_serve_graphs_that_resize_as_predict_does(tmp_path: Path) -> None:
    from PIL import Image

    server, photos = (
        Path(__file__).parents[2] / "examples" / "serve_threads.py",
        [tmp_path / "a.png", tmp_path / "b.jpg"],
    )
    for number, photo in enumerate(photos):
        Image.fromarray(render("real", "test", number)).resize((83, 61), Image.Resampling.BICUBIC).save(photo)
    name, tasks = "efficientnet_lite0-ftn-r4-pictures", ("weather", "objects")
    asked = ("export", name, "--task", tasks[0], "--task", tasks[1], "-o", tmp_path / "onnx")
    zoo(*asked, "--preprocess", "full")
    command = [sys.executable, server, tmp_path / "onnx", *photos]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for task in tasks:
        for row in out("predict", name, "--task", task, *photos, "--top", 1):
            ((best, share),) = row["classes"].items()  # type: ignore[attr-defined]
            (line,) = [each for each in said.splitlines() if each.startswith(f"{row['image']}  {task}: {best} ")]
            assert float(line.split()[-2]) / 100 == pytest.approx(share, abs=0.02)
    zoo(*asked, "--preprocess")
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "export it with --preprocess full" in refused.stderr


def test_predict_names_the_class_and_the_broken_image(tmp_path: Path) -> None:
    from PIL import Image

    files = []
    for i in range(12):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(render("clipart", "test", i)).save(files[-1])
    rows = out("predict", NAME, "--task", "clipart", *files, "--top", 1)
    from zoo.datasets.twins.shapes import CLASSES

    hits = [next(iter(row["classes"])) == CLASSES[i] for i, row in enumerate(rows)]  # type: ignore[call-overload]
    assert sum(hits) >= 10
    files[1].write_bytes(b"no image")
    assert "1.png does not decode" in error("predict", NAME, "--task", "clipart", *files, status=1)
    rows = out("predict", NAME, "--task", "clipart", *files, "--skip-unreadable")
    assert rows[1]["classes"] == "does not decode"


def test_classes_that_are_not_those_of_training_are_noticed(tmp_path: Path) -> None:
    data = write_images(tmp_path / "d", {"photo": ["cat", "dog"]}, 4)
    model = package.adapt(build("torchvision/resnet18"), {"photo": ["cow", "dog"]}, "features")
    entry = Entry(
        {"name": "features"}, "folder", {"photo": 2}, "folder/features", backbone="torchvision/resnet18", name="x"
    )
    with pytest.raises(DataError, match=r"other classes than those of .*: cat, cow"):
        evaluate(entry, model, data)


def test_bench_times_all_networks() -> None:
    rows = out("bench", NAME, "--batch", 2, "--rounds", 2)
    assert [row["network"] for row in rows] == [
        "torch plain", "torch fused", "torch unfused", "onnx plain", "onnx fused",
    ]  # fmt: skip


def test_cp_copies_and_never_overwrites(tmp_path: Path) -> None:
    zoo("cp", "shapes/ftn", tmp_path / "mine.yaml")
    assert (tmp_path / "mine.yaml").read_text().startswith("# zoo train")
    (tmp_path / "mine.yaml").write_text("mine")
    assert "exists already" in error("cp", "shapes/ftn", tmp_path / "mine.yaml")
    assert (tmp_path / "mine.yaml").read_text() == "mine"
    assert "Cannot read the recipe" in error("cp", tmp_path / "none.yaml", tmp_path / "x.yaml")
    assert not (tmp_path / "x.yaml").exists()
    assert "Did you mean shapes/ftn" in error("cp", "shapes/ftm", tmp_path / "x.yaml")


def test_download_prints_where_the_files_lie() -> None:
    lines = zoo("download", NAME).stdout.split()
    assert len(lines) == 6
    assert all(Path(line).is_file() for line in lines)


def quick(tmp_path: Path) -> Path:
    """A copy of the recipe that takes two epochs."""
    zoo("cp", "shapes/ftn", tmp_path / "quick.yaml")
    text = (tmp_path / "quick.yaml").read_text().replace("epochs: 40", "epochs: 2\nsamples: 96")
    (tmp_path / "quick.yaml").write_text(text)
    return tmp_path / "quick.yaml"


def test_train_into_the_store_which_comes_first(tmp_path: Path) -> None:
    recipe = quick(tmp_path)
    result = zoo("train", NAME, "--task", "sketch", "--recipe", recipe)
    assert "epoch 2/2" in result.stderr
    file = Path(result.stdout.strip())
    assert file == resources.store_dir() / NAME / "sketch.safetensors"
    tensors, header = read(file)
    assert header["entry"] == NAME
    assert header["recipe"]["name"] == recipe.name  # and not where it lay
    stored = package.load(NAME, task="sketch").task_tensors("sketch")
    assert equal(stored, tensors)
    assert not equal(package.load(NAME, task="sketch", weights="published").task_tensors("sketch"), tensors)
    assert equal(package.load(NAME, task="sketch", weights=file).task_tensors("sketch"), tensors)
    assert equal(package.load(NAME, task="sketch", weights=file.parent).task_tensors("sketch"), tensors)

    before = file.read_bytes()
    zoo("train", NAME, "--task", "sketch", "--recipe", recipe, "--quiet")  # finished, and so skipped
    assert file.read_bytes() == before
    checkpoint = file.with_name(".sketch.checkpoint")
    shutil.move(file, checkpoint)
    assert "has been begun already. --resume goes on" in error("train", NAME, "--task", "sketch", "--recipe", recipe)
    shutil.move(checkpoint, file)
    other = ("train", NAME, "--task", "sketch", "--recipe", recipe, "--resume", "--seed", 3)
    assert "is of another run (seed 0, not 3)" in error(*other)
    zoo("train", NAME, "--task", "sketch", "--recipe", recipe, "--overwrite", "--quiet")
    assert equal(read(file)[0], tensors)


def test_train_refuses_what_makes_no_sense(tmp_path: Path) -> None:
    assert "Unknown task of" in error("train", NAME, "--task", "sketchy")
    assert "Name a model" in error("train")
    assert "--backbone and --data" in error("train", "--backbone", "zoo/resnet20")
    assert "Unknown recipe" in error("train", NAME, "--recipe", "shapes/none")
    assert "--data-root" in error("train", "resnet34-ftn-r40-domainnet", status=1)
    data = write_images(tmp_path / "data", {"a": ["x", "y"]})
    arguments = ("train", "--data", data, "--out", tmp_path / "o")
    assert "whole number of at least 1, not 0" in error(*arguments, "--backbone", "torchvision/resnet18", "--rank", 0)
    assert "needs rank" in error(*arguments, "--backbone", "torchvision/resnet18", "--method", "lora")
    assert "belong to --backbone" in error("train", NAME, "--rank", 4)
    taken = error(*arguments, "--backbone", "torchvision/resnet18", "--rank", 2, "--name", NAME)
    assert "choose another name with --name" in taken
    missing = (*arguments, "--backbone", "torchvision/resnet18", "--rank", 2, "--backbone-weights", tmp_path / "no")
    assert "There is no weights file" in error(*missing, status=1)
    assert "Did you mean torchvision/resnet18" in error(*arguments, "--backbone", "torchvision/resnet181", "--rank", 2)
    assert "Unknown method" in error(*arguments, "--backbone", "torchvision/resnet18", "--method", "fttn")


def test_commands_by_other_names_and_the_sections_of_the_help() -> None:
    for wrong, right in {
        "adapt": "train",
        "deploy": "export",
        "serve": "app",
        "infer": "predict",
        "trian": "train",
    }.items():
        assert f"Did you mean `zoo {right}`?" in error(wrong)
    assert "`zoo --help` lists them" in error("xyzzy")
    assert sorted(name for names in SECTIONS.values() for name in names) == sorted(COMMANDS)
    assert set(MEANT.values()) <= set(COMMANDS)
    said = CliRunner().invoke(main, ["--help"]).stdout
    assert all(f"{section}:" in said for section in SECTIONS)


def test_a_backbone_without_its_library_is_found_in_those_that_have_it() -> None:
    for name, meant in {
        "tf_efficientnet_lite0": "timm/tf_efficientnet_lite0", "efficientnet_lite0": "zoo/efficientnet_lite0@imagenet",
        "rsnet18": "torchvision/resnet18", "resnet18.a1_in1k": "timm/resnet18.a1_in1k",
    }.items():  # fmt: skip
        with pytest.raises(UnknownNameError, match=f"Did you mean .*{meant}"):
            build(name)


def test_models_without_weights_say_what_helps() -> None:
    message = error("eval", "resnet34-ftn-r40-domainnet", status=1)
    assert "`zoo train resnet34-ftn-r40-domainnet`" in message
    assert "weights=None" in message


OWN_NAME = "resnet18-ftn-r4-my_data"  # what an entry of the folder below is called


@pytest.fixture
def own(tmp_path: Path) -> tuple[object, ...]:
    """The words that train on two domains in `tmp_path / "My Data"`, into `tmp_path / "out"`."""
    data = write_images(tmp_path / "My Data", {"photo": ["cat", "dog"], "drawing": ["bee", "cow", "elk"]}, 6)
    weights = tmp_path / "backbone.safetensors"
    torch.manual_seed(0)
    save_file(build("torchvision/resnet18").state_dict(), weights)
    zoo("cp", "folder/ftn", tmp_path / "small.yaml")
    text = (tmp_path / "small.yaml").read_text().replace("epochs: 12\nmin_steps: 400", "epochs: 1")
    (tmp_path / "small.yaml").write_text(text + "input: {size: 32, resize: 40}\n")
    return ("train", "--backbone", "torchvision/resnet18", "--data", data, "--rank", 4, "--recipe",
            tmp_path / "small.yaml", "--quiet", "--out", tmp_path / "out", "--backbone-weights", weights)  # fmt: skip


def test_domains_of_ones_own(tmp_path: Path, own: tuple[object, ...], caplog: pytest.LogCaptureFixture) -> None:
    """From a folder of images to exported graphs, by the registry file that training writes."""
    data, where = tmp_path / "My Data", tmp_path / "out"
    caplog.set_level("INFO")
    assert f"zoo eval {OWN_NAME} --registry {where}" in zoo(*own).stdout
    assert "photo: 12 training and 12 test images of 2 classes; 1 epochs, 1 steps of 32 images" in caplog.text
    assert "on the CPU" in caplog.text
    files = {p.relative_to(where).as_posix() for p in where.rglob("*") if p.is_file()}
    (kept,) = (file for file in files if file.startswith("backbone-"))
    adapters = (f"{OWN_NAME}/{task}.safetensors" for task in ("photo", "drawing"))
    assert files == {"registry.yaml", "README.md", f"{OWN_NAME}/recipe.yaml", kept, *adapters}
    for file in ("registry.yaml", "README.md"):
        assert str(tmp_path) not in (where / file).read_text()  # so that it can be handed over
    other = write_images(tmp_path / "other" / "My Data", {"photo": ["ant", "fly"]}, 4)
    assert "was trained on other images" in error(*own, "--data", other)

    for task, trained in (("photo", 12), ("drawing", 18)):
        header = read_header(where / OWN_NAME / f"{task}.safetensors")
        assert (header["images"], header["epochs"]) == ([trained, trained], 1)
    assert "test_share None, not 0.2" in error(*own, "--resume", "--test-share", 0.2)

    before = {p: p.read_bytes() for p in where.rglob("*.safetensors")}
    zoo(*own, "--resume")  # all is done already
    assert "photo is trained already" in caplog.text
    assert "train_loss" in caplog.text  # its figures
    assert {p: p.read_bytes() for p in where.rglob("*.safetensors")} == before

    (tmp_path / "backbone.safetensors").unlink()  # the folder is whole without it
    registry = ("--registry", where / "registry.yaml")
    assert [row["name"] for row in out(*registry, "ls", "*my_data")] == [OWN_NAME]
    rows = out(*registry, "eval", OWN_NAME)
    assert {row["task"] for row in rows} == {"photo", "drawing", "mean"}
    assert all(check["passed"] for check in out(*registry, "verify", OWN_NAME))
    graphs = out(*registry, "export", OWN_NAME, "--all-tasks", "-o", tmp_path / "onnx")
    assert all("over 4 images" not in str(graph["parity"]) for graph in graphs)  # random ones alone
    assert len(graphs) == 2
    image = next((data / "photo" / "test" / "cat").iterdir())
    (row,) = out(*registry, "predict", OWN_NAME, "--task", "photo", image)
    assert set(row["classes"]) == {"cat", "dog"}  # type: ignore[call-overload]
    assert sum(row["classes"].values()) == pytest.approx(1, abs=1e-5)  # type: ignore[attr-defined]
    whole = out(*registry, "predict", OWN_NAME, "--task", "photo", data / "photo" / "test", "--top", 1)
    assert len(whole) == 12
    assert " %" in zoo(*registry, "predict", OWN_NAME, "--task", "photo", image).stdout
    (tmp_path / "none").mkdir()
    assert "holds no image" in error(*registry, "predict", OWN_NAME, "--task", "photo", tmp_path / "none", status=1)


def test_a_folder_of_ones_own_works_elsewhere(
    tmp_path: Path, own: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo(*own)
    moved, data = tmp_path / "elsewhere", tmp_path / "My Data"
    (tmp_path / "out").rename(moved)
    assert out("--registry", moved / "registry.yaml", "eval", OWN_NAME, "--task", "photo")
    monkeypatch.chdir(tmp_path)
    assert "It stands in elsewhere: name that with --registry" in error("verify", OWN_NAME)
    for place in (("verify", OWN_NAME, "--registry", "elsewhere"), ("verify", "--registry=elsewhere", OWN_NAME)):
        assert zoo(*place).exit_code == 0
    (tmp_path / "far").mkdir()
    moved = Path(shutil.move(moved, tmp_path / "far"))
    assert "name their folder with --data-root" in error("eval", OWN_NAME, "--registry", moved, status=1)
    assert out("eval", OWN_NAME, "--task", "photo", "--registry", moved, "--data-root", data)
    monkeypatch.setenv("ZOO_REGISTRY", str(moved))
    (kept,) = moved.glob("backbone-*")
    again = [*own[: own.index("--out")], "--out", moved, "--backbone-weights", kept, "--resume"]
    (moved / "README.md").write_text("mine")
    assert "Wrote" in zoo(*again).stdout  # one's own is no stranger's name
    assert (moved / "README.md").read_text() == "mine"
    assert next(iter(out("ls")))["name"] == OWN_NAME
    assert set(package.load(OWN_NAME, registry=moved).tasks) == {"photo", "drawing"}


def test_a_registry_with_mistakes_lists_them(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("format: 1\nentries:\n  a: {backbone: 1}\n  b: 2\n")
    message = error("--registry", file, "ls")
    assert "a.backbone: 1 is not text" in message
    assert "b: 2 is not a mapping" in message


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(LookupError, match="Unknown model"):
        CliRunner().invoke(main, ["--debug", "info", "none"], catch_exceptions=False)


def test_a_table_on_a_terminal_of_few_characters_loses_no_more_than_those() -> None:
    words = [sys.executable, "-m", "zoo", "ls", "resnet20-ftn-r8-*"]
    done = subprocess.run(words, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"resnet20-ftn-r8-shapes" in done.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--mixed", "--shared-backbone", "-o", "x.onnx"], "two forms"),
     (["--ort-adapters", "--mixed", "-o", "x"], "two forms"),
     (["--mixed", "-o", "folder"], "folder/all.onnx"), (["--shared-backbone", "--half", "-o", "x"], "fp16"),
     (["--ort-adapters", "--precision", "fp16", "-o", "x"], "in fp16"), (["--stack-limit", "1", "-o", "x"], "--mixed"),
     (["--half", "--precision", "fp32", "-o", "x"], "--half is --precision fp16"), (["-o", "file"], "is a file"),
     (["--triton", "x", "--mixed"], "two forms"), (["--triton", "x", "-o", "y"], "leave -o out"), ([], "Say where to"),
     (["--triton", "file"], "is a file"), (["--triton", "x", "--precision", "int8"], "in int8"),
     (["--max-drop", "2", "-o", "x"], "int8 alone"), (["--mixed", "--precision", "int8", "-o", "x.onnx"], "in int8")],
)  # fmt: skip
def test_forms_of_an_export_that_do_not_go_together(
    options: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    result = CliRunner().invoke(main, ["export", "resnet20-bn-shapes", "--all-tasks", *options])
    assert result.exit_code == 2
    assert words in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
