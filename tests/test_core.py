"""The core does its work on classifiers with no extra installed; what needs one says which."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from tests.check_wheel import ROOT
from zoo.catalog.recipe import recipe_file

STATED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
EXTRAS = ("app", "dense", "digits", "emoji", "plot", "rings", "sign", "sketch", "video")
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
"""
COMMANDS = """
import json
from click.testing import CliRunner
from zoo.cli.base import main

done = [CliRunner().invoke(main, command) for command in json.loads(sys.argv[1])]
print(json.dumps([(each.exit_code, each.output) for each in done]))
"""
CALLS = """
import json
import torch
import zoo.ring
from zoo.datasets.sketch import flowers

network = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 4))
said = []
for call in (lambda: zoo.ring.convert(network, 2, 2), lambda: flowers(sys.argv[1])):
    try:
        call()
    except zoo.ZooError as error:
        said.append([type(error).__name__, str(error)])
print(json.dumps(said))
"""


def blocked(folder: Path, code: str, argument: str) -> Any:
    """What code prints last, as JSON, in a process of its own with every extra missing."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(modules=set(MODULES)) + code, argument], cwd=folder, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def run(folder: Path, *commands: tuple[object, ...]) -> list[tuple[int, str]]:
    """Exit status and output of commands of the zoo's with every extra missing."""
    wanted = json.dumps([[str(argument) for argument in command] for command in commands])
    return [(status, output) for status, output in blocked(folder, COMMANDS, wanted)]


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
    ("train", "resnet20-ftn-r1-rooms", "--task", "edge"): "The figure of edges needs",  # before the training
    ("eval", "resnet20-ftn-r1-rooms", "--task", "edge"): r"The figure of edges needs .*ftn-zoo\[dense\]",
    ("eval", "resnet20-ftn-r1-rooms", "--task", "semseg"): "The figure of segmentation needs torchmetrics",
    ("eval", "resnet20-ftn-r1-rooms", "--task", "depth"): "The figure of depth needs torchmetrics",
    ("plot", "ranks", "resnet20-ftn-*-shapes"): r"Drawing pictures needs matplotlib.*ftn-zoo\[plot\]",
    ("compare", "resnet20-bn-shapes", "-o", "x"): "Drawing pictures needs matplotlib",
    ("predict", "lstm-trmtl_4-clips", "--task", "six", __file__): r"Decoding clips needs av.*ftn-zoo\[video\]",
}


def test_what_needs_an_extra_names_it(tmp_path: Path) -> None:
    for (status, output), message in zip(run(tmp_path, *NEEDS), NEEDS.values(), strict=True):
        assert status == 2, output
        assert re.search(message, output), output


def test_what_needs_an_extra_in_python_names_it(tmp_path: Path) -> None:
    for part in ("imagelabels.mat", "setid.mat"):
        (tmp_path / "flowers-102" / "jpg").mkdir(parents=True, exist_ok=True)
        (tmp_path / "flowers-102" / part).touch()
    said = blocked(tmp_path, CALLS, str(tmp_path))
    assert [kind for kind, _ in said] == ["MissingExtraError"] * 2
    assert re.search(r"tensor-ring format needs tensorly.*ftn-zoo\[rings\]", said[0][1])
    assert re.search(r"flowers and cars needs scipy.*ftn-zoo\[sketch\]", said[1][1])
