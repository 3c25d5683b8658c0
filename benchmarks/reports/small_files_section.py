"""What docs/small-files.md says of factorised networks beside FTN's, and of ranks that are chosen for each layer."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from figures import ROOT, measured_on, read, spread
from markdown_table import between, table

from zoo.catalog.registry import default_registry
from zoo.drawing.plots import curves

FORMS = ("cp", "tt", "svd", "tucker")
SHAPES = "resnet20-finetune-shapes"
NORMS = 1376  # of a task of shapes, which are no factors


def small_files(text: str) -> str:
    """The page with its tables made anew."""
    text = between(text, "factorised", _shapes())
    text = between(text, "equal", _equal())
    text = between(text, "real", _real())
    text = between(text, "again", _again())
    text = between(text, "budget", _budget())
    return between(text, "time", _time())


def draw() -> None:
    """docs/small_files.png and .svg: accuracy against parameters, a line for each form."""
    lines = {"FTN, trained": [(row["parameters"], statistics.mean(row["figures"])) for row in _trained()]}
    for rest in (True, False):
        for form in FORMS:
            points = [
                (each[0]["parameters"], statistics.mean(row["figure"] for row in each))
                for rank in _ranks()
                if (each := _rows(form, rank, rest))
            ]
            lines |= {f"{form}, factorised{', stem kept' if rest else ''}": points} if points else {}
    tuned = statistics.mean(_fine_tuned()["figures"]["mean"])
    labels = ("parameters of a task's factors", "accuracy, % (mean of five tasks and three seeds)")
    title, stem = "FTN trained, and fine-tuned networks factorised", ROOT / "docs" / "small_files"
    curves(lines, title, labels, stem, tuned, "fine-tuning", logarithmic=True)


def _fine_tuned() -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in read("methods_resnet20_shapes") if row["entry"] == SHAPES)
    return found


def _trained() -> list[dict[str, Any]]:
    """FTN by rank: its factors' parameters, and its mean accuracy with each seed."""
    rows = [row for row in read("methods_resnet20_shapes") if "-ftn-r" in row["entry"]]
    found = [
        {
            "rank": default_registry().entry(row["entry"]).rank,
            "parameters": row["parameters"] - NORMS,
            "figures": row["figures"]["mean"],
        }
        for row in rows
    ]
    return sorted(found, key=lambda row: row["parameters"])


def _rows(form: str, rank: int, rest: bool, entry: str = SHAPES, task: str = "") -> list[dict[str, Any]]:
    """The figures of a form at a rank: of one task, or of all with all seeds, if none is missing."""
    found = [
        row
        for row in read("small_files")
        if (row["entry"], row["form"], row["rank"], row.get("rest", False)) == (entry, form, rank, rest)
        and task in ("", row["task"])
    ]
    every = {(row["task"], row["seed"]) for row in read("small_files") if row["entry"] == entry}
    return found if task or len(found) == len(every) else []


def _ranks(entry: str = SHAPES) -> list[int]:
    return sorted({row["rank"] for row in read("small_files") if row["entry"] == entry})


def _by_seed(rows: Sequence[dict[str, Any]]) -> list[float]:
    """The mean over the tasks, for each seed."""
    seeds = sorted({row["seed"] for row in rows})
    return [statistics.mean(row["figure"] for row in rows if row["seed"] == seed) for seed in seeds]


def _shapes() -> str:
    trained, rows = {row["rank"]: row for row in _trained()}, []
    for rank in _ranks():
        row: dict[str, Any] = {"R": rank, "FTN": spread(trained[rank]["figures"]) if rank in trained else "–"}
        for rest in (False, True):
            for form in FORMS:
                own = _rows(form, rank, rest)
                row[f"{form}{', stem' if rest else ''}"] = spread(_by_seed(own)) if own else "–"
        row |= {
            f"error, {form}": f"{statistics.mean(each['error'] for each in _rows(form, rank, False)):.2f}"
            for form in FORMS
        }
        rows.append(row)
    rows = _filled(rows)
    seeds = len({row["seed"] for row in read("small_files") if row["entry"] == SHAPES})
    return f"""{table(rows)}

Accuracy in per cent, the mean of five tasks of `shapes`, with its standard deviation over {seeds} seeds; "stem": with
`--keep-rest`. Errors are ‖ΔW − factors‖ / ‖ΔW‖. Fine-tuning has {spread(_fine_tuned()["figures"]["mean"])}. FTN's
figures and fine-tuning's are those of [results.md](results.md). `python benchmarks/small_files.py --out DIR`.
{measured_on("small_files")}"""


