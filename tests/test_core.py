"""The core does its work on classifiers with no extra installed; what needs one says which."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.check_wheel import ROOT
from zoo.catalog.recipe import recipe_file

STATED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
EXTRAS = ("dense", "digits", "plot", "rings", "sketch", "video")
DISTRIBUTIONS = {requirement.partition(">")[0] for extra in EXTRAS for requirement in STATED[extra]}
MODULES = sorted(
    name
    for name, homes in packages_distributions().items()
    if DISTRIBUTIONS & {home.lower() for home in homes} and not name.startswith("_")
)
BLOCKED = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {modules} else super().find_spec(name, path, target)

sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
import json
from click.testing import CliRunner
from zoo.cli.base import main

done = [CliRunner().invoke(main, command) for command in json.loads(sys.argv[1])]
print(json.dumps([(each.exit_code, each.output) for each in done]))
"""


def run(folder: Path, *commands: tuple[object, ...]) -> list[tuple[int, str]]:
    """Commands of the zoo's, in a process of their own with every extra missing; exit status and output of each."""
    wanted = json.dumps([[str(argument) for argument in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(modules=set(MODULES)), wanted], cwd=folder, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [(status, output) for status, output in json.loads(done.stdout.splitlines()[-1])]


def test_the_extras_are_what_all_installs() -> None:
    assert STATED["all"] == [f"ftn-zoo[{','.join(EXTRAS)}]"]
    assert {"scipy", "skimage", "sklearn", "tensorly", "torchmetrics", "matplotlib", "av"} <= set(MODULES)


@pytest.mark.long
def test_the_core_trains_evaluates_verifies_predicts_and_exports(tmp_path: Path) -> None:
    name, recipe, out = "resnet20-bn-shapes", tmp_path / "quick.yaml", tmp_path / "out"
    recipe.write_text(recipe_file("shapes/bn").read_text().replace("epochs: 40", "epochs: 1\nsamples: 64"))
    sketch = (name, "--task", "sketch")
    trained, *others = run(
        tmp_path,
        ("train", *sketch, "--recipe", recipe, "--out", out, "--quiet"),
        ("eval", *sketch, "--weights", out),
        ("verify", name),
        ("predict", *sketch, ROOT / "docs" / "sketch.png", "--top", 12),
        ("export", *sketch, "-o", tmp_path),
    )
    assert trained[0] == 0, trained[1]
    for (status, output), word in zip(others, ("accuracy", "accuracy", "star", "parity"), strict=True):
        assert status == 0, output
        assert word in output
    assert (tmp_path / "sketch.onnx").is_file()


NEEDS = {
    ("eval", "mlp-stl-digits"): r"The benchmark digits needs sklearn.*pip install 'ftn-zoo\[digits\]'",
    ("eval", "resnet20-ftn-r1-rooms", "--task", "edge"): r"The figure of edges needs .*ftn-zoo\[dense\]",
    ("eval", "resnet20-ftn-r1-rooms", "--task", "semseg"): "The figure of segmentation needs torchmetrics",
    ("eval", "resnet20-ftn-r1-rooms", "--task", "depth"): "The figure of depth needs torchmetrics",
    ("plot", "ranks", "resnet20-ftn-*-shapes"): r"Drawing pictures needs matplotlib.*ftn-zoo\[plot\]",
    ("compare", "resnet20-bn-shapes", "--rounds", "0", "-o", "x"): "Drawing pictures needs matplotlib",
    ("predict", "lstm-trmtl_4-clips", "--task", "six", __file__): r"Decoding clips needs av.*ftn-zoo\[video\]",
}


def test_what_needs_an_extra_names_it(tmp_path: Path) -> None:
    for (status, output), message in zip(run(tmp_path, *NEEDS), NEEDS.values(), strict=True):
        assert status == 2, output
        assert re.search(message, output), output
