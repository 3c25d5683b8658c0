"""Dense tasks: decoders as heads, recipes, graphs, commands and pictures."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor, nn
from zoo.export import run, session, to_onnx

import zoo
from tests.conftest import disturb, equal
from zoo.backbones import build
from zoo.backbones.deeplab import deeplab, deeplab_resnet20
from zoo.catalog import recipe
from zoo.catalog.registry import default_registry
from zoo.catalog.task import METRICS, Preprocessing, Task
from zoo.cli.base import main
from zoo.datasets import get_benchmark, open_image
from zoo.datasets.twins import rooms
from zoo.errors import ConfigError, DataError, OptionError, UnknownNameError, WeightsError
from zoo.loader import load
from zoo.models.adapted import TaskModel
from zoo.models.placement import Placement
from zoo.training.evaluation import measure

FOUR = {"edge": ("edges", 1), "semseg": ("segmentation", 10), "normals": ("normals", 3), "depth": ("depth", 1)}
SIZE = Preprocessing(48, None, width=64)


def four_tasks(method: str = "ftn", network: nn.Module | None = None, **options: object) -> TaskModel:
    torch.manual_seed(0)
    model = TaskModel(network or deeplab_resnet20(), method, options or ({"rank": 3} if method == "ftn" else {}))
    for task, (kind, outputs) in FOUR.items():
        model.add_task(Task.of(task, outputs, SIZE, kind))
        disturb(model, task)
    return model


# -- decoders as heads ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["features", "bn", "ftn", "series", "parallel", "finetune"])
def test_a_decoder_is_the_tasks_own_and_fuses(method: str, tmp_path: Path) -> None:
    model = four_tasks(method)
    images = torch.randn(2, 3, 21, 30)
    before = model.backbone_sha256()
    with torch.no_grad():
        for task, (_, outputs) in FOUR.items():
            found = model(images, task=task)
            assert found.shape == (2, outputs, 21, 30)
            torch.testing.assert_close(model.fuse(task)(images), found, rtol=1e-4, atol=1e-5)
    own = model.task_tensors("depth")
    assert {name.split(".")[0] for name in own} >= {"decoder"}
    assert any("decoder.pyramid.1.1.running_mean" in name for name in own), "the norms of a decoder are its own"
    assert not any(name.startswith("decoder") for name in model.backbone_tensors())
    model.save_adapter("depth", tmp_path / "depth.safetensors")
    known = {name: tensor.clone() for name, tensor in own.items()}
    model.remove_task("depth")
    assert model.load_adapter(tmp_path / "depth.safetensors") == Task.of("depth", 1, SIZE, "depth")
    assert equal(model.task_tensors("depth"), known)
    assert model.backbone_sha256() == before


def test_training_one_decoder_moves_nothing_else() -> None:
    model = four_tasks("bn")
    others = {task: {n: t.clone() for n, t in model.task_tensors(task).items()} for task in FOUR if task != "depth"}
    backbone = model.backbone_sha256()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model.train()
    model(torch.randn(2, 3, 16, 16), task="depth").square().mean().backward()
    optimizer.step()
    assert all(equal(model.task_tensors(task), tensors) for task, tensors in others.items())
    assert model.backbone_sha256() == backbone


def test_dilated_features_are_those_of_the_strided_network_at_every_other_place() -> None:
    """Dilation in place of stride keeps what the weights see: timm's own resnet18 gives every other value."""
    torch.manual_seed(0)
    dilated = deeplab("resnet18").encoder.eval()
    strided = timm.create_model("resnet18", features_only=True, out_indices=(1, 4)).eval()
    strided.load_state_dict(dilated.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        (fine, coarse), (same, sparse) = dilated(images), strided(images)
    assert coarse.shape[-2:] == (4, 6)
    torch.testing.assert_close(fine, same)
    torch.testing.assert_close(coarse[..., ::2, ::2], sparse, rtol=1e-4, atol=1e-5)


def test_both_routes_of_ftn_agree_on_dilated_convolutions() -> None:
    images, found, network = torch.randn(1, 3, 32, 48), {}, deeplab("resnet18")
    for route in ("folded", "factored"):
        model = four_tasks("ftn", copy.deepcopy(network), rank=2, route=route)
        with torch.no_grad():
            found[route] = model(images, task="semseg")
    torch.testing.assert_close(found["folded"], found["factored"], rtol=1e-4, atol=1e-4)


def test_a_head_may_be_any_module_that_holds_layers() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 9, 1))
    )
    model = TaskModel(network, "bn", placement=Placement(head="1"))
    model.add_task(Task.of("few", 2))
    assert model(torch.randn(1, 3, 8, 8), task="few").shape == (1, 2, 4, 4)
    assert torch.equal(model.task_tensors("few")["1.0.weight"], network[1].make.args[0][0].weight)  # type: ignore
    up = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 9, 2, 2)))
    model = TaskModel(up, "bn", placement=Placement(head="1"))
    model.add_task(Task.of("few", 2))
    assert model(torch.randn(1, 3, 8, 8), task="few").shape == (1, 2, 12, 12)
    with pytest.raises(OptionError, match="is or holds no Conv2d"):
        TaskModel(build("zoo/resnet20"), "bn", placement=Placement(head="layer1.0.bn1"))


