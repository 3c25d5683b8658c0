"""The zoo's main job on its packaged weights: load, evaluate, fuse, export, run in ONNX Runtime, and compare.

    make demo

Writes one ONNX graph per domain to demo-output/.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from zoo.backbones import build
from zoo.catalog.registry import default_registry
from zoo.cli.tables import show
from zoo.datasets import get_benchmark
from zoo.training.evaluation import measure
from zoo.verification.timing import interleaved, ratio

NAME = "resnet20-ftn-r8-shapes"
OUT = Path("demo-output")
BATCH = 32


def main() -> None:
    model = zoo.load(NAME, weights="published")
    print(f"{NAME}: one frozen resnet20, {len(model.tasks)} tasks\n", flush=True)
    rows = []
    for task in model.tasks:
        print(f"  {task}: evaluate, fuse, export to {OUT / task}.onnx, run", flush=True)
        rows.append(row(model, task))
    print()
    show(rows)
    counted = model.count_parameters("real")
    print(f"\nA task adds {counted.per_task:,} parameters to the backbone's {counted.backbone:,}, its head aside.")
    print("Parameters and bytes count the head. Latency: fused network against plain backbone, medians in one process.")


def row(model: zoo.TaskModel, task: str) -> dict[str, Any]:
    """One line of the table: a task unfused, fused, and in ONNX Runtime."""
    known, images = model.task(task), get_benchmark("shapes").splits(task, None).test
    plain = model.fuse(task)
    real = torch.stack([known.preprocessing.transform()(images[i][0]) for i in range(BATCH)])
    parity = zoo.export.to_onnx(plain, OUT / f"{task}.onnx", task=known, images=real)
    graph = zoo.export.session(OUT / f"{task}.onnx")

    def in_onnx_runtime(x: Tensor) -> Tensor:
        return torch.from_numpy(zoo.export.run(graph, x.numpy()))

    networks = {"unfused": functools.partial(model, task=task), "fused": plain, "onnx": in_onnx_runtime}
    own = sum(parameter.numel() for _, parameter in model.task_parameters(task))
    copy = sum(parameter.numel() for parameter in plain.parameters())
    weights = default_registry().entry(NAME).weights or {}
    return {
        "task": task,
        **{f"{key} %": f"{measure(f, images, known):.1f}" for key, f in networks.items()},
        "difference": f"{parity.absolute:.0e}",
        "parameters / full copy": f"{own:,} / {copy:,}",
        "bytes / full copy": f"{weights[task].size:,} / {4 * copy:,}",
        "latency": f"{latency_ratio(plain, real):.2f}",
    }


def latency_ratio(fused: nn.Module, images: Tensor) -> float:
    """The fused network's time to that of an untouched resnet20."""
    untouched = build("zoo/resnet20").eval()
    with torch.no_grad():
        seconds = interleaved({"fused": lambda: fused(images), "plain": lambda: untouched(images)}, rounds=30)
    return ratio(seconds, "fused", "plain")


if __name__ == "__main__":
    main()
