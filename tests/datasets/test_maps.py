"""Targets that are maps: under transforms, of rooms, of NYUD and of streets."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from tests.datasets import layouts
from tests.models.test_dense import FOUR, SIZE, command
from zoo.catalog import recipe
from zoo.datasets import get_benchmark
from zoo.datasets.dense import DepthMap, NormalMap, Zoom, target_map, zoomed
from zoo.datasets.streets import edges
from zoo.datasets.twins import rooms
from zoo.errors import DataError, UnknownNameError
from zoo.kinds import IGNORE
from zoo.training.batches import augmentations

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


# -- streets --------------------------------------------------------------------------------------------------------


def test_edges_of_labels_are_where_neighbours_differ_and_unknown_beside_what_has_no_class() -> None:
    labels = np.array([[0, 0, 1], [0, IGNORE, 1], [2, 2, 2]])
    assert edges(labels).tolist() == [[0, 1, 0], [1, IGNORE, 1], [0, 0, 0]]


@given(
    hnp.arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.sampled_from([0, 1, 2, IGNORE]))
)
def test_edges_are_what_a_look_at_each_pixel_finds(labels: Any) -> None:
    found = edges(labels)
    for (y, x), here in np.ndenumerate(labels):
        there = [
            labels[y + dy, x + dx] for dy, dx in ((0, 1), (1, 0)) if y + dy < len(labels) and x + dx < labels.shape[1]
        ]
        if here != IGNORE and any(other not in (here, IGNORE) for other in there):
            assert found[y, x] == 1
        else:
            assert found[y, x] == (IGNORE if IGNORE in (here, *there) else 0)


def test_streets_are_read_with_what_has_no_class_left_out(tmp_path: Path) -> None:
    root, benchmark = layouts.streets(tmp_path), get_benchmark("streets")
    image, target = benchmark.splits("semseg", root).train[0]
    assert target.shape == image.size[::-1]
    assert target.unique().tolist() == [0, 3, IGNORE]
    _, edge = benchmark.splits("edge", root).test[1]
    assert (edge[4:] == 1).nonzero()[:, 1].unique().tolist() == [layouts.WIDTH // 2 - 1]
    assert (edge[:4] == IGNORE).all()


def test_labels_of_streets_that_are_wrong_are_named(tmp_path: Path) -> None:
    root, benchmark = layouts.streets(tmp_path), get_benchmark("streets")
    file = root / "train" / "labels" / "frame_0.png"
    for wrong, said in (
        (np.full((layouts.HEIGHT, layouts.WIDTH), 12, np.uint8), "label 12"),
        (np.zeros((3, 4), np.uint8), "has 3×4 pixels, but its image"),
        (np.zeros((layouts.HEIGHT, layouts.WIDTH, 3), np.uint8), "a picture in colours"),
    ):
        Image.fromarray(wrong).save(file)
        with pytest.raises(DataError, match=rf"frame_0\.png .*{said}"):
            benchmark.splits("semseg", root).train[0]
    file.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"frame_0\.png cannot be read"):
        benchmark.splits("semseg", root).train[0]
    for image in (root / "test" / "images").iterdir():
        image.unlink()
    with pytest.raises(DataError, match="holds no image"):
        benchmark.splits("semseg", root)
