"""The papers' tables: an entry's row among the others."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from zoo.errors import ConfigError
from zoo.registry import Registry, Reported
from zoo.schema import load_yaml, parse

OTHERS = Path(__file__).with_name("papers.yaml")


@functools.cache
def other_methods() -> dict[str, dict[str, Reported]]:
    """For each table, the rows that no entry stands for, by the method's name."""
    problems: list[str] = []
    found = {
        table: {
            method: parse(Reported, {"source": table, **row}, problems, f"{table}: {method}")
            for method, row in rows.items()
        }
        for table, rows in load_yaml(OTHERS).items()
    }
    if problems:
        raise ConfigError(str(OTHERS), problems)
    return found  # type: ignore[return-value]


def tables(registry: Registry) -> list[str]:
    """The tables that entries of the registry stand in."""
    entries = [registry.entry(name) for name in registry.names()]
    return sorted({entry.reported.source for entry in entries if entry.reported})


def table(source: str, registry: Registry) -> list[dict[str, Any]]:
    """A paper's table: a row for every entry that stands in it and for every other method, by rising mean.

    Each row has the name, the millions of parameters as printed and as counted here, and the accuracies in per cent.
    """
    rows = []
    for name in registry.names():
        entry = registry.entry(name)
        if entry.reported and entry.reported.source == source:
            rows.append(_row(name, entry.reported, entry.total_parameters))
    rows += [_row(method, reported, None) for method, reported in other_methods().get(source, {}).items()]
    return sorted(rows, key=lambda row: row["mean"] or 0)


def _row(name: str, reported: Reported, counted: int | None) -> dict[str, Any]:
    return {
        "model": name,
        "M parameters": reported.parameters,
        "counted": counted and round(counted / 1e6, 2),
        **reported.accuracy,
        "mean": reported.mean,
    }
