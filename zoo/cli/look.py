"""Finding out: ls, info, download, compare, plot, data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import click

from zoo.catalog.entry import LIBRARIES, Entry
from zoo.catalog.places import is_elsewhere, registry_at
from zoo.catalog.registry import Registry, default_registry
from zoo.cli.base import COUNT, FOLDER, NEW_FILE, NEW_FOLDER, as_json, data_root, entry_name, main, narrate
from zoo.cli.tables import show, show_one
from zoo.errors import CheckFailed, OptionError


def _place(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """A pattern of names; of a repository or a bundle, which stands alone then, all of them."""
    if is_elsewhere(value):
        narrate()
        ctx.obj, value = registry_at(value), "*"
    return value


@main.command("ls")
@click.argument("pattern", default="*", callback=_place)
@click.option("--with-weights", is_flag=True, help="Those alone that can be loaded as they are.")
@as_json
@click.pass_obj
def list_command(registry: Registry, pattern: str, with_weights: bool, as_json: bool) -> None:
    """List the models whose names match PATTERN, such as "resnet*-shapes"; your own first, then those with weights.

    hf://OWNER/REPO or FILE.zoo lists those of a repository or a bundle.
    """
    found = registry.entries(pattern)
    zoos = default_registry().names()
    first = [entry for entry in found if entry.weights]
    rest = [] if with_weights else [entry for entry in found if not entry.weights]
    listed = sorted([*first, *rest], key=lambda entry: entry.name in zoos)
    show([_summary(entry) for entry in listed], as_json)
    if not found:
        raise OptionError(f"No model's name matches {pattern!r}. `zoo ls` lists them all.")
    if with_weights and not first:
        raise OptionError(f"None of the {len(found)} models whose names match {pattern!r} has weights.")


def _summary(entry: Entry) -> dict[str, Any]:
    sizes = [file.size for file in (entry.weights or {}).values()]
    reported = entry.reported.figures if entry.reported else None
    return {
        "name": entry.name,
        "tasks": len(entry.tasks),
        "parameters per task": entry.parameters and entry.parameters.per_task,
        "KB per task": round(sum(sizes) / len(sizes) / 1000) if sizes else None,
        "measured %": entry.measured_mean,
        "reported %": entry.mean(reported),
    }


@main.command()
@entry_name
@as_json
@click.pass_obj
def info(registry: Registry, name: str, as_json: bool) -> None:
    """Show what the registry says of a model, and its row in the paper's table among the other methods."""
    from zoo.catalog import papers
    from zoo.catalog.entry import as_data

    if name.startswith("zoo/") and not registry.backbone(name):
        from zoo.backbones.imported import imported

        if package := imported(name):
            show_one(name, as_data(package), as_json)
            return
    item = registry.backbone(name) or registry.entry(name)
    facts, source, rows = as_data(item), "", []
    if isinstance(item, Entry):
        facts |= _frozen(item, registry) | _scores(item, registry)
        source = item.reported.source if item.reported else ""
        rows = papers.table(source, registry) if source else []
    show_one(name, facts | ({"table": rows} if as_json and rows else {}), as_json)
    if rows and not as_json:
        click.echo(f"\n{source}, as the paper prints it, and parameters as counted here:")
        show(rows)


def _frozen(entry: Entry, registry: Registry) -> dict[str, Any]:
    """What holds the weights of a library's backbone to what they were, where the entry does not."""
    from zoo.catalog.entry import as_data

    if entry.backbone_weights or not entry.backbone.startswith(LIBRARIES):
        return {}
    if found := registry.pins.get(entry.backbone):
        return {"frozen weights": as_data(found)}
    known = "the newest of timm's repository" if entry.backbone.startswith("timm/") else "what its file's name states"
    return {"frozen weights": f"not pinned: {known}; `zoo pin {entry.backbone}` writes commit and SHA-256"}


def _scores(entry: Entry, registry: Registry) -> dict[str, Any]:
    """The decathlon scores of the paper's figures and of ours, where the entry is scored so."""
    from zoo.catalog.score import decathlon_score, scale

    if not entry.baseline:
        return {}
    scores, figures = {}, {"reported": entry.reported and entry.reported.figures, "measured": entry.measured}
    for kind, accuracy in figures.items():
        known = scale(entry, registry, kind)
        if accuracy and known:
            scores[kind] = round(decathlon_score(accuracy, known))
    return {"decathlon score": scores or None}


