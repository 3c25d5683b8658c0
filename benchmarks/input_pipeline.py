"""Training images per second: the zoo's input pipeline against torchvision's ImageFolder with transforms v2.

    python benchmarks/input_pipeline.py [--json FILE]

The images are JPEG files of 500 × 375 pixels, as ImageNet's and the benchmarks' mostly are; each candidate decodes,
crops, resizes to 224, flips and normalises them on one core, in turn. On a machine with a GPU, the images per second
that it trains resnet50 R=50 on are measured too: what the loading processes have to keep up with.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from record import save
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import zoo
from zoo.catalog.recipe import load_recipe
from zoo.catalog.task import IMAGENET_MEAN, IMAGENET_STD
from zoo.cli.tables import show
from zoo.datasets import Images, Transformed, get_benchmark
from zoo.training.batches import augmentations
from zoo.verification.timing import interleaved, medians, ratio

COUNT, BATCH = 64, 32


def write(root: Path) -> None:
    """Pictures with the smooth shading and the fine grain of photographs, in `<root>/d/{train,test}/<class>/`."""
    rng = np.random.RandomState(0)
    for i in range(COUNT):
        coarse = Image.fromarray(rng.randint(0, 256, (12, 16, 3)).astype(np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        pixels = np.asarray(coarse).astype(float) + rng.normal(0, 8, (375, 500, 3))
        for split in ("train", "test"):
            folder = root / "d" / split / f"class{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{i}.jpg", quality=90)


def pipelines(root: Path) -> dict[str, Images]:
    recipe = load_recipe("sketch/ftn")
    reference = v2.Compose(
        [
            v2.RandomResizedCrop(224, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    images = get_benchmark("folder").splits("d", root).train
    return {
        "torchvision ImageFolder, transforms v2": ImageFolder(str(root / "d" / "train"), reference),
        "zoo, recipe sketch/ftn": Transformed(
            images, recipe.input.transform(augmentations(recipe.augment, recipe.input))
        ),
    }


def all_of(images: Images) -> Callable[[], None]:
    def run() -> None:
        for index in range(COUNT):
            images[index]

    return run


def gpu_rate() -> float | None:
    """Images per second of training resnet50 R=50 in bfloat16, from memory; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    model = zoo.load("resnet50-ftn-r50-sketch", task="flowers", weights=None).to(
        "cuda", memory_format=torch.channels_last
    )
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    images = torch.randn(BATCH, 3, 224, 224, device="cuda").to(memory_format=torch.channels_last)
    labels = torch.zeros(BATCH, dtype=torch.long, device="cuda")
    for step in range(60):
        if step == 20:
            torch.cuda.synchronize()
            start = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(images, task="flowers"), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.cuda.synchronize()
    return 40 * BATCH / (time.perf_counter() - start)


@click.command()
@click.option("--rounds", default=9, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures here.")
def main(rounds: int, json_file: Path | None) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        seconds = interleaved({name: all_of(images) for name, images in pipelines(Path(folder)).items()}, rounds)
    base, rate = next(iter(seconds)), gpu_rate()
    rows = [
        {
            "pipeline": name,
            "images/s per core": round(COUNT / s),
            "speed against torchvision": round(1 / ratio(seconds, name, base), 2),
            "cores for 1,000 images/s": math.ceil(1000 * s / COUNT),
        }
        for name, s in medians(seconds).items()
    ]
    show(rows)
    if rate:
        click.echo(f"{torch.cuda.get_device_name()} trains resnet50 R=50 on {rate:.0f} images/s in bfloat16")
    save(json_file, {"pipelines": rows, "gpu images/s": rate}, "cuda" if rate else "cpu")


if __name__ == "__main__":
    main()
