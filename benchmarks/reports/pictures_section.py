"""The section on real pictures: what each method achieves at each task, from what it stores and how long it trains."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

from figures import method_of, read
from markdown_table import table

from zoo.catalog.recipe import load_recipe
from zoo.catalog.registry import default_registry
from zoo.datasets import get_benchmark

METHODS = ["features", "bn", "ftn-r1", "ftn-r4", "ftn-r16", "finetune"]
COMPARED = [("features", "bn"), ("bn", "ftn-r4"), ("ftn-r1", "ftn-r16"), ("ftn-r4", "finetune")]


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
    return "\n\n".join([words, table(accuracy), _order(found), costs, table(_costs(rows))])


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
            task: statistics.mean(r["figure"] for r in found[b, task, second])
            - statistics.mean(r["figure"] for r in found[b, task, first])
            for b in ("pictures", "emoji")
            for task in _tasks(b)
            if found[b, task, first] and found[b, task, second] and _alike(b, task, first, second)
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


def _alike(benchmark: str, task: str, first: str, second: str) -> bool:
    """Whether both methods, if they train norms, have them go by the same statistics."""
    recipes = [load_recipe(f"{benchmark}/{m.partition('-')[0]}").of(task) for m in (first, second) if m != "features"]
    return len({recipe.statistics for recipe in recipes}) == 1


def _costs(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    registry, lines = default_registry(), []
    for method in METHODS:
        own = [row for row in rows if method_of(row["entry"]) == method]
        if not own:
            continue
        counted = registry.entry(own[0]["entry"]).parameters
        assert counted is not None
        sizes = [row["bytes"] / 1000 for row in own if row["bytes"]]
        seconds = [row["seconds"] for row in own if row["task"] == "birds" and row["seconds"]]
        kilobytes = f"{min(sizes):,.0f} – {max(sizes):,.0f} kB"
        least = f"{min(seconds):.0f}" if seconds else "–"
        lines.append({"method": method, "parameters": f"{counted.per_task:,}", "file": kilobytes, "seconds": least})
    return lines
