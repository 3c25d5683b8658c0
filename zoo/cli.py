"""The `zoo` command. Thin: each command imports what it needs when it runs, so that `zoo --help` and `ls` are quick."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from zoo import __version__
from zoo.errors import CheckFailed, OptionError, ZooError
from zoo.registry import Entry, Registry, default_registry
from zoo.report import show, show_one

FILE = click.Path(path_type=Path, dir_okay=False)
COUNT, POSITIVE = click.IntRange(0), click.IntRange(1)
FOLDER = click.Path(path_type=Path, file_okay=False)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
data_root = click.option("--data-root", type=FOLDER, help="Where the benchmark's images lie.")
skip_unreadable = click.option("--skip-unreadable", is_flag=True, help="Leave out images that do not decode.")


class Zoo(click.Group):
    """The group of commands; prints the zoo's own errors in a line or two."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ZooError as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"Error: {error}", err=True)
            ctx.exit(error.exit_status)
        except KeyboardInterrupt:
            if ctx.invoked_subcommand == "train":
                click.echo("Stopped. The same command with --resume goes on from the last finished epoch.", err=True)
            raise


@click.group(cls=Zoo, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="zoo")
@click.option("--registry", type=FILE, help="A registry file of your own, beside the zoo's.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def main(ctx: click.Context, registry: Path | None, debug: bool) -> None:
    """One frozen backbone, a small file per task: find, train, verify, fuse and export them."""
    ctx.obj = default_registry() if registry is None else default_registry().merged(Registry.read(registry))


def _narrate() -> None:
    """Let the zoo say on stderr what long work has got done."""
    import logging

    logger = logging.getLogger("zoo")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


@main.command("ls")
@click.argument("pattern", default="*")
@as_json
@click.pass_obj
def list_command(registry: Registry, pattern: str, as_json: bool) -> None:
    """List the models whose names match PATTERN, such as "resnet*-shapes"."""
    rows = [_summary(registry.entry(name)) for name in registry.names(pattern)]
    show(rows, as_json)
    if not rows:
        raise OptionError(f"No model's name matches {pattern!r}. `zoo ls` lists them all.")


def _summary(entry: Entry) -> dict[str, Any]:
    sizes = [file.size for file in (entry.weights or {}).values()]
    reported = entry.reported.accuracy if entry.reported else None
    return {
        "name": entry.name,
        "tasks": len(entry.tasks),
        "parameters per task": entry.parameters and entry.parameters.per_task,
        "KB per task": round(sum(sizes) / len(sizes) / 1000) if sizes else None,
        "measured %": _mean(entry.measured),
        "reported %": _mean(reported),
    }


def _mean(figures: dict[str, float] | None) -> float | None:
    return round(sum(figures.values()) / len(figures), 2) if figures else None


@main.command()
@click.argument("name")
@as_json
@click.pass_obj
def info(registry: Registry, name: str, as_json: bool) -> None:
    """Show what the registry says of a model, and its row in the paper's table among the other methods."""
    from zoo import papers
    from zoo.registry import as_data

    item = registry.backbone(name) or registry.entry(name)
    facts, source, rows = as_data(item), "", []
    if isinstance(item, Entry):
        facts |= _scores(item, registry)
        source = item.reported.source if item.reported else ""
        rows = papers.table(source, registry) if source else []
    show_one(name, facts | ({"table": rows} if as_json and rows else {}), as_json)
    if rows and not as_json:
        click.echo(f"\n{source}, as the paper prints it, and parameters as counted here:")
        show(rows)


def _scores(entry: Entry, registry: Registry) -> dict[str, Any]:
    """The decathlon scores of the paper's figures and of ours, where the entry is scored so."""
    from zoo.score import decathlon_score

    if not entry.baseline:
        return {}
    baseline, scores = registry.entry(entry.baseline), {}
    if entry.reported and baseline.reported:
        scores["reported"] = round(decathlon_score(entry.reported.accuracy, baseline.reported.accuracy))
    if entry.measured and baseline.measured:
        scores["measured"] = round(decathlon_score(entry.measured, baseline.measured))
    return {"decathlon score": scores or None}


@main.command()
@click.argument("name")
@click.pass_obj
def download(registry: Registry, name: str) -> None:
    """Fetch a model's published weights and print where they lie."""
    from zoo.loader import adapter_files

    entry = registry.entry(name)
    for path in adapter_files(entry, entry.tasks, "published").values():
        click.echo(path)


@main.command()
@click.argument("name", required=False)
@click.option("--task", "tasks", multiple=True, help="Train this task; may be given several times. Default: all.")
@click.option("--backbone", help="Adapt this backbone to domains of your own, such as torchvision/resnet18.")
@click.option("--data", type=FOLDER, help="Those domains: DIR/<domain>/{train,test}/<class>/*.jpg.")
@click.option("--name", "own_name", help="With --backbone: the new entry's name.")
@click.option("--method", help="With --backbone: the method.  [default: ftn]")
@click.option("--rank", help="With --backbone: the rank of ftn. With NAME: auto, to choose one for each task.")
@click.option(
    "--margin", type=click.FloatRange(0), default=1.0, show_default=True, help="Points that --rank auto may give away."
)
@click.option("--out", type=FOLDER, help="Where the adapter files go. Default: the local store.")
@click.option("--backbone-weights", type=FILE, help="A safetensors file with the backbone's weights.")
@click.option("--recipe", help="A recipe's name or file, in place of the entry's.")
@click.option("--seed", type=int, help="In place of the recipe's.")
@data_root
@skip_unreadable
@click.option("--resume", is_flag=True, help="Go on from the last finished epoch.")
@click.option("--overwrite", is_flag=True, help="Discard what was trained, and train anew.")
@click.option("--precision", type=click.Choice(["no", "bf16", "fp16"]), default="no", show_default=True)
@click.option("--channels-last/--no-channels-last", default=True, show_default=True, help="Memory layout.")
@click.option("--compile", is_flag=True, help="Have torch.compile translate the network first.")
@click.option("--cpu", is_flag=True, help="Leave a GPU unused.")
@click.option("--workers", type=COUNT, default=0, show_default=True, help="Processes that load images.")
@click.option("--tracker", type=click.Choice(["tensorboard", "wandb"]), help="Log the figures of each epoch.")
@click.option("--max-steps", type=POSITIVE, help="Take so many steps in each epoch, for a quick try.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.pass_obj
def train(
    registry: Registry, /, name: str | None, tasks: tuple[str, ...], backbone: str | None, data: Path | None,
    own_name: str | None, method: str | None, rank: str | None, margin: float, out: Path | None, **options: Any,
) -> None:  # fmt: skip
    """Train NAME by its recipe; or, with --backbone and --data, adapters for domains of your own."""
    from zoo import resources, runs
    from zoo.loader import known_task

    _narrate()
    settings = runs.RunOptions(**options)
    if backbone or data:
        if name or tasks or settings.data_root or not (backbone and data and out):
            raise OptionError(
                "For domains of your own give --backbone, --data and --out; no NAME, --task or --data-root."
            )
        if rank and not rank.isdigit():
            raise OptionError(f"With --backbone, --rank is a whole number, not {rank!r}.")
        spec = {"name": method or "ftn"} | ({"rank": int(rank)} if rank else {})
        entry, file = runs.train_own(backbone, data, spec, out, registry, settings, own_name or "")
        if entry.measured:
            show([{"task": task, "accuracy %": value} for task, value in entry.measured.items()])
            click.echo(f"Wrote {entry.name}. Use it with: zoo --registry {file} eval {entry.name}")
        return
    if own_name or method or rank not in (None, "auto"):
        raise OptionError("--name, --method and --rank N belong to --backbone; an entry of the zoo has its own.")
    if name is None:
        raise OptionError("Name a model to train, or give --backbone, --data and --out. `zoo ls` lists the models.")
    if known := registry.backbone(name):
        from zoo.backbones import stored_backbone

        file = out / "backbone.safetensors" if out else stored_backbone(name)
        click.echo(runs.train_backbone(known, file, settings))
        return
    entry = registry.entry(name)
    chosen = [known_task(entry, task) for task in tasks] or list(entry.tasks)
    if rank:
        _search_ranks(entry, registry, chosen, out, settings, margin)
        return
    for path in runs.train_entry(entry, registry, chosen, out or resources.store_dir() / name, settings).values():
        click.echo(path)


def _search_ranks(
    entry: Entry, registry: Registry, tasks: list[str], out: Path | None, settings: Any, margin: float
) -> None:
    from zoo import ranks, resources

    folder = out or resources.store_dir() / entry.name.replace(f"-r{entry.method.get('rank')}-", "-auto-")
    choices = list(ranks.search(entry, registry, tasks, folder, settings, margin))
    rows: list[dict[str, Any]] = [
        {
            "task": choice.task,
            "rank": choice.rank,
            **{
                f"held out r{r} %": round(choice.tried[r], 2) if r in choice.tried else None
                for r in ranks.family(entry, registry)
            },
            "test %": round(choice.accuracy, 2),
            "parameters": choice.parameters,
            "saved": f"{1 - choice.parameters / choice.largest_parameters:.0%}",
        }
        for choice in choices
    ]
    show(rows)
    own, most = sum(c.parameters for c in choices), sum(c.largest_parameters for c in choices)
    click.echo(f"{own:,} parameters for {len(choices)} tasks, {1 - own / most:.0%} fewer than at the largest rank.")
    click.echo(f"Use them with: zoo eval {entry.name} --weights {folder}")


@main.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--figures-only", is_flag=True, help="Record the accuracy alone, and leave the files in the store.")
@click.pass_context
def pack(ctx: click.Context, names: tuple[str, ...], figures_only: bool) -> None:
    """Publish what `zoo train` left in the local store: move it beside the registry and record it there.

    For maintainers of a checkout of the zoo: files go to zoo/weights/, and registry.yaml gets their hashes, sizes
    and measured accuracy.
    """
    from zoo import resources, runs

    registry = Registry.read(resources.registry_file())
    for name in names:
        runs.pack(name, registry, figures_only)
        registry.write(resources.registry_file())
        click.echo(f"packed {name}")


@main.command("eval")
@click.argument("name")
@click.option("--task", help="This task alone. Default: all.")
@click.option(
    "--weights", default="auto", help="A folder of adapter files. Default: the local store, then the published."
)
@data_root
@skip_unreadable
@as_json
@click.pass_obj
def evaluate(
    registry: Registry,
    name: str,
    task: str | None,
    weights: str,
    data_root: Path | None,
    skip_unreadable: bool,
    as_json: bool,
) -> None:
    """Measure a model's top-1 accuracy on its test images."""
    from zoo.loader import load
    from zoo.score import decathlon_score
    from zoo.verification import evaluate as measure

    _narrate()
    entry, model = registry.entry(name), load(name, task=task, weights=weights, registry=registry)
    figures = measure(entry, model, data_root, skip_unreadable)
    rows = [{"task": key, "accuracy %": round(value, 2)} for key, value in figures.items()]
    if len(model.tasks) > 1:
        rows.append({"task": "mean", "accuracy %": _mean({task: figures[task] for task in model.tasks})})
    show(rows, as_json)
    scale = entry.baseline and registry.entry(entry.baseline).measured
    if scale and task is None and not as_json:
        click.echo(f"decathlon score: {decathlon_score(figures, scale):.0f} (against {entry.baseline})")


@main.command()
@click.argument("name")
@click.option("--retrain", is_flag=True, help="Run the recipe again, in a temporary folder, and compare.")
@data_root
@as_json
@click.pass_obj
def verify(registry: Registry, name: str, retrain: bool, data_root: Path | None, as_json: bool) -> None:
    """Check a model's files, parameters and accuracy against the registry; exit 1 on a difference."""
    from zoo import verification
    from zoo.runs import RunOptions

    _narrate()
    if known := registry.backbone(name):
        if retrain:
            raise OptionError(f"--retrain is for entries; `zoo train {name} --out DIR` runs a backbone's recipe again.")
        checks = verification.verify_backbone(known)
    else:
        entry = registry.entry(name)
        checks = verification.verify(entry, registry, data_root) if entry.weights or not retrain else []
    if retrain:
        checks += verification.retrain(entry, registry, RunOptions(data_root=data_root))
    show([{"task": c.task, "check": c.what, "passed": c.passed, "detail": c.detail} for c in checks], as_json)
    failed = [check for check in checks if not check.passed]
    if failed:
        raise CheckFailed(f"{len(failed)} of {len(checks)} checks of {name} failed; the first: {failed[0].detail}")


@main.command()
@click.argument("name")
@click.option("--task", "tasks", multiple=True, help="Export this task; may be given several times.")
@click.option("--all-tasks", is_flag=True)
@click.option("-o", "--out", type=FOLDER, required=True, help="Folder of the <task>.onnx files.")
@click.option("--preprocess", is_flag=True, help="Take uint8 images (B, H, W, C); scale and normalise in the graph.")
@click.option("--half", is_flag=True, help="Compute in float16.")
@click.option("--provider", default="cpu", show_default=True, help="cpu, cuda or tensorrt: what runs the comparison.")
@click.option(
    "--weights", default="auto", help="A folder of adapter files. Default: the local store, then the published."
)
@data_root
@as_json
@click.pass_obj
def export(
    registry: Registry, name: str, tasks: tuple[str, ...], all_tasks: bool, out: Path, preprocess: bool, half: bool,
    provider: str, weights: str, data_root: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Write one ONNX graph per task, each compared with its source; exit 1 where they differ."""
    from zoo import deployment
    from zoo.loader import known_task

    _narrate()
    entry = registry.entry(name)
    chosen = [known_task(entry, task) for task in tasks]
    if bool(chosen) == all_tasks:
        raise OptionError(f"Give --task or --all-tasks; the tasks of {name} are {', '.join(entry.tasks)}.")
    made = deployment.export_entry(
        entry, registry, chosen or list(entry.tasks), out, data_root=data_root, weights=weights,
        preprocess=preprocess, half=half, provider=provider,
    )  # fmt: skip
    show([{"task": task, "file": str(path), "parity": str(parity)} for task, (path, parity) in made.items()], as_json)


@main.command()
@click.argument("name")
@click.option("--task", required=True)
@click.argument("images", nargs=-1, required=True, type=FILE)
@click.option("--top", type=POSITIVE, default=3, show_default=True, help="How many classes to show.")
@click.option(
    "--weights", default="auto", help="A folder of adapter files. Default: the local store, then the published."
)
@skip_unreadable
@as_json
@click.pass_obj
def predict(
    registry: Registry,
    name: str,
    task: str,
    images: tuple[Path, ...],
    top: int,
    weights: str,
    skip_unreadable: bool,
    as_json: bool,
) -> None:
    """Classify IMAGES by one of a model's tasks."""
    from zoo.deployment import classify
    from zoo.loader import load

    _narrate()
    show(
        classify(load(name, task=task, weights=weights, registry=registry), task, images, top, skip_unreadable), as_json
    )


@main.command()
@click.argument("name")
@click.option("--task", help="Default: the first.")
@click.option("--batch", type=POSITIVE, default=16, show_default=True)
@click.option("--rounds", type=POSITIVE, default=20, show_default=True)
@as_json
@click.pass_obj
def bench(registry: Registry, name: str, task: str | None, batch: int, rounds: int, as_json: bool) -> None:
    """Time a model fused, unfused and in ONNX Runtime against its plain backbone, in turn in one process."""
    from zoo.deployment import latencies

    show(latencies(registry.entry(name), registry, task, batch, rounds), as_json)


@main.group()
def plot() -> None:
    """Draw measured figures, as PNG and SVG."""


@plot.command("ranks")
@click.argument("pattern")
@click.option("-o", "--out", type=FILE, default=Path("ranks"), show_default=True, help="Name without .png and .svg.")
@click.pass_obj
def plot_ranks(registry: Registry, pattern: str, out: Path) -> None:
    """Draw accuracy against rank for the measured models that match PATTERN, such as "resnet20-ftn-*-shapes"."""
    from zoo.plots import accuracy_by_rank

    entries = [registry.entry(name) for name in registry.names(pattern)]
    for path in accuracy_by_rank(entries, registry, out):
        click.echo(path)


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

    rows, problems = [], []
    for found in check(benchmark, data_root, decode):
        counts = found.counts._asdict() if found.counts else dict.fromkeys(("classes", "train", "test"))
        rows.append({"task": found.task, **counts, "as published": found.version or None})
        problems += [f"{found.task}: {problem}" for problem in found.problems]
        click.echo(f"{found.task}: {'looked at' if found.counts else 'not as it should be'}", err=True)
    show(rows, as_json)
    if problems:
        raise CheckFailed("\n".join(problems))


@main.command("cp")
@click.argument("recipe")
@click.argument("file", type=FILE)
def copy(recipe: str, file: Path) -> None:
    """Copy a recipe of the zoo to FILE, to be changed and used with `zoo train NAME --recipe FILE`."""
    from zoo.recipe import recipe_file

    source = recipe_file(recipe)
    try:
        text = source.read_bytes()
    except OSError as error:
        raise OptionError(f"Cannot read the recipe {source}: {error.strerror}.") from None
    try:
        with file.open("xb") as target:
            target.write(text)
    except FileExistsError:
        raise OptionError(f"{file} exists already; choose another name.") from None
    except OSError as error:
        raise OptionError(f"Cannot write {file}: {error.strerror}.") from None
    click.echo(f"Copied {source} to {file}")
