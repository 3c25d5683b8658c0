"""FTN at a rank against fine-tuned networks factorised at a rank (the FTN paper's Tables 8 to 11, in small).

    python benchmarks/small_files.py --out DIR [--seeds 3] [--json FILE]
    python benchmarks/small_files.py --out DIR --entry efficientnet_lite0-finetune-emoji --task noto --data-root IMAGES

Fine-tunes what DIR does not hold yet, by the entry's recipe, into a store for each seed; factorises each network by
every form at every rank, and tests it. What was tested is kept in DIR, so that it can be stopped and started again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from record import save

from zoo.backbones import architecture
from zoo.catalog.entry import Entry
from zoo.catalog.registry import default_registry
from zoo.compression.fine_tuned import Factorised, add_fine_tuned, fitting, ranks_for, without_tasks
from zoo.compression.forms import FORMS
from zoo.datasets import benchmark_of
from zoo.loader import load, pretrained_network
from zoo.models.placement import heads_of
from zoo.training.evaluation import measure
from zoo.training.options import RunOptions
from zoo.training.runs import train_entry


def tuned(entry: Entry, task: str, seed: int, out: Path, data_root: Path | None) -> Any:
    """A fine-tuned network, and what is known of its task."""
    folder = out / f"seed-{seed}" / entry.name
    options = RunOptions(seed=seed, resume=True, quiet=True, data_root=data_root)
    if not (folder / f"{task}.safetensors").exists():
        train_entry(entry, default_registry(), [task], folder, options)
    model = load(entry.name, task=task, weights=folder)
    return model.fuse(task), model.task(task)


def factorised(entry: Entry, network: Any, known: Any, form: str, rank: int, rest: bool) -> Factorised:
    registry = default_registry()
    heads = heads_of(architecture(entry.backbone, registry))
    model = without_tasks(pretrained_network(entry.backbone, registry, heads), form, rest)
    classes = list(known.classes)
    given = fitting(model, network)
    ranks = ranks_for(model, given, rank, None, rest)
    return add_fine_tuned(model, given, ranks, known.name, classes, known.preprocessing)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--entry", "name", default="resnet20-finetune-shapes", show_default=True)
@click.option("--task", "tasks", multiple=True)
@click.option("--rank", "ranks", multiple=True, type=int, default=(1, 2, 4, 8, 16, 32), show_default=True)
@click.option("--form", "forms", multiple=True, type=click.Choice(list(FORMS)), default=tuple(FORMS))
@click.option("--keep-rest", is_flag=True, help="With the stem kept.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--data-root", type=click.Path(path_type=Path))
@click.option("--as-is", is_flag=True, help="Test nothing; write what DIR holds.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write all that DIR holds here.")
def main(
    out: Path, name: str, tasks: tuple[str, ...], ranks: tuple[int, ...], forms: tuple[str, ...], keep_rest: bool,
    seeds: int, data_root: Path | None, as_is: bool, json_file: Path | None,
) -> None:  # fmt: skip
    entry = default_registry().entry(name)
    images = {task: benchmark_of(entry).splits(task, data_root).test for task in tasks or entry.tasks}
    for seed in range(0 if as_is else seeds):
        for task, test in images.items():
            file = out / "factorised" / f"{name}_{task}_{seed}.json"
            rows = json.loads(file.read_text()) if file.exists() else []
            done = {(row["form"], row["rank"]) for row in rows if row.get("rest", False) == keep_rest}
            wanted = [(form, rank) for form in forms for rank in ranks if (form, rank) not in done]
            if not wanted:
                continue
            network, known = tuned(entry, task, seed, out, data_root)
            for form, rank in wanted:
                made = factorised(entry, network, known, form, rank, keep_rest)
                rows.append({
                    "rest": keep_rest, "entry": name, "task": task, "seed": seed, "form": form, "rank": rank,
                    "parameters": sum(layer.parameters for layer in made.layers), "error": made.error,
                    "figure": measure(made.model.answering(task), test, known),
                })  # fmt: skip
                click.echo(rows[-1])
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(rows))
    found = [row for file in sorted((out / "factorised").glob("*.json")) for row in json.loads(file.read_text())]
    save(json_file, found)


if __name__ == "__main__":
    main()
