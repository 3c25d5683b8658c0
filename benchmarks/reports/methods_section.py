"""What docs/results.md says of methods side by side, and the pictures."""

from __future__ import annotations

import statistics
from typing import Any

from figures import ROOT, measured_on, method_of, read, spread
from markdown_table import table

from zoo.catalog.registry import default_registry
from zoo.drawing.plots import accuracy_by_parameters


def methods_section() -> str:
    parts = [
        """## Methods on shapes

`python benchmarks/methods.py --out DIR [--backbone vit_micro]`: top-1 accuracy in per cent on the test images of the
five target domains, mean ± standard deviation over the seeds. Parameters and kB are one task's, heads left out of the
first, with its share of what tasks have in common. Milliseconds are `zoo compare`'s: medians at batch 32, all entries
in turn in one process, of a training step, and of inference fused and with the increments in place.

![The twelve shapes in their six domains](shapes.png)"""
    ]
    for backbone in ("resnet20", "vit_micro"):
        name = f"methods_{backbone}_shapes"
        rows = sorted(read(name), key=lambda row: statistics.mean(row["figures"]["mean"]))
        picture = f"![Mean accuracy against parameters per task]({name}.png)"
        parts.append(f"### {backbone}\n\n{picture}\n\n{measured_on(name)}\n\n{table([_method(row) for row in rows])}")
    return "\n\n".join(parts)


def _method(row: dict[str, Any], extra: dict[str, Any] | None = None, places: int = 1) -> dict[str, Any]:
    """A method's line in a table of methods."""
    return {
        "method": method_of(row["entry"]),
        "seeds": len(next(iter(row["figures"].values()))),
        **{task: spread(values, places) for task, values in row["figures"].items()},
        **(extra or {}),
        "parameters": f"{row['parameters']:,}",
        "kB": row["kB"],
        **{key: row[key] for key in row if key.startswith("ms ")},
    }


def rooms_section() -> str:
    rows = {method_of(row["entry"]): row for row in read("methods_resnet20_rooms")}
    single = rows["single"]["figures"]
    gains = {name: 100 * statistics.mean(_gain(row["figures"], single).values()) for name, row in rows.items()}
    shown = [
        _method(rows[name], {"Δ %": f"{gains[name]:+.1f}"}, places=2)
        for name in sorted(rows, key=lambda name: (gains[name], name))
    ]
    return f"""## Methods on rooms

`python benchmarks/methods.py --benchmark rooms --out DIR`: the small counterpart of the FTN paper's Table 4, four dense
tasks on 600 training and 200 test scenes, mean ± standard deviation over the seeds. edge is odsF in per cent, semseg
mIoU in per cent, normals the mean angle in degrees, depth the RMSE in metres. Δ is what a method gains on single-task
networks, the mean over the tasks of the relative differences (Maninis et al., CVPR 2019). The other columns are as
above, of the task edge, its decoder's time included. {measured_on("methods_resnet20_rooms")}

{table(shown)}"""


def _gain(figures: dict[str, list[float]], single: dict[str, list[float]]) -> dict[str, float]:
    """By how much each task is done better than by the networks of a single task, relative to these."""
    metric = default_registry().entry("resnet20-single-rooms").metric
    sign = {task: 1 if metric(task).higher_is_better else -1 for task in figures}
    return {t: sign[t] * (statistics.mean(figures[t]) / statistics.mean(single[t]) - 1) for t in figures}


def draw_methods() -> None:
    """The pictures of `methods_section`."""
    for backbone in ("resnet20", "vit_micro"):
        rows = [
            {
                "model": row["entry"], "method": default_registry().entry(row["entry"]).method["name"],
                "mean %": statistics.mean(row["figures"]["mean"]), "parameters": row["parameters"],
            }
            for row in read(f"methods_{backbone}_shapes")
        ]  # fmt: skip
        entries = [default_registry().entry(rows[0]["model"])]
        accuracy_by_parameters(rows, ROOT / "docs" / f"methods_{backbone}_shapes", entries)
