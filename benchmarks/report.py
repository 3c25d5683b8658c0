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

from zoo import papers
from zoo.plots import accuracy_by_parameters
from zoo.ranks import family
from zoo.registry import Entry, Registry, default_registry
from zoo.score import decathlon_score, scale

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
RESULTS_PAGE = "docs/results.md"
PAPER = "https://arxiv.org/abs/2310.06124"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of rows with the same keys."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(cell) for cell in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


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
    reported = _range([entry.reported.mean for entry in entries if entry.reported and entry.reported.mean], ".1f", " %")
    assert one.parameters is not None
    return {
        "name": f"`{name}`",
        "tasks": len(one.tasks),
        "backbone": f"{one.parameters.backbone / 1e6:.2f} M",
        "per task": _range([entry.parameters.per_task for entry in entries if entry.parameters], ",", ""),
        "file per task": _range(sizes, ".0f", " kB") if sizes else "train it",
        "measured": _range(
            [statistics.mean(entry.measured.values()) for entry in entries if entry.measured], ".1f", " %"
        ),
        "reported": f"{reported} ({', '.join(f'[{s}]({RESULTS_PAGE}#{_anchor(s)})' for s in sources)})"
        if sources
        else "–",
    }


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
        rows = sorted(read(f"methods_{backbone}"), key=lambda row: statistics.mean(row["accuracy"]["mean"]))
        shown = [
            {
                "method": _short(row["entry"]),
                **{task: spread(values) for task, values in row["accuracy"].items()},
                "parameters": f"{row['parameters']:,}",
                "kB": row["kB"],
                **{key.removeprefix("ms "): row[key] for key in row if key.startswith("ms ")},
            }
            for row in rows
        ]
        picture = f"![Mean accuracy against parameters per task](methods_{backbone}.png)"
        seeds = f"{len(rows[0]['accuracy']['mean'])} seeds. {measured_on(f'methods_{backbone}')}"
        parts.append(f"### {backbone}\n\n{picture}\n\n{seeds}\n\n{table(shown)}")
    return "\n\n".join(parts)


def draw_methods() -> None:
    """The pictures of `methods_section`."""
    for backbone in ("resnet20", "vit_micro"):
        rows = [
            {"model": row["entry"], "mean %": statistics.mean(row["accuracy"]["mean"]), "parameters": row["parameters"]}
            for row in read(f"methods_{backbone}")
        ]
        accuracy_by_parameters(rows, ROOT / "docs" / f"methods_{backbone}")


def spread(values: Sequence[float]) -> str:
    """The mean and, of several values, their standard deviation."""
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


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


def papers_section() -> str:
    registry = default_registry()
    parts = [
        f"""## The papers' figures

Top-1 accuracy in per cent, as the [FTN paper]({PAPER}) prints it. Nobody has rerun the entries of these tables with
this software yet: they need ImageNet weights, the datasets and a GPU. Their weights are not published. Parameters are
millions, for all tasks, heads left out: as printed, and counted by one rule, the frozen backbone with its norms and
for each task its increments and its norms. S is the decathlon score: as
printed for residual adapters, else against the row of full fine-tuning."""
    ]
    for source in papers.tables(registry):
        rows = [row if "S" in row else row | _score(row["model"]) for row in papers.table(source, registry)]
        shown = [{key: "–" if value is None else value for key, value in row.items()} for row in rows]
        parts.append(f"### {source}\n\n{table(shown)}")
    return "\n\n".join([*parts, contradictions(registry)])


def _score(name: str) -> dict[str, int]:
    registry = default_registry()
    entry = registry.entry(name) if name in registry.names() else None
    known = scale(entry, registry, "reported") if entry else None
    return {"S": round(decathlon_score(entry.reported.accuracy, known))} if known and entry and entry.reported else {}


