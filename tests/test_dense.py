"""Dense tasks: decoders as heads, losses, metrics, maps under transforms, all tasks in one pass, pictures."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from zoo.export import run, session, to_onnx

import zoo
from tests import layouts
from tests.conftest import disturb, equal
from zoo import recipe
from zoo.backbones import build
from zoo.backbones.deeplab import deeplab, deeplab_resnet20
from zoo.cli import main
from zoo.datasets import get_benchmark, open_image, rooms
from zoo.datasets.dense import DepthMap, NormalMap, Zoom, target_map, zoomed
from zoo.errors import ConfigError, DataError, OptionError, UnknownNameError, WeightsError
from zoo.evaluation import measure
from zoo.kinds import IGNORE, get_kind
from zoo.kinds.boundaries import ODSF, matches
from zoo.loader import load
from zoo.model import TaskModel
from zoo.placement import Placement
from zoo.registry import default_registry
from zoo.task import METRICS, Preprocessing, Task
from zoo.training import augmentations

RECIPE = recipe.load_recipe("rooms/ftn")
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
            found = model(images, task)
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
    model(torch.randn(2, 3, 16, 16), "depth").square().mean().backward()
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
            found[route] = model(images, "semseg")
    torch.testing.assert_close(found["folded"], found["factored"], rtol=1e-4, atol=1e-4)


def test_a_head_may_be_any_module_that_holds_layers() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 9, 1))
    )
    model = TaskModel(network, "bn", placement=Placement(head="1"))
    model.add_task(Task.of("few", 2))
    assert model(torch.randn(1, 3, 8, 8), "few").shape == (1, 2, 4, 4)
    assert torch.equal(model.task_tensors("few")["1.0.weight"], network[1].make.args[0][0].weight)  # type: ignore
    up = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 9, 2, 2)))
    model = TaskModel(up, "bn", placement=Placement(head="1"))
    model.add_task(Task.of("few", 2))
    assert model(torch.randn(1, 3, 8, 8), "few").shape == (1, 2, 12, 12)
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
        four_tasks()(torch.randn(1, 3, 3, 9), "depth")
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


# -- losses ---------------------------------------------------------------------------------------------------------


def test_losses_are_those_of_plain_torch() -> None:
    torch.manual_seed(0)
    outputs, labels = torch.randn(2, 5, 6, 7), torch.randint(0, 5, (2, 6, 7))
    labels[0, :2] = IGNORE
    loss = get_kind("segmentation").loss(outputs, labels, RECIPE)
    torch.testing.assert_close(loss, F.cross_entropy(outputs, labels, ignore_index=IGNORE))

    one, edges = torch.randn(2, 1, 6, 7), torch.randint(0, 2, (2, 6, 7))
    edges[1, 0] = IGNORE
    p, known = one[:, 0].sigmoid(), edges != IGNORE
    each = torch.where(edges == 1, -0.95 * p.log(), -0.05 * (1 - p).log())[known]
    torch.testing.assert_close(get_kind("edges").loss(one, edges, RECIPE), each.mean())

    metres = torch.rand(2, 1, 6, 7) + 0.5
    metres[0, 0, 0, :3] = torch.tensor([0.0, float("inf"), float("nan")])
    valid = metres.isfinite() & (metres > 0)
    torch.testing.assert_close(get_kind("depth").loss(one, metres, RECIPE), (one[valid] - metres[valid]).abs().mean())

    vectors, normals = torch.randn(2, 3, 6, 7), F.normalize(torch.randn(2, 3, 6, 7), dim=1)
    normals[0, :, 0] = 0
    valid = normals.norm(dim=1) > 0.5
    error = (vectors / vectors.norm(dim=1, keepdim=True) - normals).abs().movedim(1, -1)[valid]
    torch.testing.assert_close(get_kind("normals").loss(vectors, normals, RECIPE), error.mean())


@pytest.mark.parametrize(("kind", "target"), [
    ("segmentation", torch.full((2, 4, 4), IGNORE)), ("edges", torch.full((2, 4, 4), IGNORE)),
    ("depth", torch.zeros(2, 1, 4, 4)), ("depth", torch.full((2, 1, 4, 4), float("inf"))),
    ("normals", torch.zeros(2, 3, 4, 4)),
])  # fmt: skip
def test_a_target_that_is_all_ignored_gives_no_loss_and_no_gradient(kind: str, target: Tensor) -> None:
    outputs = torch.randn(2, {"segmentation": 5, "normals": 3}.get(kind, 1), 4, 4, requires_grad=True)
    known = get_kind(kind)
    loss = known.loss(outputs, target, RECIPE)
    loss.backward()
    assert loss.item() == 0
    assert outputs.grad is not None
    assert not outputs.grad.any()
    meter = known.meter(5)
    meter.update(*known.compared(outputs.detach(), target))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics', of a mean of nothing
        if kind != "edges":
            with pytest.raises(DataError, match="nothing to measure"):
                known.figure(meter)


# -- metrics --------------------------------------------------------------------------------------------------------


def figure(kind: str, outputs: Tensor, targets: Tensor, classes: int = 1) -> float:
    known = get_kind(kind)
    meter = known.meter(classes).set_dtype(torch.float64)
    for output, target in zip(outputs.split(1), targets.split(1), strict=True):  # image by image
        meter.update(*known.compared(output, target))
    return known.figure(meter)


def test_miou_is_counted_over_the_whole_set() -> None:
    targets = torch.tensor([[[0, 0, 1, 1]], [[0, 2, 2, IGNORE]]])
    predicted = torch.tensor([[[0, 1, 1, 1]], [[0, 2, 0, 2]]])
    outputs = F.one_hot(predicted, 4).movedim(-1, 1).float()
    # class 0: 2 of {3 true, 3 predicted} = 2/4; class 1: 2/3; class 2: 1/2; class 3 is nowhere
    assert figure("segmentation", outputs, targets, 4) == pytest.approx(100 * np.mean([2 / 4, 2 / 3, 1 / 2]))


def test_rmse_is_over_all_valid_pixels() -> None:
    targets = torch.tensor([[[[1.0, 2.0, 0.0]]], [[[4.0, float("inf"), 1.0]]]])
    outputs = torch.tensor([[[[1.5, 2.0, 9.0]]], [[[2.0, 9.0, 1.0]]]])
    assert figure("depth", outputs, targets) == pytest.approx(((0.25 + 0 + 4 + 0) / 4) ** 0.5)


def test_the_mean_angle_is_exact_for_small_and_large_ones() -> None:
    tiny = 1e-4
    targets = torch.tensor([[0.0, 0, 1], [0, 0, 1], [0, 0, 1], [0, 1, 0], [0, 0, 0]]).T.view(1, 3, 1, 5)
    outputs = torch.tensor([[0.0, 0, 7], [3**0.5, 0, 1], [tiny, 0, 1], [0, -2, 0], [1, 1, 1]]).T.view(1, 3, 1, 5)
    assert figure("normals", outputs, targets) == pytest.approx((0 + 60 + np.rad2deg(tiny) + 180) / 4, rel=1e-6)


def test_pixels_are_matched_as_an_optimal_assignment_matches_them() -> None:
    draw = np.random.default_rng(0)
    for radius in (1.0, 1.5, 2.5, 4.0):
        found, true = (draw.uniform(size=(12, 15)) < 0.25 for _ in range(2))
        a, b = np.argwhere(found), np.argwhere(true)
        near = np.hypot(*(a[:, None] - b[None]).transpose(2, 0, 1)) <= radius
        rows, columns = linear_sum_assignment(~near)
        assert matches(found, true, radius) == near[rows, columns].sum()
    assert matches(np.zeros((3, 3), bool), np.ones((3, 3), bool), 2) == 0


def odsf(probabilities: np.ndarray, true: np.ndarray, **options: float) -> float:
    meter = ODSF(**options)
    meter.update(torch.from_numpy(probabilities)[None], torch.from_numpy(true)[None])
    return float(meter.compute())


def test_odsf_of_cases_with_known_answers() -> None:
    true = np.zeros((40, 60), np.int64)
    true[:, 20] = 1  # 40 pixels
    line = true.astype(np.float64)
    assert odsf(0.8 * line, true) == 1
    assert odsf(np.roll(line, 1, 1), true) == 1  # a pixel off: 0.011 of the diagonal is 0.8, but neighbours may match
    assert odsf(np.roll(line, 3, 1), true) == 0
    assert odsf(np.roll(line, 3, 1), true, tolerance=0.05) == 1  # 3.6 pixels
    assert odsf(np.zeros_like(line), true) == 0
    half = line.copy()
    half[20:] = 0
    assert odsf(half, true) == pytest.approx(2 * 1 * 0.5 / 1.5)  # precision 1, recall 1/2
    both = np.maximum(line, np.roll(line, 20, 1))
    assert odsf(both, true) == pytest.approx(2 * 0.5 * 1 / 1.5)  # precision 1/2, recall 1
    wrong = np.maximum(line, 0.3 * np.roll(line, 20, 1))
    assert odsf(wrong, true) == 1  # at the best threshold the weaker line is gone
    thick = np.maximum.reduce([np.roll(line, i, 1) for i in (-1, 0, 1)])
    assert odsf(thick, true) > 0.95  # thinned to a line; its ends may lose a pixel
    ignored = true.copy()
    ignored[:, 39:42] = IGNORE
    assert odsf(np.maximum(line, np.roll(line, 20, 1)), ignored) == 1  # what is found where nothing is known is dropped


def test_the_best_threshold_is_the_data_sets_not_the_images() -> None:
    true = np.zeros((2, 20, 20), np.int64)
    true[:, :, 5] = 1
    false = np.roll(true, 8, 2)
    first, second = 0.9 * true[0] + 0.5 * false[0], 0.4 * true[1] + 0.0 * false[1]
    meter = ODSF()
    meter.update(torch.from_numpy(np.stack([first, second])), torch.from_numpy(true))
    # at 0.4 both true lines and a false one: P 2/3, R 1; above 0.5 one line of two: P 1, R 1/2
    assert float(meter.compute()) == pytest.approx(0.8)


# -- maps under transforms ------------------------------------------------------------------------------------------


def coded(height: int = 30, width: int = 40) -> tuple[tv_tensors.Image, Tensor]:
    """An image whose colour tells the label of each pixel, and the labels."""
    labels = torch.zeros(height, width, dtype=torch.int64)
    labels[height // 3 :, width // 4 :], labels[: height // 2, width // 2 :] = 1, 2
    return tv_tensors.Image((labels * 100).to(torch.uint8).expand(3, -1, -1).clone()), labels


def test_a_zoom_keeps_labels_labels_and_on_their_pixels() -> None:
    torch.manual_seed(0)
    image, labels = coded()
    transform = v2.Compose([*zoomed((0.5, 2.0), (24, 32)), v2.RandomHorizontalFlip()])
    seen = set()
    for _ in range(20):
        picture, found = transform(image, tv_tensors.Mask(labels))
        assert picture.shape[-2:] == found.shape == (24, 32)
        assert set(found.unique().tolist()) <= {0, 1, 2, IGNORE}
        assert not picture[:, found == IGNORE].any(), "beyond the border nothing is shown and nothing is known"
        known = found != IGNORE
        right = (picture[0].float() / 100).round() == found
        assert right[known].float().mean() > 0.9  # but where the picture blends two colours
        seen.add(bool((~known).any()))
    assert seen == {True, False}


def test_a_zoom_divides_depths_and_leaves_normals_at_length_one() -> None:
    torch.manual_seed(0)
    image, _ = coded()
    depth, normals = (
        DepthMap(torch.full((1, 30, 40), 6.0)),
        NormalMap(torch.tensor([0.6, 0.0, 0.8]).view(3, 1, 1).expand(3, 30, 40)),
    )
    zoom = Zoom(1.5, 1.5)
    picture, metres, directions = zoom(image, depth, normals)
    assert picture.shape[-2:] == metres.shape[-2:] == (45, 60)
    torch.testing.assert_close(metres.as_subclass(Tensor), torch.full((1, 45, 60), 4.0))
    torch.testing.assert_close(directions.norm(dim=0).as_subclass(Tensor), torch.ones(45, 60))
    assert isinstance(metres, DepthMap)
    padded = zoomed((0.5, 0.5), (30, 40))
    _, metres, directions = v2.Compose(padded)(image, depth, normals)
    assert set(metres.unique().tolist()) == {0.0, 12.0}
    assert {round(x, 4) for x in directions.norm(dim=0).unique().tolist()} == {0.0, 1.0}


def test_a_mirror_turns_normals_round() -> None:
    normals = NormalMap(torch.randn(3, 4, 5))
    mirrored = v2.RandomHorizontalFlip(p=1)(normals)
    assert isinstance(mirrored, NormalMap)
    torch.testing.assert_close(mirrored[0].as_subclass(Tensor), -normals[0].flip(-1).as_subclass(Tensor))
    torch.testing.assert_close(mirrored[1:].as_subclass(Tensor), normals[1:].flip(-1).as_subclass(Tensor))


def test_training_and_test_transforms_treat_images_and_targets_together() -> None:
    image, labels = coded(50, 70)
    for transform in (SIZE.transform(), SIZE.transform(augmentations(recipe.load_recipe("nyud/ftn").augment, SIZE))):
        picture, found = transform(image, tv_tensors.Mask(labels))
        assert type(picture) is type(found) is Tensor
        assert (picture.dtype, found.dtype) == (torch.float32, torch.int64)
        assert picture.shape == (3, 48, 64)
        assert found.shape == (48, 64)


def test_targets_that_do_not_fit_are_named() -> None:
    fine = torch.zeros(4, 6, dtype=torch.int64)
    assert target_map(fine, "segmentation", 3, (4, 6), "x.png").dtype == torch.int64
    for values, kind, message in (
        (fine[:, :5], "segmentation", "x.png has 4×5 pixels, but its image 4×6"),
        (fine + 3, "segmentation", "x.png has the label 3, where 0 to 2 and 255"),
        (fine - 1, "segmentation", "has the label -1"),
        (fine + 2, "edges", "has the value 2, where 0, 1"),
        (fine[None].float().expand(2, 4, 6), "normals", r"shape \(2, 4, 6\), where a map of vectors"),
        (fine.float(), "depth", r"where a map of metres \(1, H, W\) is needed"),
    ):
        with pytest.raises(DataError, match=message):
            target_map(values, kind, 3, (4, 6), "x.png")


# -- data -----------------------------------------------------------------------------------------------------------


def test_a_scene_is_the_same_on_every_machine() -> None:
    views = [rooms.render("test", i) for i in range(8)]
    exact = hashlib.sha256(b"".join(v.classes.tobytes() + v.edges.tobytes() for v in views)).hexdigest()
    assert exact[:16] == ROOMS_GOLDEN
    mean = np.mean([v.image.mean() for v in views])
    assert mean == pytest.approx(ROOMS_MEAN, abs=0.05)  # the last digit of a colour may depend on the processor


ROOMS_GOLDEN, ROOMS_MEAN = "064abadd953ce009", 111.69


@pytest.mark.parametrize("index", range(6))
def test_depth_and_normals_of_a_scene_are_its_geometry(index: int) -> None:
    """Pixels carried back into the room lie where their class says, and flat things face as their neighbours tell."""
    rng = np.random.RandomState([0, index])
    scene = rooms.draw(rng)
    seen = rooms.view(scene, rng)
    x, y = np.meshgrid(np.arange(64) + 0.5 - 32, 24 - np.arange(48) - 0.5)
    camera = np.stack([x / 51.2, y / 51.2, np.ones_like(x)], 2) * seen.depth[..., None]
    points = camera @ scene.axes + scene.camera
    floor, ceiling = (np.isin(seen.classes, kinds) for kinds in ([rooms.FLOOR, rooms.RUG], [rooms.CEILING]))
    assert np.abs(points[floor][:, 1]).max(initial=0) < 1e-4
    assert np.abs(points[ceiling][:, 1] - scene.size[1]).max(initial=0) < 1e-4
    assert (np.abs(points[..., 0]) <= scene.size[0] / 2 + 1e-4).all()
    np.testing.assert_allclose(np.linalg.norm(seen.normals, axis=2), 1, atol=1e-5)

    across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
    facing = np.cross(across, down)
    facing = facing / np.linalg.norm(facing, axis=2, keepdims=True) @ scene.axes.T * [1, 1, -1]
    near_edges = np.lib.stride_tricks.sliding_window_view(seen.edges, (3, 3)).any((2, 3))
    flat = ~near_edges & ~np.isin(seen.classes[1:-1, 1:-1], [rooms.BALL, rooms.PILLAR])
    flat &= (
        np.lib.stride_tricks.sliding_window_view(np.isin(seen.classes, [rooms.BALL, rooms.PILLAR]), (3, 3)).sum((2, 3))
        == 0
    )
    agreement = np.abs((facing * seen.normals[1:-1, 1:-1]).sum(2))[flat]
    assert len(agreement) > 200
    assert agreement.min() > 0.999


def test_rooms_as_a_benchmark() -> None:
    benchmark = get_benchmark("rooms")
    assert benchmark.tasks(None) == tuple(FOUR)
    assert len(rooms.CLASSES) >= 8
    seen = {label for i in range(30) for label in np.unique(rooms.render("train", i).classes)}
    assert seen == set(range(len(rooms.CLASSES)))
    shapes = {task: benchmark.splits(task, None).test[3][1].shape for task in FOUR}
    assert shapes == {"edge": (48, 64), "semseg": (48, 64), "normals": (3, 48, 64), "depth": (1, 48, 64)}
    with pytest.raises(UnknownNameError, match="depth"):
        benchmark.splits("depths", None)


def test_nyud_is_read_in_both_of_its_forms(tmp_path: Path) -> None:
    root, benchmark = layouts.nyud(tmp_path), get_benchmark("nyud")
    for task, shape in (("edge", ()), ("semseg", ()), ("normals", (3,)), ("depth", (1,))):
        splits = benchmark.splits(task, root)
        assert (len(splits.train), len(splits.test)) == (3, 2)  # type: ignore[arg-type]
        for i in range(2):  # .png, .mat, .jpg and then .npy, .png
            image, target = splits.train[i]
            assert target.shape == (*shape, *image.size[::-1])
            if task == "edge":
                assert target.sum() == image.height
            elif task == "semseg":
                assert set(target.unique().tolist()) <= {*range(40), IGNORE}
                assert (target == IGNORE).any()
            elif task == "normals":
                half = image.height // 2
                assert not target[:, half + 4 :].any()  # unknown there, whatever JPEG made of it
                torch.testing.assert_close(
                    target[:, : half - 4].mean((1, 2)).as_subclass(Tensor),
                    torch.tensor([0.6, 0.0, 0.8]),
                    atol=0.02,
                    rtol=0,
                )
            else:
                assert 0.5 <= float(target.min()) <= float(target.max()) <= 9


def test_nyuds_counts_are_held_against_the_release(tmp_path: Path) -> None:
    output = command("data", "check", "nyud", "--data-root", layouts.nyud(tmp_path), "--decode", status=1)
    assert "semseg: classes, train, test should be 40, 795, 654 (NYUD-MT)" in output


def test_nyud_with_something_wrong_is_named(tmp_path: Path) -> None:
    root, benchmark = layouts.nyud(tmp_path), get_benchmark("nyud")
    np.save(root / "depth" / "train_0001.npy", np.ones((3, 4), np.float32))
    with pytest.raises(DataError, match=r"train_0001\.npy has 3×4 pixels, but its image 40×48"):
        benchmark.splits("depth", root).train[1]
    Image.fromarray(np.full((layouts.HEIGHT, layouts.WIDTH), 41, np.uint8)).save(
        root / "segmentation" / "train_0001.png"
    )
    with pytest.raises(DataError, match="label 40"):
        benchmark.splits("semseg", root).train[1]
    np.save(root / "depth" / "train_0001.npy", np.ones((layouts.HEIGHT, layouts.WIDTH), np.uint16))
    with pytest.raises(DataError, match="whole numbers, uint16, where metres"):
        benchmark.splits("depth", root).train[1]
    np.save(root / "normals" / "train_0001.npy", np.ones((3, layouts.HEIGHT, layouts.WIDTH), np.float32))
    with pytest.raises(DataError, match=r"\(3, 40, 48\), where vectors \(H, W, 3\)"):
        benchmark.splits("normals", root).train[1]
    edge = np.zeros((layouts.HEIGHT, layouts.WIDTH), np.uint8)
    edge[2] = 1
    np.save(root / "edge" / "train_0001.npy", edge)
    assert benchmark.splits("edge", root).train[1][1].sum() == layouts.WIDTH
    (root / "depth" / "train_0000.mat").write_bytes(b"no matlab")
    with pytest.raises(DataError, match=r"train_0000\.mat cannot be read"):
        benchmark.splits("depth", root).train[0]
    np.save(root / "edge" / "train_0001.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(DataError, match=r"train_0001\.npy cannot be read .*allow_pickle"):
        benchmark.splits("edge", root).train[1]
    (root / "edge" / "train_0000.png").unlink()
    with pytest.raises(DataError, match=r"(?s)train_0000\.png.*Expected layout"):
        benchmark.splits("edge", root)
    (root / "gt_sets" / "val.txt").write_text("../../secret\n")
    with pytest.raises(DataError, match="leaves the folder"):
        benchmark.splits("depth", root)


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


# -- all tasks in one pass ------------------------------------------------------------------------------------------


def together_and_apart(model: TaskModel, images: Tensor) -> None:
    with torch.no_grad():
        apart = {task: model(images, task) for task in model.tasks}
        first, together = model(images), model(images)  # the first time takes both ways and compares
    assert tuple(first) == tuple(together) == model.tasks
    assert all(torch.equal(first[task], apart[task]) for task in apart)
    for task, found in together.items():
        torch.testing.assert_close(found, apart[task], rtol=1e-5, atol=1e-5 * float(apart[task].abs().max()))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("method", "options"),
    [("features", {}), ("bn", {}), ("ftn", {"rank": 3, "route": "factored"}), ("ftn", {"rank": 3, "route": "folded"}),
     ("ftn", {"rank": 3}), ("series", {}), ("parallel", {}), ("finetune", {})],
)  # fmt: skip
def test_one_pass_gives_what_a_pass_for_each_task_gives(method: str, options: dict[str, object], batch: int) -> None:
    model = four_tasks(method, None, **options)
    together_and_apart(model, torch.randn(batch, 3, 21, 30))
    assert list(model._stacks.values()) == [True], "it fell back to a pass for each task"


def test_one_pass_where_tasks_part_late_or_differ_in_rank() -> None:
    torch.manual_seed(0)
    layers = Placement(layers=["encoder.layer3.*"], norms=["encoder.layer3.*"])
    for route in ("folded", "factored"):
        model = TaskModel(deeplab_resnet20(), "ftn", {"rank": 2, "route": route}, layers)
        for task, rank in (("a", 2), ("b", 5), ("c", 2)):
            model.add_task(Task.of(task, 2), {"rank": rank})
            disturb(model, task)
        together_and_apart(model, torch.randn(1, 3, 16, 16))
        calls: list[int] = []
        model.backbone.encoder.layer1.register_forward_hook(lambda _, __, y, calls=calls: calls.append(len(y)))  # type: ignore
        with torch.no_grad():
            model(torch.randn(1, 3, 16, 16))
        assert calls == [1], "what the tasks share is run once"
        together_and_apart(model, torch.randn(2, 3, 16, 16))


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "resnet18", "deit_tiny_distilled_patch16_224"]
)
def test_any_network_answers_for_all_tasks(name: str) -> None:
    """Those that cannot be stacked take a pass for each task; a classifier's logits may differ in number."""
    torch.manual_seed(0)
    method, options = ("bn", {}) if name == "resnet18" else ("lora", {"rank": 2})
    model = TaskModel(timm.create_model(name), method, options)
    for task, classes in (("a", 3), ("b", 5), ("c", 3), ("d", 2)):
        model.add_task(Task.of(task, classes))
        disturb(model, task)
    for batch in (1, 2):
        together_and_apart(model, torch.randn(batch, 3, 224, 224))


