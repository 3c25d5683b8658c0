"""What the images of tasks are like: a row of test images for each task."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image, ImageDraw

from zoo.datasets import Images
from zoo.storage.files import atomic_path

COLUMNS, CELL, LABEL, GAP = 8, 72, 110, 2  # images in a row; pixels


def draw_tasks(images: Mapping[str, Images], file: Path) -> Path:
    """Draw the first images of each task beside its name, to a PNG file, atomically."""
    sheet = Image.new("RGB", (LABEL + COLUMNS * (CELL + GAP), len(images) * (CELL + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (task, own) in enumerate(images.items()):
        top = row * (CELL + GAP)
        draw.text((4, top + CELL // 2 - 6), task, fill="black", font_size=13)
        count = len(cast(Sized, own))
        for column, number in enumerate(range(0, count, max(1, count // COLUMNS))[:COLUMNS]):
            cell = _small(own[number][0])
            left = LABEL + column * (CELL + GAP)
            sheet.paste(cell, (left + (CELL - cell.width) // 2, top + (CELL - cell.height) // 2))
    with atomic_path(file) as temporary:
        sheet.save(temporary, "png", optimize=True)
    return file


def _small(image: Any) -> Image.Image:
    """An image of a data set's, Pillow's or uint8 (C, H, W), as a cell has it; of a clip (T, C, H, W) the first one."""
    if isinstance(image, torch.Tensor):
        frame = image[0] if image.ndim == 4 else image
        levels = frame.expand(3, -1, -1) if len(frame) == 1 else frame[:3]
        image = Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
    scale = CELL / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    enlarged = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return cast(Image.Image, image.convert("RGB").resize(size, enlarged))
