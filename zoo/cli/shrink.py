"""Making models smaller: factorise, compress, prune, merge."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoo.catalog.handover import check_new
from zoo.catalog.registry import Registry
from zoo.cli.base import NEW_FOLDER, NUMBER, POSITIVE, RANK, SEED, Real, as_json, data_root, entry_name, main, narrate
from zoo.cli.tables import show, written
from zoo.errors import OptionError

if TYPE_CHECKING:
    from zoo.compression.fine_tuned import Factorised

JOINT = "--joint takes one entry of parallel adapters and, of the rest, --rank K, --apart, --name and -o."
APART = "Give --backbone and --name, and either --rank or --budget; --apart belongs to --joint."
name_of_new = click.option("--name", "own_name", help="Of the new entry.")
out_of_new = click.option("-o", "--out", type=NEW_FOLDER, required=True, help="Where its registry and files go.")


@main.command()
@click.argument("sources", nargs=-1, required=True)
@click.option("--backbone", help="What they were fine-tuned from, such as torchvision/resnet50@IMAGENET1K_V1.")
@click.option("--form", type=click.Choice(["cp", "tt", "svd", "tucker"]), default="cp", show_default=True)
@click.option("--rank", type=RANK, help="Of each layer; below 1, the share of ‖ΔW‖² that each keeps.  [default: 8]")
@click.option("--budget", type=NUMBER, help="Parameters of a task in all, such as 200k, split over the layers.")
@click.option("--keep-rest", is_flag=True, help="Keep the changes of the stem and of biases too.")
@click.option("--joint", is_flag=True, help="Bring the parallel adapters of the entry SOURCES to one basis of --rank.")
@click.option("--apart", is_flag=True, help="With --joint: a basis for each task.")
@name_of_new
@out_of_new
@as_json
@click.pass_obj
def factorise(
    registry: Registry, sources: tuple[str, ...], backbone: str | None, form: str, rank: float | None,
    budget: int | None, keep_rest: bool, joint: bool, apart: bool, own_name: str | None, out: Path, as_json: bool,
) -> None:  # fmt: skip
    """Bring fine-tuned networks to one backbone and small files: ΔW of each layer in a form of low rank.

    SOURCES are files of their tensors (safetensors, or .pth of tensors alone), each of which becomes a task by its
    file's name; or ENTRY/TASK.
    """
    if joint:
        if backbone or budget or keep_rest or len(sources) > 1 or isinstance(rank, float):
            raise OptionError(JOINT)
        _compress(registry, sources[0], rank, apart, own_name, out, as_json)
        return
    if not backbone or not own_name or apart or (rank and budget):
        raise OptionError(APART)
    from zoo.compression.small_files import factorised_entry

    narrate()
    made, found = factorised_entry(sources, backbone, registry, out, own_name, form, rank or 8, budget, keep_rest)
    show([row for task, each in found.items() for row in _layers(task, each)], as_json)
    if not as_json:
        for task, each in found.items():
            left = ", ".join(f"{name} ({norm:.3g})" for name, norm in each.left.items()) or "nothing"
            click.echo(f"{task}: {each.error:.1%} of ‖ΔW‖ is left out, and of what else changed: {left}.")
        click.echo(written(made, out, "predict") + f" --task {made.tasks[0]} IMAGE")


def _layers(task: str, made: Factorised) -> list[dict[str, object]]:
    return [
        {
            "task": task,
            "layer": layer.path,
            "rank": layer.rank,
            "parameters": layer.parameters,
            "‖ΔW‖": round(layer.norm, 4),
            "relative error": round(layer.error, 4),
        }
        for layer in made.layers
    ]


@main.command()
@entry_name
@click.option("--rank", type=POSITIVE, help="K of the basis.  [default: half the channels of each layer]")
@click.option("--apart", is_flag=True, help="Give each task a basis of its own, instead of one for all.")
@name_of_new
@out_of_new
@as_json
@click.pass_obj
def compress(
    registry: Registry, name: str, rank: int | None, apart: bool, own_name: str | None, out: Path, as_json: bool
) -> None:
    """Compress NAME's parallel adapters to a low rank: `zoo factorise NAME --joint` by its older name."""
    _compress(registry, name, rank, apart, own_name, out, as_json)


def _compress(
    registry: Registry, name: str, rank: int | None, apart: bool, own_name: str | None, out: Path, as_json: bool
) -> None:
    from zoo.compression.factors import compressed_entry

    made, errors = compressed_entry(registry.entry(name), registry, out, rank, apart, own_name or "")
    show([{"layer": path, "relative error": round(error, 4)} for path, error in errors.items()], as_json)
    if not as_json:
        click.echo(f"{written(made, out, 'eval')}, and go on training with: zoo train {made.name} --registry {out}")


