"""The rank that each target domain of shapes is given by `zoo train --rank auto`, and what that saves.

    python benchmarks/rank_search.py --out DIR [--json FILE]

Trains what DIR does not hold yet; about half an hour on one CPU core.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click
from record import save

from zoo.catalog.registry import default_registry
from zoo.search.ranks import search
from zoo.training.options import RunOptions

NAME = "resnet20-ftn-r16-shapes"
TASKS = ["clipart", "sketch", "painting", "quickdraw", "infograph"]


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--margin", default=1.0, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures here.")
def main(out: Path, margin: float, json_file: Path | None) -> None:
    registry = default_registry()
    options = RunOptions(quiet=True, resume=True)
    rows = []
    for choice in search(registry.entry(NAME), registry, TASKS, out, options, margin):
        click.echo(choice)
        rows.append(dataclasses.asdict(choice))
    save(json_file, {"entry": NAME, "margin": margin, "choices": rows})


if __name__ == "__main__":
    main()
