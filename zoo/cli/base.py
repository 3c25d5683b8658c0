"""The group of commands, and what its commands share.

A command's file is imported when the command is called, and a command imports what it needs when it runs, so that
`zoo ls` and `zoo --help` are quick.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import math
import re
import sys
from pathlib import Path
from typing import Any

import click

from zoo import __version__
from zoo.catalog.places import addressed, is_elsewhere, registry_with
from zoo.catalog.registry import MODEL, OWN, Registry
from zoo.errors import UnknownNameError, ZooError, sentence
from zoo.storage.files import check_writable, through_links


class Place(click.Path):
    """A path, which has a name: the empty one would mean this folder."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("an empty name; write . for this folder.", param, ctx)
        return super().convert(value, param, ctx)


class NewPlace(Place):
    """A path that a command will write to; that it can is seen before the command begins its work."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        if path.exists() and not (path.is_file() or path.is_dir()):
            self.fail(f"{path} is neither a file nor a folder.", param, ctx)
        check_writable(path if path.is_dir() else through_links(path).parent)
        return path


PLACE, FILE, FOLDER = Place(), Place(dir_okay=False), Place(file_okay=False)
NEW_PLACE, NEW_FILE, NEW_FOLDER = NewPlace(), NewPlace(dir_okay=False), NewPlace(file_okay=False)
COUNT, POSITIVE = click.IntRange(0), click.IntRange(1)
SEED = click.IntRange(0, 2**63 - 1)  # what torch's generators of random numbers take


class Rank(click.ParamType[int | float]):
    """A rank, a whole number of at least 1; or a share, above 0 and below 1."""

    name = "rank"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = str(value)
        if text.isdecimal() and int(text) >= 1:
            return int(text)
        with contextlib.suppress(ValueError):
            if 0 < float(text) < 1:
                return float(text)
        self.fail(f"{value!r} is neither a whole number of at least 1 nor a share between 0 and 1.", param, ctx)


class Number(click.ParamType[int]):
    """A whole number of at least 1, such as 200000, 200k or 1.5M."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = re.fullmatch(r"(\d+|\d{1,3}(?:,\d{3})+|\d*\.\d+)([kKmM]?)", str(value))
        if found:
            number = float(found[1].replace(",", "")) * {"": 1, "k": 1e3, "m": 1e6}[found[2].lower()]
            if number.is_integer() and number >= 1:
                return int(number)
        self.fail(f"{value!r} is no whole number of at least 1, such as 200000, 200k or 1.5M.", param, ctx)


