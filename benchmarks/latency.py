"""Fused networks against the plain backbones that they came from, in torch and in ONNX Runtime.

    python benchmarks/latency.py [--rounds 30] [--json FILE]

Prints milliseconds per batch of each network and its ratio to the plain backbone, timed in turn in one process.
"""

from pathlib import Path

import click
from record import save

from zoo.catalog.registry import default_registry
from zoo.cli.tables import show
from zoo.deployment import latencies

CASES = [("resnet20-ftn-r8-shapes", 64), ("resnet34-ftn-r40-domainnet", 4), ("resnet50-ftn-r50-sketch", 4)]


@click.command()
@click.option("--rounds", default=30, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures here.")
def main(rounds: int, json_file: Path | None) -> None:
    registry = default_registry()
    rows = []
    for name, batch in CASES:
        measured = latencies(registry.entry(name), registry, batch=batch, rounds=rounds)
        rows += [{"model": name, "batch": batch, **row} for row in measured]
    show(rows)
    save(json_file, rows)


if __name__ == "__main__":
    main()
