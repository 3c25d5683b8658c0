"""Pictures of measured entries."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.catalog.entry import Entry
from zoo.catalog.registry import Registry
from zoo.catalog.task import CLASSIFICATION, METRICS
from zoo.errors import OptionError, extra
from zoo.storage.files import atomic_path

MARKERS = "osD^vPX*<>"
POINT = 3  # pixels from a marker's centre that no other point's name may cover


def accuracy_by_rank(entries: Sequence[Entry], registry: Registry, stem: Path) -> list[Path]:
    """Draw accuracy against rank, one line per task (FTN, Figure 2), as `<stem>.png` and `<stem>.svg`.

    The lines begin with the entry of the same backbone and benchmark that has norms of its own alone, if there is one.

    Raises:
        OptionError: the entries are of several benchmarks or backbones, or fewer than two ranks have been measured.
    """
    measured = [entry for entry in entries if entry.rank and entry.measured]
    ranked = {entry.rank or 0: entry for entry in measured}
    if len({(e.backbone, e.benchmark, e.method["name"]) for e in measured}) > 1 or len(ranked) < len(measured):
        raise OptionError(
            "These entries are of several backbones, benchmarks or methods, or share a rank; name one family."
        )
    if len(ranked) < 2:
        raise OptionError(f"Only {len(ranked)} of these {len(entries)} entries have a rank and measured figures.")
    one = next(iter(ranked.values()))
    metric, *others = {one.metric(task) for task in one.tasks}
    if others:
        raise OptionError(f"The tasks of {one.name} are measured in several units, which share no axis.")
    for entry in registry.entries():
        alike = (entry.backbone, entry.benchmark) == (one.backbone, one.benchmark)
        if alike and entry.method == {"name": "bn"} and entry.measured:
            ranked[0] = entry
    ranks = sorted(ranked)

    figure, axes = pyplot().subplots(figsize=(7, 4.5), layout="constrained")
    for marker, task in zip(MARKERS * len(one.tasks), one.tasks, strict=False):
        values = [(ranked[rank].measured or {}).get(task, float("nan")) for rank in ranks]
        axes.plot(range(len(ranks)), values, marker=marker, label=task)
    axes.set_xticks(range(len(ranks)), [str(rank) if rank else "norms\nonly" for rank in ranks])
    axes.set(xlabel="rank", ylabel=f"{metric.name}, {metric.unit}", title=f"{one.backbone} on {one.benchmark}")
    axes.grid(alpha=0.3)
    axes.legend(loc="best", ncols=2)
    return save(figure, stem)


def accuracy_by_parameters(
    rows: Sequence[Mapping[str, Any]],
    stem: Path,
    entries: Sequence[Entry],
    metric: str = METRICS[CLASSIFICATION].name,
) -> list[Path]:
    """Draw the mean accuracy against the parameters per task, a point per model, as `<stem>.png` and `<stem>.svg`.

    Models of one method have one colour; a dashed line shows what fine-tuning achieves, where that is among them.

    Args:
        rows: of `zoo.verification.comparison.compare`; those without a mean are left out.
        entries: those that are compared, for the title.
        metric: what the mean is of.

    Raises:
        OptionError: no row has a mean.
    """
    measured = [row for row in rows if row["mean %"] is not None and row["parameters"] is not None]
    if not measured:
        raise OptionError("None of these models has a mean of measured figures to draw.")
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(10, 6), layout="constrained")
    _points_by_method(axes, measured, plt.get_cmap("tab10"))
    _parameter_axis(axes, [row["parameters"] for row in measured])
    axes.margins(y=0.12)
    nameless = entries[0].benchmark == "folder"  # a folder's tasks have names
    backbones = ", ".join(sorted({entry.backbone or "networks of their own" for entry in entries}))
    axes.set(
        xlabel="parameters per task, head left out", ylabel=f"mean {metric}, %",
        title=f"{backbones} on {', '.join(entries[0].tasks) if nameless else entries[0].benchmark}",
    )  # fmt: skip
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize=8)
    figure.draw_without_rendering()  # places the axes, so that labels can be held against each other
    _name_points(axes, measured)
    return save(figure, stem)


def _points_by_method(axes: Any, rows: Sequence[Mapping[str, Any]], colour_map: Any) -> None:
    """A point for each row, in its method's colour, and a dashed line at what fine-tuning achieves."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    colours = {method: colour_map(number % 10) for number, method in enumerate(methods)}
    for method, colour in colours.items():
        own = [row for row in rows if row["method"] == method]
        halves = [row.get("±") for row in own]
        axes.errorbar(
            [row["parameters"] for row in own], [row["mean %"] for row in own], yerr=None if None in halves else halves,
            fmt="o", color=colour, label=method, elinewidth=0.8, ecolor=(*colour[:3], 0.4),
        )  # fmt: skip
    best = max((row["mean %"] for row in rows if row["method"] == "finetune"), default=None)
    if best is not None:
        axes.axhline(best, color=colours["finetune"], linestyle="--", linewidth=0.9, label="fine-tuning", zorder=0)


