"""`kill -9` at random moments of trainings, searches, exports, bundles, pushes and packing: what is lost, what is half.

    python -m benchmarks.reliability.kills [--kills 40] [--work train] [--seed 0] [--json FILE]

A training is killed and begun again with `--resume` until it has been killed so often, and then left to its end: its
weights have to be those of one that nobody disturbed. Of what writes files in one go, what lies there after a kill has
to be whole or not there, and the same command has to do its work the next time.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from PIL import Image

import zoo
from benchmarks.record import save
from tests.hub import LoopbackHub
from zoo.catalog.recipe import recipe_file
from zoo.catalog.registry import Registry
from zoo.storage import resources
from zoo.storage.files import sha256
from zoo.storage.tensors import fingerprint, read

NAME = "mlp-stl-digits"
TRAININGS = {
    "train": ("train", NAME, "--out", "OUT", "--epochs", "40", "--resume"),
    "train --data": (
        "train", "--backbone", "zoo/resnet20@shapes", "--data", "IMAGES", "--out", "OUT", "--name", "mine", "--epochs",
        "6", "--image-size", "32", "--resume",
    ),
    "search-sharing": (
        "search-sharing", "mlp-trmtl_410-digits", "--strategy", "similarity", "--recipe", "SHORT", "-o", "OUT",
    ),
}  # fmt: skip
AT_ONCE = {
    "export": ("export", NAME, "--all-tasks", "-o", "OUT"),
    "export --shared": ("export", "resnet20-bn-shapes", "--all-tasks", "--shared-backbone", "-o", "OUT"),
    "bundle": ("bundle", NAME, "-o", "OUT/it.zoo"),
    "push": ("push", NAME, "me/zoo"),
    "pack": ("pack", NAME),
}


class Beating:
    """Commands in processes of their own, which are killed after a random time."""

    def __init__(self, folder: Path, seed: int, environment: Mapping[str, str]) -> None:
        self.folder, self.draw, self.environment = folder, random.Random(seed), dict(environment)
        self.here = Path(__file__).parents[2]  # where commands run, and so whose `zoo` they are

    def command(self, words: tuple[str, ...], out: Path) -> list[str]:
        own = {"IMAGES": self.folder / "images", "SHORT": self.folder / "short.yaml"}
        places = {"OUT": out, "OUT/it.zoo": out / "it.zoo", **own}
        return [sys.executable, "-m", "zoo", *(str(places.get(word, word)) for word in words)]

    def finish(self, words: tuple[str, ...], out: Path) -> float:
        """Run to the end; seconds. Raises CalledProcessError where it fails."""
        begun = time.monotonic()
        subprocess.run(self.command(words, out), check=True, capture_output=True, env=self.environment, cwd=self.here)
        return time.monotonic() - begun

    def kill(self, words: tuple[str, ...], out: Path, seconds: float) -> bool:
        """Start, and kill at a random moment within so many seconds; whether it was still running."""
        running = subprocess.Popen(
            self.command(words, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=self.environment,
            start_new_session=True, cwd=self.here,
        )  # fmt: skip
        try:
            running.wait(self.draw.uniform(0.2, 1) * seconds)
            return False
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
            return True


def weights(out: Path) -> dict[str, str]:
    """A hash of the tensors of each adapter in a folder."""
    return {file.name: fingerprint(read(file)[0]) for file in sorted(out.rglob("[!.]*.safetensors"))}


def training(beating: Beating, words: tuple[str, ...], kills: int) -> dict[str, Any]:
    """A training that was killed so often, against one that was not."""
    seconds = beating.finish(words, beating.folder / "undisturbed")
    expected, done, rounds, wrong = weights(beating.folder / "undisturbed"), 0, 0, list[str]()
    while done < kills:
        out, rounds = beating.folder / f"killed{rounds}", rounds + 1
        while done < kills and beating.kill(words, out, 0.6 * seconds):  # so that several fall into one training
            done += 1
            try:
                weights(out)  # what lies there is whole
            except zoo.ZooError as error:
                wrong.append(str(error))
        beating.finish(words, out)
        if weights(out) != expected:
            wrong.append(f"{out.name}: other weights than the undisturbed training's")
    return {"kills": done, "rounds": rounds, "wrong": len(wrong), "first": wrong[:5]}


def at_once(
    beating: Beating, words: tuple[str, ...], kills: int, whole: Callable[[Path], Any], begin: Callable[[], Any]
) -> dict[str, Any]:
    """What lies there after each kill, and whether the command does its work afterwards.

    Args:
        whole: raises where what lies there is not.
        begin: makes what the command works on.
    """
    begin()
    seconds = beating.finish(words, beating.folder / "undisturbed")
    done, tried, wrong = 0, 0, list[str]()
    while done < kills and tried < 3 * kills:
        begin()
        out, tried = beating.folder / f"killed{tried}", tried + 1
        done += beating.kill(words, out, seconds)
        try:
            whole(out)
        except Exception as error:
            wrong.append(f"after a kill: {type(error).__name__}: {error}"[:300])
    try:
        beating.finish(words, out)
        whole(out)
    except (subprocess.CalledProcessError, zoo.ZooError) as error:
        wrong.append(f"afterwards: {error}"[:300])
    return {"kills": done, "rounds": tried, "wrong": len(wrong), "first": wrong[:5]}


def domains(folder: Path) -> None:
    """A small folder of one domain, `<domain>/{train,test}/<class>/*`."""
    for split in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            place = folder / "photo" / split / name
            place.mkdir(parents=True)
            for shade in range(24):
                Image.new("RGB", (40, 40), (200 * number, 10 * shade, 40)).save(place / f"{shade}.png")


def short_recipe(file: Path) -> None:
    """That of `mlp-trmtl_410-digits`, with two epochs."""
    file.write_text(recipe_file("digits/trmtl").read_text().replace("epochs: 60", "epochs: 2"))


def graphs(out: Path) -> None:
    """Raises where a graph that lies there cannot be run."""
    for file in out.glob("[!.]*.onnx"):
        zoo.export.session(file)


def bundled(out: Path) -> None:
    """Raises where a bundle that lies there cannot be loaded."""
    if (out / "it.zoo").exists():
        zoo.load(str(out / "it.zoo"))


def pushed(hub: LoopbackHub) -> Callable[[Path], None]:
    """Raises where what the repository has cannot be loaded."""

    def whole(_: Path) -> None:
        if "me/zoo" in hub.repos and len(hub.repos["me/zoo"].commits) > 1:
            files = hub.repos["me/zoo"].files
            assert {f"{NAME}/odd.safetensors", f"{NAME}/even.safetensors", "registry.yaml", "README.md"} <= set(files)
            hub.repos.pop("me/zoo")  # for the next
            hub.large.clear()

    return whole


class Checkout:
    """A copy of the zoo's, and a store with what `pack` is to put into it."""

    def __init__(self, folder: Path, beating: Beating) -> None:
        self.own, self.store, self.trained = folder / "checkout", folder / "home" / NAME, folder / "trained"
        source = resources.registry_file().parent
        for name in ("zoo", "export", "recipes"):
            shutil.copytree(source / name, self.own / name)
        for name in ("registry.yaml", "pyproject.toml"):
            shutil.copy(source / name, self.own)
        self.packaged, self.registry = self.own / "zoo" / "weights" / NAME, self.own / "registry.yaml"
        self.before = {file: file.read_bytes() for file in (self.registry, *self.packaged.iterdir())}
        beating.here = self.own
        beating.environment.pop("PYTHONPATH", None)
        beating.finish(("train", NAME, "--epochs", "1"), folder)
        self.store.rename(self.trained)

    def begin(self) -> None:
        """The checkout as it was, and a full store."""
        shutil.rmtree(self.store, ignore_errors=True)
        shutil.copytree(self.trained, self.store)
        for file, content in self.before.items():
            file.write_bytes(content)

    def whole(self, _: Path) -> None:
        """Raises where a task has neither the packaged file that the registry states nor a whole one in the store."""
        if not any(self.store.glob("*.safetensors")) and self.registry.read_bytes() == self.before[self.registry]:
            raise ValueError("the store is empty, and the registry as it was")
        stated = Registry.read(self.registry).entry(NAME).weights or {}
        for task, weights_file in stated.items():
            if sha256(self.packaged / f"{task}.safetensors") != weights_file.sha256:
                read(self.store / f"{task}.safetensors")


