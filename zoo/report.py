"""Tables for people and JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click


def show(rows: Sequence[Mapping[str, Any]], as_json: bool = False) -> None:
    """Print rows of the same keys as a table, or as a JSON list."""
    if as_json:
        import json

        click.echo(json.dumps(rows, indent=1, default=str))
        return
    if not rows:
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for key in rows[0]:
        numeric = any(isinstance(row[key], int | float) and not isinstance(row[key], bool) for row in rows)
        table.add_column(key, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 400  # a file or a pipe has no width to fit
    console.print(table)


def show_one(title: str, facts: Mapping[str, Any], as_json: bool = False) -> None:
    """Print the facts of one thing, nested as they are."""
    if as_json:
        import json

        click.echo(json.dumps({"name": title, **facts}, indent=1, default=str))
        return
    click.echo(title)
    for key, value in facts.items():
        if isinstance(value, Mapping) and any(isinstance(item, Mapping) for item in value.values()):
            click.echo(f"  {key}:")
            for name, item in value.items():
                click.echo(f"    {name}: {_cell(item)}")
        else:
            click.echo(f"  {key}: {_cell(value)}")


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_cell, value))
    return str(value)
