"""Accuracy against rank, drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from zoo.catalog.registry import default_registry
from zoo.drawing.plots import accuracy_by_rank
from zoo.errors import OptionError


def test_the_picture_has_a_line_per_task_and_the_measured_points(tmp_path: Path) -> None:
    registry = default_registry()
    entries = [registry.entry(name) for name in registry.names("resnet20-ftn-*-shapes")]
    png, svg = accuracy_by_rank(entries, registry, tmp_path / "new" / "ranks")
    assert png.read_bytes()[:4] == b"\x89PNG"
    text = svg.read_text()
    again = accuracy_by_rank(entries, registry, tmp_path / "again")[1]
    assert again.read_text() == text
    mixed = [*entries, replace(entries[0], name="other", benchmark="sketch", method={"name": "ftn", "rank": 9})]
    with pytest.raises(OptionError, match="several backbones, benchmarks"):
        accuracy_by_rank(mixed, registry, tmp_path / "ranks")
    with pytest.raises(OptionError, match="several backbones, benchmarks"):
        accuracy_by_rank(
            [registry.entry(name) for name in registry.names("resnet20-ftn-r8-*")], registry, tmp_path / "r"
        )
    with pytest.raises(OptionError, match="Only 0 of these 7"):
        sketch = [registry.entry(name) for name in registry.names("resnet50-ftn-*-sketch")]
        accuracy_by_rank(sketch, registry, tmp_path / "ranks")


def test_the_lines_are_the_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from matplotlib.axes import Axes

    drawn = {}
    plot = Axes.plot

    def record(axes: Axes, x: object, y: list[float], **options: object) -> object:
        drawn[options["label"]] = y
        return plot(axes, x, y, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Axes, "plot", record)
    registry = default_registry()
    names = ["resnet20-bn-shapes", *registry.names("resnet20-ftn-r*-shapes")]
    measured = [registry.entry(name) for name in names if registry.entry(name).measured]
    accuracy_by_rank(measured[1:], registry, tmp_path / "ranks")
    assert drawn == {task: [e.measured[task] for e in measured] for task in measured[0].tasks}  # type: ignore[index]
