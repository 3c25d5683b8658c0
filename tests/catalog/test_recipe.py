"""Recipes: every one loads, unknown keys are errors, and the paper's values stand where the paper has them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from zoo.catalog.recipe import Recipe, load_recipe, recipe_file, recipe_names
from zoo.catalog.registry import default_registry
from zoo.catalog.task import Preprocessing
from zoo.catalog.yaml_files import load_yaml
from zoo.errors import ConfigError, UnknownNameError
from zoo.loader import card
from zoo.storage.resources import registry_file


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_opens_with_its_command(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    text = recipe_file(name).read_text()
    assert text.startswith("# zoo train ")
    assert "Expect" in text or "prints no figures" in text or name.startswith("folder/")


def test_every_entry_has_its_recipe() -> None:
    registry = default_registry()
    assert all(registry.entry(name).recipe in recipe_names() for name in registry.names())


ADAM = ("adam", 0.005, 0)
SUPPLEMENT = {  # Sections A.1 and A.2: optimiser, learning rate and weight decay of the increments and of the rest
    ("sketch", "ftn"): (ADAM, ("sgd", 0.008, 0)),
    **{("sketch", method): (None, ("sgd", 0.005, 0)) for method in ("finetune", "features", "bn")},
    ("domainnet", "ftn"): (ADAM, ("sgd", 0.005, 0)),
    **{("domainnet", method): (None, ("sgd", 0.005, 1e-4)) for method in ("finetune", "features", "bn")},
}


@pytest.mark.parametrize("name", [n for n in recipe_names() if n.startswith(("sketch/", "domainnet"))])
def test_recipes_hold_the_supplements_values(name: str) -> None:
    recipe = load_recipe(name)
    benchmark, _, method = name.removesuffix("_380").replace("_joint/joint", "/finetune").partition("/")
    increments, rest = SUPPLEMENT[benchmark.removesuffix("_joint"), method]
    for found, stated in ((recipe.increments, increments), (recipe.rest, rest)):
        assert (found and (found.name, found.lr, found.weight_decay)) == stated
    assert (recipe.epochs, recipe.batch, recipe.schedule) == (30, 32, "cosine")
    assert (recipe.augment.crop, recipe.augment.flip) == ("random_resized", True)
    assert recipe.input.size == (380 if name.endswith("_380") else 224)


def test_ranks_are_the_supplements() -> None:
    ranks: dict[tuple[str, str], set[int]] = {}
    for name in default_registry().names("*-ftn-r*"):
        entry = default_registry().entry(name)
        ranks.setdefault((name.partition("-")[0], entry.benchmark), set()).add(entry.method["rank"])
    assert ranks == {
        ("resnet50", "sketch"): {1, 5, 10, 15, 20, 25, 50},
        ("efficientnet_b4", "sketch"): {1, 10},
        ("resnet34", "domainnet"): {1, 5, 10, 20, 30, 40},
        ("resnet34_joint", "domainnet"): {1},
        ("resnet18", "decathlon"): {1, 20},
        ("resnet20", "shapes"): {1, 2, 4, 8, 16},
        ("resnet20", "pentathlon"): {8},
        ("resnet18", "nyud"): {1, 10, 20, 30},
        ("resnet20", "rooms"): {1, 8},
        ("efficientnet_lite0", "pictures"): {1, 4, 16},
        ("efficientnet_lite0", "emoji"): {1, 4, 16},
        ("efficientnet_lite0", "streets"): {8},
        ("biggan32", "landscapes"): {1, 4, 16},
        ("biggan32", "scenery"): {4},
        ("biggan128", "seasons"): {20, 50},
    }


def test_a_task_may_differ_from_the_rest(tmp_path: Path) -> None:
    text = "summary: x\nepochs: 2\nbatch: 2\nrest: {name: sgd, lr: 0.1, momentum: 0.5}\n"
    recipe = read(tmp_path, text + "tasks:\n  small: {input: {size: 24, resize: 28}, rest: {lr: 0.2}, epochs: 5}\n")
    small = recipe.of("small")
    assert (small.input.size, small.rest.lr, small.rest.momentum, small.epochs) == (24, 0.2, 0.5, 5)
    assert recipe.of("other") == recipe
    assert replace(recipe, seed=7, batch=9).of("small").seed == 7
    assert recipe.sha256 != read(tmp_path, text).sha256
    with pytest.raises(ConfigError, match=r"tasks\.small\.input\.sizes: unknown key; did you mean size"):
        read(tmp_path, text + "tasks: {small: {input: {sizes: 3}}}")
    with pytest.raises(ConfigError, match="cannot hold another task's"):
        read(tmp_path, text + "tasks: {small: {tasks: {}}}")


CARD = Preprocessing(160, 200, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), interpolation="bicubic")


def test_what_a_recipe_leaves_open_of_the_input_is_the_backbones(tmp_path: Path) -> None:
    text = "summary: x\nepochs: 2\nbatch: 2\nrest: {name: sgd, lr: 0.1}\n"
    assert read(tmp_path, text).on(CARD).input == CARD
    sized = read(tmp_path, text + "input: {size: 320}\ntasks: {t: {input: {mean: [0, 0, 0]}}}\n")
    assert sized.on(CARD).input == replace(CARD, size=320, resize=400)  # the same share of the image
    assert sized.on(CARD).of("t").input == replace(CARD, size=320, resize=400, mean=(0, 0, 0))
    assert sized.on(CARD).on(Preprocessing()) == sized.on(CARD)
    stated = read(tmp_path, text + "input: {resize: null, std: [1, 1, 1]}\n").on(CARD)
    assert stated.input == replace(CARD, resize=None, std=(1, 1, 1))
    for made in (read(tmp_path, text), Recipe("x", 1, 2, read(tmp_path, text).rest)):  # from a file, and from Python
        assert made.on(CARD).input == CARD
        assert replace(made, input=Preprocessing(96, 96)).on(CARD).input == Preprocessing(96, 96)
    wide = replace(CARD, size=120, resize=160, width=160)
    assert sized.on(wide).input == replace(wide, size=320, resize=427, width=427)


def test_recipes_of_the_zoos_entries_leave_nothing_open_that_would_change_them() -> None:
    """Figures were measured with ImageNet's mean, deviation and bilinear resizing where recipes did not say."""
    registry = default_registry()
    for entry in map(registry.entry, registry.names()):
        if entry.backbone and entry.benchmark != "streets":  # whose frames have the input's size already
            recipe = load_recipe(entry.recipe)
            on = recipe.on(card(entry, registry))
            assert all(on.of(task).input == recipe.of(task).input for task in entry.tasks), entry.name


