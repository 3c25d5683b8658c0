"""The documents say what the registry and the measurements say."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from zoo.catalog.recipe import recipe_names
from zoo.catalog.registry import default_registry

ROOT = Path(__file__).parent.parent


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "reports"))
    return importlib.import_module("report")


def read(name: str) -> Any:
    """The figures that a benchmark wrote."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["rows"]


def test_results_and_readme_are_what_the_report_writes(report: ModuleType) -> None:
    assert (ROOT / "docs" / "results.md").read_text() == report.results()
    page, readme = (ROOT / "docs" / "zoo.md").read_text(), (ROOT / "README.md").read_text()
    assert page == report.zoo_page()
    assert readme == report.readme(readme)
    forms = (ROOT / "docs" / "deployment.md").read_text()
    assert forms == report.deployment(forms)
    small = (ROOT / "docs" / "small-files.md").read_text()
    assert small == report.small_files(small)
    beaten = (ROOT / "docs" / "reliability.md").read_text()
    assert beaten == report.reliability(beaten)
    patterns = re.findall(r"^\| `([^`]+)` \|", readme, re.MULTILINE)
    packaged = {entry.name for entry in default_registry().entries() if entry.weights}
    assert packaged <= {name for pattern in patterns for name in default_registry().names(pattern)}
    listed = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    ranks = [(name, re.search(r"\{(.*)\}", name)) for name in listed]
    names = [name.replace(m[0], rank) for name, m in ranks if m for rank in m[1].split(",")]
    assert sorted(names + [name for name, m in ranks if not m]) == sorted(default_registry().names())


def test_the_readmes_python_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec("\n".join(blocks), names)
    assert tuple(names["logits"].shape) == (2, 12)  # type: ignore[attr-defined]
    assert (tmp_path / "sketch.onnx").is_file()
    assert 0 <= names["figures"]["photo"]["accuracy"] <= 100  # type: ignore[index]
    assert all((tmp_path / name).is_file() for name in ("photo.onnx", "photo.safetensors", "trained/photo.safetensors"))
    assert len(blocks[-1].strip().splitlines()) <= 12  # ten lines and their imports


def test_the_python_on_joint_networks_runs_as_it_stands() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "joint-networks.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec("\n".join(blocks), names)
    assert tuple(names["logits"].shape) == (3, 5)  # type: ignore[attr-defined]
    assert set(names["errors"]) == {"0", "2"}  # type: ignore[call-overload]


def test_the_picture_of_sharing_shows_what_was_measured() -> None:
    """Every pattern and number of cores five times; STL and TRMTL with each number of samples."""
    rows = read("joint")
    assert all(len(values) == 5 for row in rows for values in row["figures"].values())
    by_samples: dict[str, set[str]] = {row["samples"]: set() for row in rows}
    for row in rows:
        by_samples[row["samples"]].add(row["entry"])
    compared = {f"mlp-{m}-digits" for m in ("stl", "mrn", "dmtrl_tucker", "dmtrl_tt", "trmtl_410", "trmtl_420")}
    assert set(by_samples) == {"50", "100", "all", "odd 50", "even 50"}
    assert all(compared <= by_samples[samples] for samples in ("50", "100", "all"))
    assert (
        by_samples["odd 50"] == by_samples["even 50"] > {f"mlp-trmtl_{p}-digits" for p in ("000", "400", "420", "044")}
    )
    assert {f"lstm-trmtl_{number}-clips" for number in range(5)} <= by_samples["all"]


