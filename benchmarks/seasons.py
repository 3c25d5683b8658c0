"""The seasons of landscapes made by one generator: every weight, norms alone, and FTN by rank (FTN, Tables 12 and 13).

    python benchmarks/seasons.py --out DIR [--seed 0 --seed 1 --seed 2] [--json FILE]
    python benchmarks/seasons.py --out DIR --entry biggan32-ftn-r4-valley --data-root SCENERY

Trains what DIR does not hold yet, so that it can be stopped and started again.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
from record import save

from zoo.catalog.registry import default_registry
from zoo.loader import load_adapters
from zoo.storage.tensors import read
from zoo.training.options import RunOptions
from zoo.training.runs import train_entry
from zoo.verification.resemblance import kernel_distance

ENTRIES = tuple(f"biggan32-{each}-landscapes" for each in ("single", "bn", "ftn-r1", "ftn-r4", "ftn-r16"))


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--entry", "names", multiple=True, default=ENTRIES)
@click.option("--seed", "seeds", multiple=True, type=int, default=(0, 1, 2), show_default=True)
@click.option("--data-root", type=click.Path(path_type=Path))
@click.option("--as-is", is_flag=True, help="Train nothing; write what DIR holds.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write all that DIR holds here.")
def main(
    out: Path,
    names: tuple[str, ...],
    seeds: tuple[int, ...],
    data_root: Path | None,
    as_is: bool,
    json_file: Path | None,
) -> None:
    registry = default_registry()
    for seed in () if as_is else seeds:
        for entry in map(registry.entry, names):
            for task in entry.tasks:
                row = out / f"{entry.name}_{task}_{seed}.json"
                if row.exists():
                    continue
                options = RunOptions(seed=seed, resume=True, quiet=True, data_root=data_root)
                file = train_entry(entry, registry, [task], out / f"seed-{seed}" / entry.name, options)[task]
                model = load_adapters(entry, registry, {task: file})
                figures = read(file)[1]["metrics"]
                found = {
                    "entry": entry.name, "task": task, "seed": seed, "test": figures["PSNR"],
                    "train": figures["train_PSNR"], "parameters": model.count_parameters(task).per_task,
                    "bytes": file.stat().st_size, "kid": kernel_distance(entry, model, task, registry, data_root),
                }  # fmt: skip
                click.echo(found)
                row.write_text(json.dumps(found))
    save(json_file, [json.loads(file.read_text()) for file in sorted(out.glob("*.json"))])


if __name__ == "__main__":
    main()
