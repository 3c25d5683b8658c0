"""The beating of `benchmarks/reliability/`, in short."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

from tests.check_wheel import ROOT


@pytest.fixture
def mutations(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "reliability"))
    return importlib.import_module("mutations")


KINDS = ("adapter", "shared", "backbone", "checkpoint", "registry", "recipe", "index", "bundle", "peft", "image")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_the_same_or_refused(kind: str, mutations: ModuleType) -> None:
    found = mutations.run(kind, 10 if kind == "bundle" else 60, seed=1)
    assert found["faults"] == []
    assert found["memory"] < 2
    assert found.get("refused", 0) + found.get("same", 0) + found.get("another", 0) == found["count"]
    assert kind == "index" or found["refused"] > 0


def test_the_harness_finds_what_is_planted(mutations: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that takes anything, and one that breaks, are both told."""
    kind = mutations.Kind(b"abc" * 100, lambda file: file.read_bytes(), ".x")
    monkeypatch.setattr(mutations, "kinds", lambda _: {"planted": lambda: kind})
    found = mutations.run("planted", 20, seed=0)
    assert found["fault"] > 15
    assert found["fault"] + found.get("same", 0) == 20
    kind = kind._replace(load=lambda file: {b"abc" * 100: 1}[file.read_bytes()])
    assert mutations.run("planted", 20, seed=0)["fault"] == found["fault"]
