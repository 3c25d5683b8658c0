"""A training step of layers in tensor-ring format, by either route, against the dense layers that they stand for.

    python benchmarks/ring_layers.py [--rounds 9] [--json FILE]

The layers are those of the TRMTL paper's tables. For each: forward and backward by torch's own layer, by building the
weight and by contracting the input core by core, in turn in one process; and what the cost model chooses. Then, for one
layer, how both routes grow with the batch, and where the model expects them to cross.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from record import save
from torch import Tensor

from zoo.cli.tables import show
from zoo.joint.tables import network
from zoo.ring import RingLayer, TRLinear
from zoo.ring.layers import chosen_modes
from zoo.ring.routes import cheaper_route
from zoo.verification.timing import interleaved, medians, ratio

CASES = [  # network, layer, the batch's form without its first dimension, ranks
    ("mnist_mlp", "fc1", (784,), (5, 15)),
    ("mnist_mlp", "fc2", (1296,), (5, 15)),
    ("mnist_mlp", "fc3", (1296,), (5, 15)),
    ("omniglot_cnn", "conv2", (8, 53, 53), (10,)),
    ("omniglot_cnn", "conv3", (16, 27, 27), (10,)),
    ("omniglot_cnn", "fc1", (23328,), (10,)),
    ("cifar10_cnn", "conv3", (128, 8, 8), (10,)),
    ("cifar10_cnn", "conv4", (256, 4, 4), (10,)),
    ("cifar10_cnn", "fc1", (8192,), (10,)),
    ("mnist4_mlp", "fc2", (1225,), (10,)),
    ("officehome_art_mlp", "fc1", (25088,), (10,)),
    ("ucf11_lstm", "lstm", (12, 57600), (2,)),
    ("digits_mlp", "fc2", (256,), (5, 15)),
]
BATCH, BATCHES = 32, (1, 4, 16, 64, 256, 1024, 4096)
ROUTES = ("built", "contracted")


def runner(layer: torch.nn.Module, x: Tensor) -> Callable[[], object]:
    """Forward and backward of one layer; the input asks for a gradient, as within a network."""

    def run() -> None:
        outputs = layer(x)
        (outputs[0] if isinstance(outputs, tuple) else outputs).sum().backward()
        layer.zero_grad()

    return run


def routed(layer: RingLayer, route: str, x: Tensor) -> Callable[[], object]:
    def run() -> None:
        layer.route = route
        runner(layer, x)()

    return run


def compare(name: str, path: str, form: tuple[int, ...], rank: int, rounds: int) -> dict[str, Any]:
    plan = network(name, 10)
    dense = plan.plain().get_submodule(path)
    modes = plan.layers[path] or chosen_modes(dense, 4)
    ring = RingLayer.kind(dense).like(dense, modes, rank)
    x = torch.randn(BATCH, *form, requires_grad=True)
    calls = {"dense": runner(dense, x), **{route: routed(ring, route, x) for route in ROUTES}}
    seconds = interleaved(calls, rounds, warmup=2)
    ms = medians(seconds)
    return {
        "layer": f"{name} {path}",
        "R": rank,
        **{f"{key} ms": round(1000 * value, 2) for key, value in ms.items()},
        **{f"{route} / dense": round(ratio(seconds, route, "dense"), 2) for route in ROUTES},
        "chosen": ring._cheaper(x),
        "cheaper": min(ROUTES, key=lambda route: ms[route]),
    }


def by_batch(rank: int, rounds: int) -> list[dict[str, Any]]:
    """FC1 of the MNIST network at growing batches."""
    modes = network("mnist_mlp", 10).layers["fc1"]
    assert modes is not None
    ring = TRLinear(*modes, rank, bias=False)
    rows = []
    for batch in BATCHES:
        x = torch.randn(batch, 784, requires_grad=True)
        seconds = interleaved({route: routed(ring, route, x) for route in ROUTES}, rounds, warmup=2)
        rows.append({
            "R": rank,
            "batch": batch,
            "contracted / built": round(ratio(seconds, "contracted", "built"), 2),
            "chosen": cheaper_route(ring.ring.shapes, batch),
        })  # fmt: skip
    return rows


@click.command()
@click.option("--rounds", default=9, show_default=True)
@click.option("--only", default="", help="Layers whose names begin so.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures here.")
def main(rounds: int, only: str, json_file: Path | None) -> None:
    rows = [
        compare(name, path, form, rank, rounds)
        for name, path, form, ranks in CASES
        if name.startswith(only)
        for rank in ranks
    ]
    show(rows)
    growing = [row for rank in (5, 15) for row in by_batch(rank, rounds)]
    show(growing)
    save(json_file, {"layers": rows, "batches": growing})


if __name__ == "__main__":
    main()
