"""Model cards: what the Hub's own library reads in them, and what they tell people."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from huggingface_hub import ModelCard

import zoo
from zoo.catalog.registry import default_registry
from zoo.cli.base import main
from zoo.deployment.card import MARK, model_card, write_card
from zoo.errors import OptionError

PACKAGED = [entry for entry in default_registry().entries() if entry.weights]


@pytest.mark.parametrize("entry", PACKAGED, ids=lambda entry: entry.name)
def test_a_card_says_what_the_registry_says(entry: zoo.catalog.entry.Entry) -> None:
    read = ModelCard(str(model_card(entry)))
    assert read.data.library_name == "ftn-zoo"
    assert {entry.benchmark, entry.method["name"]} <= set(read.data.tags)
    results = {result.dataset_name: result.metric_value for result in read.data.eval_results or ()}
    assert results == {f"{entry.benchmark}, {task}": value for task, value in (entry.measured or {}).items()}
    for task, file in (entry.weights or {}).items():
        assert f"| {task} | {entry.classes[task]} |" in read.text
        assert f"{file.size:,}" in read.text
    assert "recipe `" in read.text
    assert "versions unknown" not in read.text


def test_the_licence_is_stated_where_it_is_known() -> None:
    registry = default_registry()
    drawn, others = (registry.entry(name) for name in ("resnet20-bn-shapes", "efficientnet_lite0-ftn-r4-emoji"))
    assert model_card(drawn).data.license == "apache-2.0"
    assert model_card(others).data.license is None
    assert "licence of these weights is not stated" in str(model_card(others))
    assert model_card(others, "cc-by-sa-4.0").data.license == "cc-by-sa-4.0"


def test_the_python_of_a_card_runs() -> None:
    text = str(model_card(default_registry().entry("biggan32-ftn-r4-landscapes")))
    code = text.partition("```python\n")[2].partition("```")[0]
    names: dict[str, object] = {}
    exec(code, names)
    assert tuple(names["pictures"].shape) == (4, 3, 32, 32)  # type: ignore[attr-defined]


def test_another_file_is_not_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    done = CliRunner().invoke(main, ["card", "resnet20-bn-shapes", "-o", str(file)], catch_exceptions=False)
    assert done.exit_code == 0
    assert MARK in file.read_text()
    entry = default_registry().entry("resnet20-bn-shapes")
    write_card(entry, file, "mit")
    assert "license: mit" in file.read_text()
    file.write_text("mine")
    with pytest.raises(OptionError, match="is no card that was written here"):
        write_card(entry, file)
    assert file.read_text() == "mine"
