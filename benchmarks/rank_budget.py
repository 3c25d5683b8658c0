"""Ranks chosen for each layer against one rank for all, at equal parameters (`zoo train NAME --rank auto --budget P`).

    python benchmarks/rank_budget.py --out DIR [--like 2] [--by sensitivity] [--seed 0 --seed 1 --seed 2] [--json FILE]
    python benchmarks/rank_budget.py --out DIR --entry efficientnet_lite0-ftn-r{}-emoji --task noto --data-root IMAGES

The budget of each task is what the uniform rank `--like` has; the same training on one rank for all layers begins with
the same adapters, cut to that rank. Trains what DIR does not hold yet.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
from record import save

from zoo.catalog.entry import Entry
from zoo.catalog.registry import default_registry
from zoo.loader import fresh_model
from zoo.models.adapted import TaskModel
from zoo.search.budget import MEASURES, search, trained_on
from zoo.search.ranks import family
from zoo.storage.tensors import read
from zoo.training.options import RunOptions

TASKS = ("painting", "quickdraw", "infograph")  # those of shapes that are far from a hundred per cent


def factors(entry: Entry) -> int:
    """A task's parameters that are factors, and no norms."""
    model = fresh_model(entry, default_registry(), pretrained=False)
    assert isinstance(model, TaskModel)
    return sum(model.method.size(site, model.options) for _, site in model.adapted())


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--entry", "pattern", default="resnet20-ftn-r{}-shapes", show_default=True, help="With {} for the rank.")
@click.option("--task", "tasks", multiple=True, default=TASKS, show_default=True)
@click.option("--data-root", type=click.Path(path_type=Path))
@click.option("--like", default=2, show_default=True, help="The uniform rank whose parameters are the budget.")
@click.option("--by", type=click.Choice(MEASURES), default="sensitivity", show_default=True)
@click.option("--seed", "seeds", multiple=True, type=int, default=(0, 1, 2), show_default=True)
@click.option("--as-is", is_flag=True, help="Train nothing; write what DIR holds.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write all that DIR holds here.")
def main(
    out: Path, pattern: str, tasks: tuple[str, ...], data_root: Path | None, like: int, by: str,
    seeds: tuple[int, ...], as_is: bool, json_file: Path | None,
) -> None:  # fmt: skip
    registry = default_registry()
    entry = registry.entry(pattern.format(like))
    budget, most = factors(entry), max(family(entry, registry))
    for seed in () if as_is else seeds:
        options = RunOptions(seed=seed, resume=True, quiet=True, data_root=data_root)
        for task in tasks:
            store = out / f"seed-{seed}"
            file = store / f"{task}_r{like}_{by}.json"
            if file.exists():
                continue
            folder = store / f"{by}-r{like}"
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "tried").exists():  # the same for all measures and budgets
                (store / "tried").mkdir(exist_ok=True)
                (folder / "tried").symlink_to((store / "tried").resolve(), target_is_directory=True)
            chosen = search(entry, registry, [task], folder, options, budget, by)[0]
            tried = {task: folder / "tried" / f"r{most}" / f"{task}.safetensors"}
            uniform = next(
                (json.loads(other.read_text())["uniform"] for other in store.glob(f"{task}_r{like}_*")), None
            )
            if uniform is None:  # the same for all measures
                ranks = {task: dict.fromkeys(chosen.ranks, like)}
                made = trained_on(entry, registry, ranks, tried, store / f"uniform-r{like}", options)[task]
                uniform = float(read(made)[1]["metrics"][entry.metric(task).name])
            row = {
                "entry": entry.name, "task": task, "seed": seed, "like": like, "by": by, "figure": chosen.figure,
                "ranks": chosen.ranks, "parameters": chosen.parameters, "uniform": uniform,
            }  # fmt: skip
            click.echo(row)
            file.write_text(json.dumps(row))
    save(json_file, [json.loads(file.read_text()) for file in sorted(out.glob("seed-*/*.json"))])


if __name__ == "__main__":
    main()
