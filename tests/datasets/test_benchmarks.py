"""The papers' benchmarks, on small folders in their real layouts."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.utils.data import default_collate

from tests.datasets import layouts
from zoo.catalog.registry import default_registry
from zoo.cli.base import main
from zoo.datasets import BENCHMARKS, get_benchmark
from zoo.datasets.base import PublishedBenchmark
from zoo.datasets.decathlon import Decathlon
from zoo.datasets.domainnet import DomainNet
from zoo.datasets.sketch import CUB200, TUBerlin, WikiArt
from zoo.errors import DataError, UnknownNameError

PAPERS = sorted(name for name, benchmark in BENCHMARKS.items() if isinstance(benchmark, PublishedBenchmark))


@pytest.fixture(params=PAPERS)
def benchmark(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    return request.param, layouts.shared(request.param, monkeypatch)


def test_every_task_loads_with_the_classes_of_the_registry(benchmark: tuple[str, Path]) -> None:
    name, root = benchmark
    registry = default_registry()
    entries = [registry.entry(n) for n in registry.names() if registry.entry(n).benchmark == name]
    assert entries or name in {registry.backbone(n).benchmark for n in registry.backbones()}  # type: ignore[union-attr]
    for task in get_benchmark(name).tasks(root):
        splits = get_benchmark(name).splits(task, root)
        assert {entry.classes[task] for entry in entries if task in entry.tasks} <= {len(splits.classes)}
        image, label = splits.test[0]
        if task == "celeba":
            assert label.shape == (len(splits.classes),)
        elif isinstance(label, torch.Tensor):  # a map; test_maps.py looks at what it holds
            assert label.shape[-2:] == (image.height, image.width)
        else:
            labels = [splits.train[i][1] for i in range(len(splits.train))]  # type: ignore[arg-type]
            assert max(labels) == (0 if name == "seasons" else len(splits.classes) - 1)  # pictures to be made have none
        if name == "ucf11":
            assert (image.shape[:2], image.dtype) == ((190, 3), torch.uint8)
        else:
            assert image.mode == ("L" if task in ("fer2013", "odd", "even", "mnist") else "RGB")
        real = task in ("depth", "normals", "celeba")
        assert default_collate([label]).dtype == (torch.float32 if real else torch.int64)
    with pytest.raises(UnknownNameError, match=task):
        get_benchmark(name).splits(f"{task}x", root)


def test_splits_are_those_of_the_publishers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = layouts.sketch(tmp_path, monkeypatch)
    found = {task: get_benchmark("sketch").splits(task, root) for task in get_benchmark("sketch").tasks(root)}
    counts = {task: (len(s.train), len(s.test)) for task, s in found.items()}  # type: ignore[arg-type]
    assert counts == {"flowers": (104, 4), "wikiart": (195, 3), "sketch": (253, 1), "cars": (196, 3), "cub": (200, 3)}
    assert TUBerlin(root, "test").items[0][0].name == "5.png"
    for task in ("cars", "cub"):  # cropped to the right half, which is the brighter one
        image, _ = found[task].train[0]
        assert image.size == (layouts.WIDTH // 2, layouts.HEIGHT)
        assert np.asarray(image).std() < 5
    for kind in (CUB200, WikiArt, TUBerlin):
        assert kind(root, "train", transform=np.asarray)[0][0].shape[2] == 3


def test_a_class_that_a_domain_lacks_keeps_its_number(tmp_path: Path) -> None:
    root = layouts.domainnet(tmp_path)
    painting, real = DomainNet(root, "painting"), DomainNet(root, "real")
    assert painting.classes == real.classes
    assert painting.classes[327] == "class_327"
    assert 327 not in {label for _, label in painting.items}
    assert painting.items[327][1] == 328


def test_the_joint_task_is_the_six_domains(tmp_path: Path) -> None:
    root = layouts.domainnet(tmp_path)
    joint = get_benchmark("domainnet_joint").splits("all", root)
    assert len(joint.train) == 6 * 345 - 1  # type: ignore[arg-type]
    assert {name: len(images) for name, images in joint.parts.items()} == dict.fromkeys(  # type: ignore[arg-type]
        get_benchmark("domainnet").tasks(root), 3
    )


def test_annotations_are_joined_by_id_and_stay_in_their_folder(tmp_path: Path) -> None:
    root = layouts.decathlon(tmp_path)
    file = root / "annotations" / "dtd_train.json"
    data = json.loads(file.read_text())
    data["annotations"].reverse()
    file.write_text(json.dumps(data))
    assert [label for _, label in Decathlon(root, "dtd").items] == list(range(47))
    data["categories"][1]["name"] = data["categories"][0]["name"]
    file.write_text(json.dumps(data))
    assert len(set(Decathlon(root, "dtd").classes)) == 47
    for name, word in (("../../dtd/../../../etc/passwd", "leaves the folder"), ("elsewhere/1.jpg", "no folder 'dtd'")):
        data["images"][0]["file_name"] = name
        file.write_text(json.dumps(data))
        with pytest.raises(Exception, match=word):
            Decathlon(root, "dtd")
    del data["annotations"]
    file.write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"dtd_train\.json is not a COCO annotation.*annotations"):
        Decathlon(root, "dtd")


NEEDED = {  # a part of the folder, and the task that cannot do without
    "sketch": [
        ("flowers-102/setid.mat", "flowers"), ("stanford_cars/devkit/cars_meta.mat", "cars"), ("tu_berlin", "sketch"),
        ("CUB_200_2011/bounding_boxes.txt", "cub"), ("wikiart/test", "wikiart"),
    ],
    "domainnet": [("real_test.txt", "real")],
    "domainnet_joint": [("real_test.txt", "all")],
    "decathlon": [("annotations/svhn_val.json", "svhn")],
    "clip5": [
        ("cifar-10-batches-bin/test_batch.bin", "cifar10"), ("cifar-100-binary/train.bin", "cifar100"),
        ("fer2013/fer2013.csv", "fer2013"), ("dtd/dtd", "dtd"), ("stl10_binary/train_y.bin", "stl10"),
    ],
    "places": [("val_256", "places365"), ("places365_val.txt", "places365")],
    "decathlon_imagenet": [("annotations/imagenet12_val.json", "imagenet12")],
    "nyud": [("gt_sets/val.txt", "edge"), ("depth/val_0000.mat", "depth"), ("images/train_0002.jpg", "semseg")],
    "mnist_odd_even": [("MNIST/raw/train-labels-idx1-ubyte", "odd"), ("MNIST/raw/t10k-images-idx3-ubyte", "even")],
    "omniglot5": [("omniglot-py/images_background", "a"), ("omniglot-py/images_evaluation", "a")],
    "omniglot_mnist": [("omniglot-py/images_evaluation", "omniglot"), ("MNIST/raw/t10k-labels-idx1-ubyte", "mnist")],
    "cifar10_3": [
        ("cifar-10-batches-bin/test_batch.bin", "objects"), ("cifar-10-batches-bin/batches.meta.txt", "others"),
    ],
    "ucf11": [("action_youtube_naudio/diving", "five")],
    "officehome": [("OfficeHomeDataset_10072016/Real World", "real_world")],
    "pictures": [("birds/test", "birds"), ("things", "things")],
    "emoji": [("noto/train", "noto")],
    "streets": [("test/images", "semseg"), ("train/labels/frame_1.png", "edge")],
    "seasons": [
        ("annotations/annotations.tsv", "winter"), ("annotations/attributes.txt", "summer"),
        ("imageAlignedLD", "autumn"), ("imageAlignedLD/00000003/3.jpg", "winter"),
    ],
    "adience_celeba": [("adience/fold_3_data.txt", "adience"), ("celeba/img_align_celeba", "celeba")],
}  # fmt: skip


@pytest.mark.parametrize("name", PAPERS)
def test_what_is_missing_is_named_with_the_layout_and_the_source(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = layouts.make(name, tmp_path, monkeypatch)
    for part, task in NEEDED[name]:
        path = root / part
        shutil.move(path, root / "away")
        with pytest.raises(DataError) as caught:
            get_benchmark(name).splits(task, root)
        shutil.move(root / "away", path)
        assert str(caught.value).startswith(f"There is no {path}")
        assert f"Expected layout:\n  {root}/" in str(caught.value)
        assert "://" in str(caught.value)
    for missing in (None, root / "none"):
        with pytest.raises(DataError, match="://"):
            get_benchmark(name).splits(task, missing)


def test_lists_that_are_wrong_are_named_with_the_line(tmp_path: Path) -> None:
    root = layouts.domainnet(tmp_path)
    good = (root / "real_train.txt").read_text()
    for line, message in (("real/axe.jpg", "line 346"), ("real/axe/a.jpg x", "not the number"),
                          ("real/axe/a.jpg 3", "calls class 3 'axe'")):  # fmt: skip
        (root / "real_train.txt").write_text(good + line + "\n")
        with pytest.raises(DataError, match=message):
            DomainNet(root, "real")


def test_images_travel_to_loading_processes(benchmark: tuple[str, Path]) -> None:
    """Where processes are spawned and not forked, the data set is pickled to them."""
    name, root = benchmark
    for task in get_benchmark(name).tasks(root):
        train = get_benchmark(name).splits(task, root).train
        again, target = pickle.loads(pickle.dumps(train))[0][1], train[0][1]
        assert torch.equal(torch.as_tensor(again), torch.as_tensor(target))


def test_piggybacks_split_of_the_sketches_is_used_where_it_is(tmp_path: Path) -> None:
    for split, numbers in (("train", (1, 3)), ("test", (2,))):
        for number in numbers:
            layouts.put(tmp_path / "tu_berlin" / split / "airplane" / f"{number}.png")
    assert [path.name for path, _ in TUBerlin(tmp_path, "train").items] == ["1.png", "3.png"]
    assert [path.name for path, _ in TUBerlin(tmp_path, "test").items] == ["2.png"]


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("image_class_labels", "201 999", "do not fit each other.*999"),
        ("image_class_labels", "201 bird", "do not fit each other.*bird"),
        ("bounding_boxes", "201 1 2 3 wide", "do not fit each other.*wide"),
        ("images", "201 ../../secret.jpg", "leaves the folder"),
        ("train_test_split", "900 0", "do not fit each other.*900"),
        ("classes", "7", "line .* has not the 2 fields"),
    ],
)
def test_each_mistake_in_the_lists_of_birds_is_named(tmp_path: Path, file: str, line: str, message: str) -> None:
    layouts.cub(tmp_path)
    path = tmp_path / "CUB_200_2011" / f"{file}.txt"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=message):
        CUB200(tmp_path, "test")


def test_folders_without_classes_are_told_with_the_layout(tmp_path: Path) -> None:
    for folder in ("wikiart/train", "wikiart/test", "tu_berlin/png"):
        (tmp_path / folder).mkdir(parents=True)
    for task in ("wikiart", "sketch"):
        with pytest.raises(DataError, match=r"holds no class folder\.\nExpected layout"):
            get_benchmark("sketch").splits(task, tmp_path)


def test_a_damaged_file_of_cars_does_not_hide_the_other_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = layouts.sketch(tmp_path, monkeypatch)
    for damage in (b"<html>", (root / "stanford_cars" / "devkit" / "cars_meta.mat").read_bytes()[:150]):
        (root / "stanford_cars" / "cars_test_annos_withlabels.mat").write_bytes(damage)
        rows, said = check("sketch", "--data-root", root, status=1)
        assert [row["classes"] for row in rows] == [102, 195, 250, None, 200]
        assert "cars: A .mat file of" in said


def test_splits_with_other_categories_are_refused(tmp_path: Path) -> None:
    root = layouts.decathlon(tmp_path)
    file = root / "annotations" / "dtd_val.json"
    data = json.loads(file.read_text())
    del data["categories"][5]
    file.write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"dtd_train\.json and dtd_val\.json have other categories"):
        get_benchmark("decathlon").splits("dtd", root)


def test_an_altered_mat_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = layouts.sketch(tmp_path, monkeypatch)
    file = root / "flowers-102" / "setid.mat"
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(DataError, match=r"A \.mat file of .*flowers-102 was altered"):
        get_benchmark("sketch").splits("flowers", root)


# -- zoo data check -------------------------------------------------------------------------------------------------


def check(*arguments: object, status: int) -> tuple[list[dict[str, Any]], str]:
    result = CliRunner().invoke(main, ["data", "check", *map(str, arguments), "--json"])
    assert result.exit_code == status, result.output
    return json.loads(result.stdout), result.stderr


def test_counts_are_held_against_the_published(benchmark: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    name, root = benchmark
    stated = bool(BENCHMARKS[name].published)
    rows, said = check(name, "--data-root", root, status=1 if stated else 0)
    assert [row["task"] for row in rows] == list(get_benchmark(name).tasks(root))
    assert ("classes, train, test should be" in said) == stated
    published = {row["task"]: (row["classes"], row["train"], row["test"]) for row in rows}
    monkeypatch.setattr(type(BENCHMARKS[name]), "published", {"a small version": published})
    rows, _ = check(name, "--data-root", root, status=0)
    assert {row["as published"] for row in rows} == {"a small version"}


def test_every_image_that_does_not_decode_is_named(tmp_path: Path) -> None:
    root = layouts.domainnet(tmp_path)
    broken = root / "real" / "class_007" / "real_007_000001.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    rows, said = check("domainnet", "--data-root", root, "--decode", status=1)
    assert f"real: The image {broken} does not decode" in said
    assert len(rows) == 6


def test_a_task_that_is_not_there_does_not_hide_the_others(tmp_path: Path) -> None:
    root = layouts.domainnet(tmp_path)
    (root / "sketch_train.txt").unlink()
    rows, said = check("domainnet", "--data-root", root, status=1)
    assert [row["classes"] for row in rows] == [345, None, 345, 345, 345, 345]
    assert f"There is no {root}/sketch_train.txt" in said


def test_twins_need_no_folder() -> None:
    rows, _ = check("pentathlon", status=0)
    assert [row["classes"] for row in rows] == [10, 30, 8, 12, 2]


def test_published_counts_are_the_known_totals() -> None:
    """DomainNet's authors count 586,575 images after cleaning."""
    cleaned = BENCHMARKS["domainnet"].published["the cleaned version"].values()
    assert sum(c.train + c.test for c in cleaned) == 586_575
    joint = BENCHMARKS["domainnet_joint"].published["the original version"]["all"]
    assert joint.train + joint.test == 48_837 + 53_201 + 75_759 + 172_500 + 175_327 + 70_386


