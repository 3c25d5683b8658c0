"""Trains the methods on the tasks of `pictures`, `emoji` and `streets`, as many at once as there are cores.

    python benchmarks/pictures.py --data-root DATA --out DIR [--processes N] [--only PATTERN] [--device cuda]

DATA holds the folders `pictures`, `emoji` and `streets`. DIR gets a store for each seed, such as seed-0, which `zoo
pack` reads where ZOO_HOME names it. The same command again goes on with what is missing. Each training has one thread,
so that results do not depend on how many there are at once.
"""

from __future__ import annotations

import fnmatch
import json
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from record import save

METHODS = ["ftn-r4", "bn", "finetune", "features"]
FIRST = {"pictures": ["birds", "textures"], "emoji": ["noto", "twemoji"]}  # of three seeds
REST = {
    "pictures": ["letters", "weather", "flowers", "objects", "things"],
    "emoji": ["openmoji", "openmoji_line", "fluent_3d"],
}
COMPARED = ["lora-r4", "parallel", "series"]  # on one style of emoji
STREETS = ["decoder", "decoder_bn", "ftn-r8", "single"]


@dataclass(frozen=True)
class Job:
    """One training."""

    entry: str
    task: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.entry}/{self.task}" + (f"-seed{self.seed}" if self.seed else "")


def jobs() -> Iterator[Job]:
    """All trainings, the most wanted first."""
    for method in METHODS:
        for group in (FIRST, REST):
            for benchmark, tasks in group.items():
                yield from (Job(f"efficientnet_lite0-{method}-{benchmark}", task, 0) for task in tasks)
    for method in ("ftn-r1", "ftn-r16"):
        for benchmark, tasks in FIRST.items():
            own = [*tasks, *(REST["emoji"] if benchmark == "emoji" else ())]
            yield from (Job(f"efficientnet_lite0-{method}-{benchmark}", task, 0) for task in own)
    yield from (Job(f"efficientnet_lite0-{method}-emoji", "noto", 0) for method in COMPARED)
    yield from (
        Job(f"efficientnet_lite0-{method}-streets", task, 0) for task in ("semseg", "edge") for method in STREETS
    )
    for seed in (1, 2):
        for method in METHODS:
            for benchmark, tasks in FIRST.items():
                yield from (Job(f"efficientnet_lite0-{method}-{benchmark}", task, seed) for task in tasks)


def carry_out(job: Job, data: Path, store: Path, cpu: bool) -> dict[str, Any]:
    """Train, unless that is done; what came of it."""
    import torch

    from zoo.catalog.registry import default_registry
    from zoo.storage.tensors import read
    from zoo.training.memory import keep_freed_memory
    from zoo.training.options import RunOptions
    from zoo.training.runs import train_entry

    torch.set_num_threads(1)
    keep_freed_memory()
    registry = default_registry()
    entry = registry.entry(job.entry)
    out = store / f"seed-{job.seed}" / job.entry
    known, began = out / f"{job.task}.safetensors", time.perf_counter()
    fresh = not known.exists() and not known.with_name(f".{job.task}.checkpoint").exists()
    options = RunOptions(
        data_root=data / entry.benchmark, resume=True, seed=job.seed, cpu=cpu, quiet=True,
        cache=entry.benchmark != "streets",  # whose targets are maps
    )  # fmt: skip
    file = train_entry(entry, registry, [job.task], out, options)[job.task]
    header, metric = read(file)[1], entry.metric(job.task).name
    versions = header["versions"]
    return {
        "entry": job.entry, "task": job.task, "seed": job.seed, "figure": header["metrics"][metric],
        "bytes": file.stat().st_size, "seconds": round(time.perf_counter() - began, 1) if fresh else None,
        "device": f"{versions.get('device') or versions['machine'] + ' CPU'}, torch {versions['torch'].split('+')[0]}",
    }  # fmt: skip


def attempt(work: tuple[Job, Path, Path, bool]) -> dict[str, Any] | str:
    """A failed training is told, and does not end the others."""
    try:
        return carry_out(*work)
    except Exception as error:
        return f"{work[0].name}: {type(error).__name__}: {error}"


def _place(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["entry"], row["task"], row["seed"]


@click.command()
@click.option("--data-root", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--processes", type=int, default=multiprocessing.cpu_count(), show_default="one per core")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--only", multiple=True, default=["*"], help="Such as *-bn-emoji/noto*; may be repeated.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also keep the figures here.")
def main(
    data_root: Path, out: Path, processes: int, device: str, only: tuple[str, ...], json_file: Path | None
) -> None:
    wanted = [job for job in jobs() if any(fnmatch.fnmatch(job.name, each) for each in only)]
    work = [(job, data_root, out, device == "cpu") for job in wanted]
    kept = {} if json_file is None or not json_file.exists() else json.loads(json_file.read_text())
    rows = {_place(row): row for row in kept.get("rows", ())}
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for found in pool.imap_unordered(attempt, work, chunksize=1):
            if isinstance(found, str):
                click.echo(f"failed: {found}", err=True)
                continue
            if found["seconds"] or _place(found) not in rows:
                rows[_place(found)] = found
            took = f"{found['seconds']} s" if found["seconds"] else "done before"
            click.echo(f"{found['entry']} {found['task']} seed {found['seed']}: {found['figure']:.2f} %, {took}")
            save(json_file, list(rows.values()), device)


if __name__ == "__main__":
    main()