class Real(click.FloatRange):
    """A number in a range, which is one: comparisons with nan hold for nothing, and so would let anything pass."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number.", param, ctx)
        return number


RANK, NUMBER = Rank(), Number()
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
data_root = click.option("--data-root", type=FOLDER, help="Where the benchmark's images lie.")
weights = click.option(
    "--weights", default="auto", help="A folder of adapter files. Default: the local store, then the published."
)
skip_unreadable = click.option("--skip-unreadable", is_flag=True, help="Leave out images that do not decode.")


COMMANDS = {  # and the file of this folder that each stands in
    **dict.fromkeys(("ls", "info", "download", "compare", "plot", "data"), "look"),
    **dict.fromkeys(("train", "convert", "search-sharing", "pack", "pin", "cp"), "make"),
    **dict.fromkeys(("factorise", "compress", "prune", "merge"), "shrink"),
    **dict.fromkeys(("eval", "verify", "predict", "generate", "bench"), "use"),
    **dict.fromkeys(("export", "app"), "deploy"),
    **dict.fromkeys(("push", "bundle", "sign", "card"), "share"),
}
SECTIONS = {  # of the help
    "Every day": ("ls", "info", "train", "eval", "compare", "predict", "generate", "app", "export", "cp"),
    "Other people": ("push", "bundle", "sign", "card"),
    "Small files": ("factorise", "prune", "merge", "convert"),
    "Papers": ("data", "plot", "compress", "search-sharing"),
    "Upkeep": ("download", "verify", "bench", "pack", "pin"),
}
MEANT = {  # what other tools call them
    **dict.fromkeys(("adapt", "finetune", "fine-tune", "fit", "retrain"), "train"),
    **dict.fromkeys(("sample", "imagine"), "generate"),
    **dict.fromkeys(("infer", "inference", "classify", "run"), "predict"),
    **dict.fromkeys(("deploy", "onnx", "fuse"), "export"),
    **dict.fromkeys(("factorize", "decompose", "shrink"), "factorise"),
    **dict.fromkeys(("serve", "demo", "ui", "gradio", "try"), "app"),
    **dict.fromkeys(("evaluate", "test", "validate", "score"), "eval"),
    **dict.fromkeys(("list", "models", "search"), "ls"),
    **dict.fromkeys(("show", "describe", "inspect"), "info"),
    **dict.fromkeys(("publish", "upload"), "push"), **dict.fromkeys(("benchmark", "time"), "bench"),
    "check": "verify", "copy": "cp", "zip": "bundle",
}  # fmt: skip


class Zoo(click.Group):
    """The group of commands; prints the zoo's own errors in a line or two."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            importlib.import_module(f"{__package__}.{COMMANDS[cmd_name]}")
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            name, near = args[0], [MEANT[args[0]]] if args[0] in MEANT else []
            if not near:
                import difflib  # slow to import, and mistakes are rare

                near = difflib.get_close_matches(name, COMMANDS, n=1)
            advice = f"Did you mean `zoo {near[0]}`?" if near else "`zoo --help` lists them."
            raise click.UsageError(f"There is no command {name!r}. {advice}", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, names in SECTIONS.items():
            commands = {name: self.get_command(ctx, name) for name in names}
            with formatter.section(section):
                formatter.write_dl([(name, each.get_short_help_str(60)) for name, each in commands.items() if each])

    def main(self, *args: Any, **named: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):  # a table on a terminal of few characters loses some of them, no more
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        return super().main(*args, **named)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take --registry from wherever it stands, for every command goes by it."""
        first, rest = [], []
        words = iter(args)
        for word in words:
            if word == "--":
                rest += [word, *words]
            elif word == "--registry":
                first += [word, *itertools.islice(words, 1)]
            else:
                (first if word.startswith("--registry=") else rest).append(word)
        return super().parse_args(ctx, [*first, *rest])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ZooError as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"Error: {error}{_near_by(error)}", err=True)
            ctx.exit(error.exit_status)
        except OSError as error:  # of what no command foresees: a full disk for temporary files, too many open ones
            if ctx.params.get("debug") or isinstance(error, BrokenPipeError):  # the reader of a pipe has enough
                raise
            where = f" ({error.filename})" if error.filename else ""
            click.echo(
                f"Error: {error.strerror or sentence(error)}{where}. `zoo --debug …` shows where it happened.", err=True
            )
            ctx.exit(1)
        except KeyboardInterrupt:
            if ctx.invoked_subcommand == "train":
                click.echo("Stopped. The same command with --resume goes on from the last finished epoch.", err=True)
            raise


@click.group(cls=Zoo, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="zoo")
@click.option(
    "--registry",
    help="A registry beside the zoo's: its file or folder, hf://OWNER/REPO[@REVISION], or FILE.zoo; else what "
    "ZOO_REGISTRY names. May come last.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def main(ctx: click.Context, registry: str | None, debug: bool) -> None:
    """One frozen backbone, a small file per task: find, train, verify, fuse and export them."""
    if registry and is_elsewhere(registry):
        narrate()  # which commit that is
    ctx.obj = registry_with(registry)


def found(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """The name of an entry; where it was given with its place, the command goes by the registry of that."""
    if value and is_elsewhere(value):
        narrate()  # which commit that is
        value, ctx.obj = addressed(value, ctx.obj)
    return value


entry_name = click.argument("name", callback=found)  # or with its place: hf://OWNER/REPO/NAME, FILE.zoo


def _near_by(error: ZooError) -> str:
    """Which registries in the folders near by have the model that was not found."""
    if not isinstance(error, UnknownNameError) or error.kind != MODEL:
        return ""
    having = []
    for file in [*Path().glob(OWN), *sorted(Path().glob(f"*/{OWN}"))]:
        try:
            having += [str(file.parent)] if error.name in Registry.read(file).names() else []
        except (ZooError, OSError):
            continue
    return f" It stands in {', '.join(having)}: name that with --registry." if having else ""


def narrate() -> None:
    """Let the zoo say on stderr what long work has got done."""
    import logging

    logger = logging.getLogger("zoo")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
