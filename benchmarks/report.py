"""Writes docs/results.md and the README's table of the zoo, from the registry and benchmarks/results/*.json.

    python benchmarks/report.py

A test holds both against what this writes, so that no figure in them is anybody's typing.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from joint_report import draw_sharing, joint_section, ring_section
from markdown_table import table
from papers_report import papers_section

from zoo.catalog.entry import Entry
from zoo.catalog.registry import default_registry
from zoo.drawing.plots import accuracy_by_parameters
from zoo.search.ranks import family

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
RESULTS_PAGE = "docs/results.md"


def zoo_table() -> str:
    """Every entry of the registry in a line; those that differ in rank alone share one."""
    registry = default_registry()
    families: dict[str, list[Entry]] = {}
    for name in registry.names():
        families.setdefault(re.sub(r"-r\d+-", "-r-", name), []).append(registry.entry(name))
    return table([_line(entries) for entries in families.values()])


def _line(entries: list[Entry]) -> dict[str, Any]:
    one, ranks = entries[0], [str(entry.method.get("rank")) for entry in entries]
    name = one.name if len(entries) == 1 else one.name.replace(f"-r{ranks[0]}-", f"-r{{{','.join(ranks)}}}-")
    sizes = [file.size / 1000 for entry in entries for file in (entry.weights or {}).values()]
    sources = {entry.reported.source for entry in entries if entry.reported}
    means = [entry.reported.mean for entry in entries if entry.reported and entry.reported.mean]
    reported = f"{_range(means, '.1f', ' %')} " if means else ""
    assert one.parameters is not None
    return {
        "name": f"`{name}`",
        "tasks": len(one.tasks),
        "backbone": f"{one.parameters.backbone / 1e6:.2f} M" if one.backbone else "–",
        "per task": _per_task(entries),
        "file per task": _range(sizes, ".0f", " kB") if sizes else "train it",
        "measured": _measured([entry for entry in entries if entry.measured]),
        "reported": f"{reported}({', '.join(f'[{s}]({RESULTS_PAGE}#{_anchor(s)})' for s in sources)})"
        if sources
        else "–",
    }


def _per_task(entries: Sequence[Entry]) -> str:
    """What one task adds, and what the tasks share."""
    counted = [entry.parameters for entry in entries if entry.parameters]
    own = [number for each in counted for number in (each.by_task.values() or [each.per_task])]
    shared = max(each.shared for each in counted)
    return _range(own, ",", "") + (f", {shared:,} shared" if shared else "")


def _measured(entries: Sequence[Entry]) -> str:
    """The mean of an entry's figures or, where they are in several units, each."""
    if all(entry.mean(entry.measured) is not None for entry in entries):
        return _range([statistics.mean(entry.measured.values()) for entry in entries if entry.measured], ".1f", " %")
    values = {task: [(entry.measured or {})[task] for entry in entries] for task in entries[0].tasks}
    form = {task: (".1f" if entries[0].metric(task).unit in "%°" else ".2f") for task in values}
    return ", ".join(f"{t} {_range(v, form[t], f' {entries[0].metric(t).unit}')}" for t, v in values.items())


def _range(values: Sequence[float], form: str, unit: str) -> str:
    """The least and the greatest of some figures, or the one that there is."""
    shown = list(dict.fromkeys(format(value, form) for value in (min(values), max(values)))) if values else []
    return " – ".join(shown) + unit if shown else "–"


def _anchor(heading: str) -> str:
    """What Markdown makes of a heading, to link to it."""
    return re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")


def read(name: str) -> Any:
    """The figures that a benchmark wrote."""
    return json.loads((RESULTS / f"{name}.json").read_text())["rows"]


def measured_on(name: str) -> str:
    """The machine and the libraries that a benchmark ran on."""
    found = json.loads((RESULTS / f"{name}.json").read_text())
    return f"Measured on: {found['device']}; " + ", ".join(f"{k} {v}" for k, v in found["libraries"].items()) + "."


def methods_section() -> str:
    parts = [
        """## Methods on shapes

`python benchmarks/methods.py --out DIR [--backbone vit_micro]`: top-1 accuracy in per cent on the test images of the
five target domains, mean ± standard deviation over the seeds. Parameters and kB are one task's, heads left out of the
first, with its share of what tasks have in common. Milliseconds are `zoo compare`'s: medians at batch 32, all entries
in turn in one process, of a training step, and of inference fused and with the increments in place."""
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
        "method": _short(row["entry"]),
        "seeds": len(next(iter(row["figures"].values()))),
        **{task: spread(values, places) for task, values in row["figures"].items()},
        **(extra or {}),
        "parameters": f"{row['parameters']:,}",
        "kB": row["kB"],
        **{key: row[key] for key in row if key.startswith("ms ")},
    }


def rooms_section() -> str:
    rows = {_short(row["entry"]): row for row in read("methods_resnet20_rooms")}
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


def all_tasks_section() -> str:
    return f"""## All tasks in one pass

`python benchmarks/all_tasks.py`: `model(images)` against a call for each of four dense tasks, unfused, in turn in one
process; medians of the ratio, below 1 where one pass is faster. The calls are given the images as they come, and again
with their channels last, the layout that the one pass takes by itself. {measured_on("all_tasks")}

{table(read("all_tasks"))}"""


