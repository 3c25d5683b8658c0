"""The tables of the zoo: every entry, and the families that have weights in the package."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from typing import Any

from figures import method_of
from markdown_table import table

from zoo.catalog.entry import Entry
from zoo.catalog.registry import default_registry

RESULTS_PAGE = "results.md"


def zoo_table() -> str:
    """Every entry of the registry in a line; those that differ in rank alone share one."""
    registry = default_registry()
    families: dict[str, list[Entry]] = {}
    for name in registry.names():
        families.setdefault(re.sub(r"-r\d+-", "-r-", name), []).append(registry.entry(name))
    return table([_line(entries) for entries in families.values()])


def _line(entries: list[Entry]) -> dict[str, Any]:
    one, ranks = entries[0], [str(entry.method.get("rank")) for entry in entries]
    name = one.name if len(entries) == 1 else one.name.replace(f"-r{ranks[0]}-", f"-r{{{','.join(ranks)}}}-")
    sizes = [file.size / 1000 for entry in entries for file in (entry.weights or {}).values()]
    sources = sorted({entry.reported.source for entry in entries if entry.reported})
    means = [entry.reported.mean for entry in entries if entry.reported and entry.reported.mean]
    reported = f"{_range(means, '.1f', ' %')} " if means else ""
    assert one.parameters is not None
    return {
        "name": f"`{name}`",
        "tasks": len(one.tasks),
        "backbone": f"{one.parameters.backbone / 1e6:.2f} M" if one.backbone else "–",
        "per task": _per_task(entries),
        "file per task": _range(sizes, ".0f", " kB") if sizes else "train it",
        "measured": _measured([entry for entry in entries if entry.measured]),
        "reported": f"{reported}({', '.join(f'[{s}]({RESULTS_PAGE}#{_anchor(s)})' for s in sources)})"
        if sources
        else "–",
    }


def _per_task(entries: Sequence[Entry]) -> str:
    """What one task adds, and what the tasks share."""
    counted = [entry.parameters for entry in entries if entry.parameters]
    own = [number for each in counted for number in (each.by_task.values() or [each.per_task])]
    shared = max(each.shared for each in counted)
    return _range(own, ",", "") + (f", {shared:,} shared" if shared else "")


def _measured(entries: Sequence[Entry]) -> str:
    """The mean of an entry's figures or, where they are in several units or not of all tasks, each."""
    if all(entry.measured_mean is not None for entry in entries):
        return _range([statistics.mean(entry.measured.values()) for entry in entries if entry.measured], ".1f", " %")
    found = {task: [e.measured[task] for e in entries if task in (e.measured or {})] for task in entries[0].tasks}
    values = {task: figures for task, figures in found.items() if figures}
    form = {task: (".1f" if entries[0].metric(task).unit in "%°" else ".2f") for task in values}
    return ", ".join(f"{t} {_range(v, form[t], f' {entries[0].metric(t).unit}')}" for t, v in values.items())


def _range(values: Sequence[float], form: str, unit: str) -> str:
    """The least and the greatest of some figures, or the one that there is."""
    shown = list(dict.fromkeys(format(value, form) for value in (min(values), max(values)))) if values else []
    return " – ".join(shown) + unit if shown else "–"


def _anchor(heading: str) -> str:
    """What Markdown makes of a heading, to link to it."""
    return re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")


def families_table() -> str:
    """A line for the entries of each kind of network and benchmark that have weights in the package."""
    families: dict[tuple[str, str], list[Entry]] = {}
    for entry in default_registry().entries():
        if entry.weights:
            network, benchmark = entry.name.partition("-")[0], entry.name.rpartition("-")[2]
            families.setdefault((network, benchmark), []).append(entry)
    return table([_family(*names, entries) for names, entries in families.items()])


def _family(network: str, benchmark: str, entries: list[Entry]) -> dict[str, Any]:
    sizes = [file.size / 1000 for entry in entries for file in (entry.weights or {}).values()]
    methods = dict.fromkeys(re.sub(r"-r\d+$", "", method_of(e.name)) for e in entries)
    whole = all(len(entry.weights or ()) == len(entry.tasks) for entry in entries)
    of = "" if whole else f" of {len(entries[0].tasks)}"
    return {
        "models": f"`{network}-*-{benchmark}`",
        "methods": ", ".join(methods),
        "tasks": _range([len(entry.weights or ()) for entry in entries], "d", "") + of,
        "file per task": _range(sizes, ".0f", " kB"),
        "accuracy": _figure(entries),
    }


def _figure(entries: Sequence[Entry]) -> str:
    """The means of the entries, in the unit of their metric."""
    metrics = {entry.metric(task) for entry in entries for task in entry.tasks}
    if len(metrics) > 1:
        return "in several units"
    metric = metrics.pop()
    means = [
        statistics.mean(entry.measured.values())
        for entry in entries
        if set(entry.measured or ()) == set(entry.tasks) and entry.measured
    ]
    return _range(means, ".1f", f" {metric.unit}{'' if metric.unit == '%' else f' {metric.name}'}")
