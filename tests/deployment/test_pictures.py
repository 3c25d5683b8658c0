"""Pictures that tasks make, by command and in graphs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from zoo.export import Adapted, run, session, to_onnx
from zoo.export.onnx import preprocessing_of

import zoo
from zoo.backbones import build
from zoo.backbones.biggan import BigGAN
from zoo.backbones.generator import Generator
from zoo.catalog.recipe import recipe_file
from zoo.catalog.task import GENERATION, Preprocessing
from zoo.cli.base import main
from zoo.deployment import pictures
from zoo.errors import ExportError, OptionError
from zoo.storage.tensors import read

OWN = """format: 1
entries:
  net-ftn-landscapes:
    backbone: zoo/biggan32x0.125
    backbone_weights: {{uri: 'file:{file.name}', sha256: {digest}, size: {size}}}
    method: {{name: ftn, rank: 1}}
    benchmark: landscapes
    classes: {{winter: 3, autumn: 3}}
    kinds: {{winter: generation, autumn: generation}}
    recipe: quick.yaml
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A registry of one entry, whose two tasks have been trained for a few steps."""
    from zoo.storage.files import sha256

    folder = tmp_path_factory.mktemp("own")
    torch.manual_seed(0)
    file, recipe = folder / "base.safetensors", folder / "quick.yaml"
    save_file(build("zoo/biggan32x0.125").state_dict(), file)
    text = recipe_file("landscapes/ftn").read_text()
    recipe.write_text(text.replace("epochs: 30", "epochs: 1\nsamples: 12").replace("batch: 30", "batch: 6"))
    own = folder / "registry.yaml"
    own.write_text(OWN.format(file=file, digest=sha256(file), size=file.stat().st_size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo.models.latents.STEPS", 3)
        patch.setenv("ZOO_CACHE", str(folder / "cache"))
        command("--registry", own, "train", "net-ftn-landscapes", "--cpu", "--quiet", "--out", folder / "made")
    yield own


def command(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result.output


def generated(registry: Path, *arguments: object, status: int = 0) -> str:
    common = ["--registry", registry, "generate", "net-ftn-landscapes", "--weights", registry.parent / "made"]
    return command(*common, *arguments, status=status)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_a_training_leaves_the_latents_beside_the_adapter(registry: Path) -> None:
    made = registry.parent / "made"
    latents, header = read(made / "winter.latents")
    tensors, adapter = read(made / "winter.safetensors")
    assert latents["latents"].shape == (12, 48)
    torch.testing.assert_close(tensors["prior.mean"], latents["latents"].mean(0))
    assert header["task"] == "winter"
    assert set(adapter["metrics"]) == {"train_loss", "train_PSNR", "PSNR"}


def test_pictures_are_those_of_the_drawn_latents(registry: Path, tmp_path: Path) -> None:
    rows = json.loads(generated(registry, "--task", "winter", "-n", 5, "--seed", 3, "-o", tmp_path, "--json"))
    assert [Path(row["picture"]).name for row in rows] == ["winter_3.png", *(f"winter_3_{i}.png" for i in range(5))]
    model = zoo.load("net-ftn-landscapes", registry=registry, weights=registry.parent / "made")
    latents = model.prior("winter").draw(5, torch.Generator().manual_seed(3))  # type: ignore[attr-defined]
    with torch.no_grad():
        expected = model.fuse("winter")(latents)
    for number in range(5):
        found = torch.from_numpy(pixels(tmp_path / f"winter_3_{number}.png")).permute(2, 0, 1)
        assert (found - (expected[number] + 1) * 127.5).abs().max() <= 0.51
    assert pixels(tmp_path / "winter_3.png").shape == (2 * 34 - 2, 3 * 34 - 2, 3)

    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    generated(registry, "--task", "winter", "-n", 2, "--seed", 3, "-o", tmp_path / "again")
    assert (tmp_path / "again" / "winter_3_1.png").read_bytes() == before[
        "winter_3_1.png"
    ]  # fewer are the first of more
    generated(registry, "--task", "winter", "-n", 1, "--seed", 4, "-o", tmp_path / "again")
    assert (tmp_path / "again" / "winter_4_0.png").read_bytes() != before["winter_3_0.png"]


def test_one_latent_goes_through_the_backbone_and_all_seasons(registry: Path, tmp_path: Path) -> None:
    generated(registry, "-n", 3, "-o", tmp_path)
    sheet = pixels(tmp_path / "all_0.png")
    assert sheet.shape[:2] == (3 * 34 - 2, 3 * 34 - 2)
    for row, name in enumerate(("backbone", "winter", "autumn")):
        for column in range(3):
            own = pixels(tmp_path / f"{name}_0_{column}.png")
            assert (sheet[34 * row : 34 * row + 32, 34 * column : 34 * column + 32] == own).all()


def test_pictures_between_two_begin_and_end_with_them(registry: Path, tmp_path: Path) -> None:
    generated(registry, "--task", "autumn", "-n", 3, "-o", tmp_path / "drawn")
    generated(registry, "--task", "autumn", "-n", 3, "--interpolate", 4, "-o", tmp_path / "between")
    for way in range(2):
        ends = [f"autumn_from_{way}_0_{step}.png" for step in (0, 4)]
        for place, name in enumerate(ends):
            found = pixels(tmp_path / "between" / name)
            assert abs(found - pixels(tmp_path / "drawn" / f"autumn_0_{way + place}.png")).max() <= 1
    assert len(list((tmp_path / "between").glob("*.png"))) == 2 * 5 + 1
    latents = torch.tensor([[0.0, 4.0], [4.0, 0.0]])
    assert torch.equal(pictures.between(latents, 4)[0], torch.tensor([[0.0, 4], [1, 3], [2, 2], [3, 1], [4, 0]]))


def test_a_picture_is_made_again(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.models.latents.STEPS", 5)
    for number, size in enumerate([(32, 32), (80, 50)]):  # of any size
        Image.new("RGB", size, (30 + 90 * number, 60, 120)).save(tmp_path / f"{number}.png")
    rows = json.loads(
        generated(registry, "--task", "winter", "--fit", tmp_path / "0.png", "--fit", tmp_path / "1.png", "-o",
                  tmp_path / "out", "--json")
    )  # fmt: skip
    assert pixels(tmp_path / "out" / "winter.png").shape == (66, 66, 3)
    for number, row in enumerate(rows):
        pair = pixels(Path(row["picture"]))
        assert pair.shape[:2] == (32, 66)
        assert (pair[:, :32] == [30 + 90 * number, 60, 120]).all()
        error = ((pair[:, :32] - pair[:, 34:]) ** 2).mean()
        assert row["PSNR dB"] == pytest.approx(10 * np.log10(255**2 / error), abs=0.1)


@pytest.mark.parametrize(("arguments", "message"), [
    (["--fit", "a.png"], "--fit needs --task; the tasks of net-ftn-landscapes are winter, autumn"),
    (["--task", "winter", "--fit", "a.png", "--interpolate", "3"], "leave out one of them"),
    (["--task", "winter", "-n", "1", "--interpolate", "3"], "needs two of them"),
    (["--task", "sommer"], "Unknown task of net-ftn-landscapes 'sommer'"),
    (["--task", "winter", "--fit", "none.png"], "none.png"),
])  # fmt: skip
def test_what_does_not_go_together_is_a_sentence(
    registry: Path, arguments: list[str], message: str, tmp_path: Path
) -> None:
    printed = generated(registry, *arguments, "-o", tmp_path / "out", status=2 if "none.png" not in arguments else 1)
    assert message in printed
    assert not (tmp_path / "out").exists()


def test_other_commands_say_what_is_for_pictures(registry: Path, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    common = ["--registry", registry, "predict", "net-ftn-landscapes", tmp_path / "a.png", "--task", "winter"]
    assert "use `zoo generate`" in command(*common, "--weights", registry.parent / "made", status=2)
    name = "biggan32-ftn-r4-landscapes"
    for words, said in (
        (["convert", name, "--task", "winter", "-o", tmp_path / "p"], "winter owns prior, shared, linear whole"),
        (["prune", name, "--task", "winter", "-o", tmp_path / "q"], "winter makes pictures"),
        (["merge", name, "--tasks", "winter", "spring", "--as", "both", "-o", tmp_path / "m"], "does not classify"),
        (["generate", "zoo/biggan32x0.125@landscapes", "-o", tmp_path / "r"], "is a backbone"),
        (["eval", "resnet20-bn-shapes", "--kid"], "--kid is of tasks that make pictures"),
    ):
        assert said in command(*words, status=2)
    with pytest.raises(OptionError, match="a makes no pictures"):
        pictures.maker(zoo.adapt(build("zoo/resnet20"), {"a": 2}, "bn"))


@pytest.mark.parametrize("form", [[], ["--shared-backbone"], ["--mixed"], ["--ort-adapters"]])
def test_graphs_take_latents_and_give_pictures(registry: Path, form: list[str], tmp_path: Path) -> None:
    out = tmp_path / "m.onnx" if "--mixed" in form else tmp_path
    common = [
        "--registry",
        registry,
        "export",
        "net-ftn-landscapes",
        "--weights",
        registry.parent / "made",
        "--all-tasks",
    ]
    common += [*form, "-o"]
    command(*common, out)
    if "--ort-adapters" in form:
        base = session(out / "base.onnx")
        made = Adapted(base, next(out.glob("winter.*")))
    else:
        made = session(out if "--mixed" in form else out / "winter.onnx")
        assert json.loads(made.get_modelmeta().custom_metadata_map["latents"])
    assert made.get_inputs()[0].name == "latents"
    model = zoo.load("net-ftn-landscapes", registry=registry, weights=registry.parent / "made")
    latents = torch.randn(5, 48)
    numbers = [np.zeros(5, np.int64)] if "--mixed" in form else []
    with torch.no_grad():
        np.testing.assert_allclose(run(made, latents.numpy(), *numbers), model(latents, task="winter"), atol=1e-4)
    assert "leave out preprocess" in command(*common, out, "--preprocess", status=1)


def test_a_graph_takes_classes_where_there_are_several(tmp_path: Path) -> None:
    torch.manual_seed(0)
    half = (0.5, 0.5, 0.5)
    prepared = Preprocessing(32, None, half, half)
    network = BigGAN(32, 2, 8, 3, 2)
    model = zoo.adapt(network, {"snow": Generator.channels}, kinds={"snow": GENERATION}, rank=2, preprocessing=prepared)
    latents, classes = torch.randn(4, 8), torch.tensor([2, 0, 1, 2])
    to_onnx(model.fuse("snow"), tmp_path / "snow.onnx", task=model.task("snow"), images=torch.randn(3, 8))
    made = session(tmp_path / "snow.onnx")
    assert [each.name for each in made.get_inputs()] == ["latents", "classes"]
    with torch.no_grad():
        expected = model(latents, classes, task="snow").numpy()
    np.testing.assert_allclose(run(made, latents.numpy(), classes.numpy()), expected, atol=1e-4)
    assert preprocessing_of(tmp_path / "snow.onnx") == prepared
    with pytest.raises(ExportError, match="leave out preprocess"):
        to_onnx(
            model.fuse("snow"), tmp_path / "p.onnx", task=model.task("snow"), images=torch.randn(3, 8), preprocess=True
        )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("predict", "zoo/biggan32x0.125@landscapes", "docs/sketch.png"),
            "was trained on landscapes, and not on ImageNet",
        ),
        (("predict", "zoo/resnet20@shapes", "docs/sketch.png"), "Ask an entry on it: resnet20-"),
        (("generate", "zoo/biggan32x0.125@landscapes", "-o", "OUT"), "such as biggan32-ftn-r4-landscapes"),
        (("generate", "resnet20-bn-shapes", "-o", "OUT"), "of resnet20-bn-shapes makes no pictures"),
        (("generate", "biggan32-ftn-r4-landscapes", "--task", "winter", "--fit", "NOTE", "-o", "OUT"), "does that."),
        (("generate", "biggan32-ftn-r4-landscapes", "-o", ""), "an empty name"),
        (("card", "resnet20-bn-shapes", "-o", ""), "an empty name"),
        (("compare", "biggan32-*-landscapes", "-o", "OUT"), "Only percentages are drawn"),
    ],
)
def test_what_a_newcomer_tries_gets_a_sentence(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    (tmp_path / "note.jpg").write_text("no picture")
    places = {"OUT": str(tmp_path / "out"), "NOTE": str(tmp_path / "note.jpg")}
    done = CliRunner().invoke(main, [places.get(word, word) for word in words], catch_exceptions=False)
    assert done.exit_code in (1, 2)
    assert said in done.output.replace("Name a picture that does.", "does that.")
    assert "--skip-unreadable" not in done.output
    assert not (tmp_path / "out").exists()


def test_what_is_no_latent_gets_a_sentence() -> None:
    model = zoo.load("biggan32-ftn-r4-landscapes", task="winter")
    for wrong in (torch.rand(2, 3, 32, 32), torch.rand(2, 40), torch.rand(48)):
        with pytest.raises(OptionError, match=r"takes latents \(B, 48\)"):
            model(wrong, task="winter")
    with pytest.raises(OptionError, match="count"):
        model.prior("winter").draw(0, torch.Generator())
