"""The section on real pictures: what each method achieves at each task, from what it stores and how long it trains."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

from figures import measured_on, method_of, read
from markdown_table import table

from zoo.catalog.recipe import load_recipe
from zoo.catalog.registry import default_registry
from zoo.datasets import get_benchmark

METHODS = ["features", "bn", "ftn-r1", "ftn-r4", "ftn-r16", "finetune"]
OTHERS, STYLE = ("lora-r4", "parallel", "series"), "noto"
STREETS = ("decoder", "decoder_bn", "ftn-r8", "single")
MAPS = {"semseg": "segmentation, mIoU", "edge": "edges, odsF"}
COMPARED = [("features", "bn"), ("bn", "ftn-r1"), ("bn", "ftn-r4"), ("ftn-r1", "ftn-r16"), ("ftn-r4", "finetune")]


def pictures_section() -> str:
    rows = read("pictures")
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row["entry"].rpartition("-")[2], row["task"], method_of(row["entry"])].append(row)  # type: ignore[index]
    devices = sorted({row["device"] for row in rows})
    words = f"""## Real pictures

`python benchmarks/pictures.py`: EfficientNet-Lite0 pre-trained on ImageNet, at 128 px, by the recipes of
[pictures](../recipes/pictures) and [emoji](../recipes/emoji); [what the tasks are](pictures.md). Test accuracy in per
cent. The error of a figure is that of a share of so many test images, the standard deviation over the seeds where there
are several. Trained on: {"; ".join(devices)}."""
    accuracy = [
        _accuracies(benchmark, task, found) for benchmark in ("pictures", "emoji") for task in _tasks(benchmark)
    ]
    costs = """What a task costs. The file holds increments, norms and head. Seconds are those of `birds`, trained
beside others on one device, and so no more than a hint."""
    parts = [words, table(accuracy), _order(found), _one_style(found), costs, table(_costs(rows))]
    return "\n\n".join(part for part in parts if part)


def _tasks(benchmark: str) -> tuple[str, ...]:
    return get_benchmark(benchmark).tasks(None)


def _accuracies(benchmark: str, task: str, found: dict[Any, list[dict[str, Any]]]) -> dict[str, str]:
    (counts,) = (stated[task] for stated in get_benchmark(benchmark).published.values())
    line = {"task": task, "classes": str(counts.classes), "test images": f"{counts.test:,}"}
    for method in METHODS:
        values = [row["figure"] for row in found[benchmark, task, method]]
        line[method] = _with_error(values, counts.test) if values else "–"
    return line


def _with_error(values: list[float], images: int) -> str:
    mean = statistics.mean(values)
    share = mean / 100
    error = statistics.stdev(values) if len(values) > 1 else 100 * (share * (1 - share) / images) ** 0.5
    return f"{mean:.1f} ± {error:.1f}"


def _order(found: dict[Any, list[dict[str, Any]]]) -> str:
    """How far methods are apart on the tasks that both have, and where the paper's order does not show."""
    lines = []
    for first, second in COMPARED:
        gains = {
            task: gain
            for b in ("pictures", "emoji")
            for task in _tasks(b)
            if _alike(b, task, first, second)
            and (gain := _gain(found[b, task, first], found[b, task, second])) is not None
        }
        if len(gains) < 2:
            continue
        mean, error = statistics.mean(gains.values()), statistics.stdev(gains.values()) / len(gains) ** 0.5
        against = ", ".join(f"{task} {gain:+.1f}" for task, gain in gains.items() if gain < 0)
        words = f"**{second}** against **{first}**: {mean:+.1f} ± {error:.1f} points, paired over {len(gains)} tasks"
        lines.append(f"- {words}" + (f"; the other way: {against}." if against else "."))
    words = """The paper's order is features < bn < ftn of low rank < ftn of high rank ≲ finetune. Here, where both have
norms go by the same statistics (for letters, ftn and finetune take each batch's, and bn does not):"""
    return words + "\n\n" + "\n".join(lines)


