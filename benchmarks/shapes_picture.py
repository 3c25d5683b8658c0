"""Draws docs/shapes.png: the same twelve shapes in the six domains of shapes.

python benchmarks/shapes_picture.py
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from zoo.datasets.twins.shapes import CLASSES, DOMAINS, SIZE, render

SCALE, LABEL, GAP = 2, 84, 2


def main() -> None:
    cell = SCALE * SIZE + GAP
    sheet = Image.new("RGB", (LABEL + cell * len(CLASSES), cell * len(DOMAINS)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, domain in enumerate(DOMAINS):
        draw.text((4, row * cell + cell // 2 - 6), domain, fill="black", font_size=14)
        for column in range(len(CLASSES)):
            pixels = np.kron(render(domain, "test", column), np.ones((SCALE, SCALE, 1), dtype=np.uint8))
            sheet.paste(Image.fromarray(pixels), (LABEL + column * cell, row * cell))
    sheet.save(Path(__file__).parent.parent / "docs" / "shapes.png", optimize=True)


if __name__ == "__main__":
    main()
