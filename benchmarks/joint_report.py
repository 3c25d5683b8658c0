"""What docs/results.md says of networks that share parts of their weights, and its picture."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markdown_table import table

from zoo.plots import pyplot

RESULTS = Path(__file__).parent / "results"
ALL = "all"


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def machine(found: dict[str, Any]) -> str:
    return f"Measured on: {found['device']}; " + ", ".join(f"{k} {v}" for k, v in found["libraries"].items()) + "."


def means(row: dict[str, Any]) -> list[float]:
    """The mean over the tasks, of each repetition."""
    return [statistics.mean(each) for each in zip(*row["figures"].values(), strict=True)]


def spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def _method(row: dict[str, Any]) -> str:
    return str(row["entry"]).split("-")[1]


def _digits(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["entry"].endswith("-digits")]


def few_samples(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A line for each method that was trained with every number of samples."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in _digits(rows):
        found.setdefault(_method(row), {})[str(row["samples"] or ALL)] = row
    return [
        {
            "method": method,
            "parameters": f"{next(iter(by.values()))['parameters']:,}",
            **{
                f"{samples}, {task}": spread(by[samples]["figures"][task])
                for samples in by for task in by[samples]["figures"]
            },
            **{f"{samples}, mean": spread(means(by[samples])) for samples in by},
        }
        for method, by in found.items()
        if len(by) > 1
    ]  # fmt: skip


def of_patterns(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """TRMTL's rows at few samples, by pattern."""
    few = min(row["samples"] for row in rows if row["samples"])
    return {
        _method(row).partition("_")[2]: row
        for row in _digits(rows)
        if row["samples"] == few and _method(row).startswith("trmtl")
    }


def of_clips(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of clips, by the number of shared cores."""
    found = [row for row in rows if row["entry"].endswith("-clips")]
    return sorted(found, key=lambda row: str(row["entry"]))


def joint_section() -> str:
    found = read("joint")
    rows = found["rows"]
    patterns = [
        {"pattern": pattern, **{task: spread(values) for task, values in row["figures"].items()},
         "mean": spread(means(row)), "parameters": f"{row['parameters']:,}"}
        for pattern, row in of_patterns(rows).items()
    ]  # fmt: skip
    clips = [
        {"shared cores": number, **{task: spread(values) for task, values in row["figures"].items()},
         "mean": spread(means(row)), "parameters": f"{row['parameters']:,}"}
        for number, row in enumerate(of_clips(rows))
    ]  # fmt: skip
    return f"""## Networks that share parts of their weights

`python benchmarks/joint.py --out DIR`: test accuracy in per cent, mean ± standard deviation of five repetitions, each
with a seed and a draw of samples of its own. Parameters are of both tasks together, heads left out. {machine(found)}

On digits (TRMTL's Table 7 in small), with 50, 100 and all (about 600) samples of each task:

{table(few_samples(rows))}

{reading(rows)}

![Accuracy on digits for each pattern of sharing, and on clips against the number of shared cores](sharing.png)

Patterns with 50 samples of each task (Fig. 3 in small); `044` is top-heavy:

{table(patterns)}

An LSTM on clips that shares none to all four cores of its input weights (Table 2 in small):

{table(clips)}"""


def reading(rows: list[dict[str, Any]]) -> str:
    """What the figures say of the paper's order, in words that the figures choose."""
    few = min(row["samples"] for row in rows if row["samples"])
    mean = {_method(row): statistics.mean(means(row)) for row in _digits(rows) if row["samples"] == few}
    noise = {_method(row): statistics.stdev(means(row)) for row in _digits(rows) if row["samples"] == few}
    bottom = [p for p in of_patterns(rows) if list(p) == sorted(p, reverse=True) and p not in ("000", "444")]
    best = max(bottom, key=lambda p: mean[f"trmtl_{p}"])
    ours, rivals = mean[f"trmtl_{best}"], ("stl", "mrn", "dmtrl_tucker", "dmtrl_tt")
    above = [f"{rival} ({ours - mean[rival]:+.1f})" for rival in rivals if ours > mean[rival]]
    below = [f"{rival} ({ours - mean[rival]:+.1f})" for rival in rivals if ours <= mean[rival]]
    text = f"With {few} samples the best bottom-heavy pattern, {best}, has {ours:.1f} %: "
    text += f"above {', '.join(above)}" if above else "above none of the others"
    text += f"; not above {', '.join(below)}" if below else ""
    top = mean["trmtl_044"]
    text += f". The top-heavy 044 has {top:.1f} %, and sharing nothing {mean['trmtl_000']:.1f} %."
    deviation = noise[f"trmtl_{best}"]
    return (
        f"{text} The spread of a repetition is {deviation:.1f} points, so that differences below about "
        f"{2 * deviation / 5**0.5:.1f} may be chance. The paper's margins at 100 samples, 1 to 5 points, are for "
        "images of 28×28 pixels, where a single task's network has 3 million weights for 100 images. Of digits of 8×8 "
        f"pixels single-task networks know {mean['stl']:.1f} % from {few} samples, which leaves sharing little to add."
    )


def ring_section() -> str:
    found = read("ring_layers")
    return f"""## Tensor-ring layers

`python benchmarks/ring_layers.py`: a training step (forward and backward, batch 32) of layers of the TRMTL paper's
sizes: torch's dense layer, the ring by building its weight, and by contracting the input core by core; milliseconds,
and median ratios to the dense layer, in turn in one process. `chosen` is what the cost model takes, `cheaper` what was
faster. {machine(found)}

{table(found["rows"]["layers"])}

A ring saves parameters, not time: a training step costs more than the dense layer's, but where inputs are so wide and
ranks so low that the weight need not be made at all. Fused, a ring is the dense layer.

FC1 of the MNIST network (784 → 1296) at growing batches; the routes cross where the ratio passes 1:

{table(found["rows"]["batches"])}"""


def draw_sharing(stem: Path) -> None:
    """The picture of `joint_section`."""
    rows = read("joint")["rows"]
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    patterns = of_patterns(rows)
    stl = next(row for row in _digits(rows) if _method(row) == "stl" and row["samples"])
    for task, marker in (("odd", "o"), ("even", "s")):
        values = [row["figures"][task] for row in patterns.values()]
        left.errorbar(
            range(len(values)), [statistics.mean(v) for v in values], [statistics.stdev(v) for v in values],
            fmt=marker, capsize=3, label=task,
        )  # fmt: skip
        left.axhline(statistics.mean(stl["figures"][task]), linestyle=":", color="grey")
    left.set_xticks(range(len(patterns)), list(patterns))
    left.set(xlabel="shared cores in each layer", ylabel="accuracy, %", title="digits, 50 samples a task (dotted: stl)")
    clips = of_clips(rows)
    for task, marker in (("five", "o"), ("six", "s")):
        values = [row["figures"][task] for row in clips]
        right.errorbar(
            range(len(values)), [statistics.mean(v) for v in values], [statistics.stdev(v) for v in values],
            marker=marker, capsize=3, label=f"{task} motions",
        )  # fmt: skip
    right.set_xticks(range(len(clips)))
    right.set(xlabel="shared cores", ylabel="accuracy, %", title="clips, LSTM")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
    for kind in ("png", "svg"):
        figure.savefig(stem.with_suffix(f".{kind}"), dpi=130, metadata={"Date": None} if kind == "svg" else None)
