"""How long `zoo ls` and `zoo --help` take to start, against importing the libraries that they cannot do without.

python benchmarks/startup.py [--rounds 15] [--json FILE]
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
from record import save

from zoo.cli.tables import show
from zoo.verification.timing import interleaved, medians, ratio

COMMANDS = {
    "import click, yaml, rich": [sys.executable, "-c", "import click, yaml, rich"],
    "zoo --help": [sys.executable, "-m", "zoo", "--help"],
    "zoo ls": [sys.executable, "-m", "zoo", "ls"],
}


@click.command()
@click.option("--rounds", default=15, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures here.")
def main(rounds: int, json_file: Path | None) -> None:
    def runner(command: list[str]) -> Callable[[], object]:
        return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    seconds = interleaved({name: runner(command) for name, command in COMMANDS.items()}, rounds)
    base = next(iter(COMMANDS))
    rows = [
        {"command": name, "ms": round(1000 * s), "ratio": round(ratio(seconds, name, base), 2)}
        for name, s in medians(seconds).items()
    ]
    show(rows)
    save(json_file, rows)


if __name__ == "__main__":
    main()