def run(work: str, kills: int, seed: int) -> dict[str, Any]:
    """So many kills of one kind of work."""
    with tempfile.TemporaryDirectory() as temporary, LoopbackHub() as hub:
        folder = Path(temporary)
        domains(folder / "images")
        short_recipe(folder / "short.yaml")
        environment = os.environ | {
            "ZOO_HOME": str(folder / "home"), "ZOO_CACHE": str(folder / "cache"), "HF_ENDPOINT": hub.address,
            "HF_TOKEN": "hf_loopback", "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        os.environ |= {"ZOO_CACHE": environment["ZOO_CACHE"]}
        beating = Beating(folder, seed, environment)
        if work in TRAININGS:
            found = training(beating, TRAININGS[work], kills)
        else:
            checkout = Checkout(folder, beating) if work == "pack" else None
            whole = {"bundle": bundled, "push": pushed(hub)}.get(work, checkout.whole if checkout else graphs)
            found = at_once(beating, AT_ONCE[work], kills, whole, checkout.begin if checkout else lambda: None)
    return {"work": work, "seed": seed, **found}


@click.command()
@click.option("--work", "chosen", multiple=True, type=click.Choice([*TRAININGS, *AT_ONCE]))
@click.option("--kills", default=40, show_default=True, help="Of each kind of work.")
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures here.")
def main(chosen: tuple[str, ...], kills: int, seed: int, json_file: Path | None) -> None:
    rows = []
    for work in chosen or (*TRAININGS, *AT_ONCE):
        rows.append(run(work, kills, seed))
        click.echo(json.dumps(rows[-1]))
        save(json_file, rows)


if __name__ == "__main__":
    main()
