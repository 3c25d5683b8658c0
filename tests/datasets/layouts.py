"""Small folders in exactly the layouts of the papers' benchmarks: every class, hardly an image.

`make` makes one for a test to alter; `shared` lends one that is made once, for tests that only read.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import io
import itertools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import FER2013, Flowers102, Places365

from tests.datasets import joint_layouts
from zoo.datasets import BENCHMARKS, get_benchmark
from zoo.datasets.clip5 import LabelledSTL10

WIDTH, HEIGHT = 48, 40


@functools.cache
def jpeg(shade: int) -> bytes:
    """A grey picture whose left half is darker."""
    pixels = np.full((HEIGHT, WIDTH, 3), 60 + shade, np.uint8)
    pixels[:, : WIDTH // 2] -= 50
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg")
    return buffer.getvalue()


def put(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(shade % 180))
    return path


def flowers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """102 training, 2 validation and 4 test images; the checksums that torchvision holds are made to fit."""
    folder = root / "flowers-102"
    for i in range(1, 109):
        put(folder / "jpg" / f"image_{i:05d}.jpg", i)
    labels = [*range(1, 103), 1, 2, 1, 2, 3, 102]
    sets = {"trnid": np.arange(1, 103), "valid": np.array([103, 104]), "tstid": np.arange(105, 109)}
    savemat(folder / "imagelabels.mat", {"labels": np.array(labels, np.uint8)})
    savemat(folder / "setid.mat", sets)
    sums = {
        n: hashlib.md5((folder / f).read_bytes()).hexdigest() for n, (f, _) in list(Flowers102._file_dict.items())[1:]
    }
    names = {n: (f, sums.get(n, md5)) for n, (f, md5) in Flowers102._file_dict.items()}
    monkeypatch.setattr(Flowers102, "_file_dict", names)


def cars(root: Path) -> None:
    """196 training and 3 test images; the box is the image's right half."""
    folder = root / "stanford_cars"
    box = {"bbox_x1": WIDTH // 2, "bbox_y1": 0, "bbox_x2": WIDTH, "bbox_y2": HEIGHT}
    for split, labels, file in (
        ("train", range(1, 197), folder / "devkit" / "cars_train_annos.mat"),
        ("test", (1, 2, 196), folder / "cars_test_annos_withlabels.mat"),
    ):
        marks = []
        for i, label in enumerate(labels, 1):
            put(folder / f"cars_{split}" / f"{i:05d}.jpg", label)
            marks.append({**box, "class": np.uint8(label), "fname": f"{i:05d}.jpg"})
        kinds: list[Any] = [(key, object) for key in marks[0]]
        file.parent.mkdir(parents=True, exist_ok=True)
        savemat(file, {"annotations": np.array([tuple(mark.values()) for mark in marks], kinds)})
    names = np.array([f"Maker Model {i} 2012" for i in range(196)], object)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})


def tu_berlin(root: Path) -> None:
    """250 classes of one sketch, but five of the first: its last is for testing."""
    for label in range(250):
        for number in range(1, 6 if label == 0 else 2):
            put(root / "tu_berlin" / "png" / f"thing {label:03d}" / f"{80 * label + number}.png", label)
    (root / "tu_berlin" / "png" / "filelist.txt").write_text("")


def cub(root: Path) -> None:
    """200 classes: one training image each, and a test image of the first three; the box is the right half."""
    folder = root / "CUB_200_2011"
    classes = [f"{i:03d}.Bird_{i}" for i in range(1, 201)]
    shown = [(label, True) for label in range(200)] + [(label, False) for label in range(3)]
    names = [f"{classes[label]}/Bird_{i}.jpg" for i, (label, _) in enumerate(shown, 1)]
    for name in names:
        put(folder / "images" / name)
    lists = {
        "classes": [f"{i} {name}" for i, name in enumerate(classes, 1)],
        "images": [f"{i} {name}" for i, name in enumerate(names, 1)],
        "image_class_labels": [f"{i} {label + 1}" for i, (label, _) in enumerate(shown, 1)],
        "train_test_split": [f"{i} {int(train)}" for i, (_, train) in enumerate(shown, 1)],
        "bounding_boxes": [f"{i} {WIDTH / 2} 0.0 {WIDTH / 2} {HEIGHT}.0" for i in range(1, len(shown) + 1)],
    }
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


