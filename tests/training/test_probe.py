"""What a training begins with and goes by: a probed head, norms that rest, cached images."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import nn

import zoo
from tests.conftest import SmallNet, equal, snapshot, write_images
from tests.training.test_training import DATA, RECIPE, fresh
from zoo.catalog.task import Task
from zoo.datasets import Splits, Transformed, get_benchmark, held_out
from zoo.errors import OptionError
from zoo.models.adapted import TaskModel
from zoo.progress.reporter import Reporter
from zoo.storage import resources
from zoo.training import loop, probe
from zoo.training.batches import batches_of

PROBED = replace(RECIPE, head="probe", rest=replace(RECIPE.rest, lr=1e-9), increments=replace(RECIPE.rest, lr=1e-9))


def train(model: TaskModel, recipe: object, data: Splits = DATA, **options: object) -> dict[str, float]:
    return loop.train_tasks(model, {"t": data}, recipe, quiet=True, **options)  # type: ignore[arg-type]


def test_the_regression_is_scikit_learns() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(200, 12) * 3 + 5, torch.randint(0, 4, (200,))
    x[:, 0] += 4 * y
    weight, bias = probe.logistic_regression(x, y, 4)
    # scikit-learn adds the losses up, and the scale of the features is ours.
    theirs = LogisticRegression(C=x.std().item() ** -2 / (probe.DECAY * len(x)), max_iter=5000, tol=1e-8).fit(
        (x - x.mean(0)).numpy(), y.numpy()
    )
    found = (x @ weight.T + bias).softmax(1).numpy()
    np.testing.assert_allclose(found, theirs.predict_proba((x - x.mean(0)).numpy()), atol=2e-3)


@pytest.mark.parametrize("method", ["ftn", "features"])
def test_a_probed_head_is_where_a_training_begins(method: str) -> None:
    options = {"rank": 2, "start": "zero"} if method == "ftn" else {}
    model = zoo.adapt(SmallNet(), {}, method, **options)
    model.add_task(Task.of("t", DATA.classes, RECIPE.input))
    train(model, replace(PROBED, epochs=1, statistics="frozen"))
    images = Transformed(DATA.train, RECIPE.input.transform())
    x = torch.stack([images[i][0] for i in range(len(DATA.train))])  # type: ignore[arg-type]
    inputs: list[torch.Tensor] = []
    head = model.backbone.classifier.tasks["t"]  # type: ignore[union-attr, index]
    head.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with torch.no_grad():
        model(x, task="t")
    weight, bias = probe.logistic_regression(inputs[0], torch.arange(len(x)) % 2, 2)
    torch.testing.assert_close(head.weight.detach(), weight, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(head.bias.detach(), bias, atol=1e-3, rtol=1e-3)


def test_it_does_what_a_probe_can_in_no_time() -> None:
    model = fresh("features")
    assert train(model, replace(PROBED, epochs=1))["accuracy"] > 90


def test_a_resumed_run_is_not_probed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, stopped = fresh(), fresh()
    recipe = replace(RECIPE, head="probe")
    train(whole, recipe)
    file = tmp_path / "checkpoint"
    save = loop._Run.save

    def stop(self: loop._Run, *args: object) -> None:
        save(self, *args)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop._Run, "save", stop)
        train(stopped, recipe, checkpoint_file=file)
    resumed = fresh()
    monkeypatch.setattr(loop, "fit_head", lambda *_, **__: pytest.fail("probed again"))
    train(resumed, recipe, checkpoint_file=file, resume=True)
    assert equal(whole.task_tensors("t"), resumed.task_tensors("t"))


def test_a_head_that_cannot_be_probed_is_told() -> None:
    model = zoo.adapt(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 5, 1), nn.Flatten()), {}, "bn"
    )
    model.add_task(Task.of("t", DATA.classes, RECIPE.input))
    with pytest.raises(OptionError, match="head: probe needs a classifier that is one Linear layer"):
        train(model, replace(RECIPE, head="probe"))
    train(model, replace(RECIPE, head="auto"))


@pytest.mark.parametrize("head", ["probe", "auto"])
def test_a_head_that_has_been_trained_is_not_probed(head: str) -> None:
    """Be it by this process, or by the one that wrote its file."""
    trained = fresh("features")
    train(trained, PROBED)
    with torch.no_grad():
        trained.backbone.classifier.tasks["t"].weight.neg_()  # type: ignore[union-attr, index]
    loaded = fresh("features")
    loaded.load_task_tensors("t", trained.task_tensors("t"))
    for model in (trained, loaded):
        kept = snapshot(model.task_tensors("t"))
        train(model, replace(PROBED, head=head, epochs=1))
        for name, tensor in model.task_tensors("t").items():
            torch.testing.assert_close(tensor, kept[name], atol=1e-6, rtol=0)


def test_a_head_is_fresh_until_it_is_trained_or_loaded() -> None:
    """Whatever else happens to the model: it is proved, copied, cast, or runs."""
    model = fresh()
    inputs = torch.randn(2, *model.task("t").preprocessing.input_size)
    model.prove("t", inputs)
    model.train()(inputs, task="t")
    for same in (model, copy.deepcopy(model), copy.deepcopy(model).double(), copy.deepcopy(model).to(torch.bfloat16)):
        assert same.has_fresh_head("t")
    loaded = fresh()
    loaded.load_task_tensors("t", {name: t + 1 for name, t in model.task_tensors("t").items()})
    assert not loaded.has_fresh_head("t")
    train(model, replace(RECIPE, epochs=1))
    assert not model.has_fresh_head("t")
    model.remove_task("t")
    model.add_task(loaded.task("t"))
    assert model.has_fresh_head("t")


def test_few_images_are_trained_on_for_more_epochs() -> None:
    steps = math.ceil(len(DATA.train) / RECIPE.batch)  # type: ignore[arg-type]
    told: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reporter, "epoch", lambda _, number, figures: told.append(number))
        train(fresh(), replace(RECIPE, epochs=2, min_steps=5 * steps + 1))
        assert told == [*range(6)]
        train(fresh(), replace(RECIPE, epochs=2, min_steps=steps))
        assert told == [*range(6), 0, 1]
        told.clear()
        train(fresh(), replace(RECIPE, epochs=1, min_steps=1000))
        assert told == [*range(loop.MOST)]


def test_statistics_of_a_network_without_any_cannot_be_kept() -> None:
    model = TaskModel(SmallNet(), "scratch")
    model.add_task(Task.of("t", DATA.classes, RECIPE.input))
    with pytest.raises(OptionError, match="statistics: frozen is for backbones that are trained already"):
        train(model, replace(RECIPE, increments=None, statistics="frozen"))


@given(st.integers(2, 200), st.integers(2, 40), st.integers(1, 4))
def test_batches_are_counted_as_they_are_made(images: int, batch: int, processes: int) -> None:
    batch *= processes
    loader = torch.utils.data.DataLoader(range(images), batch, drop_last=processes > 1 or images % batch == 1)  # type: ignore[arg-type]
    assert batches_of(images, batch, processes) == len(loader)


def test_statistics_are_not_kept_behind_what_divides_by_the_batchs() -> None:
    with pytest.raises(OptionError, match="statistics: frozen does not go with series"):
        train(fresh("series"), replace(RECIPE, statistics="frozen"))


def test_norms_that_rest_keep_their_statistics_and_are_trained() -> None:
    model = fresh("bn")
    before = snapshot(model.task_tensors("t"))
    train(model, replace(RECIPE, statistics="frozen"))
    after = model.task_tensors("t")
    kept = {name for name in after if torch.equal(after[name], before[name])}
    assert kept == {name for name in after if "running" in name or "num_batches" in name}
    train(model, RECIPE)
    assert not any(torch.equal(after[name], before[name]) for name in after)


@pytest.mark.parametrize("crop", ["random", "random_resized", "none"])
def test_cached_images_give_the_same_weights(crop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    benchmark = get_benchmark("folder")
    data = held_out(benchmark.splits("t", write_images(tmp_path / "images", {"t": ["dark", "bright"]}, 8)), 0.25, 1)
    recipe = replace(RECIPE, augment=replace(RECIPE.augment, crop=crop, padding=0), input=replace(RECIPE.input, size=16, resize=20))  # fmt: skip # noqa: E501
    found = []
    for cache in (False, True, True):
        model = fresh()
        train(model, recipe, data, cache=cache)
        found.append(model.task_tensors("t"))
    assert equal(found[0], found[1])
    assert equal(found[0], found[2])
    folders = list((resources.cache_dir() / "images").iterdir())
    assert len(folders) == 1
    pixels = (folders[0] / "pixels.bin").stat().st_size
    assert pixels == 12 * 3 * {"random": 20 * 24, "random_resized": 40 * 48, "none": 16 * 16}[crop]
    (folders[0] / "pixels.bin").write_bytes(b"cut short")
    model = fresh()
    train(model, recipe, data, cache=True)  # which is made again
    assert equal(found[0], model.task_tensors("t"))
    image = next((tmp_path / "images" / "t" / "train" / "dark").iterdir())
    image.write_bytes((tmp_path / "images" / "t" / "test" / "bright" / "0.jpg").read_bytes())
    model = fresh()
    train(model, recipe, data, cache=True)
    assert not equal(found[0], model.task_tensors("t"))


def test_a_cache_needs_files() -> None:
    with pytest.raises(OptionError, match="A cache keeps image files"):
        train(fresh(), RECIPE, cache=True)
