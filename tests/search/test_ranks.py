"""The rank that a task is given, and the picture of accuracy against rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import zoo
from zoo.catalog.entry import Entry
from zoo.catalog.recipe import recipe_file
from zoo.catalog.registry import Registry, default_registry
from zoo.cli.base import main
from zoo.errors import OptionError
from zoo.search import ranks
from zoo.storage.tensors import read


def test_a_family_differs_in_rank_alone() -> None:
    registry = default_registry()
    found = ranks.family(registry.entry("resnet50-ftn-r10-sketch"), registry)
    assert list(found) == [1, 5, 10, 15, 20, 25, 50]
    assert found[25].name == "resnet50-ftn-r25-sketch"
    for name in ("resnet50-bn-sketch", "resnet34_joint-ftn-r1-domainnet"):
        with pytest.raises(OptionError, match="no relatives of other ranks"):
            ranks.family(registry.entry(name), registry)


def test_entries_of_other_images_are_no_family() -> None:
    """Two entries of one's own may have the same domains and classes in different folders."""
    one, other = (
        Entry(
            {"name": "ftn", "rank": rank},
            "folder",
            {"a": 2},
            "r",
            backbone="zoo/resnet20@shapes",
            data_root=root,
            name=f"rank{rank}",
        )
        for rank, root in ((4, "/one"), (8, "/other"))
    )
    with pytest.raises(OptionError, match="no relatives"):
        ranks.family(one, Registry([one, other]))
    alike = replace(other, data_root="/one")
    assert list(ranks.family(one, Registry([one, alike]))) == [4, 8]


@pytest.mark.parametrize(("margin", "chosen"), [(0.0, 16), (0.4, 4), (1.0, 4), (6.0, 2), (99.0, 1)])
def test_the_smallest_rank_within_the_margin_is_chosen_and_no_other_is_trained(margin: float, chosen: int) -> None:
    accuracies = {1: 70.0, 2: 84.0, 4: 89.6, 8: 89.0, 16: 90.0}
    asked = []

    def trained() -> Iterator[tuple[int, float]]:
        for rank, accuracy in accuracies.items():
            asked.append(rank)
            yield rank, accuracy

    rank, seen = ranks.choose(trained(), accuracies[16], margin)
    assert rank == chosen
    assert asked == [r for r in accuracies if r <= chosen] == list(seen)


def test_a_search_from_the_command_line(tmp_path: Path) -> None:
    """One short epoch: with a wide margin the smallest rank will do; what was tried is kept."""
    recipe = tmp_path / "quick.yaml"
    recipe.write_text(recipe_file("shapes/ftn").read_text().replace("epochs: 40", "epochs: 1\nsamples: 96"))
    out = tmp_path / "out"
    command = ["train", "resnet20-ftn-r4-shapes", "--rank", "auto", "--task", "quickdraw", "--recipe", str(recipe)]
    result = CliRunner().invoke(
        main, [*command, "--margin", "90", "--out", str(out), "--quiet"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    assert "2,834 parameters for 1 tasks, 89% fewer than at the largest rank" in result.stdout
    assert {path.parent.name for path in (out / "tried").rglob("*.safetensors")} == {"r1", "r16"}
    header = read(out / "quickdraw.safetensors")[1]
    assert header["method"] == {"name": "ftn", "rank": 1}
    assert "hold_out" not in header["recipe"]
    assert read(out / "tried" / "r1" / "quickdraw.safetensors")[1]["recipe"]["hold_out"] == ranks.HELD_OUT
    model = zoo.load("resnet20-ftn-r4-shapes", task="quickdraw", weights=out)
    assert model.count_parameters("quickdraw").per_task == 2834

    again = CliRunner().invoke(main, [*command, "--margin", "0", "--out", str(out), "--quiet"])
    assert again.exit_code == 2
    assert "is of another run (method" in again.stderr
    with pytest.raises(OptionError, match="--rank N belong to --backbone"):
        CliRunner().invoke(main, ["--debug", "train", "resnet20-ftn-r4-shapes", "--rank", "7"], catch_exceptions=False)
