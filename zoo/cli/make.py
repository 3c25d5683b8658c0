"""Making adapters: train, convert, search-sharing, pack, cp."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoo.catalog.changes import Changes
from zoo.catalog.entry import Entry
from zoo.catalog.places import is_elsewhere
from zoo.catalog.registry import OWN, Registry
from zoo.cli.base import (
    COUNT,
    FILE,
    FOLDER,
    NEW_FILE,
    NEW_FOLDER,
    NUMBER,
    POSITIVE,
    SEED,
    Real,
    as_json,
    data_root,
    entry_name,
    found,
    main,
    narrate,
    skip_unreadable,
)
from zoo.cli.tables import show, written
from zoo.errors import OptionError
from zoo.storage import resources
from zoo.storage.files import atomic_path

if TYPE_CHECKING:
    from zoo.training.options import RunOptions


@main.command()
@click.argument("name", required=False, callback=found)
@click.option("--task", "tasks", multiple=True, help="Train this task; may be given several times. Default: all.")
@click.option("--backbone", help="Adapt this backbone to domains of your own, such as zoo/efficientnet_lite0@imagenet.")
@click.option("--data", type=FOLDER, help="Those domains: DIR/<domain>/{train,test}/<class>/*.jpg.")
@click.option("--name", "own_name", help="With --backbone: the new entry's name.")
@click.option("--method", help="With --backbone: the method.  [default: ftn]")
@click.option(
    "--rank", help="With --backbone: the rank of ftn, by default 4. With NAME: auto, to choose one for each task."
)
@click.option("--margin", type=Real(0), help="Points that --rank auto may give away.  [default: 1]")
@click.option(
    "--budget", type=NUMBER, help="With --rank auto: parameters of all tasks' factors, split over the layers."
)
@click.option(
    "--by", type=click.Choice(["sensitivity", "energy", "adalora"]), help="With --budget: how they are split."
)
@click.option(
    "--out", type=NEW_FOLDER, help="Where the adapter files go. Default: the local store; with --data, DIR-adapters."
)
@click.option("--backbone-weights", type=FILE, help="A safetensors file with the backbone's weights.")
@click.option("--recipe", help="A recipe's name or file, in place of the entry's.")
@click.option("--seed", type=SEED, help="In place of the recipe's.")
@data_root
@skip_unreadable
@click.option("--resume", is_flag=True, help="Go on from the last finished epoch.")
@click.option("--from", "begin", type=FOLDER, help="Begin with the adapter files DIR/<task>.safetensors.")
@click.option("--distil", is_flag=True, help="Learn from the networks that those files are made of, not from labels.")
@click.option("--overwrite", is_flag=True, help="Discard what was trained, and train anew.")
@click.option("--precision", type=click.Choice(["no", "bf16", "fp16"]), default="no", show_default=True)
@click.option("--channels-last/--no-channels-last", default=True, show_default=True, help="Memory layout.")
@click.option("--compile", is_flag=True, help="Have torch.compile translate the network first.")
@click.option("--cpu", is_flag=True, help="Leave a GPU unused.")
@click.option("--workers", type=COUNT, default=0, show_default=True, help="Processes that load images.")
@click.option("--cache", is_flag=True, help="Decode the training images once, and keep them.")
@click.option("--tracker", type=click.Choice(["tensorboard", "wandb"]), help="Log the figures of each epoch.")
@click.option(
    "--test-share",
    type=Real(0, 1, min_open=True, max_open=True),
    help="Of --data without test images, to test on.",
)
@click.option("--fraction", type=Real(0, 1, min_open=True), default=1.0, help="Of the training images.")
@click.option("--epochs", type=POSITIVE, help="In place of the recipe's.")
@click.option("--lr", type=Real(0, min_open=True), help="Of the increments, else of the rest.")
@click.option("--batch-size", type=POSITIVE, help="In place of the recipe's.")
@click.option("--image-size", type=POSITIVE, help="Height of the input; width and resize in relation.")
@click.option("--set", "set_", multiple=True, metavar="KEY=VALUE", help="Of the recipe, such as rest.momentum=0.8.")
@click.option("--max-steps", type=POSITIVE, help="Take no more steps in all; the schedule ends with them.")
@click.option("--steps-per-epoch", type=POSITIVE, help="Take no more steps in each epoch, for a quick try.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.pass_obj
def train(
    registry: Registry, /, name: str | None, tasks: tuple[str, ...], backbone: str | None, data: Path | None,
    own_name: str | None, method: str | None, rank: str | None, margin: float | None, budget: int | None,
    by: str | None, out: Path | None, **options: Any,
) -> None:  # fmt: skip
    """Train NAME by its recipe; or, with --backbone and --data, adapters for domains of your own."""
    from zoo.training import runs
    from zoo.training.memory import keep_freed_memory
    from zoo.training.options import RunOptions

    narrate()
    keep_freed_memory()
    click.get_current_context().call_on_close(runs.end_processes)
    changed = {name: options.pop(name) for name in ("epochs", "lr", "batch_size", "image_size")}
    changes = Changes(**changed, set=options.pop("set_"))
    settings = RunOptions(**options, changes=changes)
    if (margin is not None or budget) and rank != "auto":
        raise OptionError("--margin and --budget belong to --rank auto.")
    if (budget and margin is not None) or (by and not budget):
        raise OptionError("--rank auto takes --margin, a rank for each task; or --budget, perhaps with --by.")
    if backbone or data:
        if name or tasks or settings.data_root or not (backbone and data):
            raise OptionError("For domains of your own give --backbone and --data; no NAME, --task or --data-root.")
        out = out or Path(f"{data.resolve().name}-adapters")
        _train_own(registry, backbone, data, out, method or "ftn", rank, own_name or "", settings)
        return
    if settings.test_share:
        raise OptionError("--test-share belongs to --data; a benchmark has test images of its own.")
    if own_name or method or rank not in (None, "auto"):
        raise OptionError("--name, --method and --rank N belong to --backbone; an entry of the zoo has its own.")
    if name is None:
        raise OptionError("Name a model to train, or give --backbone and --data. `zoo ls` lists the models.")
    if known := registry.backbone(name):
        from zoo.catalog.store import stored_backbone

        click.echo(runs.train_backbone(known, out / "backbone.safetensors" if out else stored_backbone(name), settings))
        return
    entry = registry.entry(name)
    if entry.origin and out is None:
        raise OptionError(f"{name} is of {entry.origin}: name a folder of its own, --out, beside your store.")
    chosen = [entry.known_task(task) for task in tasks] or list(entry.tasks)
    if budget:
        _split_budget(entry, registry, chosen, out, settings, budget, by or "sensitivity")
        return
    if rank:
        _search_ranks(entry, registry, chosen, out, settings, 1.0 if margin is None else margin)
        return
    for path in runs.train_entry(entry, registry, chosen, out or resources.store_dir() / name, settings).values():
        click.echo(path)


def _train_own(
    registry: Registry, backbone: str, data: Path, out: Path, method: str, rank: str | None, name: str,
    settings: RunOptions,
) -> None:  # fmt: skip
    """Train adapters for the user's own domains, and tell how they are used."""
    from zoo.training.domains import train_own

    if rank and not rank.isdecimal():
        raise OptionError(f"With --backbone, --rank is a whole number, not {rank!r}.")
    spec = {"name": method} | ({"rank": int(rank)} if rank else {})
    entry, _ = train_own(backbone, data, spec, out, registry, settings, name)
    if entry.measured:
        show([{"task": task, "accuracy %": value} for task, value in entry.measured.items()])
        click.echo(written(entry, out, "eval"))