def _name_points(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """A label beside each point, where it covers no other point, no other label and not the legend."""
    from matplotlib.transforms import Bbox

    points = axes.transData.transform([(row["parameters"], row["mean %"]) for row in rows])
    taken: list[Any] = [Bbox([point - POINT, point + POINT]) for point in points]
    taken.append(axes.get_legend().get_window_extent())
    for row in rows:
        name = "-".join(row["model"].split("-")[1:-1]) or row["model"]  # METHOD of BACKBONE-METHOD-BENCHMARK
        taken.append(_label(axes, name, (row["parameters"], row["mean %"]), taken))


def curves(
    lines: Mapping[str, Sequence[tuple[float, float]]], title: str, labels: tuple[str, str], stem: Path,
    dashed: float | None = None, named: str = "", logarithmic: bool = False,
) -> list[Path]:  # fmt: skip
    """Draw lines through points (x, y), as `<stem>.png` and `<stem>.svg`.

    Args:
        labels: of the two axes.
        dashed, named: a level to compare with, and what it is.
        logarithmic: the first axis.
    """
    figure, axes = pyplot().subplots(figsize=(7, 4.5), layout="constrained")
    for marker, (name, points) in zip(itertools.cycle(MARKERS), lines.items(), strict=False):
        axes.plot(*zip(*sorted(points), strict=True), marker=marker, markersize=4, label=name)
    if dashed is not None:
        axes.axhline(dashed, color="black", linestyle="--", linewidth=0.9, label=named, zorder=0)
    if logarithmic:
        axes.set_xscale("log")
        least, most = axes.get_xlim()
        ticks = [digit * 10**power for power in range(-3, 12) for digit in (1, 2, 5)]
        axes.set_xticks(inside := [tick for tick in ticks if least <= tick <= most], [f"{tick:,g}" for tick in inside])
        axes.minorticks_off()
    axes.set(xlabel=labels[0], ylabel=labels[1], title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize=8)
    return save(figure, stem)


def _parameter_axis(axes: Any, counts: Sequence[int]) -> None:
    """A logarithmic axis of numbers of parameters, which zero has a place on too, apart from the powers of ten."""
    least = min((count for count in counts if count), default=1000)
    start = 10 ** math.floor(math.log10(least))
    most = max(start, *counts)
    powers = [10**power for power in range(round(math.log10(start)), math.ceil(math.log10(most)) + 1)]
    axes.set_xscale("symlog", linthresh=start, linscale=0.4)
    axes.set_xticks([0, *powers] if 0 in counts else powers, minor=False)
    axes.minorticks_off()
    axes.set_xlim(-0.3 * start if 0 in counts else 0.7 * start, 3 * most)


def _label(axes: Any, name: str, point: tuple[float, float], taken: Sequence[Any]) -> Any:
    """Write a name near a point, where it covers none of the boxes that are taken if it can; returns its own box."""
    frame = axes.get_window_extent()
    for distance in range(3, 90, 11):
        for up, foot in ((distance, "bottom"), (-distance, "top")):
            for away, side in ((6, "left"), (-6, "right")):
                text = axes.annotate(
                    name, point, (away, up), textcoords="offset points", fontsize=8, horizontalalignment=side,
                    verticalalignment=foot, arrowprops={"arrowstyle": "-", "lw": 0.4} if distance > 3 else None,
                )  # fmt: skip
                box = _words_of(text)
                inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
                if inside and not any(box.overlaps(other) for other in taken):
                    return box
                text.remove()
    return _words_of(axes.annotate(name, point, (6, 3), textcoords="offset points", fontsize=8))


def _words_of(annotation: Any) -> Any:
    """The box of an annotation's words, without its arrow."""
    from matplotlib.text import Text

    annotation.update_positions(annotation.figure.canvas.get_renderer())
    return Text.get_window_extent(annotation)


def pyplot() -> Any:
    """matplotlib's pyplot, drawing to files; raises MissingExtraError where it is not installed."""
    with extra("plot", "Drawing pictures"):
        import matplotlib
    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "zoo"  # the same figures give the same file
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, stem: Path) -> list[Path]:
    """Write a figure as `<stem>.png` and `<stem>.svg`."""
    stem = stem.with_suffix("") if stem.suffix in (".png", ".svg") else stem
    files = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    for file in files:
        with atomic_path(file) as temporary:
            figure.savefig(temporary, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
    pyplot().close(figure)
    return files


def save_png(figure: Any, file: Path, dpi: int = 150) -> Path:
    """Write a figure as a PNG, in a folder that is made where there is none."""
    with atomic_path(file) as temporary:
        figure.savefig(temporary, dpi=dpi)
    pyplot().close(figure)
    return file