def wikiart(root: Path) -> None:
    """195 classes: one training image each, and a test image of the first three."""
    for label in range(195):
        for split in ("train", "test") if label < 3 else ("train",):
            put(root / "wikiart" / split / f"painter-{label:03d}" / "work.jpg", label)


def sketch(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    flowers(root, monkeypatch)
    for make in (cars, tu_berlin, cub, wikiart):
        make(root)
    return root


def domainnet(root: Path) -> Path:
    """345 classes in one image file each; painting's lists lack class 327, as the real ones do."""
    for domain in BENCHMARKS["domainnet"].tasks(root):
        lines = [f"{domain}/class_{label:03d}/{domain}_{label:03d}_000001.jpg {label}" for label in range(345)]
        for label, line in enumerate(lines):
            put(root / line.split()[0], label)
        if domain == "painting":
            del lines[327]
        (root / f"{domain}_train.txt").write_text("\n".join(lines) + "\n")
        (root / f"{domain}_test.txt").write_text("\n".join(lines[:3]) + "\n")
    return root


def decathlon(root: Path) -> Path:
    """As many classes as the real tasks have, one training image each; two validation images."""
    known = {
        **BENCHMARKS["decathlon"].published["version 1.0"],
        **BENCHMARKS["decathlon_imagenet"].published["version 1.0"],
    }
    for number, (task, counts) in enumerate(known.items(), 1):
        ids = [10000 * number + i for i in range(1, counts.classes + 1)]
        for split, chosen in (("train", ids), ("val", ids[:2])):
            images = [
                {"id": key * 10, "file_name": f"decathlon-1.0/data/{task}/{split}/{key % 10000:04d}/000001.jpg"}
                for key in chosen
            ]
            for image in images:
                put(root / str(image["file_name"]).removeprefix("decathlon-1.0/"))
            data = {
                "images": images,
                "categories": [{"id": key, "name": f"{task} {key}"} for key in ids],
                "annotations": [{"image_id": key * 10, "category_id": key, "id": key} for key in chosen],
            }
            file = root / "annotations" / f"{task}_{split}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(data))
    return root


def places(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """365 classes of one training image; three validation images; torchvision's checksums are made to fit."""
    root.mkdir(parents=True, exist_ok=True)
    names = [f"/{'abc'[label % 3]}/scene_{label:03d}" for label in range(365)]
    names.sort()
    lists = {
        "categories_places365.txt": [f"{name} {label}" for label, name in enumerate(names)],
        "places365_train_standard.txt": [f"{name}/1.jpg {label}" for label, name in enumerate(names)],
        "places365_val.txt": [f"Places365_val_{label}.jpg {label}" for label in range(3)],
    }
    for file, lines in lists.items():
        (root / file).write_text("\n".join(lines) + "\n")
    for label, name in enumerate(names):
        put(root / "data_256_standard" / name[1:] / "1.jpg", label)
    for label in range(3):
        put(root / "val_256" / f"Places365_val_{label}.jpg", label)
    sums = {file: hashlib.md5((root / file).read_bytes()).hexdigest() for file in lists}
    files = {"train-standard": "places365_train_standard.txt", "val": "places365_val.txt"}
    category = "categories_places365.txt"
    monkeypatch.setattr(Places365, "_CATEGORIES_META", (category, sums[category]))
    monkeypatch.setattr(Places365, "_FILE_LIST_META", {split: (file, sums[file]) for split, file in files.items()})
    return root


def clip5(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One or two images of each class and split; torchvision's checksums are made to fit."""
    draw = np.random.default_rng(0)
    for folder, labels, count, names, files in (
        ("cifar-10-batches-bin", 1, 10, "batches.meta.txt",
         [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]),
        ("cifar-100-binary", 2, 100, "fine_label_names.txt", ["train.bin", "test.bin"]),
    ):  # fmt: skip
        (root / folder).mkdir(parents=True)
        (root / folder / names).write_text("".join(f"class_{i}\n" for i in range(count)) + "\n")
        for file in files:
            records = draw.integers(0, 256, (count, labels + 3072), np.uint8)
            records[:, labels - 1] = np.arange(count)
            records.tofile(root / folder / file)
    for split in ("train", "val", "test"):
        names = [f"texture_{i:02d}/texture_{i:02d}_{split}.jpg" for i in range(47)]
        for i, name in enumerate(names):
            put(root / "dtd" / "dtd" / "images" / name, i)
        lists = root / "dtd" / "dtd" / "labels" / f"{split}1.txt"
        lists.parent.mkdir(exist_ok=True)
        lists.write_text("\n".join(names) + "\n")
    _stl10(root / "stl10_binary", draw, monkeypatch)
    rows = [
        f"{i % 7},{' '.join(['9'] * 48 * 48)},{use}"
        for i in range(7)
        for use in ("Training", "PublicTest", "PrivateTest")
    ]
    table = root / "fer2013" / "fer2013.csv"
    table.parent.mkdir()
    table.write_text("\n".join(["emotion,pixels,Usage", *rows]) + "\n")
    sums = {**FER2013._RESOURCES, "fer": (table.name, hashlib.md5(table.read_bytes()).hexdigest())}
    monkeypatch.setattr(FER2013, "_RESOURCES", sums)
    return root


def _stl10(folder: Path, draw: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / "class_names.txt").write_text("".join(f"thing_{i}\n" for i in range(10)))
    for split, count in (("train", 20), ("test", 10)):
        draw.integers(0, 256, (count, 3, 96, 96), np.uint8).tofile(folder / f"{split}_X.bin")
        (np.arange(count) % 10 + 1).astype(np.uint8).tofile(folder / f"{split}_y.bin")
        sums = [[f"{split}_{x}.bin", hashlib.md5((folder / f"{split}_{x}.bin").read_bytes()).hexdigest()] for x in "Xy"]
        monkeypatch.setattr(LabelledSTL10, f"{split}_list", sums)


def nyud(root: Path) -> Path:
    """Three training and two test images: the second of each in the release's later form."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        names = [f"{split}_{i:04d}" for i in range(count)]
        for i, name in enumerate(names):
            put(root / "images" / f"{name}.jpg", i)
            edge = np.zeros((HEIGHT, WIDTH), np.uint8)
            edge[:, WIDTH // 2] = 255
            labels = draw.integers(0, 41, (HEIGHT, WIDTH), np.uint8)
            normals = np.zeros((HEIGHT, WIDTH, 3), np.float32)
            normals[: HEIGHT // 2] = 0.6, 0, 0.8
            depth = draw.uniform(0.5, 9, (HEIGHT, WIDTH)).astype(np.float32)
            for folder in ("edge", "segmentation", "normals", "depth"):
                (root / folder).mkdir(exist_ok=True)
            if i == 1:
                np.save(root / "edge" / f"{name}.npy", edge / 255)
                Image.fromarray(labels).save(root / "segmentation" / f"{name}.png")
                np.save(root / "normals" / f"{name}.npy", normals)
                np.save(root / "depth" / f"{name}.npy", depth[..., None])
            else:
                Image.fromarray(edge).save(root / "edge" / f"{name}.png")
                savemat(root / "segmentation" / f"{name}.mat", {"segmentation": labels})
                Image.fromarray(np.uint8(127.5 * (normals + 1))).save(root / "normals" / f"{name}.jpg", quality=95)
                savemat(root / "depth" / f"{name}.mat", {"depth": depth})
        lists = root / "gt_sets" / f"{split}.txt"
        lists.parent.mkdir(exist_ok=True)
        lists.write_text("\n".join(names) + "\n")
    return root


def streets(root: Path) -> Path:
    """Three training and two test frames, road on the left and sky on the right, unlabelled at the top."""
    for split, count in (("train", 3), ("test", 2)):
        for i in range(count):
            put(root / split / "images" / f"frame_{i}.jpg", i)
            labels = np.full((HEIGHT, WIDTH), 3, np.uint8)
            labels[:, WIDTH // 2 :] = 0
            labels[:4] = 11
            (root / split / "labels").mkdir(exist_ok=True)
            Image.fromarray(labels).save(root / split / "labels" / f"frame_{i}.png")
    return root


def task_folders(benchmark: str, root: Path) -> Path:
    """Folders of tasks with as many classes as are stated: an image of each to train on, and one to test on."""
    (stated,) = get_benchmark(benchmark).published.values()
    for task, counts in stated.items():
        for split in ("train", "test"):
            for label in range(counts.classes):
                put(root / task / split / f"class_{label:03}" / "0.jpg", label)
    return root


ATTRIBUTES = ("dirty", "daylight", "night", "spring", "summer", "autumn", "winter")  # some of the forty


def seasons(root: Path) -> Path:
    """Forty webcams with a picture by day of each season and one at night; scores at random, the season's highest."""
    rng, lines = np.random.RandomState(0), []
    for webcam in range(40):
        for number, season in enumerate(("spring", "summer", "autumn", "winter", "night")):
            name = f"{webcam:08d}/{number}.jpg"
            put(root / "imageAlignedLD" / name, webcam)
            scores = dict(zip(ATTRIBUTES, rng.uniform(0, 0.5, len(ATTRIBUTES)), strict=True))
            scores |= {season: 0.9, "daylight": 0.1 if season == "night" else 0.8}
            lines.append(
                "\t".join([name, *(f"{scores[attribute]:.4f},{rng.uniform():.4f}" for attribute in ATTRIBUTES)])
            )
    (root / "annotations").mkdir()
    (root / "annotations" / "annotations.tsv").write_text("\n".join(lines) + "\n")
    (root / "annotations" / "attributes.txt").write_text("\n".join(ATTRIBUTES) + "\n")
    return root


def scenery(root: Path) -> Path:
    """Two domains of a few pictures, without classes."""
    for domain, split, number in itertools.product(("summer", "winter"), ("train", "test"), range(4)):
        put(root / domain / split / f"{number}.jpg", 30 * number)
    return root


def make(benchmark: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of one of the papers' benchmarks."""
    if benchmark in joint_layouts.BENCHMARKS:
        return joint_layouts.make(benchmark, root, monkeypatch)
    if benchmark in ("sketch", "places", "clip5"):
        return {"sketch": sketch, "places": places, "clip5": clip5}[benchmark](root, monkeypatch)
    if benchmark == "nyud":
        return nyud(root)
    if benchmark in ("streets", "seasons", "scenery"):
        return {"streets": streets, "seasons": seasons, "scenery": scenery}[benchmark](root)
    if benchmark in ("pictures", "emoji"):
        return task_folders(benchmark, root)
    return decathlon(root) if benchmark.startswith("decathlon") else domainnet(root)


class Recorder(pytest.MonkeyPatch):
    """Remembers what it was asked to set, and sets nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Any, str, Any]] = []

    def setattr(self, target: Any, name: Any, value: Any = None, raising: bool = True) -> None:
        self.asked.append((target, name, value))


@functools.cache
def _made(benchmark: str) -> tuple[Path, list[tuple[Any, str, Any]]]:
    root, recorder = Path(tempfile.mkdtemp(prefix="zoo-layout-")), Recorder()
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return make(benchmark, root / "data", recorder), recorder.asked


def shared(benchmark: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of one of the papers' benchmarks, made once for all tests of a process; not to be altered."""
    root, asked = _made(benchmark)
    for target, name, value in asked:
        monkeypatch.setattr(target, name, value)
    return root
