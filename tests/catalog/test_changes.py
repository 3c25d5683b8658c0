"""What a command line changes in a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.catalog.changes import Changes
from zoo.catalog.recipe import Recipe, load_recipe, recipe_names, settings
from zoo.errors import ConfigError, OptionError

TEXT = """summary: x
epochs: 10
min_steps: 400
batch: 32
increments: {name: adam, lr: 0.01}
rest: {name: sgd, lr: 0.002, momentum: 0.9}
input: {size: 64, resize: 80, width: 72}
tasks:
  letters: {epochs: 20, rest: {lr: 0.02}, augment: {flip: true}, input: {size: 32, resize: 40, width: 36}}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(TEXT)
    return str(path)


def changed(file: str, **changes: Any) -> tuple[Recipe, Recipe]:
    """The recipe for most tasks, and for letters."""
    recipe = load_recipe(file, Changes(**changes))
    return recipe.of("other"), recipe.of("letters")


def test_a_setting_stands_for_every_task(file: str) -> None:
    for each in changed(file, epochs=3, batch_size=8):
        assert (each.epochs, each.min_steps, each.batch) == (3, 0, 8)
    assert all(each.input.shape == (128, 144) for each in changed(file, image_size=128))
    other, letters = changed(file, image_size=128)
    assert other.input.resize == letters.input.resize == 160
    assert letters.augment.flip


def test_each_input_is_resized_in_its_own_relation() -> None:
    """Those of the papers' recipes are of several sizes and shapes, some of them stated for one task alone."""
    for name in recipe_names():
        plain, larger = load_recipe(name), load_recipe(name, Changes(image_size=120))
        for task in ("any", *plain.tasks):
            before, after = plain.of(task).input, larger.of(task).input
            assert after.size == 120
            assert after.width == (before.width and round(before.width * 120 / before.size))
            if "resize" not in plain.of(task).leaves_open():
                assert after.resize == (before.resize and round(before.resize * 120 / before.size))


def test_what_stands_twice_in_a_file_is_changed_once(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("summary: x\nepochs: 1\nbatch: 2\nincrements: &o {name: adam, lr: 0.01}\nrest: *o\n")
    recipe = load_recipe(str(file), Changes(lr=0.005))
    assert recipe.increments is not None
    assert recipe.increments.lr == recipe.rest.lr == 0.005
    recipe = load_recipe(str(file), Changes(set=("rest.lr=5e-1",)))
    assert recipe.increments is not None
    assert (recipe.increments.lr, recipe.rest.lr) == (0.01, 0.5)


def test_rates_keep_their_relation(file: str) -> None:
    other, letters = changed(file, lr=0.005)
    assert other.increments is not None
    assert letters.increments is not None
    assert other.increments.lr == letters.increments.lr == 0.005
    assert other.rest.lr == pytest.approx(0.001)
    assert letters.rest.lr == pytest.approx(0.01)


def test_anything_else_is_set_by_its_path(file: str) -> None:
    lines = ("rest.lr=1e-3", "schedule=constant", "input.resize=null", "augment.crop=random")
    other, letters = changed(file, set=lines)
    assert other.rest.lr == letters.rest.lr == 0.001
    assert (other.schedule, other.input.resize, other.augment.crop) == ("constant", None, "random")
    assert changed(file, set="increments={name: adam, lr: 1e-3}")[0].increments.lr == 0.001  # type: ignore[union-attr]
    assert changed(file, set=("epochs=3",))[1].min_steps == 0
    _, letters = changed(file, set=("tasks.letters.epochs=7", "tasks.letters.input={size: 48, resize: 72}"))
    assert (letters.epochs, letters.input.size) == (7, 48)


def test_what_was_changed_is_another_recipe(file: str) -> None:
    plain, other = load_recipe(file), load_recipe(file, Changes(epochs=11))
    assert plain.sha256 != other.sha256
    assert settings(other)["epochs"] == 11
    assert load_recipe(file, Changes()) == plain


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ("rest.lr", OptionError, "no KEY=VALUE"), ("=3", OptionError, "no KEY=VALUE"),
        ("epochs.first=3", OptionError, "the recipe's epochs is 10"), ("rest=[", OptionError, "cannot be read"),
        ("rest.rate=0.1", ConfigError, "unknown key"), ("epochs=many", ConfigError, "a whole number"),
        ("tasks=5", ConfigError, "a mapping"), ("input=[1]", ConfigError, "a mapping"),
        ("rest.lr=nan", ConfigError, "a number"), ("batch=0", ConfigError, "needs epochs, batch"),
    ],
)  # fmt: skip
def test_what_cannot_be_set_is_told(file: str, wrong: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        load_recipe(file, Changes(set=(wrong,)))


def test_a_recipe_without_rates_is_told(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("summary: x\nepochs: 1\nbatch: 2\n")
    with pytest.raises(OptionError, match="needs a learning rate to stand in place of"):
        load_recipe(str(file), Changes(lr=0.1))


@given(st.sampled_from(recipe_names()), st.integers(1, 50), st.floats(1e-5, 1), st.integers(8, 300))
def test_every_recipe_takes_the_everyday_changes(name: str, epochs: int, lr: float, size: int) -> None:
    made = load_recipe(name, Changes(epochs, lr, 16, size))
    for task in ("any", *made.tasks):
        own = made.of(task)
        assert (own.epochs, own.batch, own.input.size) == (epochs, 16, size)
    assert (made.increments or made.rest).lr == lr
