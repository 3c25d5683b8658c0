"""Draws docs/room_overview.png: the room of examples/room.png, what four tasks see in it, and the true segmentation.

python benchmarks/room_picture.py       (needs pip install ".[dense,plot]")
"""

from __future__ import annotations

from pathlib import Path

import torch

import zoo
from zoo.datasets import get_benchmark, open_image
from zoo.drawing.answers import draw_overview

ROOT = Path(__file__).parent.parent
ITEM, TASK = 7, "semseg"  # the test image that examples/room.png is


def main() -> None:
    image = open_image(ROOT / "examples" / "room.png")
    pixels, truth = get_benchmark("rooms").splits(TASK, None).test[ITEM]
    own = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(*pixels.shape[1:], 3).movedim(-1, 0)
    assert torch.equal(pixels, own), "examples/room.png is another room"
    print(draw_overview(zoo.load("resnet20-ftn-r8-rooms"), image, ROOT / "docs" / "room_overview.png", {TASK: truth}))


if __name__ == "__main__":
    main()
