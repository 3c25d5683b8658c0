"""What eight bits cost the packaged networks: figures on the test images, bytes and time, beside float32.

    python benchmarks/int8.py [--data-root DIR] [--only GLOB] [--json benchmarks/results/int8.json]

Every packaged ResNet-20, as `zoo export NAME --all-tasks --precision int8` makes and measures it; with --data-root, the
folder that holds `emoji` and `pictures`, EfficientNet-Lite0's tasks too. On one core, in ONNX Runtime.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import click
from record import save

from zoo.catalog.entry import Entry
from zoo.catalog.registry import default_registry
from zoo.catalog.task import METRICS, Metric
from zoo.cli.tables import show
from zoo.deployment import export_entry

SMALL = "resnet20-*"
LARGE = {name: f"efficientnet_lite0-ftn-r4-{name}" for name in ("emoji", "pictures")}
ANY = 1e6  # points that may be lost: all is told


def rows(entry: Entry, data_root: Path | None) -> list[dict[str, Any]]:
    """A line for each metric of an entry's packaged tasks."""
    with tempfile.TemporaryDirectory() as folder:
        made = export_entry(
            entry, default_registry(), list(entry.weights), Path(folder), precision="int8", max_drop=ANY,
            data_root=data_root,
        )  # fmt: skip
    costs: dict[str, dict[str, Any]] = {}  # by metric and task
    for task, each in made.items():
        costs.setdefault(entry.kind(task), {})[task] = each.int8
    return [{"entry": entry.name, **_row(METRICS[kind], by_task)} for kind, by_task in costs.items()]


def _row(metric: Metric, costs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Means over the tasks of one metric, and the task that loses most."""
    lost = {task: metric.worse(cost["int8"], cost["float32"]) for task, cost in costs.items()}
    worst = max(lost, key=lambda task: lost[task])

    def mean(key: str) -> float:
        return statistics.fmean(cost[key] for cost in costs.values())

    def time(batch: str) -> float:
        return round(statistics.median(cost["latency"][batch] for cost in costs.values()), 2)

    return {
        "metric": metric.name, "tasks": len(costs), "images": sum(cost["images"] for cost in costs.values()),
        "float32": metric.rounded(mean("float32")), "int8": metric.rounded(mean("int8")),
        "lost at most": f"{lost[worst]:.2f} ({worst})",
        "kB, float32": round(mean("bytes_float32") / 1000), "kB, int8": round(mean("bytes_int8") / 1000),
        "time, batch of 1": time("1"), "time, batch of 8": time("8"),
    }  # fmt: skip


@click.command()
@click.option("--data-root", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--only", default="*", help="Measure entries of such names, and keep the others' rows in the file.")
@click.option("--json", "file", type=click.Path(path_type=Path))
def main(data_root: Path | None, only: str, file: Path | None) -> None:
    logging.basicConfig(format="%(message)s")
    logging.getLogger("zoo").setLevel(logging.INFO)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    registry = default_registry()
    entries = [(entry, None) for entry in registry.entries(SMALL) if entry.weights]
    if data_root:
        entries += [(registry.entry(name), data_root / folder) for folder, name in LARGE.items()]
    before = json.loads(file.read_text())["rows"] if file and file.is_file() else []
    found = [row for entry, root in entries if fnmatch(entry.name, only) for row in rows(entry, root)]
    show(found)
    measured = {row["entry"] for row in found}
    found = [*(row for row in before if row["entry"] not in measured), *found]
    save(file, found, peers=("onnxruntime-gpu",))


if __name__ == "__main__":
    main()