@main.command()
@click.argument("source")
@click.option("--task", help="The task to write as a PEFT checkpoint, or what to call the one that is read.")
@click.option("--backbone", help="Of the PEFT checkpoint that is read, such as timm/vit_base_patch32_clip_224.openai.")
@click.option("--name", "own_name", help="Of the new entry.  [default: the checkpoint's folder]")
@click.option("-o", "--out", type=NEW_FOLDER, required=True, help="The new checkpoint; or where the new entry goes.")
@click.pass_obj
def convert(
    registry: Registry, source: str, task: str | None, backbone: str | None, own_name: str | None, out: Path
) -> None:
    """Write the model SOURCE as a LoRA checkpoint of PEFT's; with --backbone, read the one in the folder SOURCE."""
    from zoo import loader
    from zoo.deployment import interchange

    if backbone:
        name = own_name or Path(source).resolve().name
        made = interchange.converted_entry(Path(source), backbone, registry, out, name, task or "task")
        click.echo(f"{written(made, out, 'predict')} IMAGE")
        return
    entry = registry.entry(source)
    if task is None or own_name:
        raise OptionError(f"To write a PEFT checkpoint give --task, of {', '.join(entry.tasks)}, and no --name.")
    model = loader.load(source, task=entry.known_task(task), registry=registry)
    interchange.save_peft(model, task, out, entry.backbone)
    click.echo(f"Wrote {out}. PEFT loads it on {entry.backbone} with {entry.classes[task]} classes.")


