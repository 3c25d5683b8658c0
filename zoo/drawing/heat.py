"""Heat maps: what tasks add to each layer, and how alike tasks are in each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zoo.drawing.plots import pyplot, save

Array = npt.NDArray[np.float64]


def by_layer(values: Mapping[str, Mapping[str, float]], title: str, label: str, stem: Path) -> list[Path]:
    """Draw a heat map of layers against tasks, ranks or models, as `<stem>.png` and `<stem>.svg` (FTN, Appendix C).

    Args:
        values: by column, one value for each layer's path; columns may lack layers.
        label: what the values are.
    """
    layers = list(dict.fromkeys(path for column in values.values() for path in column))
    table = np.array([[column.get(path, math.nan) for column in values.values()] for path in layers])
    size = 1.9 + 0.13 * max(map(len, layers)) + 0.62 * len(values), 1.6 + 0.19 * len(layers)
    figure, axes = pyplot().subplots(figsize=size, layout="constrained")
    drawn = axes.imshow(table, aspect="auto", cmap="viridis", vmin=min(0.0, float(np.nanmin(table))))
    axes.set_xticks(range(len(values)), list(values), rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(layers)), layers, fontsize=7)
    axes.set_title(title, fontsize=9)
    figure.colorbar(drawn, ax=axes, label=label, fraction=0.05)
    return save(figure, stem)


def side_by_side(
    matrices: Mapping[str, Array], tasks: Sequence[str], title: str, label: str, limits: tuple[float, float], stem: Path
) -> list[Path]:
    """Draw tasks against tasks, a small map for each layer, as `<stem>.png` and `<stem>.svg`.

    Args:
        matrices: (tasks, tasks) each, by what they are of.
        limits: the values of the darkest and the brightest cells.
    """
    columns = min(len(matrices), max(4, math.ceil(math.sqrt(len(matrices)))))
    rows = math.ceil(len(matrices) / columns)
    figure, grid = pyplot().subplots(
        rows, columns, figsize=(1.6 * columns + 1.6, 1.65 * rows + 1.2), layout="constrained", squeeze=False,
        sharex=True, sharey=True,
    )  # fmt: skip
    for number, axes in enumerate(grid.flat):
        axes.set_visible(number < len(matrices))
    ticks = range(len(tasks))
    for axes, (name, matrix) in zip(grid.flat, matrices.items(), strict=False):
        drawn = axes.imshow(matrix, cmap="viridis", vmin=limits[0], vmax=limits[1])
        axes.set_title(name, fontsize=8)
        axes.set_xticks(ticks, tasks, rotation=90, fontsize=7)
        axes.set_yticks(ticks, tasks, fontsize=7)
    for number in range(len(matrices)):  # the last of each column names its tasks
        below = number + columns >= len(matrices)
        grid.flat[number].tick_params(labelbottom=below)
    figure.suptitle(title, fontsize=10)
    figure.colorbar(drawn, ax=grid, label=label, fraction=0.03)
    return save(figure, stem)