def draw_methods() -> None:
    """The pictures of `methods_section`."""
    for backbone in ("resnet20", "vit_micro"):
        rows = [
            {"model": row["entry"], "mean %": statistics.mean(row["figures"]["mean"]), "parameters": row["parameters"]}
            for row in read(f"methods_{backbone}_shapes")
        ]
        accuracy_by_parameters(rows, ROOT / "docs" / f"methods_{backbone}_shapes")


def spread(values: Sequence[float], places: int = 1) -> str:
    """The mean and, of several values, their standard deviation."""
    deviation = f" ± {statistics.stdev(values):.{places}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{places}f}{deviation}"


def _short(entry: str) -> str:
    """The method of BACKBONE-METHOD-BENCHMARK."""
    return entry.partition("-")[2].rpartition("-")[0]


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


def transformer_section() -> str:
    rows = [{k: "–" if v is None else v for k, v in row.items()} for row in read("transformer_step")]
    return f"""## Training step on a transformer

`python benchmarks/transformer_step.py`: one step (forward, backward, SGD) on CLIP's ViT-B/32 at batch 16, rank 4;
medians and median ratios, round by round in one process. PEFT's LoRA adapts the same layers, all of a packed one.
{measured_on("transformer_step")}

{table(rows)}"""


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


def ranks_section() -> str:
    found = read("rank_search")
    entry = default_registry().entry(found["entry"])
    ranks = list(family(entry, default_registry()))
    rows = [
        {
            "task": choice["task"],
            **{f"R={r}, held out": _percent(choice["tried"].get(str(r))) for r in ranks},
            "chosen": choice["rank"],
            "test": _percent(choice["accuracy"]),
            f"test at R={ranks[-1]}": _percent((entry.measured or {})[choice["task"]]),
            "saved": f"{1 - choice['parameters'] / choice['largest_parameters']:.0%}",
        }
        for choice in found["choices"]
    ]
    own, most = (sum(c[key] for c in found["choices"]) for key in ("parameters", "largest_parameters"))
    return f"""## Accuracy against rank

![Accuracy of FTN on the six domains of shapes at ranks 1 to 16, and with norms alone](ranks.png)

`zoo plot ranks "resnet20-ftn-*-shapes" -o docs/ranks` ([SVG](ranks.svg)), from the packaged entries: the paper's
Figure 2.

`python benchmarks/rank_search.py --out DIR` runs `zoo train {found["entry"]} --rank auto`: for each task the largest
rank is trained with a fifth of the training images held out, then the others from the smallest on, until one comes
within {found["margin"]:g} point of the largest on the held-out images; that rank is then trained on all training
images. Accuracy in per cent. In all {own:,} parameters instead of {most:,}: {1 - own / most:.0%} are saved. With 144
held-out images of each domain one point is one or two images, so a choice between neighbouring ranks is partly
chance. {measured_on("rank_search")}

{table(rows)}"""


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def execution_section() -> str:
    return f"""## Precision, memory layout, torch.compile

`python benchmarks/execution.py --out DIR`: the flags of `zoo train`, their effect on the time of a step (FTN,
resnet34 R=40, batch 16, 160 px; medians, in turn in one process) and on the accuracy of
`zoo train resnet20-ftn-r8-shapes --task quickdraw`. fp16 needs a GPU and has not been measured.
{measured_on("execution")}

{table(read("execution"))}"""


def input_section() -> str:
    found = read("input_pipeline")
    gpu = found["gpu images/s"]
    known = (
        f"The GPU trains resnet50 R=50 on {gpu:.0f} images/s."
        if gpu
        else "What a GPU needs has not been measured here."
    )
    return f"""## Input pipeline

`python benchmarks/input_pipeline.py`: JPEG files of 500 × 375 pixels to normalised 224 × 224 training inputs, on one
core, in turn in one process; `zoo train --workers N` spreads it over N. {known} {measured_on("input_pipeline")}

{table(found["pipelines"])}"""


def results() -> str:
    """The whole of docs/results.md."""
    parts = [
        "# Results",
        "Written by `python benchmarks/report.py` from what the named commands measured.",
        "## The zoo",
        "Parameters leave the heads out. `measured` is what `zoo verify NAME` holds the packaged weights to.",
        zoo_table().replace(RESULTS_PAGE, ""),
        methods_section(),
        rooms_section(),
        joint_section(),
        ranks_section(),
        step_section(),
        transformer_section(),
        ring_section(),
        execution_section(),
        latency_section(),
        all_tasks_section(),
        input_section(),
        startup_section(),
        papers_section(),
    ]
    return "\n\n".join(parts) + "\n"


def readme(text: str) -> str:
    """The README with its table of the zoo made anew."""
    table_of_the_zoo = f"<!-- zoo -->\n\n{zoo_table()}\n\n<!-- /zoo -->"
    return re.sub("<!-- zoo -->.*?<!-- /zoo -->", lambda _: table_of_the_zoo, text, flags=re.DOTALL)


def main() -> None:
    draw_methods()
    draw_sharing(ROOT / "docs" / "sharing")
    (ROOT / "docs" / "results.md").write_text(results(), encoding="utf-8")
    path = ROOT / "README.md"
    path.write_text(readme(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
