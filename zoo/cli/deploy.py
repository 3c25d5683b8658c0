"""What leaves the zoo: export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from zoo.catalog.registry import Registry
from zoo.cli.base import FOLDER, as_json, data_root, main, narrate
from zoo.cli.tables import show
from zoo.errors import OptionError


@main.command()
@click.argument("name")
@click.option("--task", "tasks", multiple=True, help="Export this task; may be given several times.")
@click.option("--all-tasks", is_flag=True)
@click.option("-o", "--out", type=FOLDER, required=True, help="Folder of the <task>.onnx files.")
@click.option(
    "--preprocess",
    is_flag=False,
    flag_value="scale",
    type=click.Choice(["scale", "full"]),
    help="Take uint8 images (B, H, W, C), and scale and normalise in the graph; full: resize and crop there too.",
)
@click.option(
    "--shared-backbone", is_flag=True, help="Small graphs on one file of the backbone's weights, DIR/backbone.bin."
)
@click.option("--precision", type=click.Choice(["fp32", "fp16"]), help="What to compute in; fp32 by default.")
@click.option("--half", is_flag=True, help="The same as --precision fp16.")
@click.option("--provider", default="cpu", show_default=True, help="cpu, cuda or tensorrt: what runs the comparison.")
@click.option(
    "--weights", default="auto", help="A folder of adapter files. Default: the local store, then the published."
)
@data_root
@as_json
@click.pass_obj
def export(
    registry: Registry, name: str, tasks: tuple[str, ...], all_tasks: bool, out: Path, preprocess: str | None,
    shared_backbone: bool, precision: str | None, half: bool, provider: str, weights: str, data_root: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Write one ONNX graph per task, each compared with its source; exit 1 where they differ."""
    from zoo.deployment.entries import FUSED, SHARED, export_entry
    from zoo.export.onnx import interface

    narrate()
    entry = registry.entry(name)
    chosen = [entry.known_task(task) for task in tasks]
    if bool(chosen) == all_tasks:
        raise OptionError(f"Give --task or --all-tasks; the tasks of {name} are {', '.join(entry.tasks)}.")
    number, form = _precision(precision, half), SHARED if shared_backbone else FUSED
    if form != FUSED and number != "fp32":
        raise OptionError("--shared-backbone computes in float32: leave --precision and --half out.")
    options = {} if form != FUSED else {"half": number == "fp16"}
    made = export_entry(
        entry, registry, chosen or list(entry.tasks), out, form=form, data_root=data_root, weights=weights,
        preprocess=preprocess or False, provider=provider, **options,
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    for task, each in made.items():
        size = {"kB": round(each.path.stat().st_size / 1000), "holds": each.holds} if form == SHARED else {}
        rows.append({"task": task, "file": str(each.path), **size, **interface(each.path), "parity": str(each.parity)})
    show(rows, as_json)
    if not as_json:
        if form == SHARED:
            _tell_shared(out)
        _tell_preprocessing({task: each.path for task, each in made.items()}, preprocess)


def _precision(precision: str | None, half: bool) -> str:
    if half and precision not in (None, "fp16"):
        raise OptionError(f"--half is --precision fp16, and --precision {precision} was asked for.")
    return "fp16" if half else precision or "fp32"


def _tell_shared(folder: Path) -> None:
    from zoo.export.shared import BACKBONE

    size = (folder / BACKBONE).stat().st_size / 1000
    click.echo(
        f"{folder / BACKBONE}: {size:,.0f} kB of frozen weights, once for all. The folder moves as one. That spares "
        "disk and transfer, not memory: each session makes the weights of its task."
    )


def _tell_preprocessing(graphs: dict[str, Path], inside: str | None) -> None:
    """What has to be done to an image before the graphs of tasks take it."""
    from zoo.export.onnx import preprocessing_of

    within = {
        None: "",
        "scale": "; mean and deviation are in the graph, resizing stays with the caller",
        "full": "; all of that is in the graph, which takes images of any size",
    }[inside]
    told: dict[str, list[str]] = {}
    for task, path in graphs.items():
        told.setdefault(preprocessing_of(path).words(), []).append(task)
    for done, tasks in told.items():
        click.echo(f"An image for {', '.join(tasks)} is first: {done}{within}. It stands in the graph's metadata.")
