"""What the benchmarks measured, as they wrote it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def whole(name: str) -> dict[str, Any]:
    """All that a benchmark wrote: figures, device, libraries."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def read(name: str) -> Any:
    """The figures that a benchmark wrote."""
    return whole(name)["rows"]


def machine(found: dict[str, Any]) -> str:
    """The machine and the libraries that a benchmark ran on."""
    return f"Measured on: {found['device']}; " + ", ".join(f"{k} {v}" for k, v in found["libraries"].items()) + "."


def measured_on(name: str) -> str:
    """The same, of the benchmark of a name."""
    return machine(whole(name))


def spread(values: Sequence[float], places: int = 1) -> str:
    """The mean and, of several values, their standard deviation."""
    deviation = f" ± {statistics.stdev(values):.{places}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{places}f}{deviation}"


def method_of(entry: str) -> str:
    """The method of BACKBONE-METHOD-BENCHMARK."""
    return entry.partition("-")[2].rpartition("-")[0]
