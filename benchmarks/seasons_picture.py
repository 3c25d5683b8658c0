"""Draws docs/seasons.png: landscapes made again by the packaged generator, and drawn ones (FTN, Figure 7, in small).

python benchmarks/seasons_picture.py       (needs pip install ".[plot]")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import zoo
from zoo.catalog.registry import default_registry
from zoo.datasets import Transformed, get_benchmark
from zoo.deployment import pictures
from zoo.drawing.plots import pyplot, save_png
from zoo.loader import pretrained_network
from zoo.models.latents import fit

ROOT = Path(__file__).parent.parent
NAME, BASE, SEASON = "biggan32-ftn-r4-landscapes", "zoo/biggan32x0.125@landscapes", "summer"
SHOWN, STEPS = 6, 11  # scenes of each season, and pictures on the way from one latent to another


def main() -> None:
    model = pictures.maker(zoo.load(NAME))
    base = pretrained_network(BASE, default_registry()).eval()
    seasons = {SEASON: (base, base.prior), **{task: (model.fuse(task), model.prior(task)) for task in model.tasks}}
    figure, grid = pyplot().subplots(len(seasons), 3, figsize=(12, 2.5), layout="constrained", width_ratios=(6, 6, 11))
    for row, (season, (network, prior)) in enumerate(seasons.items()):
        test = Transformed(get_benchmark("landscapes").splits(season, None).test, model.transforms("winter"))
        wanted = torch.stack([test[index][0] for index in range(SHOWN)])
        latents = prior.draw(2, torch.Generator().manual_seed(1))
        shown = {
            "test pictures": wanted,
            "made again": pictures.made(network, fit(network, wanted, prior)),
            "from one drawn latent to another": pictures.made(network, pictures.between(latents, STEPS - 1)[0]),
        }
        for column, (title, made) in enumerate(shown.items()):
            _place(grid[row, column], made, title if row == 0 else "", season if column == 0 else "")
    print(save_png(figure, ROOT / "docs" / "seasons.png"))


def _place(axes: Any, made: torch.Tensor, title: str, label: str) -> None:
    axes.imshow(pictures.sheet([list(made)]), interpolation="nearest")
    axes.set(xticks=[], yticks=[], title=title, ylabel=label)
    axes.spines[:].set_visible(False)


if __name__ == "__main__":
    main()