@main.command("search-sharing")
@entry_name
@click.option(
    "--strategy",
    type=click.Choice(["greedy", "bottom-heavy", "similarity"]),
    default="greedy",
    show_default=True,
    help="Layer by layer; no layer more than the one below; or by the cores' reactions.",
)
@click.option(
    "--threshold",
    type=Real(0),
    default=0.5,
    show_default=True,
    help="Of similarity: how differently tasks may react to a shared core's perturbation.",
)
@click.option(
    "-o", "--out", type=NEW_FOLDER, required=True, help="Where the new entry's registry, files and trials go."
)
@click.option("--recipe", help="A recipe's name or file, in place of the entry's.")
@click.option("--seed", type=SEED, help="In place of the recipe's.")
@data_root
@as_json
@click.pass_obj
def search_sharing(
    registry: Registry, /, name: str, strategy: str, threshold: float, out: Path, as_json: bool, **options: Any
) -> None:
    """Find out which cores the tasks of NAME should share, on held-out training images; then train that pattern."""
    from zoo.search import patterns
    from zoo.training.options import RunOptions

    narrate()
    entry = registry.entry(name)
    settings = RunOptions(quiet=True, **options)
    found = patterns.search(entry, registry, out, settings, strategy, threshold)
    show(patterns.as_rows(found, entry.metric(entry.tasks[0]).unit), as_json)
    if as_json:
        return
    differences = [{"layer": n, "core": p, "difference": round(d, 2)} for (n, p), d in found.differences.items()]
    show(differences)
    click.echo(written(found.entry, out, "eval"))


def _split_budget(
    entry: Entry, registry: Registry, tasks: list[str], out: Path | None, settings: RunOptions, budget: int, by: str
) -> None:
    from zoo.search.budget import search

    folder = out or _folder_of(entry, f"auto_{budget}")
    found = search(entry, registry, tasks, folder, settings, budget, by)
    show([{"layer": path, **{each.task: each.ranks[path] for each in found}} for path in found[0].ranks])
    figures = ", ".join(f"{each.task} {entry.metric(each.task).text(each.figure)}" for each in found)
    click.echo(f"{sum(each.parameters for each in found):,} of {budget:,} parameters; on the test images {figures}.")
    click.echo(f"Use them with: zoo eval {entry.name} --weights {folder}")


def _folder_of(entry: Entry, word: str) -> Path:
    """Where the local store keeps an entry at ranks of its own."""
    name = entry.name.replace(f"-r{entry.rank}-", f"-{word}-")
    return resources.store_dir() / (name if name != entry.name else f"{name}-{word}")


def _search_ranks(
    entry: Entry, registry: Registry, tasks: list[str], out: Path | None, settings: RunOptions, margin: float
) -> None:
    from zoo.search import ranks

    folder = out or _folder_of(entry, "auto")
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
@click.option("--task", "tasks", multiple=True, help="Publish this task; may be given several times. Default: all.")
@click.pass_context
def pack(ctx: click.Context, names: tuple[str, ...], figures_only: bool, tasks: tuple[str, ...]) -> None:
    """Publish what `zoo train` left in the local store: move it beside the registry and record it there.

    For maintainers of a checkout of the zoo: files go to zoo/weights/, and registry.yaml gets their hashes, sizes
    and measured accuracy.
    """
    from zoo.training import publishing

    for name in names:
        publishing.pack(name, resources.registry_file(), figures_only, tasks)
        click.echo(f"packed {name}")


@main.command()
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def pin(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Write commit, SHA-256 and size of the weights that torchvision or timm publishes of backbones, or of models'.

    They are read from the files, which are downloaded if need be, into the registry of --registry or ZOO_REGISTRY;
    in a checkout without either, into the zoo's.
    """
    from zoo.backbones.weights import pin as state

    named = ctx.find_root().params["registry"] or os.environ.get("ZOO_REGISTRY")
    own = Path(named or resources.registry_file())
    if named and is_elsewhere(named):
        raise OptionError(f"Pins go into a registry of this machine, and {named} is none: --registry FOLDER.")
    if not named and not resources.is_checkout():
        raise OptionError("The installed package stays as it is: name a registry of your own, --registry FOLDER.")
    file = own / OWN if own.is_dir() else own
    for name in names:
        backbone = name if "/" in name else ctx.obj.entry(name).backbone
        if not backbone:
            raise OptionError(f"{name} has no backbone whose weights could be pinned.")
        with Registry.edited(file) as registry:
            found = state(backbone, registry)
        click.echo(f"{backbone}: {found.uri}, {found.size:,} bytes, SHA-256 {found.sha256}")


@main.command("cp")
@click.argument("recipe")
@click.argument("file", type=NEW_FILE)
def copy(recipe: str, file: Path) -> None:
    """Copy a recipe of the zoo to FILE, to be changed and used with `zoo train NAME --recipe FILE`."""
    from zoo.catalog.recipe import recipe_file

    source = recipe_file(recipe)
    try:
        text = source.read_bytes()
    except OSError as error:
        raise OptionError(f"Cannot read the recipe {source}: {error.strerror}.") from None
    if file.exists():
        raise OptionError(f"{file} exists already; choose another name.")
    with atomic_path(file) as temporary:
        temporary.write_bytes(text)
    click.echo(f"Copied {source} to {file}")