def test_adapt_takes_kinds_and_a_decoder() -> None:
    model = zoo.adapt(deeplab_resnet20(), {"depth": 1, "what": 3}, rank=2, kinds={"depth": "depth"})
    assert [model.task(name).kind for name in model.tasks] == ["depth", "classification"]
    assert model.head_paths == ("decoder",)
    for kinds, message in (({"depht": "depth"}, "none of the tasks"), ({"depth": "deep"}, "unknown kind 'deep'")):
        with pytest.raises(OptionError, match=message):
            zoo.adapt(deeplab_resnet20(), {"depth": 1}, "bn", kinds=kinds)


def test_an_image_smaller_than_the_stride_is_refused() -> None:
    with pytest.raises(DataError, match=r"3×9 pixels is smaller than the network's stride, 4"):
        four_tasks()(torch.randn(1, 3, 3, 9), task="depth")
    with pytest.raises(OptionError, match="strides 4 and 16"):
        build("deeplab/timm/vgg11")
    with pytest.raises(UnknownNameError, match="deeplab/timm/resnet18"):
        build("deeplab/timm/resnet_18")


def test_table_4s_parameters_to_a_third_of_a_per_cent() -> None:
    registry = default_registry()
    printed = {"decoder": 11.17, "decoder_bn": 11.19, "ftn-r1": 11.23, "ftn-r10": 11.54, "ftn-r20": 11.89,
               "ftn-r30": 12.24, "parallel": 16.77}  # fmt: skip
    for method, millions in printed.items():
        entry = registry.entry(f"resnet18-{method}-nyud")
        assert entry.total_parameters == pytest.approx(1e6 * millions, rel=0.003), method
        assert entry.reported is not None
        assert entry.reported.parameters == millions


# -- recipes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ftn", "bn", "features", "finetune", "series", "parallel"])
def test_recipes_of_nyud_are_the_supplements(method: str) -> None:
    """Section A.3: 60 epochs, batch 8, polynomial; SGD 0.005, 0.9, 1e-4; Adam 0.01 without decay for the factors."""
    known = recipe.load_recipe(f"nyud/{method}")
    assert (known.epochs, known.batch, known.schedule) == (60, 8, "polynomial")
    assert known.rest == recipe.Optimizer("sgd", 0.005, 0.0001, 0.9)
    assert known.input.shape == (425, 560)
    assert (known.augment.zoom, known.augment.flip) == ((0.5, 2.0), True)
    assert known.of("edge").positive_weight == 0.95
    if method == "ftn":
        assert known.increments == recipe.Optimizer("adam", 0.01)


def test_a_zoom_in_a_recipe_is_checked(tmp_path: Path) -> None:
    for zoom, message in (("[2.0, 0.5]", "zoom needs two numbers"), ("[0.5, 2.0], crop: random", "leave out crop")):
        with pytest.raises(ValueError, match=message):
            file = tmp_path / "r.yaml"
            file.write_text(f"summary: x\nepochs: 1\nbatch: 2\nrest: {{name: sgd, lr: 1}}\naugment: {{zoom: {zoom}}}\n")
            recipe.load_recipe(str(file))


# -- files and commands ---------------------------------------------------------------------------------------------