def _gain(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> float | None:
    """The mean gain over the seeds that both have."""
    of, than = ({row["seed"]: row["figure"] for row in rows} for rows in (second, first))
    both = of.keys() & than.keys()
    return statistics.mean(of[seed] - than[seed] for seed in both) if both else None


def _one_style(found: dict[Any, list[dict[str, Any]]]) -> str:
    """Other methods, on one style of emoji."""
    (tested,) = (stated[STYLE].test for stated in get_benchmark("emoji").published.values())
    named = [(method, found["emoji", STYLE, method]) for method in ("ftn-r4", *OTHERS)]
    lines = [
        {
            "method": method,
            STYLE: _with_error([row["figure"] for row in rows], tested),
            "parameters": f"{_added(rows):,}",
        }
        for method, rows in named
        if rows
    ]
    return f"Other methods on one style of emoji:\n\n{table(lines)}" if len(lines) > 1 else ""


def _added(rows: list[dict[str, Any]]) -> int:
    """The parameters that a task adds, its head left out."""
    counted = default_registry().entry(rows[0]["entry"]).parameters
    assert counted is not None
    return counted.per_task


def streets_section() -> str:
    rows = [row for row in read("pictures") if row["entry"].endswith("-streets")]
    lines = []
    for method in STREETS:
        own = {row["task"]: row for row in rows if method_of(row["entry"]) == method}
        figures = {name: f"{own[task]['figure']:.1f}" if task in own else "–" for task, name in MAPS.items()}
        if own:
            lines.append({"method": method, **figures, "parameters": f"{_added(list(own.values())):,}"})
    words = """## Streets

`python benchmarks/pictures.py --only '*-streets/*'`: CamVid's 367 training and 233 test frames of 320×240 pixels,
DeepLabv3+ on EfficientNet-Lite0, by the recipes of [streets](../recipes/streets), one seed; in per cent. Parameters are
those that a task adds to the encoder; its decoder, the same for every method, has 0.9 million."""
    return f"{words}\n\n{table(lines)}"


def peft_section() -> str:
    rows, step = (read("against_peft")[key] for key in ("tasks", "step"))
    lines = [
        {
            "task": row["task"], "method": row["method"], "accuracy": f"{row['accuracy']:.1f}",
            "parameters": f"{row['parameters']:,}", "file": f"{row['bytes'] / 1000:,.0f} kB",
            "moved": f"{row['moved']:.0e}",
        }
        for row in rows
    ]  # fmt: skip
    mixed = {row["method"].partition(" R=")[0]: row["mixed"] for row in rows}
    said = "\n".join(f"- {method}: {text}" for method, text in mixed.items())
    return f"""## Against PEFT on the same work

`python benchmarks/against_peft.py --data-root DATA`: EfficientNet-Lite0, both by FTN's recipe, with the same head to
begin with, the same images in the same order, steps and optimisers; LoRA on the same convolutions but the depthwise
ones, which PEFT refuses where their groups do not divide the rank, and at the rank whose parameters come nearest.
Accuracy in per cent. "Moved" is how far frozen weights are off once the task was merged into them and taken out again
(the zoo fuses into a copy). {measured_on("against_peft")}

{table(lines)}

A training step of batch 32 on one core, in turn: {step["FTN"]:.0f} ms with FTN, {step["PEFT LoRA"]:.0f} ms with PEFT's
LoRA, in the median {step["ratio"]:.2f} times as long.

A batch with images of two tasks, whose norms differ:

{said}"""


def _alike(benchmark: str, task: str, first: str, second: str) -> bool:
    """Whether both methods, if they train norms, have them go by the same statistics."""
    recipes = [load_recipe(f"{benchmark}/{m.partition('-')[0]}").of(task) for m in (first, second) if m != "features"]
    return len({recipe.statistics for recipe in recipes}) == 1


def _costs(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    lines = []
    for method in METHODS:
        own = [row for row in rows if method_of(row["entry"]) == method]
        if not own:
            continue
        sizes = [row["bytes"] / 1000 for row in own if row["bytes"]]
        seconds = [row["seconds"] for row in own if row["task"] == "birds" and row["seconds"]]
        kilobytes = f"{min(sizes):,.0f} – {max(sizes):,.0f} kB"
        least = f"{min(seconds):.0f}" if seconds else "–"
        lines.append({"method": method, "parameters": f"{_added(own):,}", "file": kilobytes, "seconds": least})
    return lines
