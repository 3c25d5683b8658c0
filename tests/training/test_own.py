"""`zoo.train` and `zoo.evaluate`: networks and images of one's own, from Python; `zoo train --from`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import zoo
from zoo.catalog.recipe import load_recipe
from zoo.cli.base import main
from zoo.errors import DataError, OptionError, WeightsError
from zoo.storage.tensors import read

COLOURS = {"green": (30, 200, 40), "red": (220, 30, 30), "white": (250, 250, 250)}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.conv = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.fc(self.conv(self.norm(self.stem(x)).relu()).relu().mean((2, 3)))
        return made


def folder(root: Path, tasks: dict[str, list[str]]) -> Path:
    for task, classes in tasks.items():
        for split, count in (("train", 8), ("test", 4)):
            for name in classes:
                place = root / task / split / name
                place.mkdir(parents=True)
                for number in range(count):
                    shade = tuple(max(0, value - 3 * number) for value in COLOURS[name])
                    Image.new("RGB", (20, 16), shade).save(place / f"{number}.png")
    return root


SMALL = zoo.Preprocessing(size=12, resize=14, mean=(0.5,) * 3, std=(0.5,) * 3)


def adapted(**tasks: int | list[str]) -> zoo.TaskModel:
    return zoo.adapt(Net(), tasks, rank=2, preprocessing=SMALL)


def quick(epochs: int = 2) -> zoo.Recipe:
    recipe = load_recipe("folder/ftn")
    return replace(recipe, epochs=epochs, min_steps=0, batch=8, threads=1, rest=replace(recipe.rest, lr=0.1))


def test_a_folders_tasks_are_trained_saved_and_measured(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", {"photo": ["green", "red"], "drawing": ["green", "red", "white"]})
    model = adapted(photo=2, drawing=["green", "red", "white"])
    digest = model.backbone_sha256()
    figures = zoo.train(model, data, recipe=quick(6), out=tmp_path / "out", quiet=True)
    assert set(figures) == {"photo", "drawing"}
    assert figures["photo"]["accuracy"] == zoo.evaluate(model, data)["photo"]
    assert figures["photo"]["accuracy"] == zoo.evaluate(model, data / "", task="photo")["photo"] > 50
    assert model.task("photo").classes == ("green", "red")
    assert model.task("photo").preprocessing == SMALL  # which the recipe leaves alone
    assert model.backbone_sha256() == digest
    again = adapted()
    for task in figures:
        again.load_adapter(tmp_path / "out" / f"{task}.safetensors")
    assert zoo.evaluate(again, data) == zoo.evaluate(model, data)
    finished = adapted(photo=2, drawing=3)
    assert zoo.train(finished, data, recipe=quick(6), out=tmp_path / "out", resume=True, quiet=True) == figures
    assert all(torch.equal(a, b) for a, b in zip(finished.task_tensors("photo").values(), model.task_tensors("photo").values(), strict=True))  # fmt: skip  # noqa: E501
    with pytest.raises(OptionError, match="resume=True takes it"):
        zoo.train(finished, data, recipe=quick(6), out=tmp_path / "out", quiet=True)
    (data / "photo" / "train" / "red" / "0.png").unlink()
    with pytest.raises(OptionError, match=r"made of \[16, 8\] images .* not \[15, 8\]"):
        zoo.train(finished, data, recipe=quick(6), out=tmp_path / "out", resume=True, quiet=True)
    begun = adapted(photo=2, drawing=3)
    zoo.train(begun, data, task="photo", recipe=quick(1), begin=tmp_path / "out", out=tmp_path / "more", quiet=True)
    assert "begun_with" in read(tmp_path / "more" / "photo.safetensors")[1]["recipe"]
    with pytest.raises(OptionError, match="epochs 6, not 7"):
        zoo.train(adapted(photo=2, drawing=3), data, recipe=quick(7), out=tmp_path / "out", resume=True, quiet=True)


def test_a_pair_of_datasets_trains_one_task_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pair = tuple(TensorDataset(torch.randn(n, 3, 12, 12), torch.arange(n) % 2) for n in (16, 8))
    straight = adapted(a=2)
    zoo.train(straight, pair, task="a", recipe=quick(2), quiet=True)  # type: ignore[arg-type]

    class Stopped(Exception):
        pass

    def stop(module: nn.Module, inputs: object) -> None:
        if module.training:
            stop.steps += 1  # type: ignore[attr-defined]
            if stop.steps > 3:  # type: ignore[attr-defined]
                raise Stopped

    stop.steps = 0  # type: ignore[attr-defined]
    halted = adapted(a=2)
    halted.register_forward_pre_hook(stop)
    with pytest.raises(Stopped):
        zoo.train(halted, pair, task="a", recipe=quick(2), out=tmp_path, quiet=True)  # type: ignore[arg-type]
    resumed = adapted(a=2)
    with pytest.raises(OptionError, match="--resume"):
        zoo.train(resumed, pair, task="a", recipe=quick(2), out=tmp_path, quiet=True)  # type: ignore[arg-type]
    other = Net()
    with torch.no_grad():
        other.stem.weight.mul_(2)
    with pytest.raises(WeightsError, match="backbone_sha256"):
        model = zoo.adapt(other, {"a": 2}, rank=2, preprocessing=SMALL)
        zoo.train(model, pair, task="a", recipe=quick(2), out=tmp_path, resume=True, quiet=True)  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match=r"was made with recipe epochs 2, not 4\..*--from"):
        zoo.train(adapted(a=2), pair, task="a", recipe=quick(4), out=tmp_path, resume=True, quiet=True)  # type: ignore[arg-type]
    zoo.train(resumed, pair, task="a", recipe=quick(2), out=tmp_path, resume=True, quiet=True)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(resumed.task_tensors("a").values(), straight.task_tensors("a").values(), strict=True))  # fmt: skip  # noqa: E501


def test_a_network_of_any_type_of_number_is_trained_and_measured() -> None:
    pair = tuple(TensorDataset(torch.randn(8, 3, 12, 12), torch.arange(8) % 2) for _ in range(2))
    for kind in (torch.bfloat16, torch.float64):
        model = zoo.adapt(Net().to(kind), {"a": 2}, rank=2, preprocessing=SMALL)
        figures = zoo.train(model, pair, task="a", recipe=quick(1), quiet=True)  # type: ignore[arg-type]
        assert figures["a"]["accuracy"] == zoo.evaluate(model, pair[1], task="a")["a"]


def test_what_does_not_fit_is_refused_before_any_step(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", {"photo": ["green", "red"]})
    with pytest.raises(OptionError, match="holds images of photo, which the model has not"):
        zoo.train(adapted(other=2), data, quiet=True)
    with pytest.raises(DataError, match="has the classes green, red; the model's photo has cat, dog"):
        zoo.train(adapted(photo=["cat", "dog"]), data, quiet=True)
    with pytest.raises(OptionError, match="name it with task"):
        zoo.train(adapted(photo=2), (TensorDataset(), TensorDataset()), quiet=True)
    with pytest.raises(OptionError, match="resume needs out"):
        zoo.train(adapted(photo=2), data, resume=True)

    class Detaches(Net):
        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.fc(self.conv(self.norm(self.stem(x))).detach().mean((2, 3)))
            return made

    for pair in (TensorDataset(), (TensorDataset(),), (TensorDataset(),) * 3):
        with pytest.raises(DataError, match="a pair of datasets"):
            zoo.train(adapted(photo=2), pair, task="photo")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="has to be an image and its target, not dict"):
        zoo.train(adapted(photo=2), ([{}], [{}]), task="photo")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="The label 7 is none of the 2 classes"):
        zoo.train(adapted(photo=2), ([(0, 7)], [(0, 1)]), task="photo")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="no option 'data_root'"):
        zoo.train(adapted(photo=2), data, data_root=data)
    model = zoo.adapt(Detaches(), {"photo": 2}, rank=2, preprocessing=SMALL)
    before = {name: tensor.clone() for name, tensor in model.task_tensors("photo").items()}
    with pytest.raises(OptionError, match="conv are out of the gradient's reach"):
        zoo.train(model, data, recipe=quick(), quiet=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.task_tensors("photo").items())


def command(*words: object) -> str:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code in (0, 1, 2), result.output
    return result.output


def test_a_training_begins_with_adapter_files_that_exist(tmp_path: Path) -> None:
    data, recipe = folder(tmp_path / "data", {"photo": ["green", "red"]}), tmp_path / "mine.yaml"
    text = """summary: quick
