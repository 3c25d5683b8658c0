"""The beating of `benchmarks/reliability/`, in short."""

from __future__ import annotations

import pytest

from benchmarks.reliability import mutations, operations

KINDS = ("adapter", "shared", "backbone", "checkpoint", "registry", "recipe", "index", "bundle", "peft", "image")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_the_same_or_refused(kind: str) -> None:
    found = mutations.run(kind, 10 if kind == "bundle" else 60, seed=1)
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
