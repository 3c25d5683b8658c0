"""Every method on the five target domains of shapes, or on the tasks of rooms, over several seeds.

    python benchmarks/methods.py --out DIR [--seeds 3] [--jobs 2] [--backbone resnet20] [--benchmark rooms]

Trains what DIR does not hold yet (so it can be stopped and started again) into a store for each seed, then prints the
mean figures of each method, and writes DIR/methods_BACKBONE_BENCHMARK.json: the figure of each task with each seed, and
what the method costs to store, to train and to run, by `zoo compare`, all entries in turn in one process.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
from record import save

from zoo.catalog.entry import Entry
from zoo.catalog.registry import default_registry
from zoo.catalog.store import SHARED
from zoo.cli.tables import show
from zoo.storage.tensors import read
from zoo.verification.comparison import compare

SOURCE = "real"  # the domain that the backbones were trained on


def train(entry: Entry, seed: int, tasks: list[str], out: Path) -> None:
    """Some domains of one entry with one seed, in a process of their own."""
    command = [sys.executable, "-m", "zoo", "train", entry.name, "--seed", str(seed), "--resume", "--quiet"]
    command += [part for task in tasks for part in ("--task", task)]
    store = os.environ | {"ZOO_HOME": str(out / f"seed-{seed}")}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=store)
    click.echo(f"{entry.name}, seed {seed}: done", err=True)


def target_tasks(entry: Entry) -> list[str]:
    """The tasks that methods are compared on."""
    return [task for task in entry.tasks if task != SOURCE]


def train_all(entries: list[Entry], seeds: int, jobs: int, out: Path) -> None:
    """Every entry with every seed, as far as `out` does not hold it yet."""
    sources = {entry.source for entry in entries}
    for begun_with_another in (False, True):  # its adapters have to be there, of every task
        chosen = [entry for entry in entries if bool(entry.source) == begun_with_another]
        with ThreadPoolExecutor(jobs) as pool:
            runs = [
                (entry, seed, list(entry.tasks) if entry.name in sources else target_tasks(entry), out)
                for seed in range(seeds)
                for entry in chosen
            ]
            list(pool.map(lambda run: train(*run), runs))


def figures(out: Path, entry: Entry) -> dict[str, list[float]]:
    """Test figures by task, and their mean where they are in one unit, one for each seed that has all tasks."""
    folders = [store / entry.name for store in sorted(out.glob("seed-*"))]
    tasks = target_tasks(entry)
    whole = [folder for folder in folders if all((folder / f"{task}.safetensors").exists() for task in tasks)]
    found = {
        task: [float(read(folder / f"{task}.safetensors")[1]["metrics"][entry.metric(task).name]) for folder in whole]
        for task in tasks
    }
    if len({entry.metric(task) for task in tasks}) > 1:
        return found
    return {**found, "mean": [statistics.mean(values) for values in zip(*found.values(), strict=True)]}


def kilobytes(folder: Path, entry: Entry) -> int:
    """The size of one task's file, with its share of what the tasks have in common."""
    sizes = [(folder / f"{task}.safetensors").stat().st_size for task in target_tasks(entry)]
    shared = folder / SHARED
    common = shared.stat().st_size / len(entry.tasks) if shared.exists() else 0
    return round((statistics.mean(sizes) + common) / 1000)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--jobs", default=2, show_default=True, help="Trainings at a time; each runs on one thread.")
@click.option("--backbone", default="resnet20", show_default=True, help="Begins the names of the entries.")
@click.option("--benchmark", default="shapes", show_default=True, help="Ends the names of the entries.")
@click.option("--as-is", is_flag=True, help="Train nothing; tell what DIR holds.")
@click.option("--rounds", default=10, show_default=True, help="Of the timings.")
def main(out: Path, seeds: int, jobs: int, backbone: str, benchmark: str, as_is: bool, rounds: int) -> None:
    found = default_registry().entries(f"{backbone}-*-{benchmark}")
    entries = [entry for entry in found if not entry.form]  # which are trained by nothing
    if not as_is:
        train_all(entries, seeds, jobs, out)
    costs = {row["model"]: row for row in compare(entries, default_registry(), target_tasks(entries[0])[0], rounds)}
    record = [
        {
            "entry": entry.name,
            "figures": figures(out, entry),
            "parameters": costs[entry.name]["parameters"],
            "kB": kilobytes(out / "seed-0" / entry.name, entry),
            **{key: value for key, value in costs[entry.name].items() if key.startswith("ms ")},
        }
        for entry in entries
    ]
    means = [{task: round(statistics.mean(v), 3) for task, v in row["figures"].items()} for row in record]
    show([{"entry": row["entry"], **mean} for row, mean in zip(record, means, strict=True)])
    save(out / f"methods_{backbone}_{benchmark}.json", record)


if __name__ == "__main__":
    main()
