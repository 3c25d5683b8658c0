"""What docs/results.md says of networks that share parts of their weights, and its picture."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from figures import machine, spread, whole
from markdown_table import table

from zoo.drawing.plots import pyplot

BALANCED = ("50", "100", "all")
RIVALS = ("stl", "mrn", "dmtrl_tucker", "dmtrl_tt")


def means(row: dict[str, Any]) -> list[float]:
    """The mean over the tasks, of each repetition."""
    return [statistics.mean(each) for each in zip(*row["figures"].values(), strict=True)]


def _method(row: dict[str, Any]) -> str:
    return str(row["entry"]).split("-")[1]


def of_methods(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """The rows of each method with as many samples of both tasks, by method and number of samples."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if row["entry"].endswith("-digits") and row["samples"] in BALANCED:
            found.setdefault(_method(row), {})[row["samples"]] = row
    return found


def few_samples(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A line for each method that was trained with every number of samples."""
    return [
        {
            "method": method,
            "parameters": f"{by['all']['parameters']:,}",
            **{
                f"{samples}, {task}": spread(values)
                for samples in BALANCED
                for task, values in by[samples]["figures"].items()
            },
            **{f"{samples}, mean": spread(means(by[samples])) for samples in BALANCED},
        }
        for method, by in of_methods(rows).items()
    ]


def of_patterns(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """TRMTL's figures where one task has few samples and the other all: of the task with few, by pattern."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        task, _, few = row["samples"].partition(" ")
        if few:
            of_pattern = found.setdefault(_method(row).partition("_")[2], {"figures": {}})
            of_pattern["figures"][task] = row["figures"][task]
            of_pattern["parameters"] = row["parameters"]
    return found


def of_clips(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of clips, by the number of shared cores."""
    found = [row for row in rows if row["entry"].endswith("-clips")]
    return sorted(found, key=lambda row: str(row["entry"]))


def joint_section() -> str:
    found = whole("joint")
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

The accuracy of a task with 50 samples, trained together with the other that has all of its own (Fig. 3 in small): `044`
is top-heavy, `000` shares nothing.

{table(patterns)}

{transfer(rows)}

An LSTM on clips that shares none to all four cores of its input weights (Table 2 in small):

{table(clips)}"""


def reading(rows: list[dict[str, Any]]) -> str:
    """What the figures say of the paper's order, in words that the figures choose."""
    found = of_methods(rows)
    parts = []
    for samples in ("50", "100"):
        mean = {method: statistics.mean(means(by[samples])) for method, by in found.items()}
        best = max((method for method in mean if method.startswith("trmtl")), key=mean.__getitem__)
        apart = [f"{paired(found[best][samples], found[rival][samples])} against {rival}" for rival in RIVALS]
        parts.append(f"With {samples} samples {best} has {mean[best]:.1f} %: {', '.join(apart)}.")
    stl = statistics.mean(means(found["stl"]["50"]))
    return (
        "The best pattern against each other method, in points, paired by repetition, with the standard error. "
        f"{' '.join(parts)} The paper's margins at 100 samples are 1 to 5 points, for images of 28×28 "
        "pixels, where a single task's network has 3 million weights for 100 images. Of digits of 8×8 pixels "
        f"single-task networks know {stl:.1f} % from 50 samples, and errors of this size leave sharing little to gain."
    )


def paired(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """The mean difference of two rows, repetition by repetition, and its standard error."""
    differences = [a - b for a, b in zip(means(ours), means(theirs), strict=True)]
    mean = round(statistics.mean(differences), 1) + 0.0  # no -0.0
    return f"{mean:+.1f} ± {statistics.stdev(differences) / len(differences) ** 0.5:.1f}"


def transfer(rows: list[dict[str, Any]]) -> str:
    """What a task with few samples gains by the other's many."""
    alone, patterns = of_methods(rows)["stl"]["50"], of_patterns(rows)
    gains = {pattern: paired(row, alone) for pattern, row in patterns.items()}
    best = max(patterns, key=lambda pattern: statistics.mean(means(patterns[pattern])))
    others = ", ".join(f"{pattern} {gain}" for pattern, gain in gains.items() if pattern != best)
    return (
        f"Against a network of its own (stl with 50 samples), such a task gains {gains[best]} points with the pattern "
        f"{best}; {others}."
    )


def ring_section() -> str:
    found = whole("ring_layers")
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
    rows = whole("joint")["rows"]
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    patterns = of_patterns(rows)
    stl = of_methods(rows)["stl"]["50"]
    for task, marker in (("odd", "o"), ("even", "s")):
        values = [row["figures"][task] for row in patterns.values()]
        left.errorbar(
            range(len(values)), [statistics.mean(v) for v in values], [statistics.stdev(v) for v in values],
            fmt=marker, capsize=3, label=task,
        )  # fmt: skip
        left.axhline(statistics.mean(stl["figures"][task]), linestyle=":", color="grey")
    left.set_xticks(range(len(patterns)), list(patterns))
    left.set(
        xlabel="shared cores in each layer",
        ylabel="accuracy, %",
        title="digits: a task with 50 samples (dotted: alone)",
    )
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
