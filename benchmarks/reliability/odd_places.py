"""Every writing command where it cannot write, and commands of all kinds in odd places: it works, or says why not.

    python -m benchmarks.reliability.odd_places [--command NAME] [--json FILE]

The full and the read-only disk are small file systems in memory, which to mount needs the rights of root; without them
they are left out, and the figures say so.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from benchmarks.record import save
from benchmarks.reliability.kills import domains, short_recipe

NAME, TASK = "mlp-stl-digits", "odd"
WRITING = {  # what a command writes to OUT
    "train": ("train", NAME, "--out", "OUT/new", "--max-steps", "1", "--overwrite"),
    "export": ("export", NAME, "--task", TASK, "-o", "OUT/onnx"),
    "train --data": (
        "train", "--backbone", "zoo/resnet20@shapes", "--data", "IMAGES", "--out", "OUT/folder", "--name", "mine",
        "--max-steps", "1", "--image-size", "32",
    ),
    "export --mixed": ("export", "resnet20-bn-shapes", "--all-tasks", "--mixed", "-o", "OUT/all.onnx"),
    "export --shared-backbone": ("export", "resnet20-bn-shapes", "--all-tasks", "--shared-backbone", "-o", "OUT/one"),
    "bundle": ("bundle", NAME, "-o", "OUT/it.zoo"),
    "card": ("card", NAME, "-o", "OUT/card.md"),
    "cp": ("cp", "shapes/ftn", "OUT/mine.yaml"),
    "generate": ("generate", "biggan32-ftn-r4-landscapes", "-n", "1", "-o", "OUT/made"),
    "compare": ("compare", "mlp-*-digits", "--rounds", "0", "-o", "OUT/compared"),
    "factorise": (
        "factorise", "resnet20-finetune-shapes/clipart", "--backbone", "zoo/resnet20@shapes", "--rank", "2", "--name",
        "mine", "-o", "OUT/small",
    ),
    "compress": ("compress", "resnet20-parallel-shapes", "--rank", "2", "-o", "OUT/joint"),
    "prune": ("prune", "resnet20-ftn-r1-shapes", "--task", "sketch", "--steps", "2", "-o", "OUT/pruned"),
    "convert": ("convert", "vit_micro-lora-r4-shapes", "--task", "sketch", "-o", "OUT/lora"),
    "search-sharing": (
        "search-sharing", "mlp-trmtl_410-digits", "--strategy", "similarity", "--recipe", "SHORT", "-o", "OUT/shared",
    ),
    "plot norms": ("plot", "norms", "resnet20-ftn-r8-shapes", "-o", "OUT/norms"),
    "plot similarity": ("plot", "similarity", "resnet20-ftn-r8-shapes", "-o", "OUT/alike"),
    "sign": ("sign", NAME, "--key", "KEY", "-o", "OUT/mine.sig"),
    "merge": ("merge", "resnet20-ftn-r8-shapes", "--tasks", "sketch", "real", "--as", "both", "-o", "OUT/merged"),
}  # fmt: skip
LOOKING = {
    "ls": ("ls", "mlp-*"), "info": ("info", NAME), "eval": ("eval", NAME, "--task", TASK),
    "predict": ("predict", "resnet20-bn-shapes", "--task", "sketch", "IN"),
}  # fmt: skip
ODD_NAMES = {
    "spaces": "a b  c",
    "quotes": "a'b\"c",
    "a newline": "a\nb",
    "an emoji": "a🦁b",
    "a percent": "a%20b$HOME;x",
}
DISKS = {"full disk": 0, "nearly full disk": 4096, "read-only disk": None, "a file for a folder": None}  # bytes free
# Read by Python before anything else: each look at the clock shows an hour less.
BACKWARDS = """
import time
now, looks = time.time(), iter(range(1, 10**9))
time.time = lambda: now - 3600 * next(looks)
"""


def prepare(folder: Path) -> Path:
    """Put what the commands read into a folder; the picture among it."""
    domains(folder / "images")
    short_recipe(folder / "short.yaml")
    key = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(folder / "key.pem")]
    subprocess.run(key, check=True)
    return Path(shutil.copy(Path(__file__).parents[2] / "docs" / "sketch.png", folder))


def at(words: tuple[str, ...], out: Path, picture: Path) -> list[str]:
    """A command's words with the places that they stand for."""
    ready = {"IN": picture.name, "KEY": "key.pem", "IMAGES": "images", "SHORT": "short.yaml"}
    places = {"OUT": out} | {word: picture.with_name(name) for word, name in ready.items()}
    return [re.sub("OUT|IN$|KEY|IMAGES|SHORT", lambda found: str(places[found[0]]), word) for word in words]


def zoo(
    words: tuple[str, ...], environment: Mapping[str, str], out: Path, picture: Path, umask: int = -1
) -> dict[str, Any]:
    """A command in a process of its own: how it ended."""
    done = subprocess.run(
        [sys.executable, "-m", "zoo", *at(words, out, picture)], capture_output=True, text=True, check=False,
        env=dict(environment), umask=umask,
    )  # fmt: skip
    last = (done.stderr.strip().splitlines() or [""])[-1]
    return {"exit": done.returncode, "traceback": "Traceback" in done.stderr, "says": last[:200]}


