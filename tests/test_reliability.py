"""The beating of `benchmarks/reliability/`, in short."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from benchmarks.reliability import mutations, odd_places, operations
from zoo.cli.base import main


@pytest.mark.parametrize("kind", mutations.kinds(Path()))
def test_damaged_files_are_the_same_or_refused(kind: str) -> None:
    found = mutations.run(kind, 10 if kind.endswith("bundle") else 60, seed=1)
    assert found["faults"] == []
    assert found["memory"] < 2
    assert found.get("refused", 0) + found.get("same", 0) + found.get("another", 0) == found["count"]
    assert kind == "index" or found["refused"] > 0


def test_the_harness_finds_what_is_planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that takes anything, and one that breaks, are both told."""
    kind = mutations.Kind(b"abc" * 100, lambda file: file.read_bytes(), ".x")
    monkeypatch.setattr(mutations, "kinds", lambda _: {"planted": lambda: kind})
    found = mutations.run("planted", 20, seed=0)
    assert found["fault"] > 15
    assert found["fault"] + found.get("same", 0) == 20
    kind = kind._replace(load=lambda file: {b"abc" * 100: 1}[file.read_bytes()])
    assert mutations.run("planted", 20, seed=0)["fault"] == found["fault"]


@pytest.mark.parametrize("method", operations.all_methods())
def test_random_operations_change_nothing_that_they_are_not_about(method: str) -> None:
    found = operations.run(method, 60, seed=1)
    assert found["first"] == []
    assert sum(found[name] for name in operations.OPERATIONS if name in found) == 60


def test_a_bit_that_changes_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation that touches the backbone, or another task, is told by its name."""

    def careless(beaten: operations.Beaten) -> str:
        next(iter(beaten.model.backbone_tensors().values())).view(-1)[0] += 1e-7
        return operations.NOTHING

    monkeypatch.setattr(operations, "OPERATIONS", {"careless": careless})
    assert operations.run("bn", 1, seed=0)["first"] == ["careless: the frozen tensors"]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return odd_places.prepare(tmp_path_factory.mktemp("read"))


@pytest.mark.parametrize("command", odd_places.WRITING)
def test_what_cannot_be_written_is_told_in_a_sentence(command: str, picture: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.write_text("mine")
    told = CliRunner().invoke(main, odd_places.at(odd_places.WRITING[command], place, picture))
    assert (told.exit_code, "annot write" in told.output) == (1, True), told.output
    assert place.read_text() == "mine"


def test_a_link_is_judged_by_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "afile").write_text("mine")
    (tmp_path / "link.yaml").symlink_to(tmp_path / "afile" / "x.yaml")
    told = CliRunner().invoke(main, ["cp", "shapes/ftn", str(tmp_path / "link.yaml")])
    assert (told.exit_code, told.output.startswith("Error: Cannot write to ")) == (1, True), told.output


def test_seeds_that_no_generator_takes_are_refused() -> None:
    for command in (["train", "mlp-stl-digits"], ["merge", "x", "a", "b", "--as", "c", "-o", "x"]):
        assert CliRunner().invoke(main, [*command, "--seed", "-99999999999999999999999"]).exit_code == 2


def test_a_failure_of_the_disk_that_no_command_foresees_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/it")

    CliRunner().invoke(main, ["ls", "--help"])  # commands are loaded when they are first asked for
    monkeypatch.setitem(main.commands, "ls", click.Command("ls", callback=full))
    told = CliRunner().invoke(main, ["ls"])
    assert (told.exit_code, told.output.splitlines()[0]) == (
        1, "Error: No space left on device (/tmp/it). `zoo --debug …` shows where it happened.",
    )  # fmt: skip
    with pytest.raises(OSError, match="No space left"):
        CliRunner().invoke(main, ["--debug", "ls"], catch_exceptions=False)


@pytest.mark.parametrize(
    "words",
    [
        ("prune", "resnet20-ftn-r1-shapes", "--keep-within", "nan", "-o", "x"),
        ("export", "resnet20-ftn-r1-shapes", "--max-drop", "nan"), ("train", "resnet20-ftn-r1-shapes", "--lr", "inf"),
        ("search-sharing", "mlp-trmtl_410-digits", "--threshold", "nan", "-o", "x"),
    ],
)  # fmt: skip
def test_a_gate_that_nothing_passes_or_everything_is_refused(words: tuple[str, ...]) -> None:
    told = CliRunner().invoke(main, words)
    assert (told.exit_code, "is no finite number" in told.output) == (2, True), told.output