def contradictions(registry: Registry) -> str:
    """Where what the paper prints cannot all be true."""
    counted = {name: (registry.entry(name).total_parameters or 0) / 1e6 for name in registry.names()}
    backbone = counted["resnet26-finetune-decathlon"] / 10  # itself, and one network for each of nine tasks
    multiple = {part: counted[f"resnet26-parallel_{part}-decathlon"] / backbone for part in ("early", "mid", "late")}
    off = [
        f"{row['model']} in {source} ({row['mean']} printed, {papers.mean_of(row):.2f})"
        for source in papers.tables(registry)
        for row in papers.table(source, registry)
        if abs(papers.mean_of(row) - row["mean"])
        > (0.051 if source == "FTN, Table 3" else 0.0051)  # one decimal, or two
    ]
    return f"""### Where the papers contradict themselves

- One network per task: Tables 1, 5 and 7 count the original backbone beside them (6× for five tasks, 10× for nine),
  Tables 2 and 6 do not (6× for six). Counted here with it.
- Table 1 gives "FC and BN only" 23.52 M, hardly more than the backbone; five sets of norms make it
  {counted["resnet50-bn-sketch"]:.2f} M, and the FTN rows of the same table do hold them.
- Table 1 calls 23.95 M 1.004 times 23.5 M; it is 1.019 times.
- Table 7 gives FTN on nine tasks 11.23 M and 11.89 M, the totals of Table 4 for four tasks of the same network; nine
  tasks make {counted["resnet18-ftn-r1-decathlon"]:.2f} M and {counted["resnet18-ftn-r20-decathlon"]:.2f} M.
- Table 3 gives KAdaptation 80.7 K parameters per task. By the formula of Section 3.2 the query and value weights take
  {registry.entry("vit_b32_clip-kadaptation-r4-clip5").parameters.per_task:,} at R = 4 and K = 4; {_reachable()}
- The 87.9 M of Table 3's backbone count CLIP's projection of 768 to 512 dimensions, which is replaced by the
  classifiers; without it they are {registry.entry("vit_b32_clip-features-clip5").parameters.backbone / 1e6:.2f} M.
- FTN R=1 on DomainNet has 21.44 M in Table 2, and 21.45 M in Table 6.
- Fine-tuning on CUB reaches 83.37 in Table 1, and 83.32 in Table 8.
- Table 6 gives "Fine-tuning" six times the parameters, and Appendix D speaks of a single model. It is taken here for
  six networks that start from the jointly trained one; no row of the table is that network itself.
- The supplement lists the numbers of classes of ImageNet-to-Sketch in another order than the domains; the datasets
  decide: flowers 102, wikiart 195, sketch 250, cars 196, cub 200.
- Residual adapters' Table 1 gives the adapters of the early, the mid and the late macro block alone twice the
  backbone's parameters each, as it does those of all three; counted, they have
  {multiple["early"]:.2f}, {multiple["mid"]:.2f} and {multiple["late"]:.2f} times.
- Means that are not the means of their row: {"; ".join(off)}."""


def _reachable() -> str:
    """Whether KAdaptation's formula, 2 L R d + K³ for each kind of weight, can give what Table 3 prints."""
    sizes = {
        (kinds, rank, k): kinds * (2 * 12 * rank * 768 + k**3)
        for kinds in (1, 2) for rank in range(1, 5) for k in range(1, 64)
    }  # fmt: skip
    found = [f"{kinds} kinds, R = {r}, K = {k}" for (kinds, r, k), n in sizes.items() if round(n / 1000, 1) == 80.7]
    return f"80.7 K are had with {'; '.join(found)}." if found else "no R up to 4 and K up to 63 give 80.7 K."


def results() -> str:
    """The whole of docs/results.md."""
    parts = [
        "# Results",
        "Written by `python benchmarks/report.py` from what the named commands measured.",
        "## The zoo",
        "Parameters leave the heads out. `measured` is what `zoo verify NAME` holds the packaged weights to.",
        zoo_table().replace(RESULTS_PAGE, ""),
        methods_section(),
        ranks_section(),
        step_section(),
        transformer_section(),
        execution_section(),
        latency_section(),
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
    (ROOT / "docs" / "results.md").write_text(results(), encoding="utf-8")
    path = ROOT / "README.md"
    path.write_text(readme(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
