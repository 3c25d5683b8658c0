"""What leaves the zoo: graphs, and a page to try a model on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from zoo.catalog.registry import Registry
from zoo.catalog.task import GENERATION
from zoo.cli.base import COUNT, NEW_PLACE, Real, as_json, data_root, entry_name, main, narrate, weights
from zoo.cli.tables import show
from zoo.errors import OptionError


@main.command()
@entry_name
@click.option("--task", "tasks", multiple=True, help="Export this task; may be given several times.")
@click.option("--all-tasks", is_flag=True)
@click.option("-o", "--out", type=NEW_PLACE, help="Folder of the <task>.onnx files.")
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
@click.option(
    "--ort-adapters", is_flag=True, help="One DIR/base.onnx, and a file for each task that ONNX Runtime switches to."
)
@click.option("--triton", type=NEW_PLACE, help="In place of -o: a repository of models for Triton's server.")
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16", "int8"]), help="What to compute in; fp32 by default. int8 is "
    "calibrated on training images, tried on test images, and lies beside the float graph: DIR/<task>.int8.onnx.",
)  # fmt: skip
@click.option("--half", is_flag=True, help="The same as --precision fp16.")
@click.option("--max-drop", type=Real(min=0), help="Points that int8 may lose, by default 1; more is an error.")
@click.option("--provider", default="cpu", show_default=True, help="cpu, cuda or tensorrt: what runs the comparison.")
@weights
@data_root
@as_json
@click.pass_obj
def export(
    registry: Registry, name: str, tasks: tuple[str, ...], all_tasks: bool, out: Path | None, preprocess: str | None,
    shared_backbone: bool, mixed: bool, stack_limit: int | None, ort_adapters: bool, triton: Path | None,
    precision: str | None, half: bool, max_drop: float | None, provider: str, weights: str, data_root: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Write ONNX graphs of tasks, each compared with its source; exit 1 where they differ."""
    from zoo.deployment.entries import export_entry
    from zoo.export.onnx import interface

    narrate()
    entry = registry.entry(name)
    chosen = [entry.known_task(task) for task in tasks]
    if bool(chosen) == all_tasks:
        raise OptionError(f"Give --task or --all-tasks; the tasks of {name} are {', '.join(entry.tasks)}.")
    given = {"--shared-backbone": shared_backbone, "--mixed": mixed, "--ort-adapters": ort_adapters}
    form, place = _form({**given, "--triton": triton is not None}, triton or out)
    if out and triton:
        raise OptionError(f"--triton names the folder, {triton}: leave -o out.")
    made = export_entry(
        entry, registry, chosen or list(entry.tasks), place, form=form, precision=_precision(precision, half),
        data_root=data_root, weights=weights, preprocess=preprocess or False, provider=provider, max_drop=max_drop,
        stack_limit=1_000_000 * stack_limit if stack_limit is not None else None,
    )  # fmt: skip
    graphs = {graph: interface(graph) for graph in dict.fromkeys(each.graph for each in made.values())}
    rows: list[dict[str, Any]] = []
    for task, each in made.items():
        size = {} if form == "fused" else {"kB": round(each.path.stat().st_size / 1000), "holds": each.holds}
        proof = {"parity": str(each.parity)} if each.int8 is None else _int8(each.int8)
        rows.append({"task": task, "file": str(each.path), **size, **graphs[each.graph], **proof})
    show(rows, as_json)
    if not as_json:
        _tell_common(place, form)
        if GENERATION in map(entry.kind, chosen or entry.tasks):
            click.echo("Latents are drawn from a Gaussian, whose mean and covariance stand in the graph's metadata.")
        else:
            _tell_preprocessing({task: each.graph for task, each in made.items()}, preprocess)


@main.command()
@entry_name
@click.option(
    "--task", "tasks", multiple=True, help="Show this task; may be given several times. Default: all with weights."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="What to listen on; 0.0.0.0 for other machines.")
