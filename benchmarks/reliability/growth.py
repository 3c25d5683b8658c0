"""Memory over long work: a training of many steps, loading and freeing, exporting again and again.

    python -m benchmarks.reliability.growth [--steps 10000] [--loads 10000] [--exports 1000] [--json FILE]

What the process holds after a tenth of the work, against what it holds at the end, both after the garbage collection.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

import zoo
from benchmarks.record import save

NAME, TASK = "resnet20-bn-shapes", "sketch"


def held() -> float:
    """Megabytes that the process holds of memory, what its allocator keeps for later given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def grown(what: str, count: int, work: Callable[[int], Any]) -> dict[str, Any]:
    """Do something so many times; what that adds to the memory after the first tenth, in per cent."""
    warm = max(1, count // 10)
    for number in range(warm):
        work(number)
    before = held()
    for number in range(warm, count):
        work(number)
    after = held()
    return {
        "what": what, "count": count, "MB before": round(before, 1), "MB after": round(after, 1),
        "grown %": round(100 * (after / before - 1), 2),
    }  # fmt: skip


def trained(steps: int) -> dict[str, Any]:
    """A task's parameters, moved so many times by batches of noise, each epoch of which is tested."""
    model = zoo.load(NAME, task=TASK)
    optimizer = torch.optim.SGD([parameter for _, parameter in model.task_parameters(TASK)], lr=1e-4, momentum=0.9)
    images, labels = torch.rand(8, 3, 32, 32), torch.arange(8)

    def step(number: int) -> None:
        model.train(number % 50 != 0)  # what is frozen stays in evaluation mode
        loss = torch.nn.functional.cross_entropy(model(images, task=TASK), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return grown("training steps", steps, step)


def loaded(loads: int, folder: Path) -> dict[str, Any]:
    """One adapter, loaded into a model, asked, fused and removed."""
    model = zoo.load(NAME, task=TASK)
    model.save_adapter(TASK, folder / "one.safetensors")
    model.remove_task(TASK)
    images = torch.rand(1, 3, 32, 32)

    def load(_: int) -> None:
        model.load_adapter(folder / "one.safetensors")
        with torch.no_grad():
            model.fuse(TASK)(images)
        model.remove_task(TASK)

    return grown("adapters loaded, fused and removed", loads, load)


def exported(exports: int, folder: Path) -> dict[str, Any]:
    """One task, exported to one file."""
    model = zoo.load(NAME, task=TASK)
    plain = model.fuse(TASK)
    return grown(
        "exports", exports, lambda _: zoo.export.to_onnx(plain, folder / "one.onnx", task=model.task(TASK))
    )  # fmt: skip


@click.command()
@click.option("--steps", default=10_000, show_default=True)
@click.option("--loads", default=10_000, show_default=True)
@click.option("--exports", default=1_000, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures here.")
def main(steps: int, loads: int, exports: int, json_file: Path | None) -> None:
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for work in (lambda: trained(steps), lambda: loaded(loads, folder), lambda: exported(exports, folder)):
            rows.append(work())
            click.echo(json.dumps(rows[-1]))
            save(json_file, rows)


if __name__ == "__main__":
    main()
