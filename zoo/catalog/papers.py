"""The papers' tables: an entry's row among the others."""

from __future__ import annotations

import functools
import statistics
from pathlib import Path
from typing import Any

from zoo.catalog.entry import Entry, Reported
from zoo.catalog.registry import Registry
from zoo.catalog.schema import parse
from zoo.catalog.yaml_files import load_yaml
from zoo.errors import ConfigError

LEFT = "‖ΔW‖ left"  # the column of Tables 9 and 11
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
    return sorted({entry.reported.source for entry in registry.entries() if entry.reported})


def table(source: str, registry: Registry) -> list[dict[str, Any]]:
    """A paper's table: a row for every entry that stands in it and for every other method, by rising mean.

    Each row has the name, the parameters of all tasks as printed and as counted here (millions, or multiples of the
    backbone's), and the figures, each in its metric's unit; of ΔW in a form also what the form leaves of its norm, as
    a mean over layers and tasks.
    """
    rows = [_row(e.name, e.reported, e) for e in registry.entries() if e.reported and e.reported.source == source]
    rows += [_row(method, reported) for method, reported in other_methods().get(source, {}).items()]
    return sorted(rows, key=lambda row: row["mean"] or 0)


def _row(name: str, reported: Reported, entry: Entry | None = None) -> dict[str, Any]:
    total, backbone = (entry.total_parameters, entry.parameters) if entry else (None, None)
    counted = None
    if total and backbone:
        counted = f"{total / backbone.backbone:.2f}×" if reported.multiple else _millions(total)
    printed = f"{reported.multiple:g}×" if reported.multiple else reported.parameters and f"{reported.parameters:g} M"
    score = {"S": reported.score} if reported.score else {}
    left = {LEFT: round(statistics.mean(mean for mean, _ in reported.left.values()), 2)} if reported.left else {}
    return {
        "model": name,
        "parameters": printed,
        "counted": counted,
        **reported.figures,
        "mean": reported.mean,
        **score,
        **left,
    }


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count / 1e6:.4f} M"


def mean_of(row: dict[str, Any]) -> float:
    """The mean of the accuracies in a row of `table`."""
    others = ("model", "parameters", "counted", "mean", "S", LEFT)
    figures = [value for key, value in row.items() if key not in others]
    return float(sum(figures) / len(figures))
