"""Training images per second: the zoo's input pipeline against torchvision's ImageFolder with transforms v2.

    python benchmarks/input_pipeline.py [--data-root DATA] [--json FILE]

The images are JPEG files of 500 × 375 pixels, as ImageNet's and the benchmarks' mostly are; each candidate decodes,
crops, resizes to 224, flips and normalises them on one core, in turn. On a machine with a GPU, the images per second
that it trains resnet50 R=50 on are measured too: what the loading processes have to keep up with.

With DATA, which holds `pictures`: what loading costs beside training EfficientNet-Lite0 on a CPU, with and without
`--cache`: the recipes' images, and steps of plain SGD.
"""

from __future__ import annotations

import functools
import json
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
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import zoo
from zoo.catalog.recipe import load_recipe
from zoo.catalog.registry import default_registry
from zoo.catalog.task import IMAGENET_MEAN, IMAGENET_STD
from zoo.cli.tables import show
from zoo.datasets import Images, Transformed, get_benchmark, some_of
from zoo.training.batches import augmentations, training_loader
from zoo.training.loop import make_accelerator
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


def beside_training(data_root: Path, rounds: int) -> list[dict[str, object]]:
    """For two tasks, the milliseconds for each image of loading and of training, on one core, in turn."""
    rows: list[dict[str, object]] = []
    for task in ("birds", "textures"):
        for method in ("features", "ftn-r4"):
            entry = default_registry().entry(f"efficientnet_lite0-{method}-pictures")
            recipe, data = load_recipe(entry.recipe).of(task), get_benchmark("pictures").splits(task, data_root)
            data = some_of(data, 4 * recipe.batch, seed=0)
            ways = {
                name: training_loader(data, task, recipe, make_accelerator("no", cpu=True), 0, cache)[0]
                for name, cache in (("decoded", False), ("cached", True))
            }
            calls = {name: functools.partial(list, loader) for name, loader in ways.items()}
            calls["trained"] = training(entry.name, task, list(ways["cached"]))
            each = {name: 1000 * s / (4 * recipe.batch) for name, s in medians(interleaved(calls, rounds)).items()}
            shares = {name: f"{100 * each[name] / (each[name] + each['trained']):.0f} %" for name in ways}
            rows.append({
                "task": task, "method": method, **{f"{name} ms": round(value, 2) for name, value in each.items()},
                "loading's share": shares["decoded"], "with --cache": shares["cached"],
            })  # fmt: skip
    return rows


def training(entry: str, task: str, batches: list[list[Tensor]]) -> Callable[[], None]:
    """Steps on batches that are there."""
    model = zoo.load(entry, task=task, weights="backbone").to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def run() -> None:
        for images, labels in batches:
            outputs = model(images.to(memory_format=torch.channels_last), task=task)
            torch.nn.functional.cross_entropy(outputs, labels).backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


@click.command()
@click.option("--rounds", default=9, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures here.")
@click.option("--data-root", type=click.Path(path_type=Path, exists=True))
def main(rounds: int, json_file: Path | None, data_root: Path | None) -> None:
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
    if data_root is None and json_file and json_file.exists():  # what was measured with images stays
        shares = json.loads(json_file.read_text())["rows"].get("beside training", [])
    else:
        shares = beside_training(data_root / "pictures", rounds) if data_root else []
    show(shares)
    save(json_file, {"pipelines": rows, "gpu images/s": rate, "beside training": shares}, "cuda" if rate else "cpu")


if __name__ == "__main__":
    main()
