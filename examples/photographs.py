"""Photographs through tasks on one backbone that was pre-trained on ImageNet: a table, and a sheet as a picture.

    python examples/photographs.py        (needs pip install ".[imagenet,dense,digits,plot]")

The photographs come with scikit-image and scikit-learn. Writes demo-output/photographs.png.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_image

import zoo
from zoo.catalog.registry import default_registry
from zoo.cli.tables import show
from zoo.drawing.plots import pyplot

PICTURES, EMOJI = "efficientnet_lite0-ftn-r4-pictures", "efficientnet_lite0-ftn-r4-emoji"
TASKS = {"object": (PICTURES, "objects"), "weather": (PICTURES, "weather"), "as an emoji": (EMOJI, "noto")}
FILE = Path("demo-output") / "photographs.png"


def photographs() -> dict[str, npt.NDArray[np.uint8]]:
    """Five photographs (H, W, 3)."""
    found = {"cat": data.chelsea(), "coffee": data.coffee(), "rocket": data.rocket()}
    return found | {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}


def answer(model: zoo.TaskModel, task: str, pixels: npt.NDArray[np.uint8]) -> str:
    """The class that a task takes a photograph for, and how sure it is."""
    inputs = model.transforms(task)(Image.fromarray(pixels))[None]
    with torch.no_grad():
        share, label = model(inputs, task=task).softmax(1)[0].max(0)
    return f"{model.task(task).classes[label]} {share:.0%}"


def main() -> None:
    models = {title: zoo.load(entry, task=task, weights="published") for title, (entry, task) in TASKS.items()}
    photos = photographs()
    rows: list[dict[str, Any]] = [
        {"photograph": name, **{t: answer(model, TASKS[t][1], pixels) for t, model in models.items()}}
        for name, pixels in photos.items()
    ]
    print(f"\nPhotographs through {len(TASKS)} tasks on one EfficientNet-Lite0:\n")
    show(rows)
    copy = 4 * sum(p.numel() for p in models["object"].fuse("objects").parameters())
    sizes = {t: (default_registry().entry(entry).weights or {})[task].size for t, (entry, task) in TASKS.items()}
    told = ", ".join(f"{title} {size / 1e6:.1f} MB" for title, size in sizes.items())
    print(f"\nBytes per task: {told}; a copy of the network: {copy / 1e6:.1f} MB.")
    draw(rows, list(photos.values()))
    print(f"Drawn: {FILE}")


def draw(rows: list[dict[str, Any]], photos: list[npt.NDArray[np.uint8]]) -> None:
    """The photographs in a row, each with what the tasks say under it."""
    figure, places = pyplot().subplots(1, len(rows), figsize=(2.6 * len(rows), 3.4), layout="constrained")
    for place, row, pixels in zip(places, rows, photos, strict=True):
        size = min(pixels.shape[:2])
        top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
        place.imshow(pixels[top : top + size, left : left + size])
        place.set_xticks([])
        place.set_yticks([])
        lines = "\n".join(f"{title}: {row[title].replace('_', ' ')}" for title in TASKS)
        place.set_xlabel(lines, fontsize=11, loc="left")
    FILE.parent.mkdir(exist_ok=True)
    figure.savefig(FILE, dpi=100)


if __name__ == "__main__":
    main()