@click.option("--port", type=click.IntRange(1, 65535), help="By default the first that is free from 7860 on.")
@weights
@click.pass_obj
def app(registry: Registry, name: str, tasks: tuple[str, ...], host: str, port: int | None, weights: str) -> None:
    """Serve a page to try a model on: drop a picture, and see what its tasks say; for this machine alone."""
    from zoo.catalog.store import adapter_files, at_hand
    from zoo.deployment.page import page, serve
    from zoo.loader import load_adapters

    narrate()
    entry = registry.entry(name)
    chosen = [entry.known_task(task) for task in tasks] or at_hand(entry, weights) or list(entry.tasks)
    serve(page(name, load_adapters(entry, registry, adapter_files(entry, chosen, weights))), host, port)


def _int8(found: Mapping[str, Any]) -> dict[str, Any]:
    """What eight bits cost, beside float32."""
    metric = found["metric"]
    return {
        "kB": f"{found['bytes_int8'] / 1000:.0f} of {found['bytes_float32'] / 1000:.0f}",
        f"{metric}, float32": found["float32"], f"{metric}, int8": found["int8"],
        **{f"time, batch of {batch}": times for batch, times in found["latency"].items()},
    }  # fmt: skip


def _precision(precision: str | None, half: bool) -> str:
    if half and precision not in (None, "fp16"):
        raise OptionError(f"--half is --precision fp16, and --precision {precision} was asked for.")
    return "fp16" if half else precision or "fp32"


def _form(given: dict[str, bool], out: Path | None) -> tuple[str, Path]:
    """In which form tasks leave, and where to; raises OptionError where that is two forms, or no such place."""
    asked = [option for option, wanted in given.items() if wanted]
    if len(asked) > 1:
        raise OptionError(f"{asked[0]} and {asked[1]} are two forms in which tasks leave: choose one.")
    option = asked[0] if asked else None
    if out is None:
        raise OptionError("Say where to: -o FOLDER, with --mixed -o FILE.onnx, or --triton FOLDER.")
    if option == "--mixed" and (out.suffix != ".onnx" or out.is_dir()):
        raise OptionError(f"--mixed writes one graph: name the file, such as -o {out.with_suffix('') / 'all.onnx'}.")
    if option != "--mixed" and out.is_file():
        raise OptionError(f"{option if option == '--triton' else '-o'} names a folder, and {out} is a file.")
    forms = {"--shared-backbone": "shared", "--mixed": "mixed", "--ort-adapters": "adapters", "--triton": "triton"}
    return forms[option] if option else "fused", out


def _tell_common(folder: Path, form: str) -> None:
    """What the files of tasks are used with."""
    from zoo.export.adapters import BASE
    from zoo.export.shared import BACKBONE

    name, words = {
        "shared": (BACKBONE, "of frozen weights, once for all. The folder moves as one. That spares disk and transfer, "
                   "not memory: each session makes the weights of its task"),
        "adapters": (BASE, "of the network, once for all, which answers with zeros until a task's adapter is added to "
                     "a run's options"),
    }.get(form, ("", ""))  # fmt: skip
    if name:
        click.echo(f"{folder / name}: {(folder / name).stat().st_size / 1000:,.0f} kB {words}.")


def _tell_preprocessing(graphs: dict[str, Path], inside: str | None) -> None:
    """What has to be done to an image before the graphs of tasks take it."""
    from zoo.export.onnx import preprocessing_of

    within = {
        None: "",
        "scale": "; mean and deviation are in the graph, resizing stays with the caller",
        "full": "; all of that is in the graph, which takes images of any size",
    }[inside]
    told: dict[str, list[str]] = {}
    words = {path: preprocessing_of(path).words() for path in dict.fromkeys(graphs.values())}
    for task, path in graphs.items():
        told.setdefault(words[path], []).append(task)
    for done, tasks in told.items():
        names = ", ".join(dict.fromkeys(", ".join(tasks).split(", ")))  # a mixed graph stands beside those of its tasks
        click.echo(f"An image for {names} is first: {done}{within}. It stands in the graph's metadata.")
