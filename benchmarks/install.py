"""What `pip install` of a checkout costs: seconds, disk, and packages.

python benchmarks/install.py --json benchmarks/results/install.json "0.2.0=." "0.2.0, all extras=.[all]" …
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from record import save

from zoo.cli.tables import show


def figures(what: str) -> dict[str, object]:
    """Install `what` into a new environment, and look at it."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [f"{folder}/bin/python", "-m", "pip", "--disable-pip-version-check"]
        before = size(Path(folder))
        start = time.perf_counter()
        subprocess.run([*pip, "install", "--quiet", what], check=True)
        seconds = time.perf_counter() - start
        listed = subprocess.run([*pip, "list", "--format=freeze"], check=True, capture_output=True, text=True).stdout
        return {"s": round(seconds), "MB": round((size(Path(folder)) - before) / 1e6), "packages": len(listed.split())}


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


@click.command()
@click.argument("checkouts", nargs=-1, required=True, metavar="NAME=CHECKOUT …")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures here.")
def main(checkouts: tuple[str, ...], json_file: Path | None) -> None:
    rows = [{"version": name, **figures(what)} for name, _, what in (each.rpartition("=") for each in checkouts)]
    show(rows)
    save(json_file, rows)


if __name__ == "__main__":
    main()
