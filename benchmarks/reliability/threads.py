"""Eight threads, each asking its own task of one model: answers that are another task's.

    python -m benchmarks.reliability.threads [--calls 10000] [--json FILE]

With the model as it is and with `torch.compile`. Every answer is held against what each task alone said before of the
same images: it has to be nearest to its own task's, and no further from it than rounding. Compiled, a call that torch
runs as it stands rounds otherwise than one that it compiled; how many had other bits is told beside it.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

import zoo
from benchmarks.record import save

THREADS = 8
NAME = "resnet20-ftn-r8-shapes"
ROUNDING = 1e-3  # of logits of about ten
TASKS = ("clipart", "sketch", "painting", "quickdraw")


def run(calls: int, compiled: bool) -> dict[str, Any]:
    """So many calls in all, of eight threads in turn over four tasks."""
    model = zoo.load(NAME)
    serving = torch.compile(model) if compiled else model
    images = [torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(THREADS)]
    with torch.no_grad():
        expected = {(t, n): serving(images[n], task=t) for t in TASKS for n in range(THREADS)}
    wrong, rounded, failed, begun = list[tuple[str, int]](), list[float](), list[str](), time.monotonic()

    def ask(number: int) -> None:
        try:
            with torch.no_grad():
                for call in range(calls // THREADS):
                    task = TASKS[(call + number) % len(TASKS)]
                    answer: Tensor = serving(images[number], task=task)
                    apart = {each: float((answer - expected[each, number]).abs().max()) for each in TASKS}
                    if min(apart, key=lambda each: apart[each]) != task or apart[task] > ROUNDING:
                        wrong.append((task, number))
                    elif apart[task]:
                        rounded.append(apart[task])
        except BaseException as error:  # a thread's own would pass unseen
            failed.append(f"{type(error).__name__}: {str(error)[:200]}")

    running = [threading.Thread(target=ask, args=(number,)) for number in range(THREADS)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return {
        "model": NAME, "compiled": compiled, "threads": THREADS, "tasks": len(TASKS),
        "calls": calls // THREADS * THREADS, "wrong": len(wrong),
        "rounded otherwise": len(rounded), "by at most": max(rounded, default=0.0), "failed": failed,
        "seconds": round(time.monotonic() - begun),
    }  # fmt: skip


@click.command()
@click.option("--calls", default=10_000, show_default=True, help="In all, each way.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures here.")
def main(calls: int, json_file: Path | None) -> None:
    torch.set_num_threads(1)
    rows = [run(calls, compiled) for compiled in (False, True)]
    for row in rows:
        click.echo(json.dumps(row))
    save(json_file, rows)


if __name__ == "__main__":
    main()