def test_one_pass_has_the_gradients_of_a_pass_for_each_task() -> None:
    model, images = four_tasks("ftn", None, rank=2).double(), torch.randn(2, 3, 16, 24).double()
    model(images)
    assert list(model._stacks.values()) == [True]
    gradients = []
    for one_pass in (True, False):
        model.zero_grad()
        outputs = model(images) if one_pass else {task: model(images, task) for task in model.tasks}
        sum(output.square().mean() for output in outputs.values()).backward()  # type: ignore[union-attr]
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


def test_an_error_of_the_images_comes_through_and_does_no_harm() -> None:
    model = four_tasks()
    with pytest.raises(RuntimeError):
        model(torch.randn(1, 4, 16, 16))
    assert not model._stacks
    together_and_apart(model, torch.randn(1, 3, 16, 16))
    assert list(model._stacks.values()) == [True]


class Mixing(nn.Module):
    """A network that does something with its features before the head."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head, self.how = Gathering(), how

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.stem(x))
        if self.how == "rows":
            y = y.reshape(len(x), 4, -1).mean(2)[:, :, None, None]
        elif self.how == "loop":
            y = torch.stack([y[i] for i in range(len(x))])
        elif self.how == "batch":
            y = y / y.abs().amax(0)
        elif self.how == "check":
            assert len(y) == len(x)
        found: Tensor = self.head([y, 2 * y], scale=0.5)
        return found


class Gathering(nn.Module):
    """A head that takes a list of features, and something by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 5, 3, padding=2, dilation=2)

    def forward(self, features: list[Tensor], *, scale: float) -> Tensor:
        found: Tensor = scale * self.layer(torch.cat(features, 1))
        return found


@pytest.mark.parametrize(("how", "stacks"), [
    ("none", True), ("rows", False), ("loop", False), ("batch", False), ("check", False),
])  # fmt: skip
def test_one_pass_is_taken_where_it_is_right_alone(how: str, stacks: bool) -> None:
    torch.manual_seed(0)
    model = TaskModel(Mixing(how), "bn", placement=Placement(head="head"))
    for task in ("a", "b", "c"):
        model.add_task(Task.of(task, 2))
        disturb(model, task)
    for size in ((2, 3, 8, 8), (1, 3, 7, 9), (3, 3, 8, 8)):
        together_and_apart(model, torch.randn(size))
    assert set(model._stacks.values()) <= {stacks, True}
    assert (False in model._stacks.values()) is not stacks
    assert model(torch.randn(2, 3, 8, 8), "a").shape == (2, 2, *((1, 1) if how == "rows" else (8, 8)))


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
    return result.output


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
