"""The emoji benchmark, built of small archives in the packages' layout."""

from __future__ import annotations

import io
import json
import tarfile
from ctypes.util import find_library
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from zoo.cli.base import main
from zoo.datasets import get_benchmark
from zoo.datasets.emoji import GROUPS, STYLES
from zoo.datasets.folder import class_folders

SVG = '<svg viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg"><rect width="{}" height="{}" fill="{}"/></svg>'


def emoji() -> list[dict[str, str]]:
    """Eleven of each class but flags, of which there are two that look alike, and some that belong to no class."""
    listed, code = [], 0x1F300
    for groups in GROUPS.values():
        group, subs = next(iter(groups.items()))
        for _ in range(11):
            listed.append({"category": group, "subcategory": subs[0] or "any", "unified": f"{code:X}"})
            code += 1
    listed.append({"category": "Smileys & Emotion", "subcategory": "heart", "unified": "2764-FE0F"})
    listed.append({"category": "People & Body", "subcategory": "family", "unified": "1F468-200D-1F469"})
    for number, each in enumerate(listed):
        each |= {"short_name": f"e{number:03}", "image": f"{each['unified'].lower()}.png"}
    return listed


def archives(folder: Path) -> Path:
    """All four archives."""
    folder.mkdir()
    files: dict[str, dict[str, bytes]] = {style.archive: {} for style in STYLES.values()}
    for number, each in enumerate(emoji()):
        for style in STYLES.values():
            name = style.file(each)
            if name.endswith(".svg"):
                data = SVG.format(
                    number % 60 + 10, number // 60 * 9 + 9, "red" if "color" in name else "black"
                ).encode()
            else:
                pixels = np.zeros((64, 64, 4), np.uint8)
                pixels[: number % 60 + 4, :40] = (0, number, 255, 255)
                if number == 3:  # as the one before
                    pixels[: number + 4] = 0
                    pixels[:6, :40] = (0, 2, 255, 255)
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "WEBP" if name.endswith("webp") else "PNG", lossless=True)
                data = buffer.getvalue()
            files[style.archive][name] = data
    files[STYLES["noto"].archive]["emoji.json"] = json.dumps(emoji()).encode()
    for archive, held in files.items():
        pack(folder / archive, held)
    return folder


def pack(archive: Path, files: dict[str, bytes]) -> None:
    """An npm package's archive of these files."""
    with tarfile.open(archive, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_it_is_built_of_the_packages_archives(tmp_path: Path) -> None:
    if find_library("cairo") is None:
        pytest.skip("the cairo library, which cairosvg draws with, is not installed")
    found = CliRunner().invoke(
        main, ["data", "build", "emoji", "--from", str(archives(tmp_path / "npm")), "-o", str(tmp_path / "out")]
    )
    assert found.exit_code == 0, found.output
    assert "fluent_3d: 164 images" in found.output  # 15 classes of 11, less one that looks like another one
    benchmark = get_benchmark("emoji")
    for style in STYLES:
        splits = benchmark.splits(style, tmp_path / "out")
        assert splits.classes == tuple(sorted(GROUPS))
        counts = len(splits.train), len(splits.test)  # type: ignore[arg-type]
        assert sum(counts) == (165 if style.startswith("openmoji") else 164)
        image = splits.test[0][0]
        assert (image.size, image.mode) == ((96, 96), "RGB")
        assert image.getpixel((90, 90)) == (255, 255, 255)
    tests = {path.name for path in (tmp_path / "out" / "noto" / "test").rglob("*.jpg")}
    assert {"e000.jpg", "e005.jpg", "e010.jpg", "e011.jpg"} <= tests  # the first of each class, and every fifth on
    assert not (tmp_path / "out" / "noto" / "train" / "activity" / "e003.jpg").exists()
    assert class_folders(tmp_path / "out" / "noto" / "train", "") == splits.classes


def test_an_archive_that_is_not_there_or_damaged_is_named(tmp_path: Path) -> None:
    run = ["data", "build", "emoji", "--from", str(tmp_path), "-o", str(tmp_path / "out")]
    found = CliRunner().invoke(main, run)
    assert found.exit_code == 1
    assert "There is no" in found.output
    assert "npm pack" in found.output
    (tmp_path / STYLES["noto"].archive).write_bytes(b"nothing")
    found = CliRunner().invoke(main, run)
    assert "cannot be read" in found.output
    pack(tmp_path / STYLES["noto"].archive, {})
    assert "holds no emoji.json" in CliRunner().invoke(main, run).output
    image = STYLES["noto"].file(emoji()[0])
    for files, message in (
        ({"emoji.json": b"{"}, "is no list of emoji"),
        ({"emoji.json": b"[{}]"}, "is no list of emoji"),
        ({"emoji.json": json.dumps(emoji()).encode()}, "holds no image of noto"),
        ({"emoji.json": json.dumps(emoji()).encode(), image: b"no picture"}, "does not decode"),
    ):
        pack(tmp_path / STYLES["noto"].archive, files)
        found = CliRunner().invoke(main, run)
        assert found.exit_code == 1
        assert message in found.output