@main.command()
@entry_name
@click.option("--task", "tasks", multiple=True, help="This task; may be given several times. Default: all.")
@click.option("--steps", type=click.IntRange(2), default=10, show_default=True, help="Thresholds to try.")
@click.option("--keep-within", type=Real(0), help="Write the smallest model that loses at most so much.")
@click.option("--name", "own_name", help="Of the new entry.  [default: NAME-pruned]")
@click.option("-o", "--out", type=NEW_FOLDER, required=True, help="Where the picture and the new entry's files go.")
@data_root
@as_json
@click.pass_obj
def prune(
    registry: Registry, name: str, tasks: tuple[str, ...], steps: int, keep_within: float | None, own_name: str | None,
    out: Path, data_root: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Leave out the layers of NAME that add little: accuracy against what remains, at rising thresholds of ‖ΔW‖.

    --keep-within is in points of a percentage, or per cent of an error, on a fifth of the training images.
    """
    from zoo.drawing.plots import curves, pyplot
    from zoo.search import pruning

    narrate()
    pyplot()  # where it is not installed, it is told before anything is measured
    entry = registry.entry(name)
    own_name = own_name or f"{name}-pruned"
    if keep_within is not None:
        check_new(own_name, out, registry)
    chosen = [entry.known_task(task) for task in tasks] or list(entry.tasks)
    metric, *others = dict.fromkeys(entry.metric(task) for task in chosen)
    if others:
        raise OptionError(f"Not all tasks of {name} are measured in {metric.name}: name those of one metric, --task.")
    choosing = keep_within is not None
    found = {task: list(pruning.pruned(entry, registry, task, steps, data_root, choosing)) for task in chosen}
    rows = [
        {
            "task": task,
            "threshold": round(step.threshold, 4),
            "layers": step.layers,
            "parameters": step.parameters,
            entry.metric(task).name: entry.metric(task).rounded(step.figure),
            **({} if step.chosen_by is None else {"on training images": entry.metric(task).rounded(step.chosen_by)}),
        }
        for task, each in found.items()
        for step in each
    ]
    show(rows, as_json)
    lines = {task: [(step.parameters, step.figure) for step in each] for task, each in found.items()}
    labels = ("parameters that remain, head left out", f"{metric.name}, {metric.unit}")
    for path in curves(lines, f"{name}, layers left out by ‖ΔW‖", labels, out / "pruned"):
        click.echo(path, err=as_json)
    if keep_within is not None:
        kept = {task: pruning.smallest(entry, each, keep_within) for task, each in found.items()}
        made = pruning.pruned_entry(entry, registry, kept, out, own_name)
        told = ", ".join(f"{task} {step.layers} of {found[task][0].layers} layers" for task, step in kept.items())
        click.echo(f"{told}. {written(made, out, 'eval')}", err=as_json)


@main.command()
@entry_name
@click.argument("parts", nargs=-1, required=True, metavar="TASK[:WEIGHT]...")
@click.option("--tasks", is_flag=True, help="May stand before the tasks.")
@click.option("--as", "task", required=True, help="What the new task is called.")
@click.option("--how", type=click.Choice(["sum", "ties", "dare"]), default="sum", show_default=True)
@click.option("--density", type=Real(0, 1, min_open=True), default=0.2, show_default=True,
              help="Share of each task's entries that ties and dare keep.")  # fmt: skip
@click.option("--rank", type=POSITIVE, help="Of the new task.  [default: the entry's]")
@click.option("--form", type=click.Choice(["cp", "tt", "svd", "tucker"]), default="svd", show_default=True,
              help="Of an entry whose method has no rank, such as fine-tuning.")  # fmt: skip
@click.option("--head", default="side-by-side", show_default=True, help="Or the task whose head it has.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of dare's draws.")
@click.option("--name", "own_name", help="Of the new entry.  [default: NAME-TASK]")
@out_of_new
@data_root
@as_json
@click.pass_obj
def merge(
    registry: Registry, /, name: str, parts: tuple[str, ...], tasks: bool, task: str, own_name: str | None, out: Path,
    data_root: Path | None, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Make one task of several of NAME: a weighted sum of what they add to each layer. A weight below 0 forgets.

    A weight is 1 unless it is written behind the task: zoo merge NAME --tasks a b:-0.5 --as both -o OUT
    """
    from zoo.search.merging import merged_entry

    narrate()
    weights = {}
    for part in parts:
        word, _, weight = part.partition(":")
        if word in weights:
            raise OptionError(f"{word} is named twice.")
        with contextlib.suppress(ValueError):
            weights[word] = float(weight or 1)
        if word not in weights or not math.isfinite(weights[word]):
            raise OptionError(f"{part!r} is no TASK or TASK:WEIGHT, such as sketch:0.5.")
    entry = registry.entry(name)
    made, rows = merged_entry(entry, registry, weights, own_name or f"{name}-{task}", task, out, data_root, **options)
    show(rows, as_json)
    if not as_json:
        click.echo(written(made, out, "predict") + f" --task {task} IMAGE")