def test_a_graph_takes_images_of_any_size(tmp_path: Path) -> None:
    model = four_tasks("ftn", None, rank=2)
    plain = model.fuse("normals")
    assert to_onnx(plain, tmp_path / "n.onnx", task=model.task("normals")).passed
    graph = session(tmp_path / "n.onnx")
    assert graph.get_outputs()[0].name == "maps"
    for size in ((1, 3, 17, 16), (2, 3, 41, 59), (1, 3, 96, 33)):
        images = torch.randn(size)
        with torch.no_grad():
            expected = plain(images)
        found = torch.from_numpy(run(graph, images.numpy()))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def command(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result.stdout if status == 0 else result.output


def test_predict_draws_what_a_model_sees(tmp_path: Path) -> None:
    picture = tmp_path / "room.png"
    Image.fromarray(rooms.render("test", 0).image).save(picture)
    command("predict", "resnet20-ftn-r8-rooms", picture, "--all-tasks", "-o", tmp_path / "out")
    names = {f"room_{what}.png" for what in ("edge", "semseg", "normals", "depth", "overview")}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    drawn = {name: np.asarray(open_image(tmp_path / "out" / name)).astype(int) for name in names}
    assert all(min(pixels.shape[:2]) > 200 for pixels in drawn.values())
    edge = drawn["room_edge.png"]
    assert (np.ptp(edge, axis=2) <= 1).all(), "edges are grey"
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / "room.png"
    twin.write_bytes(picture.read_bytes())
    both = command("predict", "resnet20-ftn-r8-rooms", picture, twin, "--all-tasks", "-o", tmp_path / "out", status=2)
    assert "drawn under one name" in both
    message = command("predict", "resnet20-ftn-r8-rooms", picture, "--task", "depth", status=2)
    assert "name a folder for them: -o DIR" in message
    assert "Give --task or --all-tasks" in command("predict", "resnet20-ftn-r8-rooms", picture, status=2)
    rows = json.loads(command("predict", "resnet20-bn-shapes", picture, "--all-tasks", "--json"))
    assert [row["task"] for row in rows] == list(default_registry().entry("resnet20-bn-shapes").tasks)


def test_eval_tells_each_metric_in_its_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "TEST", 12)
    rows = json.loads(command("eval", "resnet20-ftn-r8-rooms", "--json"))
    assert [(row["task"], row["metric"]) for row in rows] == [(t, METRICS[k].name) for t, (k, _) in FOUR.items()]
    assert [row["unit"] for row in rows] == ["%", "%", "°", "m"]
    assert all(isinstance(row["value"], float) for row in rows)
    depth = json.loads(command("eval", "resnet20-ftn-r8-rooms", "--task", "depth", "--json"))
    assert depth == [{"task": "depth", "RMSE m": rows[3]["value"]}]


def test_outputs_that_are_not_finite_are_no_figure() -> None:
    class Diverged(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 3, 48, 64), torch.nan)

    data = get_benchmark("rooms").splits("normals", None)
    with pytest.raises(WeightsError, match="normals are not finite"):
        measure(Diverged(), data.test, Task.of("normals", 3, SIZE, "normals"))


def test_a_kind_has_so_many_outputs() -> None:
    for kind, outputs, message in (("depth", 3, "has 3 outputs, where the kind 'depth' has 1"), ("normals", 7, "has 3"),
                                   ("segmentation", 256, "1 to 255")):  # fmt: skip
        with pytest.raises(OptionError, match=message):
            Task.of("t", outputs, SIZE, kind)
        with pytest.raises(ConfigError, match=message):
            zoo.register("x", backbone="zoo/resnet20@shapes", method={"name": "bn"}, benchmark="rooms",
                         classes={"t": outputs}, kinds={"t": kind}, recipe="rooms/bn")  # fmt: skip


def test_ranks_are_not_chosen_by_metres(tmp_path: Path) -> None:
    arguments = ("train", "resnet20-ftn-r8-rooms", "--rank", "auto", "--task", "depth", "--out", tmp_path)
    assert "depth is measured in m" in command(*arguments, status=2)


def test_packaged_entries_see_what_is_there() -> None:
    """Better on one scene than what the mean of the training set would be, for each task."""
    seen = rooms.render("test", 1)
    model = load("resnet20-ftn-r8-rooms")
    image = torch.from_numpy(seen.image).permute(2, 0, 1)
    inputs = torch.stack([model.transforms(task)(image) for task in model.tasks])
    assert torch.equal(inputs[0], inputs[-1])
    with torch.no_grad():
        outputs = model(inputs[:1])
    depth = torch.from_numpy(seen.depth)
    assert (outputs["depth"][0, 0] - depth).abs().mean() < (depth - depth.mean()).abs().mean()
    assert (outputs["semseg"][0].argmax(0).numpy() == seen.classes).mean() > 0.6
    for a, b in itertools.pairwise(model.tasks):
        assert not torch.equal(outputs[a], outputs[b])
    assert zoo.load("resnet20-ftn-r8-rooms", task="depth", fuse=True)(inputs[:1]).shape == (1, 1, 48, 64)
