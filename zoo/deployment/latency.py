"""How long an entry's networks take: plain, fused and unfused."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from zoo.catalog.entry import Entry
from zoo.catalog.registry import Registry
from zoo.export import run, session, to_onnx
from zoo.loader import load, plain_network
from zoo.verification.timing import interleaved, medians, ratio


def latencies(
    entry: Entry, registry: Registry, task: str | None = None, batch: int = 16, rounds: int = 20
) -> list[dict[str, Any]]:
    """Milliseconds per batch of an entry's network: plain, fused and unfused, in torch and in ONNX Runtime.

    The candidates take turns in one process. "plain" is the backbone's own architecture, untouched by the zoo but for a
    classifier of as many classes, or the task's own network in layers of torch's; a ratio is the median over the rounds
    of a candidate's time to its plain backbone's.
    """
    task = entry.known_task(task or entry.tasks[0])
    model = load(entry.name, task=task, weights=None, registry=registry)
    fused, known = model.fuse(task), model.task(task)
    plain = plain_network(entry, registry, model, fused)
    inputs = torch.randn(batch, *model.input_shape(task))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        graphs = {}
        for name, network in (("plain", plain), ("fused", fused)):
            to_onnx(network, Path(folder, f"{name}.onnx"), task=known)
            graphs[name] = session(Path(folder, f"{name}.onnx"), spinning=False)
        array = inputs.numpy()
        groups: list[dict[str, Callable[[], object]]] = [  # apart: the idle threads of one library slow the other down
            {
                "torch plain": lambda: plain(inputs),
                "torch fused": lambda: fused(inputs),
                "torch unfused": lambda: model(inputs, task=task),
            },
            {
                "onnx plain": lambda: run(graphs["plain"], array),
                "onnx fused": lambda: run(graphs["fused"], array),
            },
        ]
        seconds = {name: values for group in groups for name, values in interleaved(group, rounds).items()}
    return [
        {
            "network": name,
            "ms per batch": round(1000 * s, 3),
            "ratio": round(ratio(seconds, name, f"{name.split()[0]} plain"), 3),
        }
        for name, s in medians(seconds).items()
    ]
