"""Tables for people and JSON for programs. Not by rich: `zoo ls` starts faster than its tables are imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from zoo.catalog.entry import Entry


def show(rows: Sequence[Mapping[str, Any]], as_json: bool = False) -> None:
    """Print rows of the same keys as a table, or as a JSON list."""
    if as_json:
        import json

        click.echo(json.dumps(rows, indent=1, default=str))
        return
    if not rows:
        return
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    numeric = [any(_is_number(row[key]) for row in rows) for key in rows[0]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for number, line in enumerate(cells):
        placed = zip(line, widths, numeric, strict=True)
        text = "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in placed).rstrip()
        click.echo(text if number else click.style(text, bold=True))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
        return ", ".join(f"{key} [{_cell(i)}]" if _is_list(i) else f"{key} {_cell(i)}" for key, i in value.items())
    return ", ".join(map(_cell, value)) if _is_list(value) else str(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def written(entry: Entry, out: Path, command: str) -> str:
    """That an entry of the user's own was made, and how it is used."""
    return f"Wrote {entry.name}. Use it with: zoo {command} {entry.name} --registry {out}"
