"""What leaves the zoo: export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from zoo.catalog.registry import Registry
from zoo.cli.base import COUNT, as_json, data_root, main, narrate
from zoo.cli.tables import show
from zoo.errors import OptionError


@main.command()
@click.argument("name")
@click.option("--task", "tasks", multiple=True, help="Export this task; may be given several times.")
@click.option("--all-tasks", is_flag=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder of the <task>.onnx files.")
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
@click.option("--mixed", is_flag=True, help="All these tasks in one graph, -o FILE.onnx, mixed in a batch.")
@click.option(
    "--stack-limit", type=COUNT, help="With --mixed: MB of weights kept whole for every task. Default: the backbone's."
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
    shared_backbone: bool, mixed: bool, stack_limit: int | None, precision: str | None, half: bool, provider: str,
    weights: str, data_root: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Write ONNX graphs of tasks, each compared with its source; exit 1 where they differ."""
    from zoo.deployment.entries import export_entry, export_mixed
    from zoo.export.onnx import interface

    narrate()
    entry, number = registry.entry(name), _precision(precision, half)
    chosen = [entry.known_task(task) for task in tasks]
    if bool(chosen) == all_tasks:
        raise OptionError(f"Give --task or --all-tasks; the tasks of {name} are {', '.join(entry.tasks)}.")
    form = _form({"--shared-backbone": shared_backbone, "--mixed": mixed}, number, out)
    if stack_limit is not None and form != "--mixed":
        raise OptionError("--stack-limit goes with --mixed.")
    given: dict[str, Any] = {"data_root": data_root, "weights": weights, "preprocess": preprocess or False}
    given |= {"provider": provider}
    wanted = chosen or list(entry.tasks)
    if form == "--mixed":
        limit = None if stack_limit is None else 1_000_000 * stack_limit
        made = {", ".join(wanted): export_mixed(entry, registry, wanted, out, stack_limit=limit, **given)}
    else:
        options = {"half": number == "fp16"} if form is None else {"form": "shared"}
        made = export_entry(entry, registry, wanted, out, **options, **given)
    rows: list[dict[str, Any]] = []
    for task, each in made.items():
        size = {"kB": round(each.path.stat().st_size / 1000), "holds": each.holds} if form else {}
        rows.append({"task": task, "file": str(each.path), **size, **interface(each.path), "parity": str(each.parity)})
    show(rows, as_json)
    if not as_json:
        if form == "--shared-backbone":
            _tell_shared(out)
        _tell_preprocessing({task: each.path for task, each in made.items()}, preprocess)


def _precision(precision: str | None, half: bool) -> str:
    if half and precision not in (None, "fp16"):
        raise OptionError(f"--half is --precision fp16, and --precision {precision} was asked for.")
    return "fp16" if half else precision or "fp32"


def _form(wanted: dict[str, bool], precision: str, out: Path) -> str | None:
    """The option that says in which form tasks leave; None: a whole graph for each.

    Raises:
        OptionError: several were given, or one with what it does not take.
    """
    first, *others = [*(option for option, given in wanted.items() if given), None]
    if first and others[0]:
        raise OptionError(f"{first} and {others[0]} are two forms: choose one of them.")
    if first and precision != "fp32":
        raise OptionError(f"{first} computes in float32: leave --precision and --half out.")
    if first == "--mixed" and out.suffix != ".onnx":
        raise OptionError(f"--mixed writes one graph: name the file, such as -o {out / 'all.onnx'}.")
    if first != "--mixed" and out.is_file():
        raise OptionError(f"-o names the folder of the graphs, and {out} is a file.")
    return first


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