def _equal() -> str:
    """The best that each form has with no more parameters than FTN at a rank."""
    rows = []
    for known in _trained():
        row: dict[str, Any] = {
            "FTN": f"R = {known['rank']}", "parameters": known["parameters"], "trained": spread(known["figures"]),
        }  # fmt: skip
        for rest in (False, True):
            for form in FORMS:
                figures = [
                    statistics.mean(_by_seed(own))
                    for rank in _ranks()
                    if (own := _rows(form, rank, rest)) and own[0]["parameters"] <= known["parameters"]
                ]
                row[f"{form}{', stem' if rest else ''}"] = f"{max(figures):.1f}" if figures else "–"
        rows.append(row)
    return table(_filled(rows))


def _real() -> str:
    """Real pictures: one seed."""
    rows = []
    others = sorted({(row["entry"], row["task"]) for row in read("small_files") if row["entry"] != SHAPES})
    for entry, task in others:
        tuned = (default_registry().entry(entry).measured or {}).get(task)
        for rank in _ranks(entry):
            ftn = default_registry().entry(entry.replace("finetune", f"ftn-r{rank}"))
            row = {
                "task": task,
                "fine-tuned": _percent(tuned),
                "R": rank,
                "FTN": _percent((ftn.measured or {}).get(task)),
            }
            for rest in (False, True):
                for form in FORMS:
                    own = _rows(form, rank, rest, entry, task)
                    row[f"{form}{', stem' if rest else ''}"] = _percent(own[0]["figure"] if own else None)
            rows.append(row)
    return table(_filled(rows))


def _again() -> str:
    found = read("train_again")
    rows = [
        {
            "form": form,
            "trained on": "labels" if not distil else "the fine-tuned network's answers",
            **{
                f"{task}, {epochs} epoch{'s' * (epochs > 1)}"
                if epochs
                else f"{task}, as factorised": f"{row['figure']:.1f}"
                for row in found
                if (row["form"], row["distil"]) == (form, distil) or (row["form"] == form and not row["epochs"])
                for task, epochs in [(row["task"], row["epochs"])]
            },
        }
        for form in dict.fromkeys(row["form"] for row in found)
        for distil in (False, True)
    ]
    return f"""{table(rows)}

By the recipe of FTN cut to so many epochs, at a tenth of its rate (`--lr 0.002`), which is made for fresh factors. At
the whole rate what `cp` had kept was lost at once. `python benchmarks/train_again.py`. {measured_on("train_again")}"""


def _budget() -> str:
    """Chosen ranks against one rank for all: differences, task by task and seed by seed."""
    found, rows = read("rank_budget"), []
    kinds = [(row["entry"], row["like"], row["by"]) for row in found]
    for entry, like, by in dict.fromkeys(kinds):
        own = [row for row, kind in zip(found, kinds, strict=True) if kind == (entry, like, by)]
        tasks = ", ".join(dict.fromkeys(row["task"] for row in own))
        differences = [row["figure"] - row["uniform"] for row in own]
        error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
        rows.append({
            "tasks": f"`{default_registry().entry(entry).benchmark}`: {tasks}",
            "parameters of": f"R = {like}", "by": by, "pairs": len(own),
            "one rank": f"{statistics.mean(row['uniform'] for row in own):.1f}",
            "chosen": f"{statistics.mean(row['figure'] for row in own):.1f}",
            "difference": f"{statistics.mean(differences):+.1f} ± {error:.1f}",
        })  # fmt: skip
    return f"""{table(rows)}

Accuracy in per cent; a pair is one task with one seed, and both of it begin with the same adapters, cut to as many
parameters and trained on alike. The difference has its standard error.
`python benchmarks/rank_budget.py --out DIR`, and with `--entry 'efficientnet_lite0-ftn-r{{}}-emoji' --task twemoji
--data-root IMAGES --like 4`. {measured_on("rank_budget")}"""


def _time() -> str:
    rows = [
        {
            "form": r["form"],
            "copies": r["tasks"],
            "R": r["rank"],
            "threads": r["threads"],
            "minutes": r["minutes"],
            "MB": r["MB"],
        }
        for r in read("factorise_time")
    ]
    return f"""{table(rows)}

Memory is what the process has at its most above one copy and the backbone.
`python benchmarks/factorise_time.py --form svd --form tt`, and `--form cp --tasks 1`.
{measured_on("factorise_time")}"""


def _filled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without columns that nothing stands in."""
    kept = [key for key in rows[0] if any(row[key] != "–" for row in rows)]
    return [{key: row[key] for key in kept} for row in rows]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
