"""How many epochs bring back what factorising lost: from the labels, and from the fine-tuned networks' answers.

    python benchmarks/train_again.py [--json FILE]

Factorises two tasks of resnet20-finetune-shapes at R = 8, and trains on by the recipe of FTN, cut to some epochs, at a
tenth of its rate: that is made for fresh factors, which are larger.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
from record import save

from zoo.catalog.changes import Changes
from zoo.catalog.registry import Registry, default_registry
from zoo.compression import factorised_entry
from zoo.loader import load
from zoo.storage.tensors import read
from zoo.training.options import RunOptions
from zoo.training.runs import train_entry
from zoo.verification.claims import evaluate

SOURCE, TASKS, EPOCHS, RATE = "resnet20-finetune-shapes", ("sketch", "painting"), (1, 3, 10), 0.002


@click.command()
@click.option("--form", "forms", multiple=True, default=("cp", "svd"), show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures here.")
def main(forms: tuple[str, ...], json_file: Path | None) -> None:
    rows: list[dict[str, Any]] = []
    for form in forms:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            sources = [f"{SOURCE}/{task}" for task in TASKS]
            factorised_entry(sources, "zoo/resnet20@shapes", default_registry(), folder, form, form, 8)
            registry = default_registry().merged(Registry.read(folder / "registry.yaml"))
            entry = registry.entry(form)
            for task, figure in evaluate(entry, load(form, registry=registry)).items():
                rows.append({"form": form, "task": task, "epochs": 0, "distil": False, "figure": figure})
            for epochs in EPOCHS:
                for distil in (False, True):
                    changes = Changes(epochs=epochs, lr=RATE)
                    options = RunOptions(begin=folder / form, distil=distil, changes=changes, quiet=True)
                    files = train_entry(entry, registry, TASKS, folder / f"{epochs}{distil}", options)
                    for task, file in files.items():
                        figure = float(read(file)[1]["metrics"]["accuracy"])
                        rows.append({"form": form, "task": task, "epochs": epochs, "distil": distil, "figure": figure})
                        click.echo(rows[-1])
    save(json_file, rows)


if __name__ == "__main__":
    main()
