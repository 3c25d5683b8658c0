"""The twin and the folder layout."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import write_images
from zoo.datasets import get_benchmark
from zoo.datasets.twins import landscapes, pentathlon
from zoo.datasets.twins.landscapes import SEASONS
from zoo.datasets.twins.shapes import CLASSES, DOMAINS, OUTLINES, SIZE, _distance, render
from zoo.errors import DataError, OptionError, UnknownNameError


@pytest.mark.parametrize("domain", DOMAINS)
def test_an_item_is_the_same_on_every_machine(domain: str) -> None:
    digest = hashlib.sha256(b"".join(render(domain, "test", i).tobytes() for i in range(36))).hexdigest()
    assert digest[:16] == GOLDEN[domain]


GOLDEN = {  # SHA-256, its first digits
    "clipart": "23e3d16546e555eb",
    "sketch": "4abaa4cb3957b677",
    "painting": "9ad3541b304fea53",
    "quickdraw": "e1ce73118fa481de",
    "infograph": "4a138dcab5e9c5ea",
    "real": "afc672fb80ea2ea0",
}


@pytest.mark.parametrize("task", pentathlon.TASKS)
def test_an_item_of_the_pentathlon_is_the_same_on_every_machine(task: str) -> None:
    digest = hashlib.sha256(b"".join(pentathlon.render(task, "test", i).tobytes() for i in range(36))).hexdigest()
    assert digest[:16] == PENTATHLON_GOLDEN[task]


PENTATHLON_GOLDEN = {
    "digits": "cb44c904987110c2",
    "letters": "e3b6cc77adbd1ddd",
    "textures": "fc0ee3d0f9e6bfaa",
    "signs": "cd014b1186e3803b",
    "walkers": "b026d086f8d9353b",
}  # SHA-256, its first digits


@pytest.mark.parametrize("season", SEASONS)
def test_a_landscape_is_the_same_on_every_machine(season: str) -> None:
    pictures = (landscapes.render(landscapes.draw(np.random.RandomState([1, i])), SEASONS[season]) for i in range(8))
    assert (
        hashlib.sha256(b"".join(picture.tobytes() for picture in pictures)).hexdigest()[:16]
        == LANDSCAPES_GOLDEN[season]
    )


LANDSCAPES_GOLDEN = {
    "summer": "4e90342060f8a086",
    "winter": "444349461e08cf43",
    "spring": "02496a72b9734e64",
    "autumn": "977cf6a2e6172b65",
}  # SHA-256, its first digits


def test_the_seasons_of_a_landscape_show_one_place() -> None:
    """Where a picture changes from a pixel to the next is the same; what colour it has there is not."""
    scene = landscapes.draw(np.random.RandomState(3))
    pictures = [landscapes.render(scene, season).astype(float) for season in SEASONS.values()]
    edges = [np.abs(np.diff(picture, axis=0)).sum(2) for picture in pictures]
    for other, picture in zip(edges[1:], pictures[1:], strict=True):
        assert np.corrcoef(edges[0].ravel(), other.ravel())[0, 1] > 0.3
        assert np.abs(picture - pictures[0]).mean() > 15
    assert not np.array_equal(
        landscapes.render(landscapes.draw(np.random.RandomState(4)), SEASONS["summer"]), pictures[0]
    )


def test_pictures_to_be_made_lie_in_a_folder_for_each_domain(tmp_path: Path) -> None:
    scenery = get_benchmark("scenery")
    for domain in ("summer", "winter"):
        for split, count in (("train", 3), ("test", 2)):
            folder = tmp_path / domain / split
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (40, 30), (90 * number, 0, 0)).save(folder / f"{number}.jpg")
    (tmp_path / "notes").mkdir()
    assert scenery.tasks(tmp_path) == ("summer", "winter")
    splits = scenery.splits("winter", tmp_path)
    assert (len(splits.train), len(splits.test), splits.classes) == (3, 2, ("red", "green", "blue"))  # type: ignore[arg-type]
    assert splits.train[0][1] == 0
    (tmp_path / "winter" / "train" / "snow").mkdir()
    with pytest.raises(
        DataError, match=r"train holds folders, such as snow: pictures that are to be made have no classes"
    ):
        scenery.splits("winter", tmp_path)
    (tmp_path / "winter" / "train" / "snow").rmdir()
    shutil.rmtree(tmp_path / "winter" / "test")
    with pytest.raises(DataError, match=r"There is no .*test"):
        scenery.splits("winter", tmp_path)
    (tmp_path / "winter" / "test").mkdir()
    with pytest.raises(DataError, match="holds 0 pictures"):
        scenery.splits("winter", tmp_path)


def test_the_tasks_of_the_pentathlon_differ_in_everything() -> None:
    benchmark = get_benchmark("pentathlon")
    shapes, classes = set(), set()
    for task in benchmark.tasks(None):
        splits = benchmark.splits(task, None)
        images = [splits.train[i][0] for i in range(5)]
        assert {image.dtype for image in images} == {torch.uint8}
        assert splits.train[len(splits.classes) + 1][1] == 1
        shapes.add(tuple(images[0].shape))
        classes.add(len(splits.classes))
    assert shapes == {(3, 28, 28), (1, 24, 24), (3, 40, 40), (3, 32, 32), (1, 36, 18)}
    assert classes == {10, 30, 8, 12, 2}
    with pytest.raises(UnknownNameError, match="digits"):
        benchmark.splits("digit", None)


def test_items_splits_and_domains_differ() -> None:
    images = {render(d, s, i).tobytes() for d in DOMAINS for s in ("train", "test") for i in range(30)}
    assert len(images) == 6 * 2 * 30


def test_shapes_as_a_benchmark() -> None:
    benchmark = get_benchmark("shapes")
    assert len(CLASSES) >= 12
    assert benchmark.tasks(None) == ("clipart", "sketch", "painting", "quickdraw", "infograph", "real")
    splits = benchmark.splits("quickdraw", None)
    image, label = splits.test[25]
    assert (image.shape, image.dtype, label) == ((3, SIZE, SIZE), torch.uint8, 25 % 12)
    with pytest.raises(UnknownNameError, match="sketch"):
        benchmark.splits("sketchy", None)


def test_the_distance_of_a_square_is_the_known_one() -> None:
    points = np.array([[0.0, 0.0], [0.5, 0.5], [1.0, 1.0], [2.0, 0.0], [0.2, 0.1]])
    square = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    np.testing.assert_allclose(_distance([square], points), [-1, -0.5, 0, 1, -0.8], atol=1e-12)
    hole = _distance([square, square / 2], points)
    assert hole[0] > 0  # inside the hole is outside the shape
    assert set(map(len, OUTLINES.values())) == {1, 2}


def test_quickdraw_is_black_on_white_and_sketch_is_grey() -> None:
    """Each domain is drawn in its own way, and not a tint of another."""
    draw, sketch, real = (np.stack([render(d, "train", i) for i in range(24)]) for d in ("quickdraw", "sketch", "real"))
    assert (draw > 250).mean() > 0.7
    assert np.array_equal(draw[..., 0], draw[..., 2])
    assert np.array_equal(sketch[..., 0], sketch[..., 2])
    assert not np.array_equal(real[..., 0], real[..., 2])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "data", {"photo": ["cat", "dog"], "drawing": ["bee", "cow", "elk"]})


def test_a_folder_of_domains(folder: Path) -> None:
    benchmark = get_benchmark("folder")
    assert benchmark.tasks(folder) == ("drawing", "photo")
    splits = benchmark.splits("drawing", folder)
    assert splits.classes == ("bee", "cow", "elk")
    assert len(splits.train) == 12  # type: ignore[arg-type]
    image, label = splits.train[11]
    assert (image.size, image.mode, label) == ((48, 40), "RGB", 2)


@pytest.mark.parametrize("called", ["test", "val", "valid", "validation"])
def test_a_folder_of_one_domain_by_whatever_name_of_its_test_images(folder: Path, called: str) -> None:
    benchmark, photo = get_benchmark("folder"), folder / "photo"
    (photo / "test").rename(photo / called)
    assert benchmark.tasks(photo) == ("photo",)
    splits = benchmark.splits("photo", photo)
    assert (splits.classes, len(splits.train), len(splits.test)) == (("cat", "dog"), 8, 8)  # type: ignore[arg-type]
    assert len(benchmark.splits("photo", folder).test) == 8  # type: ignore[arg-type]
    photo.rename(folder / "renamed")  # after it was trained on
    assert benchmark.splits("photo", folder / "renamed").classes == splits.classes
    if called != "test":
        shutil.copytree(folder / "renamed" / called, folder / "renamed" / "test")
        (folder / "renamed" / called / "cat").rename(folder / "renamed" / called / "cow")
        assert benchmark.splits("renamed", folder).classes == splits.classes  # test goes before others


@settings(deadline=None, max_examples=25)
@given(share=st.floats(0.01, 0.99), counts=st.lists(st.integers(2, 30), min_size=1, max_size=4))
def test_images_without_a_split_are_parted_by_their_names_alone(share: float, counts: list[int]) -> None:
    with tempfile.TemporaryDirectory() as place:
        one, other = Path(place) / "one", Path(place) / "other"
        for root in (one, other):
            for label, count in enumerate(counts):
                (root / f"class {label}").mkdir(parents=True)
                for number in range(count):
                    (root / f"class {label}" / f"{number}.png").touch()
        benchmark = get_benchmark("folder", test_share=share)
        tested = [max(1, round(share * count)) for count in counts]
        if any(map(int.__ge__, tested, counts)) or sum(counts) - sum(tested) < 2:
            with pytest.raises(DataError, match=r"to test on .* takes more|one image to train on"):
                benchmark.splits("one", one)
            return
        found = [benchmark.splits(root.name, root) for root in (one, other)]
        parts = [
            [[path.relative_to(root).as_posix() for path, _ in images.items] for images in (splits.train, splits.test)]  # type: ignore[attr-defined]
            for root, splits in zip((one, other), found, strict=True)
        ]
        assert parts[0] == parts[1]
        train, test = parts[0]
        assert not set(train) & set(test)
        assert len(train) + len(test) == sum(counts)
        for label in range(len(counts)):
            assert sum(name.startswith(f"class {label}/") for name in test) == tested[label]


def test_what_is_parted_and_what_is_not(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(folder / "photo" / "test")
    parting = get_benchmark("folder", test_share=0.25)
    assert parting.tasks(folder) == ("drawing", "photo")
    assert len(parting.splits("drawing", folder).test) == 12  # type: ignore[arg-type]  # its own, untouched
    caplog.set_level("INFO")
    splits = parting.splits("photo", folder)
    assert (len(splits.train), len(splits.test)) == (6, 2)  # type: ignore[arg-type]
    assert "2 of its 8 images are the ones to test on" in caplog.text
    (folder / "photo" / "train").rename(folder / "plain")
    shutil.rmtree(folder / "photo")
    shutil.rmtree(folder / "drawing" / "test")
    assert parting.tasks(folder) == ("drawing", "plain")
    assert parting.tasks(folder / "plain") == ("plain",)
    (folder / "plain" / "cow").mkdir()
    (folder / "plain" / "cow" / "brown").mkdir()
    shutil.copy(next((folder / "plain" / "cat").iterdir()), folder / "plain" / "cow" / "brown")
    with pytest.raises(DataError, match="neither one domain nor several"):  # is cow a class, or a domain?
        parting.tasks(folder / "plain")
    with pytest.raises(OptionError, match="between 0 and 1"):
        get_benchmark("folder", test_share=1.0)
    with pytest.raises(DataError, match=r"--test-share 0\.2"):
        get_benchmark("folder").tasks(folder / "plain")


def test_a_folder_that_is_not_there_is_told_with_the_layout(tmp_path: Path) -> None:
    for root in (None, tmp_path / "none"):
        with pytest.raises(DataError, match="train/<class>"):
            get_benchmark("folder").tasks(root)
    with pytest.raises(UnknownNameError, match="shapes"):
        get_benchmark("shape")


def damage(folder: Path, how: str) -> None:
    photo = folder / "photo"
    if how == "no domain":
        shutil.rmtree(folder)
        folder.mkdir()
    elif how == "empty class":
        for file in (photo / "train" / "cat").iterdir():
            file.unlink()
    elif how == "class in one split":
        shutil.rmtree(photo / "test" / "dog")
    elif how == "no test":
        shutil.rmtree(photo / "test")
    elif how == "one image":
        for split in ("train", "test"):
            shutil.rmtree(photo / split / "dog")
        for file in sorted((photo / "train" / "cat").iterdir())[1:]:
            file.unlink()
    elif how == "no class":
        shutil.rmtree(photo / "train")
        (photo / "train").mkdir()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no domain", "holds no domain"),
        ("empty class", "No image in .*photo/train/cat"),
        ("class in one split", "one of train and test only: dog"),
        ("no test", "There is no .*photo/test"),
        ("one image", "holds one image"),
        ("no class", "holds no class folder"),
    ],
)
def test_each_defect_of_a_folder_has_its_message(folder: Path, how: str, message: str) -> None:
    damage(folder, how)
    benchmark = get_benchmark("folder")
    with pytest.raises(DataError, match=message):
        [benchmark.splits(task, folder) for task in benchmark.tasks(folder)]


def test_an_image_that_does_not_decode_is_named_or_skipped(folder: Path) -> None:
    broken = folder / "photo" / "train" / "cat" / "1.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    splits = get_benchmark("folder").splits("photo", folder)
    with pytest.raises(DataError, match=r"cat/1\.jpg does not decode.*--skip-unreadable"):
        [splits.train[i] for i in range(8)]
    with pytest.warns(UserWarning, match=r"skipped: .*cat/1\.jpg"):
        splits = get_benchmark("folder", skip_unreadable=True).splits("photo", folder)
    assert len(splits.train) == 7  # type: ignore[arg-type]


def test_grey_and_transparent_images_are_read_as_rgb(folder: Path) -> None:
    for mode in ("L", "RGBA", "P"):
        Image.new(mode, (9, 9)).save(folder / "photo" / "train" / "cat" / f"{mode}.png")
    splits = get_benchmark("folder").splits("photo", folder)
    assert {splits.train[i][0].mode for i in range(len(splits.train))} == {"RGB"}  # type: ignore[arg-type]
