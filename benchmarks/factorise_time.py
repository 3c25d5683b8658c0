"""How long factorising fine-tuned copies of resnet50 takes, and how much memory: the seconds of each form.

    python benchmarks/factorise_time.py [--form svd --form tt --form cp] [--tasks 5] [--rank 50] [--json FILE]

The copies are the network with normal noise on every tensor, which no form can shorten; its weights are random.
Memory is what the process has at its most above what it had with the backbone and one copy loaded.
"""

from __future__ import annotations

import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import torch
from record import save
from torchvision.models import resnet50

from zoo.compression.fine_tuned import add_fine_tuned, fitting, without_tasks
from zoo.compression.forms import FORMS
from zoo.storage.tensors import read, write


def megabytes() -> float:
    """Of this process, at its most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def factorise(form: str, tasks: int, rank: int) -> dict[str, Any]:
    """The row of one form; in a process of its own, for the most memory that a process had is never less again."""
    torch.manual_seed(0)
    network = resnet50()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"t{number}.safetensors" for number in range(tasks)]
        for file in files:
            tensors = network.state_dict().items()
            write(file, {n: t + 0.01 * torch.randn_like(t) if t.is_floating_point() else t for n, t in tensors}, {})
        model = without_tasks(network, form)
        read(files[0])
        begun, before = time.monotonic(), megabytes()
        for file in files:
            made = add_fine_tuned(model, fitting(model, read(file)[0]), rank, file.stem)
    return {
        "form": form, "tasks": tasks, "rank": rank, "threads": torch.get_num_threads(),
        "minutes": round((time.monotonic() - begun) / 60, 2), "MB": round(megabytes() - before),
        "error": round(made.error, 3),
    }  # fmt: skip


@click.command()
@click.option(
    "--form", "forms", multiple=True, type=click.Choice(list(FORMS)), default=("svd", "tt", "cp"), show_default=True
)
@click.option("--tasks", default=5, show_default=True)
@click.option("--rank", default=50, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures here.")
def main(forms: tuple[str, ...], tasks: int, rank: int, json_file: Path | None) -> None:
    rows = []
    for form in forms:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            rows.append(pool.submit(factorise, form, tasks, rank).result())
        click.echo(rows[-1])
    save(json_file, rows)


if __name__ == "__main__":
    main()
