"""Images of every mode come out as viewers show them, in as many bands as the network takes; or are refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import nn

import zoo
from zoo.datasets import get_benchmark, open_image
from zoo.errors import DataError, OptionError
from zoo.storage.pictures import raw_image

RAMP = np.tile(np.linspace(0, 255, 256).round().astype(np.uint8), (8, 1))
IDENTITY = {"mean": (0.0,), "std": (1.0,)}


def prepared(image: Image.Image, channels: int = 3, size: int = 8) -> torch.Tensor:
    """An image as a network takes it, values from 0 to 255."""
    how = zoo.Preprocessing(size, None, (0.0,) * channels, (1.0,) * channels, width=image.width)
    made: torch.Tensor = 255 * how.transform()(image)
    return made


def test_sixteen_bits_of_grey_are_scaled(tmp_path: Path) -> None:
    deep = np.tile(np.linspace(0, 65535, 256).round().astype(np.uint16), (8, 1))
    for ending in ("png", "tif"):
        Image.fromarray(deep).save(tmp_path / f"ramp.{ending}")
        found = np.asarray(open_image(tmp_path / f"ramp.{ending}"))
        assert abs(found.mean() - 127.5) < 1
        assert np.abs(found[..., 0].astype(int) - RAMP).max() <= 1
    assert raw_image(tmp_path / "ramp.png").getpixel((200, 0)) == (255, 255, 255)  # which published figures rest on


def test_a_mode_without_a_known_range_is_named(tmp_path: Path) -> None:
    for mode, values in (("I", np.int32), ("F", np.float32)):
        Image.fromarray(RAMP.astype(values)).save(tmp_path / f"{mode}.tif")
        with pytest.raises(DataError, match=rf"{mode}\.tif.*of the mode '{mode}'"):
            open_image(tmp_path / f"{mode}.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(tmp_path: Path, orientation: int) -> None:
    stored = Image.fromarray(np.arange(6 * 4, dtype=np.uint8).reshape(6, 4) * 10)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(np.asarray(open_image(tmp_path / "photo.png"))[..., 0], expected)
    assert raw_image(tmp_path / "photo.png").size == (4, 6)


def drawing() -> Image.Image:
    """A black square on transparent ground, whose pixels are black too."""
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[2:4, 2:4, 3] = 255
    return Image.fromarray(pixels)


def test_transparent_ground_is_white_but_for_networks_of_four_channels(tmp_path: Path) -> None:
    drawing().save(tmp_path / "drawing.png")
    drawing().convert("LA").save(tmp_path / "grey.png")
    for name in ("drawing", "grey"):
        opened = open_image(tmp_path / f"{name}.png")
        assert opened.mode == "RGB"
        for channels in (1, 3):
            seen = prepared(opened, channels)
            assert seen[:, 0, 0].ge(254).all()  # torchvision's grey of white is 254
            assert seen[:, 2, 2].eq(0).all()
    four = prepared(open_image(tmp_path / "drawing.png"), 4)
    assert torch.equal(four, torch.from_numpy(np.array(drawing())).permute(2, 0, 1).float())
    assert prepared(open_image(tmp_path / "grey.png"), 2)[1, 2, 2] == 255
    with pytest.raises(DataError, match=r"grey\.png has 2 bands; the network takes 4"):
        prepared(open_image(tmp_path / "grey.png"), 4)
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg")
    with pytest.raises(DataError, match=r"photo\.jpg has 3 bands; the network takes 4"):
        prepared(open_image(tmp_path / "photo.jpg"), 4)


MODES = [
    "1",
    "L",
    "P",
    "RGB",
    "RGBA",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
    "LA",
    "PA",
    "RGBX",
    "RGBa",
    "La",
    "I",
    "F",
    "I;16",
]


@settings(max_examples=150, deadline=None)
@given(mode=st.sampled_from(MODES), value=st.integers(0, 255), alpha=st.integers(0, 255), channels=st.integers(1, 5))
def test_images_of_every_mode_are_seen_or_refused(mode: str, value: int, alpha: int, channels: int) -> None:
    bands = len(Image.new(mode, (1, 1)).getbands())
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 4), value * 257, np.uint16))
    elif mode == "1":
        image = Image.new(mode, (4, 4), 255 * (value > 127))
    else:
        transparent = mode in ("LA", "PA", "La", "RGBA", "RGBa")
        image = Image.new(
            mode, (4, 4), (*[value] * (bands - 1), alpha if transparent else value) if bands > 1 else value
        )
        if mode == "P":
            image.putpalette([shade for number in range(256) for shade in (number, number, number)])
    try:
        seen = prepared(image, channels, 4)
    except DataError as error:
        assert f"takes {channels}" in str(error) or f"mode {mode!r}" in str(error)
        assert channels not in (1, 3) or mode in ("I", "F", "LAB")
        return
    except ValueError as error:
        assert mode == "LAB", error
        return
    assert seen.shape == (channels, 4, 4)
    if channels in (1, 3) and mode in ("L", "P", "RGB", "RGBX", "I;16"):
        assert (seen - value).abs().max() <= 1
    if channels in (1, 3) and mode in ("LA", "RGBA"):
        assert (seen - (value * alpha + 255 * (255 - alpha)) / 255).abs().max() <= 1.5


# -- folders -----------------------------------------------------------------------------------------------------------


def test_hidden_folders_are_no_classes_and_what_is_passed_over_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog", ".ipynb_checkpoints", "__MACOSX"):
            place = tmp_path / "photo" / split / name
            (place / ".ipynb_checkpoints").mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(place / ".ipynb_checkpoints" / "1-checkpoint.png")
            for ending in ("jpg", "jfif", "gif", "avif", "webp", "bmp"):
                Image.new("RGB", (4, 4)).save(place / f"1.{ending}")
            for ending in ("heic", "txt"):
                (place / f"1.{ending}").write_text("")
    (tmp_path / ".cache" / "train").mkdir(parents=True)
    (tmp_path / "photo" / "train" / "stray.jpg").write_text("")
    benchmark = get_benchmark("folder")
    assert benchmark.tasks(tmp_path) == ("photo",)
    splits = benchmark.splits("photo", tmp_path)
    assert splits.classes == ("cat", "dog")
    assert len(splits.train) == 12  # type: ignore[arg-type]
    assert {splits.train[i][0].mode for i in range(12)} == {"RGB"}
    benchmark.splits("photo", tmp_path)
    told = [record.getMessage() for record in caplog.records if "passed over" in record.getMessage()]
    assert len(told) == 2  # of train and of test
    assert "5 of 17 files are passed over" in told[0]
    assert "2 .heic, 1 .jpg in no class, 2 .txt" in told[0]


# -- what a network's card says ----------------------------------------------------------------------------------------


def test_interpolation_is_the_cards(tmp_path: Path) -> None:
    assert zoo.Preprocessing.of(timm.create_model("tf_efficientnet_lite0")).interpolation == "bicubic"
    assert zoo.Preprocessing.of(nn.Conv2d(3, 1, 1)).interpolation == "bilinear"
    assert (
        zoo.Preprocessing.from_data({"size": 8, "resize": 9, "mean": [0.5], "std": [0.5]}).interpolation == "bilinear"
    )
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8))
    found = {name: prepared_by(image, name) for name in ("bilinear", "bicubic", "nearest")}
    assert not torch.equal(found["bilinear"], found["bicubic"])
    model = zoo.adapt(timm.create_model("resnet10t"), {"a": 2}, rank=2, preprocessing=zoo.Preprocessing(8, None, interpolation="bicubic"))  # fmt: skip  # noqa: E501
    model.save_adapter("a", tmp_path / "a.safetensors")
    model.remove_task("a")
    assert model.load_adapter(tmp_path / "a.safetensors").preprocessing.interpolation == "bicubic"
    with pytest.raises(OptionError, match="interpolation must be one of"):
        zoo.Preprocessing(interpolation="sinc")


def prepared_by(image: Image.Image, interpolation: str) -> torch.Tensor:
    made: torch.Tensor = zoo.Preprocessing(24, 24, interpolation=interpolation).transform()(image)
    return made


def test_the_number_of_channels_is_the_networks() -> None:
    four = zoo.Preprocessing.of(timm.create_model("resnet10t", in_chans=4))
    assert four.channels == 4
    assert four.mean[3] == four.mean[0]
    assert four.transform()(torch.zeros(4, 300, 300, dtype=torch.uint8)).shape == (4, *four.shape)
    with pytest.raises(DataError, match="3 bands; the network takes 4"):
        four.transform()(torch.zeros(3, 300, 300, dtype=torch.uint8))
    assert zoo.Preprocessing.of(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3))).channels == 1
    assert zoo.Preprocessing.of(nn.Linear(4, 5)).channels == 3
    assert zoo.Preprocessing.of(timm.create_model("vit_tiny_patch16_224", in_chans=6)).channels == 6