def test_every_name_in_the_readme_exists() -> None:
    names = set(default_registry().names())
    text = (ROOT / "README.md").read_text()
    for name in re.findall(r"\b(?:resnet\d+|vit_\w+)-[a-z0-9_-]+-(?:shapes|domainnet|sketch|clip5)\b", text):
        assert name in names
    pages = [
        text,
        *((ROOT / "docs" / f"{page}.md").read_text() for page in ("joint-networks", "reproducing-the-papers")),
    ]
    for page in pages:
        for name in re.findall(r"\b(?:mlp|cnn|lstm)-[a-z0-9_]+-[a-z0-9_]+\b", page):
            assert name in names
    for path in re.findall(r"\]\(((?!http)[^)]+)\)", text):
        page, _, anchor = path.partition("#")
        assert (ROOT / page).exists()
        headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {re.sub("[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in headings}
    assert "shapes/ftn" in recipe_names()


def test_the_methods_stand_in_the_papers_order() -> None:
    """Tables 1 and 2: features < bn < FTN R=1 < FTN R=8; the last near fine-tuning at a fifth of its size."""
    rows = {row["entry"]: row["figures"]["mean"] for row in read("methods_resnet20_shapes")}
    assert set(rows) == {entry.name for entry in default_registry().entries("resnet20-*-shapes") if not entry.form}
    mean = {name.removeprefix("resnet20-").removesuffix("-shapes"): sum(v) / len(v) for name, v in rows.items()}
    assert all(len(values) >= 3 for values in rows.values())
    assert mean["features"] < mean["bn"] < mean["ftn-r1"] < mean["ftn-r8"]
    assert mean["finetune"] - mean["ftn-r8"] <= 1.0
    entries = {m: default_registry().entry(f"resnet20-{m}-shapes").parameters for m in ("ftn-r8", "finetune")}
    assert entries["ftn-r8"] is not None
    assert entries["finetune"] is not None
    assert entries["ftn-r8"].per_task < 0.2 * entries["finetune"].per_task


def test_the_methods_on_rooms_stand_in_the_papers_order() -> None:
    """Table 4, each task: decoder < decoder and norms < FTN R=1 < FTN R=8; the last about as good as networks apart."""
    rows = {row["entry"]: row["figures"] for row in read("methods_resnet20_rooms")}
    assert set(rows) == set(default_registry().names("resnet20-*-rooms"))
    assert all(len(values) == 3 for figures in rows.values() for values in figures.values())
    metric = default_registry().entry("resnet20-single-rooms").metric
    mean = {
        name.split("-", 1)[1].removesuffix("-rooms"): {
            task: sum(values) / 3 * (1 if metric(task).higher_is_better else -1) for task, values in figures.items()
        }
        for name, figures in rows.items()
    }
    for task in rows["resnet20-single-rooms"]:
        ordered = [mean[name][task] for name in ("decoder", "decoder_bn", "ftn-r1", "ftn-r8")]
        assert ordered == sorted(ordered), task
    gain = [mean["ftn-r8"][task] / mean["single"][task] - 1 for task in rows["resnet20-single-rooms"]]
    signs = [1 if metric(task).higher_is_better else -1 for task in rows["resnet20-single-rooms"]]
    assert sum(s * g for s, g in zip(signs, gain, strict=True)) / 4 > -0.02


@pytest.mark.long
def test_a_method_is_added_as_the_page_says(tmp_path: Path) -> None:
    """The files of docs/adding-a-method.md, put where it says, in a copy of the checkout; then its commands."""
    copy = tmp_path / "checkout"
    for name in ("zoo", "export", "recipes"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "resnet20-*"))
    page = (ROOT / "docs" / "adding-a-method.md").read_text()
    files = dict(re.findall(r"<!-- file: (.*?) -->\n```\w+\n(.*?)```", page, re.DOTALL))
    assert set(files) == {"zoo/increments/beside.py", "registry.yaml", "recipes/shapes/beside.yaml"}
    files["registry.yaml"] = (ROOT / "registry.yaml").read_text() + "\n" + files["registry.yaml"]
    for name, text in files.items():
        (copy / name).write_text(text)
    for name in ("export", "recipes", "registry.yaml"):  # as the wheel has them
        shutil.move(copy / name, copy / "zoo" / name)
    (commands,) = re.findall(r"```sh\n(zoo train .*?)```", page, re.DOTALL)
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    for command in commands.strip().splitlines():
        quick = ["--max-steps", "1"] if " train " in command else []
        run = [sys.executable, "-P", "-m", *command.split(), *quick]
        done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "onnx" / "sketch.onnx").is_file()
    code = """
import torch, zoo
from zoo.loader import fresh_model
from zoo.catalog.registry import default_registry
from zoo.catalog.task import Task
assert zoo.__file__.startswith({root!r})
entry = default_registry().entry("resnet20-beside-shapes")
model = fresh_model(entry, default_registry(), pretrained=False)
model.add_task(Task.of("t", 3))
assert model.count_parameters("t") == entry.parameters
try:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 2), torch.nn.Conv2d(3, 3, 2), torch.nn.Linear(4, 2))
    zoo.adapt(network, {{"t": 2}}, "beside")
except zoo.errors.OptionError as error:
    print(error)
"""
    run = [sys.executable, "-P", "-c", code.format(root=str(copy))]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "has no centre" in done.stdout
