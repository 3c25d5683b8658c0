"""Writes docs/results.md and the README's table of the zoo, from the registry and benchmarks/results/*.json.

    python benchmarks/report.py

A test holds both against what this writes, so that no figure in them is anybody's typing.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.registry import Entry, default_registry

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of rows with the same keys."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(cell) for cell in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def zoo_table() -> str:
    """Every entry of the registry in a line."""
    registry = default_registry()
    return table([_line(registry.entry(name)) for name in registry.names()])


def _line(entry: Entry) -> dict[str, Any]:
    parameters, reported = entry.parameters, entry.reported
    assert parameters is not None
    sizes = [file.size for file in (entry.weights or {}).values()]
    return {
        "name": f"`{entry.name}`",
        "tasks": len(entry.tasks),
        "backbone": f"{parameters.backbone / 1e6:.2f} M",
        "per task": f"{parameters.per_task:,}",
        "file per task": f"{sum(sizes) / len(sizes) / 1000:.0f} kB" if sizes else "train it",
        "measured": f"{statistics.mean(entry.measured.values()):.1f} %" if entry.measured else "–",
        "reported": f"{statistics.mean(reported.accuracy.values()):.1f} % ({reported.source})" if reported else "–",
    }


def read(name: str) -> Any:
    """The figures that a benchmark wrote."""
    return json.loads((RESULTS / f"{name}.json").read_text())["rows"]


def measured_on(name: str) -> str:
    """The machine and the libraries that a benchmark ran on."""
    found = json.loads((RESULTS / f"{name}.json").read_text())
    return f"Measured on: {found['device']}; " + ", ".join(f"{k} {v}" for k, v in found["libraries"].items()) + "."


def methods_section() -> str:
    figures, registry = read("methods"), default_registry()
    rows = []
    for short, found in figures.items():
        parameters = registry.entry(f"resnet20-{short}-shapes").parameters
        assert parameters is not None
        cells = {task: f"{statistics.mean(v):.1f} ± {statistics.stdev(v):.1f}" for task, v in found.items()}
        rows.append({"method": short, "parameters per task": f"{parameters.per_task:,}", **cells})
    mean = {short: statistics.mean(found["mean"]) for short, found in figures.items()}
    gap = mean["finetune"] - mean["ftn-r8"]
    order = " < ".join(sorted(mean, key=lambda short: mean[short]))
    return f"""## Methods on shapes

`python benchmarks/methods.py --out DIR`: top-1 accuracy in per cent on the test images of the five target domains,
mean ± standard deviation over three seeds. The order of the means is {order};
ftn-r8 is {abs(gap):.1f} points {"below" if gap > 0 else "above"} full fine-tuning. {measured_on("methods")}

{table(rows)}"""


def step_section() -> str:
    blocks = []
    for name, words in (
        ("training_step_channels_last", "channels-last, as `zoo train` runs"),
        ("training_step", "contiguous"),
    ):
        rows = [
            {
                "network": f"{row['model']} R={row['rank']}",
                **{key: f"{row['ms'][key]:.0f} ms ({row['ratio'][key]:.2f})" for key in row["ms"]},
            }
            for row in read(name)
        ]
        blocks.append(f"Memory format {words}:\n\n{table(rows)}")
    words = """## Training step

`python benchmarks/training_step.py [--channels-last]`: one step (forward, backward, SGD) at batch 16 and 160 px;
medians, and in brackets the median ratio to full fine-tuning, round by round in one process. PEFT's LoRA has the same
rank on all the same layers, and trains norms and head too.
"""
    return "\n\n".join([words + measured_on("training_step"), *blocks])


def latency_section() -> str:
    rows = [{**row, "model": f"`{row['model']}`"} for row in read("latency")]
    return f"""## Latency of fused networks

`python benchmarks/latency.py`: milliseconds per batch and the ratio to the plain backbone in the same runtime; timed in
turn in one process, medians. Unfused is the model with all increments in place.
{measured_on("latency")}

{table(rows)}"""


def startup_section() -> str:
    return f"""## Start-up of the command line

`python benchmarks/startup.py`: whole processes in turn, medians. {measured_on("startup")}

{table(read("startup"))}"""


def reported_section() -> str:
    registry = default_registry()
    entries = [registry.entry(name) for name in registry.names()]
    lines = [
        f"- `{e.name}` ({e.reported.source}): " + ", ".join(f"{t} {v}" for t, v in e.reported.accuracy.items())
        for e in entries if e.reported
    ]  # fmt: skip
    return """## The papers' figures

Top-1 accuracy in per cent. Nobody has rerun these with this software yet: they need ImageNet weights, the datasets and
a GPU. No weights of these entries are published.

""" + "\n".join(lines)


def results() -> str:
    """The whole of docs/results.md."""
    parts = [
        "# Results",
        "Written by `python benchmarks/report.py` from what the named commands measured.",
        "## The zoo",
        "Parameters leave the heads out. `measured` is what `zoo verify NAME` holds the packaged weights to.",
        zoo_table(),
        methods_section(),
        step_section(),
        latency_section(),
        startup_section(),
        reported_section(),
    ]
    return "\n\n".join(parts) + "\n"


def readme(text: str) -> str:
    """The README with its table of the zoo made anew."""
    table_of_the_zoo = f"<!-- zoo -->\n\n{zoo_table()}\n\n<!-- /zoo -->"
    return re.sub("<!-- zoo -->.*?<!-- /zoo -->", lambda _: table_of_the_zoo, text, flags=re.DOTALL)


def main() -> None:
    (ROOT / "docs" / "results.md").write_text(results(), encoding="utf-8")
    path = ROOT / "README.md"
    path.write_text(readme(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