def test_pictures_that_mean_something_else_in_a_mirror_are_not_flipped() -> None:
    for name in ("ftn", "finetune", "features"):
        recipe = load_recipe(f"decathlon/{name}")
        unflipped = {
            t for t in default_registry().entry("resnet18-ftn-r1-decathlon").tasks if not recipe.of(t).augment.flip
        }
        assert unflipped == {"gtsrb", "omniglot", "svhn"}


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
        ("epochs: 2\ntasks: {a: {epochs: {}}}", "a.epochs: {} is not a whole number"),
        (f"epochs: 2\ninput: {{size: {10**400}}}", "input.size: 'a number of 333 hexadecimal digits"),
        (f"epochs: 2\nincrements: {{name: adam, lr: {10**400}}}", "lr: 'a number of 333 hexadecimal digits"),
        ("epochs: 0", "epochs, batch and threads >= 1"),
        ("epochs: 2\nwarmup: 1", "warmup"),
        ("epochs: 2\ninput: {size: 40, resize: 32}", "size <= resize"),
        ("epochs: 2\ninput: {mean: [0.5, 0.5], std: [1]}", "1 or 3 channels"),
        ("epochs: 2\ninput: {interpolation: lanczos}", "interpolation must be one of nearest"),
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


def test_yaml_is_read_as_yaml_reads_it(tmp_path: Path) -> None:
    files = [*(recipe_file(name) for name in recipe_names()), registry_file()]
    assert all(load_yaml(file) == yaml.safe_load(file.read_text()) for file in files)
    file = tmp_path / "odd.yaml"
    file.write_text("a: [1, 0x10, 1.5, .inf, true, ~, no, '2', 2020-01-01, &x {b: é}, *x]\nc: ''\n")
    assert load_yaml(file) == yaml.safe_load(file.read_text())
    doubled = "\n".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 16))
    file.write_text(f"a0: &a0 [1]\n{doubled}\n")
    read = load_yaml(file)
    assert read["a15"][0] is read["a15"][1]  # made once
    file.write_text("")
    assert load_yaml(file) is None
