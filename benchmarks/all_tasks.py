"""One pass for four dense tasks against a call for each, unfused: the ratio of their times, in one process.

    python benchmarks/all_tasks.py [--rounds 15] [--device cuda] [--json benchmarks/results/all_tasks.json]

Weights are random: times do not depend on them. Also tells the largest difference between the two, relative to the
largest output.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch
from record import save

import zoo
from zoo.cli.tables import show
from zoo.models.adapted import TaskModel
from zoo.verification.timing import interleaved, medians, ratio

CASES = {  # entry: batches
    "resnet20-ftn-r8-rooms": (1, 4, 16),
    "resnet20-decoder_bn-rooms": (1, 4, 16),
    "resnet20-decoder-rooms": (1, 4, 16),
    "resnet18-ftn-r10-nyud": (1,),
    "resnet18-decoder-nyud": (1,),
}


def measure(model: TaskModel, batch: int, rounds: int, device: str) -> dict[str, Any]:
    """One line of the table."""
    _, height, width = model.task(model.tasks[0]).preprocessing.input_size
    images = torch.randn(batch, 3, height, width, device=device)
    channels_last = images.contiguous(memory_format=torch.channels_last)

    def each(x: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = {task: model(x, task=task) for task in model.tasks}
        if device != "cpu":
            torch.cuda.synchronize()
        return outputs

    def together() -> dict[str, torch.Tensor]:
        outputs = model(images)
        if device != "cpu":
            torch.cuda.synchronize()
        return dict(outputs)

    with torch.no_grad():
        together()  # the first time takes both ways
        one, four = together(), each(images)
        difference = max(float((one[t] - four[t]).abs().max() / four[t].abs().max()) for t in four)
        calls = {"one pass": together, "calls": lambda: each(images), "channels last": lambda: each(channels_last)}
        seconds = interleaved(calls, rounds)
    return {
        "input": f"{batch} × {height}×{width}",
        "ms in one pass": round(1000 * medians(seconds)["one pass"], 1),
        "ratio to calls": round(ratio(seconds, "one pass", "calls"), 2),
        "ratio to calls, channels last": round(ratio(seconds, "one pass", "channels last"), 2),
        "difference": f"{difference:.0e}",
    }


@click.command()
@click.option("--rounds", default=15, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path))
def main(rounds: int, device: str, file: Path | None) -> None:
    rows = []
    for name, batches in CASES.items():
        torch.manual_seed(0)
        model = zoo.load(name, weights=None).to(device)
        rows += [{"model": name, **measure(model, batch, rounds, device)} for batch in batches]
    show(rows)
    save(file, rows, device)


if __name__ == "__main__":
    main()