@main.command()
@entry_name
@click.pass_obj
def download(registry: Registry, name: str) -> None:
    """Fetch a model's published weights and print where they lie."""
    from zoo.catalog.store import adapter_files
    from zoo.storage.fetch import fetch

    entry = registry.entry(name)
    files = list(adapter_files(entry, entry.tasks, "published").values())
    for path in [*files, *([fetch(entry.shared, entry.folder)] if entry.shared else [])]:
        click.echo(path)


@main.command()
@click.argument("pattern", callback=_place)
@click.option("--task", help="Compare on this task alone. Default: all that the models have in common.")
@click.option("--rounds", type=COUNT, default=10, show_default=True, help="Of the timings; 0 leaves them out.")
@click.option("-o", "--out", type=NEW_FILE, help="Draw accuracy against parameters: a name without .png and .svg.")
@as_json
@click.pass_obj
def compare(registry: Registry, pattern: str, task: str | None, rounds: int, out: Path | None, as_json: bool) -> None:
    """Compare the models that match PATTERN on their tasks: accuracy, parameters, size, speed."""
    from zoo.drawing.plots import accuracy_by_parameters, pyplot
    from zoo.verification.comparison import BATCH, common_tasks
    from zoo.verification.comparison import compare as measure
    from zoo.verification.provenance import differences

    entries = named(registry, pattern)
    first = common_tasks(entries, task)[0]
    if out:  # what cannot be drawn is told before anything is timed
        pyplot()
        if (unit := entries[0].metric(first).unit) != "%":
            raise OptionError(
                f"Only percentages are drawn, and {first} is measured in {unit or 'no unit'}: leave -o out."
            )
    rows = measure(entries, registry, task, rounds)
    _show_comparison(rows, as_json)
    for words in differences([registry.entry(row["model"]) for row in reversed(rows)], first):
        click.echo(f"Note: {words}", err=True)
    if rounds and not as_json:
        from zoo.training.loop import device_words

        words = f"medians of {rounds} rounds of batches of {BATCH}, all models in turn, on {device_words(cpu=True)}"
        click.echo(f"Milliseconds: {words}.")
    if out:
        for path in accuracy_by_parameters(rows, out, entries, entries[0].metric(first).name):
            click.echo(path, err=as_json)


def named(registry: Registry, pattern: str) -> list[Entry]:
    """The models whose names match a pattern; raises OptionError if there are none."""
    if entries := registry.entries(pattern):
        return entries
    raise OptionError(f"No model's name matches {pattern!r}. `zoo ls` lists them all.")


# Of a comparison's rows, in a table of their own.
HOW = ("method", "recipe", "epochs", "training images", "test images")


def _show_comparison(rows: list[dict[str, Any]], as_json: bool) -> None:
    """What models do and cost, and how they were made."""
    if as_json:
        show(rows, as_json)
        return
    show([{key: value for key, value in row.items() if key not in HOW} for row in rows])
    click.echo()
    show([{key: row[key] for key in ("model", *HOW)} for row in rows])


@main.group()
def plot() -> None:
    """Draw measured figures, as PNG and SVG."""


@plot.command("ranks")
@click.argument("pattern")
@click.option(
    "-o", "--out", type=NEW_FILE, default=Path("ranks"), show_default=True, help="Name without .png and .svg."
)
@click.pass_obj
def plot_ranks(registry: Registry, pattern: str, out: Path) -> None:
    """Draw accuracy against rank for the measured models that match PATTERN, such as "resnet20-ftn-*-shapes"."""
    from zoo.drawing.plots import accuracy_by_rank

    for path in accuracy_by_rank(registry.entries(pattern), registry, out):
        click.echo(path)