def test_the_seasons_of_pictures_are_those_of_their_scores(tmp_path: Path) -> None:
    """Daytime pictures, each in the season that it scores highest in; whole webcams are held back to test on."""
    root, seasons = layouts.seasons(tmp_path), get_benchmark("seasons")
    for number, season in enumerate(("spring", "summer", "autumn", "winter")):
        splits = seasons.splits(season, root)
        both: list[Any] = [splits.train, splits.test]
        found = [[path for path, _ in images.items] for images in both]
        assert {path.name for part in found for path in part} == {f"{number}.jpg"}
        assert [len(part) for part in found] == [36, 4]
        assert not {path.parent for path in found[0]} & {path.parent for path in found[1]}
        assert splits.classes == ("red", "green", "blue")
    file = root / "annotations" / "annotations.tsv"
    lines = file.read_text().splitlines()
    for wrong in (lines[2].replace("\t", " "), "\t".join(lines[2].split("\t")[:5]), lines[2].replace("0.9000", "much")):
        file.write_text("\n".join([*lines[:2], wrong, *lines[3:]]))
        with pytest.raises(DataError, match=r"annotations\.tsv, line 3: a picture and 7 scores"):
            seasons.splits("winter", root)
    file.write_text("\n".join([*lines, lines[3].replace("00000000/3.jpg", "../../3.jpg")]))
    with pytest.raises(Exception, match="leaves the folder"):
        seasons.splits("winter", root)
    file.write_text("\n".join(lines[:10]))
    with pytest.raises(DataError, match="1 pictures of winter to train on and 1 to test on"):
        seasons.splits("winter", root)
    attributes = root / "annotations" / "attributes.txt"
    attributes.write_text(attributes.read_text().replace("night", "nite"))
    with pytest.raises(DataError, match="does not name the attribute night"):
        seasons.splits("winter", root)
