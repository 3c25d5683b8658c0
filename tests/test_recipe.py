"""Recipes: every one loads, unknown keys are errors, and the paper's values stand where the paper has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from zoo.errors import ConfigError, UnknownNameError
from zoo.recipe import Recipe, load_recipe, recipe_file, recipe_names
from zoo.registry import default_registry


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_opens_with_its_command(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    text = recipe_file(name).read_text()
    assert text.startswith("# zoo train ")
    assert "Expect" in text or name.startswith("folder/")


def test_every_entry_has_its_recipe() -> None:
    registry = default_registry()
    assert all(registry.entry(name).recipe in recipe_names() for name in registry.names())


@pytest.mark.parametrize(("name", "rest_lr"), [("sketch/ftn", 0.008), ("domainnet/ftn", 0.005)])
def test_ftn_recipes_hold_the_supplements_values(name: str, rest_lr: float) -> None:
    recipe = load_recipe(name)
    assert recipe.increments is not None
    assert (recipe.increments.name, recipe.increments.lr, recipe.increments.weight_decay) == ("adam", 0.005, 0)
    assert (recipe.rest.name, recipe.rest.lr, recipe.rest.weight_decay) == ("sgd", rest_lr, 0)
    assert (recipe.epochs, recipe.batch, recipe.schedule) == (30, 32, "cosine")
    assert (recipe.input.size, recipe.augment.flip) == (224, True)


def read(tmp_path: Path, text: str) -> Recipe:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    return load_recipe(str(file))


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    text = """
summary: x
epochs: 0
batch: many
rest: {name: sdg, lr: 0.1}
increments: {name: adam, lr: -1}
augment: {crop: random, flip: maybe, speed: 1}
epoch: 3
"""
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    for part in (
        "batch: 'many' is not a whole number", "rest.name: 'sdg' is not one of 'sgd', 'adam', 'adamw'",
        "increments: needs lr > 0", "augment.flip: 'maybe' is not true or false", "augment.speed: unknown key",
        "epoch: unknown key; did you mean epochs?",
    ):  # fmt: skip
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("epochs: 0", "epochs, batch and threads >= 1"),
        ("epochs: 2\nwarmup: 1", "warmup"),
        ("epochs: 2\ninput: {size: 40, resize: 32}", "size <= resize"),
        ("epochs: 2\ninput: {mean: [0.5, 0.5], std: [1, 1]}", "1 or 3 channels"),
        ("epochs: 2\nincrements: {name: adam, lr: 0.1, momentum: 0.9}", "belong to sgd"),
        ("epochs: 2\naugment: {scale: [0.5]}", "two numbers"),
        ("epochs: !!python/object/apply:os.getcwd []", "not plain YAML"),
    ],
)
def test_values_out_of_range(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, f"summary: x\nbatch: 2\nrest: {{name: sgd, lr: 0.1}}\n{line}\n")


def test_the_hash_follows_what_the_file_says_and_no_comment(tmp_path: Path) -> None:
    text = "summary: x\nepochs: 2\nbatch: 2\nrest: {name: sgd, lr: 0.1}\n"
    first = read(tmp_path, text).sha256
    assert read(tmp_path, "# words\n" + text).sha256 == first
    assert read(tmp_path, text.replace("0.1", "0.2")).sha256 != first


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="shapes/ftn"):
        load_recipe("shapes/fnt")
    with pytest.raises(UnknownNameError):
        load_recipe("../registry")
