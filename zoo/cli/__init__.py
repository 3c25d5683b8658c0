"""The `zoo` command. Thin: each command imports what it needs when it runs, so that `zoo --help` and `ls` are quick."""

from zoo.cli import look, make, use  # noqa: F401  (each adds its commands)
from zoo.cli.base import main

__all__ = ["main"]