def judged(row: dict[str, Any], may_work: bool) -> dict[str, Any]:
    """Whether a command ended as it may: with success if that can be, else with a sentence and status 1 or 2."""
    sentence = row["exit"] in (1, 2) and not row["traceback"] and row["says"]
    return row | {"fault": not ((may_work and row["exit"] == 0) or sentence)}


@contextlib.contextmanager
def small_disk(folder: Path, free: int | None) -> Iterator[bool]:
    """A disk of 64 kB mounted at a folder, with so many bytes free, or read-only; whether that could be done."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=False).returncode == 0
    try:
        if mounted and free is not None:
            (folder / "ballast").write_bytes(bytes(65_536 - free))
        elif mounted:
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)


def disks(
    folder: Path, environment: Mapping[str, str], picture: Path, chosen: Collection[str]
) -> Iterator[dict[str, Any]]:
    """Writing commands on every kind of disk."""
    for place, free in DISKS.items():
        for name in chosen:
            words = WRITING[name]
            spot = folder / f"{place} {name}".replace(" ", "_")
            with contextlib.ExitStack() as stack:
                if place == "a file for a folder":
                    spot.write_text("mine")
                elif not stack.enter_context(small_disk(spot, free)):
                    yield {"place": place, "command": name, "exit": None, "fault": None, "says": "not mounted"}
                    continue
                row = judged(zoo(words, environment, spot, picture), may_work=bool(free))
                row["fault"] = row["fault"] or (row["exit"] != 0 and "annot write" not in row["says"])
                kept = place != "a file for a folder" or spot.read_text() == "mine"
                left = (
                    [] if spot.is_file() else [p.name for p in spot.rglob("*") if p.is_file() and p.name != "ballast"]
                )
                yield {"place": place, "command": name, **row, "fault": row["fault"] or not kept, "left": left}


def surroundings(folder: Path, environment: Mapping[str, str], picture: Path) -> Iterator[dict[str, Any]]:
    """Commands of every kind without a home, with one that cannot be written, under odd names, and by an odd clock."""
    afile = folder / "afile"
    afile.write_text("mine")
    bare = {key: value for key, value in environment.items() if key not in ("HOME", "ZOO_HOME", "ZOO_CACHE")}
    places = {
        "no HOME": bare, "HOME is a file": bare | {"HOME": str(afile)},
        "ZOO_HOME is a file": {**environment, "ZOO_HOME": str(afile)},
        "ZOO_CACHE is a file": {**environment, "ZOO_CACHE": str(afile)},
        "LANG=C": {**environment, "LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0"},
    }  # fmt: skip
    for place, given in places.items():
        for name, words in (LOOKING | {"bundle": WRITING["bundle"], "cp": WRITING["cp"]}).items():
            out = folder / "out" / place
            yield {"place": place, "command": name, **judged(zoo(words, given, out, picture), may_work=True)}
    for place, odd in ODD_NAMES.items():
        for name in ("train", "export", "bundle", "card", "cp"):
            row = judged(zoo(WRITING[name], environment, folder / odd, picture), may_work=True)
            yield {"place": f"a name with {place}", "command": name, **row, "fault": row["exit"] != 0}
        own = folder / odd / f"{odd}.png"
        own.write_bytes(picture.read_bytes())
        row = judged(zoo(LOOKING["predict"], environment, folder, own), may_work=True)
        yield {"place": f"a name with {place}", "command": "predict", **row, "fault": row["exit"] != 0}
    yield from clocks(folder, environment, picture)


def clocks(folder: Path, environment: Mapping[str, str], picture: Path) -> Iterator[dict[str, Any]]:
    """A clock that goes back while commands run, files of other times, and files for the user alone."""
    (folder / "back").mkdir()
    (folder / "back" / "sitecustomize.py").write_text(BACKWARDS)
    path = os.pathsep.join([str(folder / "back"), str(Path(__file__).parents[2])])
    places: dict[str, tuple[Mapping[str, str], float | None, int]] = {
        "a clock that goes back": ({**environment, "PYTHONPATH": path}, None, -1),
        "files of 1980": (environment, 315_532_800, -1), "files of 2100": (environment, 4_102_444_800, -1),
        "umask 077": (environment, None, 0o077),
    }  # fmt: skip
    for place, (given, time, umask) in places.items():
        out = folder / place
        for name, words in (LOOKING | {name: WRITING[name] for name in ("train", "export", "bundle", "card")}).items():
            for file in [*(folder / "home").rglob("*"), *(folder / "cache").rglob("*")] if time else ():
                os.utime(file, (time, time))
            row = judged(zoo(words, given, out, picture, umask), may_work=True)
            yield {"place": place, "command": name, **row, "fault": row["exit"] != 0}


@click.command()
@click.option("--command", "chosen", multiple=True, type=click.Choice([*WRITING]), help="Nothing but these, on disks.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures here.")
def main(chosen: tuple[str, ...], json_file: Path | None) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        picture = prepare(folder)
        environment = {**os.environ, "ZOO_HOME": str(folder / "home"), "ZOO_CACHE": str(folder / "cache")}
        parts = [disks(folder, environment, picture, chosen or WRITING)]
        parts += [] if chosen else [surroundings(folder, environment, picture)]
        for row in itertools.chain(*parts):
            rows.append(row)
            click.echo(json.dumps(row))
    click.echo(f"{len(rows)} commands, {sum(row['fault'] is True for row in rows)} faults")
    save(json_file, [row if row["fault"] else {**row, "says": ""} for row in rows])


if __name__ == "__main__":
    main()