@plot.command("norms")
@click.argument("pattern")
@click.option("--task", help="With several models: of this task. Default: the first that they have in common.")
@click.option("--of", "what", type=click.Choice(["delta", "factors"]), default="delta", show_default=True)
@click.option("--absolute", is_flag=True, help="Do not scale each network to [0, 1].")
@click.option(
    "-o", "--out", type=NEW_FILE, default=Path("norms"), show_default=True, help="Name without .png and .svg."
)
@as_json
@click.pass_obj
def plot_norms(
    registry: Registry, pattern: str, task: str | None, what: str, absolute: bool, out: Path, as_json: bool
) -> None:
    """Draw how much is added to each layer: by task, for one model; by rank or model, for several.

    It is the norm of ΔW, whatever the method, or of its factors.
    """
    from zoo.compression import layers
    from zoo.drawing.heat import by_layer
    from zoo.drawing.plots import pyplot
    from zoo.loader import load
    from zoo.verification.comparison import tasks_of_all

    pyplot()  # where it is not installed, it is told before anything is loaded
    entries = named(registry, pattern)
    measure = layers.norms if what == "delta" else layers.factor_norms
    if len(entries) == 1:
        model = load(entries[0].name, registry=registry)
        columns = {name: measure(model, name) for name in ([task] if task else model.tasks)}
        title = entries[0].name
    else:
        task = task or tasks_of_all(entries)[0]
        ranks = [entry.rank for entry in entries]
        alike = len({entry.method["name"] for entry in entries}) == 1
        by_rank = alike and None not in ranks and len(set(ranks)) == len(ranks)
        names = [f"R = {entry.rank}" if by_rank else entry.name for entry in entries]
        models = (load(entry.name, task=entry.known_task(task), registry=registry) for entry in entries)
        columns = {name: measure(model, task) for name, model in zip(names, models, strict=True)}
        title = f"{pattern}, {task}"
    if not absolute:
        columns = {name: layers.scaled(values) for name, values in columns.items()}
    words = "‖ΔW‖" if what == "delta" else "norm of the factors"
    label = words if absolute else f"{words}, each column from 0 to 1"
    for path in by_layer(columns, title, label, out):
        click.echo(path, err=as_json)
    if as_json:
        show([{"column": name, **values} for name, values in columns.items()], as_json)


@plot.command("similarity")
@entry_name
@click.option(
    "--of", "measure", type=click.Choice(["cosine", "angle"]), default="cosine", show_default=True,
    help="Of ΔW as vectors, or degrees between the output channels that they mostly write to.",
)  # fmt: skip
@click.option(
    "-o", "--out", type=NEW_FILE, default=Path("similarity"), show_default=True, help="Without .png and .svg."
)
@as_json
@click.pass_obj
def plot_similarity(
    registry: Registry, name: str, measure: Literal["cosine", "angle"], out: Path, as_json: bool
) -> None:
    """Draw how alike the tasks of NAME are in what they add to each layer."""
    from zoo.compression import layers
    from zoo.drawing.heat import side_by_side
    from zoo.drawing.plots import pyplot
    from zoo.loader import load

    pyplot()
    model = load(name, registry=registry)
    found = {path: matrix.numpy() for path, matrix in layers.similarity(model, measure).items()}
    label, limits = ("cosine", (-1.0, 1.0)) if measure == "cosine" else ("degrees", (0.0, 90.0))
    for path in side_by_side(found, model.tasks, f"{name}: {label} between tasks", label, limits, out):
        click.echo(path, err=as_json)
    if as_json:
        tables = {
            path: [[None if math.isnan(v) else v for v in row] for row in m.tolist()] for path, m in found.items()
        }
        show([{"layer": path, "tasks": list(model.tasks), measure: table} for path, table in tables.items()], as_json)


@main.group()
def data() -> None:
    """Look after the images of a benchmark."""


@data.command("check")
@click.argument("benchmark")
@data_root
@click.option("--decode", is_flag=True, help="Open every image, and name those that do not decode.")
@as_json
def check_data(benchmark: str, data_root: Path | None, decode: bool, as_json: bool) -> None:
    """Count the classes and images of each task of BENCHMARK; exit 1 where its authors state other numbers."""
    from zoo.datasets.check import check

    narrate()
    rows, problems = [], []
    for found in check(benchmark, data_root, decode):
        counts = found.counts._asdict() if found.counts else dict.fromkeys(("classes", "train", "test"))
        rows.append({"task": found.task, **counts, "as published": found.version or None})
        problems += [f"{found.task}: {problem}" for problem in found.problems]
        click.echo(f"{found.task}: {'looked at' if found.counts else 'not as it should be'}", err=True)
    show(rows, as_json)
    if problems:
        raise CheckFailed("\n".join(problems))


@data.command("build")
@click.argument("benchmark", type=click.Choice(["emoji"]))
@click.option("--from", "source", type=FOLDER, required=True, help="The folder with the archives.")
@click.option("-o", "--out", type=NEW_FOLDER, required=True, help="Where the benchmark's folders go.")
def build_data(benchmark: str, source: Path, out: Path) -> None:
    """Make the images of BENCHMARK of what their publishers hand out."""
    from zoo.datasets.emoji import build

    for style, count in build(source, out):
        click.echo(f"{style}: {count} images")
