"""What the test suite costs, from the logs of its runs.

(time make test PYTEST_ADDOPTS=--durations=20) > LOG 2>&1
python benchmarks/suite.py --json benchmarks/results/suite.json "make test=LOG" …
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
from record import save

from zoo.cli.tables import show


def figures(log: str) -> dict[str, Any]:
    """Tests, wall-clock and processor seconds, and the slowest tests, of a run that was timed by the shell."""
    times = {name: 60 * int(m) + float(s) for name, m, s in re.findall(r"(?m)^(real|user|sys)\s+(\d+)m([\d.]+)s", log)}
    if "real" not in times:
        raise click.ClickException("a log without the shell's `time`; see the head of this file")
    passed = re.findall(r"(\d+) passed", log)
    slowest = re.findall(r"(?m)^([\d.]+)s (?:call|setup) +(\S+)", log)
    return {
        "tests": int(passed[-1]) if passed else None,
        "wall": round(times["real"], 1),
        "processor": round(times["user"] + times["sys"], 1),
        "slowest": [{"seconds": float(seconds), "test": test} for seconds, test in slowest[:20]],
    }


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="NAME=LOG …")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures here.")
def main(runs: tuple[str, ...], json_file: Path | None) -> None:
    found = {name: figures(Path(log).read_text()) for name, _, log in (run.rpartition("=") for run in runs)}
    show([{"run": name, **{key: run[key] for key in ("tests", "wall", "processor")}} for name, run in found.items()])
    save(json_file, found)


if __name__ == "__main__":
    main()
