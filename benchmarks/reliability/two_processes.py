"""Two processes at the same time: training into one folder, into one registry, and filling one cache.

    python -m benchmarks.reliability.two_processes [--rounds 5] [--json FILE]

Both have to end well with what one alone makes, or one with a sentence; nothing may be a mixture.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.record import save
from benchmarks.reliability.kills import NAME, domains, weights
from tests.hub import LoopbackHub
from zoo.catalog.registry import Registry
from zoo.deployment.parcel import bundle


def together(commands: Sequence[Sequence[str]], environment: dict[str, str]) -> list[tuple[int, str]]:
    """Run commands of the zoo's at once: how each ended, and what it said last."""
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "zoo", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env=environment,
        )
        for words in commands
    ]  # fmt: skip
    said = [each.communicate()[1] for each in running]
    return [(each.returncode, words) for each, words in zip(running, said, strict=True)]


def faults(ended: Sequence[tuple[int, str]]) -> list[str]:
    """Those that ended neither well nor with a sentence; and all of them, where none ended well."""
    odd = [words[-300:] for code, words in ended if code not in (0, 1, 2) or "Traceback" in words]
    return odd or ([] if any(code == 0 for code, _ in ended) else [words[-300:] for _, words in ended])


def run(rounds: int) -> list[dict[str, Any]]:
    """So many rounds of each."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary, LoopbackHub() as hub:
        folder = Path(temporary)
        domains(folder / "images")
        environment = os.environ | {
            "ZOO_HOME": str(folder / "home"), "HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_loopback",
            "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        train = ("train", NAME, "--epochs", "6", "--out")
        alone = together([(*train, str(folder / "alone"))], environment)
        expected = weights(folder / "alone")
        found = faults(alone)
        for number in range(rounds):
            out = folder / f"one{number}"
            found += faults(together([(*train, str(out))] * 2, environment))
            found += [] if weights(out) == expected else [f"{out.name}: other weights"]
        rows.append({"what": "training one model into one folder", "rounds": rounds, "faults": found})

        own = ("train", "--backbone", "zoo/resnet20@shapes", "--data", str(folder / "images"), "--max-steps", "1")
        found = []
        for number in range(rounds):
            out = folder / f"own{number}"
            ended = together([(*own, "--name", name, "--out", str(out)) for name in ("first", "second")], environment)
            found += faults(ended)
            found += [] if Registry.read(out).names() == ["first", "second"] else [f"{out.name}: an entry is lost"]
        rows.append({"what": "training two models into one registry", "rounds": rounds, "faults": found})

        found = []
        os.environ |= {key: environment[key] for key in ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_DISABLE_XET")}
        together([("push", NAME, "me/zoo")], environment)
        file = bundle(NAME, folder / "it.zoo")
        for number in range(rounds):
            own_cache = environment | {"ZOO_CACHE": str(folder / f"cache{number}")}
            for name in (f"hf://me/zoo/{NAME}", str(file)):
                found += faults(together([("eval", name, "--task", "odd")] * 2, own_cache))
        rows.append({"what": "filling one cache, of a repository and of a bundle", "rounds": rounds, "faults": found})
    return rows


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Of each.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures here.")
def main(rounds: int, json_file: Path | None) -> None:
    rows = run(rounds)
    for row in rows:
        click.echo(json.dumps(row))
    save(json_file, rows)


if __name__ == "__main__":
    main()
