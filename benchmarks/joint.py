"""Joint training on the twins, five repetitions: few samples, patterns of sharing, and the number of shared cores.

    python benchmarks/joint.py --out DIR [--seeds 5] [--jobs 2]

On digits, every method with 50, 100 and all samples of each task, and patterns with 50 of one task and all of the
other; on clips, an LSTM that shares none to all of its cores. Trains what DIR does not hold yet (so it can be stopped
and started again), each with a seed and a draw of samples of its own, then writes DIR/joint.json: the test accuracies
of each task in each repetition.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from record import save

from zoo.catalog.entry import Entry
from zoo.catalog.recipe import recipe_file
from zoo.catalog.registry import default_registry
from zoo.cli.tables import show
from zoo.loader import counted_parameters
from zoo.storage.tensors import read
from zoo.training.options import RunOptions
from zoo.training.runs import train_entry

SAMPLES = {  # what is added to a recipe
    "50": "samples: 50",
    "100": "samples: 100",
    "all": "",
    "odd 50": "tasks: {odd: {samples: 50}}",
    "even 50": "tasks: {even: {samples: 50}}",
}
BALANCED, UNBALANCED = ("50", "100", "all"), ("odd 50", "even 50")
METHODS = ("stl", "mrn", "dmtrl_tucker", "dmtrl_tt")
COMPARED = ("410", "420", "430")  # patterns, with the methods
SWEPT = ("000", "400", "420", "440", "044")  # with few samples of one task
CLIPS = ("0", "1", "2", "3", "4")


@dataclass(frozen=True)
class Run:
    """One training: an entry, a number of samples, a seed."""

    entry: Entry
    samples: str  # of SAMPLES
    seed: int

    def folder(self, out: Path) -> Path:
        return out / f"{self.samples.replace(' ', '_')}-{self.seed}"


def entries() -> dict[str, Entry]:
    """What is trained, by name: the zoo's entries, and others that differ from them in their pattern alone."""
    registry = default_registry()
    found = [registry.entry(f"mlp-{method}-digits") for method in METHODS]
    for family, patterns in (("mlp-trmtl_410-digits", sorted({*COMPARED, *SWEPT})), ("lstm-trmtl_4-clips", CLIPS)):
        one = registry.entry(family)
        for pattern in patterns:
            name = family.replace(f"_{one.method['pattern']}", f"_{pattern}")
            made = replace(one, name=name, method={**one.method, "pattern": pattern}, weights=None, shared=None,
                           measured=None)  # fmt: skip
            found.append(replace(made, parameters=counted_parameters(made, registry)))
    return {entry.name: entry for entry in found}


def runs(seeds: int) -> list[Run]:
    """All trainings; those that others begin with come first."""
    found = []
    for entry in entries().values():
        pattern = entry.method.get("pattern")
        if entry.benchmark == "clips":
            chosen: tuple[str, ...] = ("all",)
        elif not pattern:
            chosen = BALANCED
        else:
            chosen = (UNBALANCED if pattern in SWEPT else ()) + (BALANCED if pattern in COMPARED else ())
        found += [Run(entry, samples, seed) for samples in chosen for seed in range(seeds)]
    return sorted(found, key=lambda run: bool(run.entry.source))


def train(run: Run, out: Path) -> None:
    """One training, unless its files are there."""
    recipe = out / "recipes" / f"{run.entry.recipe.replace('/', '-')}-{run.samples.replace(' ', '_')}.yaml"
    if not recipe.exists():
        text = recipe_file(run.entry.recipe).read_text(encoding="utf-8")
        recipe.parent.mkdir(parents=True, exist_ok=True)
        recipe.write_text(f"{text}{SAMPLES[run.samples]}\n", encoding="utf-8")
    os.environ["ZOO_HOME"] = str(run.folder(out))  # where DMTRL finds the single tasks' networks of the same samples
    options = RunOptions(recipe=str(recipe), seed=run.seed, resume=True, quiet=True)
    train_entry(run.entry, default_registry(), run.entry.tasks, run.folder(out) / run.entry.name, options)
    click.echo(f"{run.entry.name}, {run.samples} samples, seed {run.seed}: done", err=True)


def figures(run: Run, out: Path) -> dict[str, float]:
    """The test accuracy of each task in per cent."""
    files = {task: run.folder(out) / run.entry.name / f"{task}.safetensors" for task in run.entry.tasks}
    return {task: float(read(file)[1]["metrics"]["accuracy"]) for task, file in files.items()}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--seeds", default=5, show_default=True)
@click.option("--jobs", default=2, show_default=True, help="Trainings at a time; each runs on one thread.")
def main(out: Path, seeds: int, jobs: int) -> None:
    planned = runs(seeds)
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for begun_with_another in (False, True):
            chosen = [run for run in planned if bool(run.entry.source) == begun_with_another]
            list(pool.map(train, chosen, [out.resolve()] * len(chosen)))
    rows: list[dict[str, Any]] = []
    for run in planned:
        if run.seed == 0:
            found = [figures(replace(run, seed=seed), out) for seed in range(seeds)]
            by_task = {task: [round(each[task], 2) for each in found] for task in run.entry.tasks}
            assert run.entry.parameters is not None
            total = run.entry.parameters.total(run.entry.tasks)
            rows.append({"entry": run.entry.name, "samples": run.samples, "parameters": total, "figures": by_task})
    show([{**row, "figures": None, **{t: round(statistics.mean(v), 2) for t, v in row["figures"].items()}}
          for row in rows if "digits" in row["entry"]])  # fmt: skip
    save(out / "joint.json", rows)


if __name__ == "__main__":
    main()