epochs: 1
batch: 8
threads: 1
increments: {name: adam, lr: 0.005}
rest: {name: sgd, lr: 0.005, momentum: 0.9}
input: {size: 32, resize: 32}
"""
    recipe.write_text(text)
    weights = tmp_path / "backbone.safetensors"
    zoo.storage.tensors.write(weights, zoo.backbones.build("zoo/resnet20").state_dict(), {})  # type: ignore[attr-defined]
    words = ("train", "--backbone", "zoo/resnet20", "--data", data, "--rank", 2, "--name", "mine", "--recipe", recipe)
    words += ("--backbone-weights", weights, "--quiet", "--out")
    assert "Wrote mine" in command(*words, tmp_path / "first")
    recipe.write_text(text.replace("epochs: 1", "epochs: 2"))
    told = command(*words, tmp_path / "first", "--resume")
    assert "epochs 1, not 2" in told
    assert "--from" in told
    assert not re.search("[0-9a-f]{40}", told)
    assert "There is no adapter file" in command(*words, tmp_path / "second", "--from", tmp_path)
    assert "Wrote mine" in command(*words, tmp_path / "second", "--from", tmp_path / "first" / "mine")
    made = read(tmp_path / "second" / "mine" / "photo.safetensors")[1]
    assert len(made["recipe"]["begun_with"]) == 64
    assert "begun_with" in command(*words, tmp_path / "second")  # of another run


def test_auxiliary_heads_are_off_and_auxiliary_outputs_left_aside(tmp_path: Path) -> None:
    network = zoo.backbones.build("torchvision/googlenet")  # type: ignore[attr-defined]
    assert not any(name.startswith("aux") for name in network.state_dict())
    assert network.transform_input

    class Auxiliary(Net):
        def forward(self, x: Tensor) -> Tensor:
            made = super().forward(x)
            return (made, made.detach()) if self.training else made  # type: ignore[return-value]

    pair = tuple(TensorDataset(torch.randn(8, 3, 12, 12), torch.arange(8) % 2) for _ in range(2))
    model = zoo.adapt(Auxiliary(), {"a": 2}, rank=2, preprocessing=SMALL)
    assert zoo.train(model, pair, task="a", recipe=quick(1), quiet=True)["a"]["train_loss"] > 0  # type: ignore[arg-type]


def test_the_command_line_and_python_prepare_images_as_the_backbones_card_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, recipe = folder(tmp_path / "data", {"photo": ["green", "red"]}), tmp_path / "mine.yaml"
    recipe.write_text("summary: quick\nepochs: 1\nbatch: 8\nrest: {name: sgd, lr: 0.005}\ninput: {size: 32}\n")
    name = "timm/tf_efficientnet_lite0"
    network, weights = zoo.backbones.build(name), tmp_path / "backbone.safetensors"  # type: ignore[attr-defined]
    zoo.storage.tensors.write(weights, network.state_dict(), {})  # type: ignore[attr-defined]
    words = ("train", "--backbone", name, "--data", data, "--name", "mine", "--recipe", recipe, "--quiet")
    with caplog.at_level("INFO", "zoo"):
        command(*words, "--backbone-weights", weights, "--out", tmp_path / "out")
    assert "shorter side to 37 pixels, centre crop of 32×32, bicubic, mean (0.5, 0.5, 0.5)" in caplog.text
    assert "ftn rank=4 start=zero" in caplog.text
    written = read(tmp_path / "out" / "mine" / "photo.safetensors")[1]
    model = zoo.adapt(network, {"photo": 2}, rank=4, start="zero")
    zoo.train(model, data, recipe=recipe, quiet=True)
    assert zoo.Preprocessing.from_data(written["preprocessing"]) == model.task("photo").preprocessing
    assert written["settings"]["input.interpolation"] == "bicubic"
