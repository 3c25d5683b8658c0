"""Every method on the five target domains of shapes, over several seeds: the order of the papers' Tables 1 and 2.

    python benchmarks/methods.py --out DIR [--seeds 3] [--jobs 2]

Trains what DIR does not hold yet (so it can be stopped and started again), then prints, per method, the mean and
the spread over seeds of the accuracy on each domain, and writes DIR/methods.json.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
from record import save

from zoo.registry import default_registry
from zoo.report import show
from zoo.tensors import read

NAMES = ["features", "bn", "ftn-r1", "ftn-r8", "finetune"]
TASKS = ["clipart", "sketch", "painting", "quickdraw", "infograph"]


def train(name: str, seed: int, out: Path) -> None:
    """All target domains of one entry with one seed, in a process of their own."""
    tasks = [part for task in TASKS for part in ("--task", task)]
    command = [
        sys.executable,
        "-m",
        "zoo",
        "train",
        name,
        "--seed",
        str(seed),
        "--out",
        str(out),
        "--resume",
        "--quiet",
    ]
    subprocess.run([*command, *tasks], check=True, stdout=subprocess.DEVNULL)
    click.echo(f"{name}, seed {seed}: done", err=True)


def figures(out: Path, name: str, seeds: int) -> dict[str, list[float]]:
    """Test accuracies in per cent, by domain and for their mean, one for each seed."""
    files = {task: [out / f"{name}-{seed}" / f"{task}.safetensors" for seed in range(seeds)] for task in TASKS}
    found = {task: [float(read(f)[1]["metrics"]["accuracy"]) for f in of_task] for task, of_task in files.items()}
    return {**found, "mean": [statistics.mean(values) for values in zip(*found.values(), strict=True)]}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--jobs", default=2, show_default=True, help="Trainings at a time; each runs on one thread.")
def main(out: Path, seeds: int, jobs: int) -> None:
    names = {short: f"resnet20-{short}-shapes" for short in NAMES}
    with ThreadPoolExecutor(jobs) as pool:
        runs = [(name, seed, out / f"{short}-{seed}") for seed in range(seeds) for short, name in names.items()]
        list(pool.map(lambda run: train(*run), runs))
    rows, record = [], {}
    for short, name in names.items():
        record[short] = found = figures(out, short, seeds)
        parameters = default_registry().entry(name).parameters
        per_task = parameters.per_task if parameters else 0
        cells = {
            k: f"{statistics.mean(v):.1f}" + (f" ± {statistics.stdev(v):.1f}" if seeds > 1 else "")
            for k, v in found.items()
        }
        rows.append({"method": short, "parameters per task": per_task, **cells})
    show(rows)
    save(out / "methods.json", record)


if __name__ == "__main__":
    main()
