"""Making models smaller: factorise, compress, prune, merge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from zoo.catalog.registry import Registry
from zoo.cli.base import FOLDER, NUMBER, POSITIVE, RANK, as_json, main, narrate
from zoo.cli.tables import show, written
from zoo.errors import OptionError

if TYPE_CHECKING:
    from zoo.compression.fine_tuned import Factorised

JOINT = "--joint takes one entry of parallel adapters and, of the rest, --rank K, --apart, --name and -o."
APART = "Give --backbone and --name, and either --rank or --budget; --apart belongs to --joint."


@main.command()
@click.argument("sources", nargs=-1, required=True)
@click.option("--backbone", help="What they were fine-tuned from, such as torchvision/resnet50@IMAGENET1K_V1.")
@click.option("--form", type=click.Choice(["cp", "tt", "svd", "tucker"]), default="cp", show_default=True)
@click.option("--rank", type=RANK, help="Of each layer; below 1, the share of ‖ΔW‖² that each keeps.  [default: 8]")
@click.option("--budget", type=NUMBER, help="Parameters of a task in all, such as 200k, split over the layers.")
@click.option("--keep-rest", is_flag=True, help="Keep the stem's change too, exactly.")
@click.option("--joint", is_flag=True, help="Bring the parallel adapters of the entry SOURCES to one basis of --rank.")
@click.option("--apart", is_flag=True, help="With --joint: a basis for each task.")
@click.option("--name", "own_name", help="Of the new entry.")
@click.option("-o", "--out", type=FOLDER, required=True, help="Where the new entry's registry and files go.")
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
@click.argument("name")
@click.option("--rank", type=POSITIVE, help="K of the basis.  [default: half the channels of each layer]")
@click.option("--apart", is_flag=True, help="Give each task a basis of its own, instead of one for all.")
@click.option("--name", "own_name", help="The new entry's name.")
@click.option("-o", "--out", type=FOLDER, required=True, help="Where the new entry's registry and files go.")
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
