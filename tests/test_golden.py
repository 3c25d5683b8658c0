"""The packaged models give the outputs that they gave when they were packaged.

`python -m tests.test_golden` adds those of new packaged models to tests/golden.safetensors; those of changed ones have
to be taken out of it first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

import zoo
from zoo.catalog.registry import default_registry
from zoo.catalog.task import GENERATION
from zoo.datasets import get_benchmark
from zoo.storage import tensors
from zoo.storage.resources import packaged_weights_dir

FILE = Path(__file__).parent / "golden.safetensors"
PACKAGED = [name for name in default_registry().names() if default_registry().entry(name).weights]


def two_images(benchmark: str, task: str) -> list[Any]:
    """Two test images of a benchmark; where the user must have its images, two photographs of scikit-learn's."""
    if get_benchmark(benchmark).needs_root:
        return [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    test = get_benchmark(benchmark).splits(task, None).test
    return [test[i][0] for i in (3, 10)]


def outputs(name: str) -> dict[str, Tensor]:
    """The outputs for two test images by each task of a packaged model, fused; of maps every eighth pixel."""
    entry, found = default_registry().entry(name), {}
    for task in entry.weights or ():
        model = zoo.load(name, task=task, weights="published")
        images = torch.linspace(-0.4, 0.4, 2 * 48).view(2, 48)  # latents
        if entry.kind(task) != GENERATION:
            images = torch.stack([model.transforms(task)(image) for image in two_images(entry.benchmark, task)])
        with torch.no_grad():
            made = model.fuse(task)(images)
        found[f"{name}/{task}"] = made[..., ::8, ::8].contiguous() if made.ndim == 4 else made
    return found


@pytest.mark.parametrize("name", PACKAGED)
def test_golden_outputs(name: str) -> None:
    golden, _ = tensors.read(FILE)
    found = outputs(name)
    assert found.keys() == {key for key in golden if key.startswith(f"{name}/")}
    for key, value in found.items():
        torch.testing.assert_close(value, golden[key], rtol=1e-3, atol=1e-3)


def test_the_papers_methods_are_packaged_and_small() -> None:
    assert {f"resnet20-{m}-shapes" for m in ("features", "bn", "ftn-r1", "ftn-r8", "finetune")} <= set(PACKAGED)
    sizes = {
        f"{path.parent.name}/{path.name}": path.stat().st_size for path in packaged_weights_dir().rglob("*.safetensors")
    }
    dense = sum(size for path, size in sizes.items() if "-rooms/" in path)
    assert dense <= 8_000_000
    joint = sum(size for path, size in sizes.items() if path.startswith(("mlp-", "lstm-")))
    assert joint <= 3_000_000
    made = sum(size for path, size in sizes.items() if "biggan" in path)
    assert made <= 4_000_000
    real = sum(size for path, size in sizes.items() if path.startswith("efficientnet_lite0-"))
    assert real <= 16_000_000
    assert sum(sizes.values()) - dense - joint - made - real <= 16_000_000
    transformers = [size for path, size in sizes.items() if "vit_micro" in path]
    assert sum(transformers) <= 5_000_000
    adapters = [s for path, s in sizes.items() if path.startswith(("resnet20-series", "resnet20-parallel"))]
    assert sum(adapters) <= 3_000_000
    ranks = [
        size for path, size in sizes.items() if path.startswith(tuple(f"resnet20-ftn-r{r}-shapes" for r in (2, 4, 16)))
    ]
    assert len(ranks) == 18
    assert sum(ranks) <= 2_000_000


@pytest.mark.parametrize("name", PACKAGED)
def test_each_packaged_file_says_how_it_was_made(name: str) -> None:
    from zoo.catalog.recipe import load_recipe
    from zoo.catalog.store import adapter_files

    entry = default_registry().entry(name)
    for task, file in adapter_files(entry, tuple(entry.weights or ()), "published").items():
        _, header = tensors.read(file)
        assert (header["entry"], header["task"], header["command"]) == (name, task, f"zoo train {name}")
        assert header["recipe"] == {"name": entry.recipe, "sha256": load_recipe(entry.recipe).sha256, "seed": 0}
        assert entry.measured is not None
        assert entry.measured[task] == pytest.approx(header["metrics"][entry.metric(task).name], abs=0.0051)


if __name__ == "__main__":
    known, _ = tensors.read(FILE)
    new = [name for name in PACKAGED if not any(key.startswith(f"{name}/") for key in known)]
    tensors.write(FILE, known | {key: value for name in new for key, value in outputs(name).items()}, {})
