"""The group of commands, and what its commands share.

A command's file is imported when the command is called, and a command imports what it needs when it runs, so that
`zoo ls` and `zoo --help` are quick.
"""

from __future__ import annotations

import importlib
import io
import sys
from pathlib import Path
from typing import Any

import click

from zoo import __version__
from zoo.catalog.registry import Registry, default_registry
from zoo.errors import ZooError

FILE = click.Path(path_type=Path, dir_okay=False)
COUNT, POSITIVE = click.IntRange(0), click.IntRange(1)
FOLDER = click.Path(path_type=Path, file_okay=False)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
data_root = click.option("--data-root", type=FOLDER, help="Where the benchmark's images lie.")
skip_unreadable = click.option("--skip-unreadable", is_flag=True, help="Leave out images that do not decode.")


COMMANDS = {  # and the file of this folder that each stands in
    **dict.fromkeys(("ls", "info", "download", "compare", "plot", "data"), "look"),
    **dict.fromkeys(("train", "compress", "convert", "search-sharing", "pack", "cp"), "make"),
    **dict.fromkeys(("eval", "verify", "export", "predict", "bench"), "use"),
}


class Zoo(click.Group):
    """The group of commands; prints the zoo's own errors in a line or two."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            importlib.import_module(f"{__package__}.{COMMANDS[cmd_name]}")
        return super().get_command(ctx, cmd_name)

    def main(self, *args: Any, **named: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):  # a table on a terminal of few characters loses some of them, no more
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        return super().main(*args, **named)

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


def narrate() -> None:
    """Let the zoo say on stderr what long work has got done."""
    import logging

    logger = logging.getLogger("zoo")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
