"""Entries side by side: what is told beside their figures, and the picture of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.catalog.registry import default_registry
from zoo.catalog.task import METRICS
from zoo.drawing import plots
from zoo.storage.tensors import read_header
from zoo.verification import provenance
from zoo.verification.comparison import compare
from zoo.verification.provenance import differences, half_interval, made

NAMES = ("efficientnet_lite0-features-emoji", "efficientnet_lite0-bn-emoji", "efficientnet_lite0-ftn-r4-emoji")


def test_rows_say_what_figures_rest_on() -> None:
    registry = default_registry()
    rows = {row["model"]: row for row in compare([registry.entry(name) for name in NAMES], registry, "noto", rounds=0)}
    row = rows[NAMES[2]]
    assert (row["recipe"], row["epochs"], row["training images"], row["test images"]) == ("emoji/ftn", 12, 1279, 329)
    assert row["% of backbone"] == pytest.approx(100 * 170_336 / 3_371_008, abs=0.01)
    p = (0.7781 * 329 + 2) / 333  # Agresti and Coull's interval
    assert row["±"] == pytest.approx(196 * (p * (1 - p) / 333) ** 0.5, abs=0.06)


def test_the_error_of_a_mean_is_that_of_independent_figures() -> None:
    entry, one = default_registry().entry(NAMES[0]), METRICS["classification"].half_interval(80.0, 329)
    assert one is not None
    assert half_interval(entry, {"noto": 80.0, "twemoji": 80.0}) == pytest.approx(one / 2**0.5)
    rooms = default_registry().entry("resnet20-ftn-r8-rooms")
    assert half_interval(rooms, {"semseg": 80.0}) is None  # no share of right answers


def test_what_differs_beside_the_method_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = default_registry()
    entries = [registry.entry(name) for name in NAMES]
    assert differences(entries, "noto") == []  # increments, rates and statistics are the method's own
    other = replace(entries[1], name="other", recipe="pictures/ftn", weights=None, data_root=None)
    assert made(other, "noto").recipe == "pictures/ftn"
    unlike = replace(other, recipe="shapes/ftn")
    (words,) = differences([entries[0], unlike], "noto")
    assert words.startswith(f"other was made otherwise than {NAMES[0]}: ")
    assert words.endswith(": epochs 40, not 12.")  # of an entry without a file no more is known

    def altered(file: Path) -> dict[str, Any]:
        header = read_header(file)
        if "-bn-" in str(file):
            header["settings"] |= {"input.size": 64, "tasks.noto.batch": 16, "tasks.twemoji.batch": 8, "rest.lr": 5}
            header["images"] = [1000, 329]
        return header

    monkeypatch.setattr(provenance, "read_header", altered)
    (words,) = differences(entries, "noto")
    assert words.startswith(f"{NAMES[1]} was made otherwise than {NAMES[0]}: ")
    told = {"batch 16, not 32", "input.size 64, not 128", "training images 1000, not 1279"}
    assert told == set(words.partition(": ")[2].rstrip(".").split("; "))


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.tuples(st.integers(0, 10**7), st.floats(50, 99)), min_size=2, max_size=9),
    st.sampled_from(["finetune", "bn"]),
)
def test_names_in_the_picture_collide_with_nothing(points: list[tuple[int, float]], last: str) -> None:
    """Text against text, and the zero of the axis against its powers of ten."""
    plt = plots.pyplot()
    figure, axes = plt.subplots(figsize=(10, 6), layout="constrained")
    try:
        for count, value in points:
            axes.plot(count, value, "o")
        plots._parameter_axis(axes, [count for count, _ in points])
        figure.draw_without_rendering()
        ticks = [label.get_window_extent() for label in axes.get_xticklabels()]
        assert not any(a.overlaps(b) for i, a in enumerate(ticks) for b in ticks[:i])
        boxes: list[object] = []
        for number, (count, value) in enumerate(points):
            boxes.append(plots._label(axes, f"{last}-{number}", (count, value), boxes))
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])  # type: ignore[attr-defined]
    finally:
        plt.close(figure)


def test_the_picture_has_a_line_at_fine_tuning(tmp_path: Path) -> None:
    registry = default_registry()
    rows = compare(registry.entries("resnet20-*-shapes"), registry, rounds=0)
    files = plots.accuracy_by_parameters(rows, tmp_path / "compared", [registry.entry("resnet20-bn-shapes")])
    assert [file.suffix for file in files] == [".png", ".svg"]
    drawn = files[1].read_text()
    for word in ("fine-tuning", "zoo/resnet20@shapes on shapes", "ftn-r8"):
        assert f"<!-- {word} -->" in drawn
