"""The wheel, outside the checkout; the public names; and how fast the command starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import zoo
from tests.check_wheel import ROOT, problems


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel is installed in, built of a copy: several workers may build at once."""
    folder = tmp_path_factory.mktemp("wheel")
    checkout = folder / "checkout"
    for name in ("zoo", "export", "recipes"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("registry.yaml", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    flags = ["--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *flags, "--wheel-dir", folder, checkout], check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    assert problems(wheel) == []
    subprocess.run([*pip, "install", *flags, "--target", folder / "site", wheel], check=True, cwd=folder)
    return folder / "site"


def python(site: Path, code: str, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    run = [sys.executable, "-c", code]
    return subprocess.run(run, check=True, cwd=cwd, env=environment, capture_output=True, text=True).stdout.strip()


def test_the_wheel_finds_registry_recipes_and_weights(installed: Path, tmp_path: Path) -> None:
    code = """
import torch, zoo, zoo.catalog.recipe, zoo.export
model = zoo.load("resnet20-ftn-r8-shapes")
print(zoo.__file__)
print(zoo.catalog.recipe.load_recipe("shapes/ftn").name, model(torch.zeros(1, 3, 32, 32), task="sketch").shape)
print(zoo.export.to_onnx.__module__)
"""
    lines = python(installed, code, tmp_path).splitlines()
    assert Path(lines[0]).is_relative_to(installed)
    assert lines[1:] == ["shapes/ftn torch.Size([1, 12])", "zoo.export.onnx"]


def test_nothing_else_lands_beside_the_package(installed: Path) -> None:
    assert {p.name for p in installed.iterdir() if p.suffix != ".dist-info"} <= {"zoo", "bin"}


def test_the_console_script_runs(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    script = installed / "bin" / "zoo"
    out = subprocess.run(
        [sys.executable, script, "ls", "resnet20-ftn*"], check=True, cwd=tmp_path, env=environment, capture_output=True
    )
    assert b"resnet20-ftn-r8-shapes" in out.stdout


def test_public_names() -> None:
    assert zoo.__all__ == sorted(zoo.__all__)
    assert set(dir(zoo)) == {*zoo.__all__, "__version__"}
    for name in zoo.__all__:
        assert getattr(zoo, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = zoo.nothing


@pytest.mark.parametrize("command", [["ls"], ["--help"], ["info", "resnet20-ftn-r8-shapes"], ["cp", "--help"]])
def test_quick_commands_import_little(command: list[str], installed: Path, tmp_path: Path) -> None:
    """No torch; of the zoo's rooms those alone that tell what the zoo holds; and for `ls` no YAML, but the index."""
    code = f"""
import sys
from zoo.cli.base import main
main({command!r}, standalone_mode=False)
print(*sorted({{name.partition(".")[0] for name in sys.modules}} & {{"torch", "numpy", "huggingface_hub", "urllib3"}}))
print(*sorted({{name.split(".")[1] for name in sys.modules if name.startswith("zoo.")}}))
print("yaml" in sys.modules, "platformdirs" in sys.modules)
"""
    *_, others, rooms, slow = python(installed, code, tmp_path).splitlines()
    assert others == ""
    assert set(rooms.split()) <= {"catalog", "cli", "errors", "storage"}
    if command == ["ls"]:
        assert slow == "False False"
