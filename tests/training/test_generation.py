"""Tasks that make pictures: latents and weights found together, latents fitted alone, and what models serve."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torchmetrics.image import PeakSignalNoiseRatio

import zoo
from tests.conftest import equal, snapshot
from zoo.backbones.biggan import BigGAN
from zoo.backbones.generator import Generator
from zoo.catalog.recipe import Augment, Optimizer, Recipe
from zoo.catalog.task import GENERATION, Preprocessing, Task
from zoo.datasets import Splits
from zoo.datasets.twins.landscapes import LandscapesImages
from zoo.errors import OptionError
from zoo.kinds import get_kind
from zoo.kinds.generation import psnr
from zoo.models.adapted import TaskModel
from zoo.models.latents import Latents, fit
from zoo.storage.tensors import read
from zoo.training import loop
from zoo.training.evaluation import measure

ADAM = Optimizer("adam", 0.005)
INPUT = Preprocessing(32, None, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
RECIPE = Recipe("a try", 3, 4, ADAM, ADAM, Optimizer("adam", 0.02), input=INPUT, threads=1)
DATA = Splits(Generator.channels, LandscapesImages("winter", "train", 9), LandscapesImages("winter", "test", 3))


def network() -> BigGAN:
    torch.manual_seed(2)
    made = BigGAN(32, 2, 8, 3, 2)
    for module in made.modules():  # away from where their running statistics begin
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return made


def fresh(method: str = "ftn", **options: object) -> TaskModel:
    made = network()
    torch.manual_seed(1)
    options = {"rank": 2} if method in ("ftn", "svd") else options
    return zoo.adapt(
        made, {"snow": Generator.channels}, method, kinds={"snow": GENERATION}, preprocessing=INPUT, **options
    )


def train(model: TaskModel, recipe: Recipe = RECIPE, **options: object) -> dict[str, float]:
    return loop.train_tasks(model, {"snow": DATA}, recipe, quiet=True, **options)  # type: ignore[arg-type]


def test_the_loss_and_the_metric_are_those_of_the_papers() -> None:
    made, wanted = torch.rand(3, 3, 8, 8) * 2 - 1, torch.rand(3, 3, 8, 8) * 2 - 1
    kind = get_kind(GENERATION)
    for p in (1.0, 2.0, 1.5):
        expected = torch.linalg.vector_norm(made - wanted, p) ** p / made.numel()
        torch.testing.assert_close(kind.loss(made, wanted, replace(RECIPE, exponent=p)), expected)
    theirs = PeakSignalNoiseRatio(data_range=2.0, reduction="elementwise_mean", dim=(1, 2, 3))
    assert psnr(made, wanted).mean().item() == pytest.approx(theirs(made, wanted).item(), abs=1e-4)
    assert math.isfinite(psnr(wanted, wanted).mean())


def test_a_generator_is_adapted_as_the_paper_says() -> None:
    """Factors for every convolution; the norms with what makes them, the Linear layer and the embedding whole."""
    model = fresh()
    adapted = [path for path, _ in model.adapted()]
    assert adapted == [path for path, m in network().named_modules() if isinstance(m, nn.Conv2d)]
    own = {path for path, _ in model.sites("snow")} - set(adapted)
    norms = {path for path, m in network().named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert own == norms | {"linear", "shared", "prior"}
    assert model.head_paths == ()
    assert {path for path, _ in fresh("bn").sites("snow")} == norms | {"prior"}
    tensors = model.task_tensors("snow")
    assert "blocks.0.0.bn1.gain.weight" in tensors
    assert "prior.covariance" in tensors


def test_tasks_and_networks_have_to_be_of_one_kind() -> None:
    plain = zoo.backbones.build("zoo/resnet20")
    with pytest.raises(OptionError, match="CifarResNet makes no pictures of latents"):
        zoo.adapt(plain, {"snow": Generator.channels}, "bn", kinds={"snow": GENERATION})
    with pytest.raises(OptionError, match="BigGAN makes pictures; the kind of snow is classification"):
        zoo.adapt(network(), {"snow": 2}, "ftn", rank=2)
    with pytest.raises(OptionError, match="the model has no head to do so"):
        zoo.adapt(plain, {"a": 2}, "bn", head="")
    with pytest.raises(OptionError, match="makes no pictures of latents"):
        zoo.adapt(plain, {"a": 2}, "bn").prior("a")


def test_a_task_may_own_further_modules_whole() -> None:
    plain = zoo.backbones.build("zoo/resnet20")
    model = zoo.adapt(plain, {"a": 2, "b": 2}, "ftn", rank=2, whole=["layer1", "layer3.2.conv2"])
    own = {path for path, _ in model.sites("a")}
    assert {"layer1", "layer3.2.conv2"} <= own
    assert not [path for path in own if path.startswith("layer1.")]
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model(images, task="b")
        for _, parameter in model.task_parameters("a"):
            parameter.add_(0.1 * torch.randn_like(parameter))
        assert torch.equal(model(images, task="b"), before)
        torch.testing.assert_close(model.fuse("a")(images), model(images, task="a"), atol=1e-5, rtol=1e-5)
    for whole, message in ((["fc"], "overlap"), (["bn1"], None), (["none"], "matches none"),
                           (["output_layer"], None), (["blocks.0.0.bn1.gain"], "lies in a norm")):  # fmt: skip
        net = network() if "." in whole[0] or "_" in whole[0] else plain
        task = {"a": Generator.channels} if isinstance(net, Generator) else {"a": 2}
        kinds = {"a": GENERATION} if isinstance(net, Generator) else {}
        if message is None:
            assert whole[0] in {p for p, _ in zoo.adapt(net, task, kinds=kinds, rank=2, whole=whole).sites("a")}
            continue
        with pytest.raises(OptionError, match=message):
            zoo.adapt(net, task, kinds=kinds, rank=2, whole=whole)


@pytest.mark.parametrize("method", ["ftn", "finetune", "bn", "parallel", "svd"])
def test_fused_equals_unfused_and_other_tasks_stay(method: str) -> None:
    model = fresh(method)
    model.add_task(Task.of("sun", Generator.channels, INPUT, GENERATION))
    before = snapshot(model.task_tensors("sun")), snapshot(model.backbone_tensors())
    train(model, replace(RECIPE, epochs=1, increments=None if method == "bn" else ADAM))
    assert equal(before[0], model.task_tensors("sun"))
    assert equal(before[1], model.backbone_tensors())
    latents, classes = torch.randn(3, 8), torch.tensor([2, 0, 1])
    expected = model(latents, classes, task="snow")
    torch.testing.assert_close(model.fuse("snow")(latents, classes), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(expected, model(latents, classes, task="sun"), atol=1e-3)
    rows = model(latents, task=["snow", "sun", "snow"])
    each = [model(latents, task=task) for task in ("snow", "sun")]
    torch.testing.assert_close(rows, torch.stack([each[0][0], each[1][1], each[0][2]]), atol=1e-5, rtol=1e-5)
    both = model(latents)
    torch.testing.assert_close(both["sun"], each[1], atol=1e-5, rtol=1e-5)


def test_training_finds_latents_and_weights_and_leaves_the_backbone() -> None:
    model = fresh()
    frozen = snapshot(model.backbone_tensors())
    first = train(fresh(), replace(RECIPE, epochs=1))
    last = train(model, replace(RECIPE, epochs=20))
    assert last["loss"] < 0.7 * first["loss"]
    assert equal(frozen, model.backbone_tensors())
    latents = model.latents["snow"]
    assert latents.shape == (9, 8)
    torch.testing.assert_close(model.prior("snow").mean, latents.mean(0))
    torch.testing.assert_close(model.prior("snow").covariance, latents.T.cov())
    with torch.no_grad():
        pictures = torch.stack([model.transforms("snow")(DATA.train[i][0]) for i in range(9)])
        assert last["PSNR"] == pytest.approx(psnr(model(latents, task="snow"), pictures).mean().item(), abs=1e-3)


@pytest.mark.parametrize("stopped", [1, 2])
def test_a_resumed_training_ends_where_an_undisturbed_one_does(tmp_path: Path, stopped: int) -> None:
    whole, again = fresh(), fresh()
    figures = train(whole)

    class Stopped(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    file = tmp_path / "checkpoint"
    patched = pytest.MonkeyPatch()
    epoch = loop._Run.epoch

    def until(run: loop._Run, number: int, report: object) -> dict[str, float]:
        return stop() if number == stopped else epoch(run, number, report)  # type: ignore

    with patched.context() as patch, pytest.raises(Stopped):
        patch.setattr(loop._Run, "epoch", until)
        train(again, checkpoint_file=file)
    resumed = fresh()
    assert train(resumed, checkpoint_file=file, resume=True) == figures
    assert equal(snapshot(whole.task_tensors("snow")), resumed.task_tensors("snow"))
    assert torch.equal(whole.latents["snow"], resumed.latents["snow"])


def test_training_ends_when_the_loss_does(tmp_path: Path) -> None:
    """Early stopping, of which a resumed training knows how long the loss has not fallen."""
    still = replace(RECIPE, epochs=12, patience=2, rest=Optimizer("sgd", 1e-12), increments=Optimizer("sgd", 1e-12),
                    latents=Optimizer("sgd", 1e-12))  # fmt: skip
    seen: list[int] = []
    epoch = loop._Run.epoch

    def counted(run: loop._Run, number: int, report: object) -> dict[str, float]:
        seen.append(number)
        return epoch(run, number, report)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, "epoch", counted)
        figures = train(fresh(), still, checkpoint_file=tmp_path / "checkpoint")
        assert seen == list(range(len(seen)))
        assert 3 <= len(seen) < 12
        ended = len(seen)
        assert figures["epochs"] == ended
        assert train(fresh(), still, checkpoint_file=tmp_path / "checkpoint", resume=True)["epochs"] == ended
        assert len(seen) == ended  # it had ended
        train(fresh(), replace(still, patience=0))
        assert len(seen) == ended + 12


def test_latents_are_fitted_with_everything_else_frozen() -> None:
    model = fresh().eval()
    before = snapshot(dict(model.state_dict()))
    prior = model.prior("snow")
    with torch.no_grad():
        wanted = model(prior.draw(3, torch.Generator().manual_seed(4)) * 0.5, task="snow")
    answer = lambda z: model(z, task="snow")  # noqa: E731
    with torch.no_grad():
        start = psnr(model(prior.mean.repeat(3, 1), task="snow"), wanted)
        near = psnr(model(fit(answer, wanted, prior), task="snow"), wanted)
        alone = fit(answer, wanted[1:2], prior)
    assert (near > start + 3).all()
    torch.testing.assert_close(fit(answer, wanted, prior)[1:2], alone, atol=1e-3, rtol=1e-3)
    assert equal(before, dict(model.state_dict()))
    assert all(parameter.grad is None for parameter in model.parameters())
    figure = measure(model.answering("snow"), DATA.test, model.task("snow"))
    pictures = torch.stack([model.transforms("snow")(DATA.test[i][0]) for i in range(3)])
    with torch.no_grad():
        again = model(fit(answer, pictures, prior), task="snow")
    assert figure == pytest.approx(psnr(again, pictures).mean().item(), abs=0.01)


def test_latents_begin_near_the_mean_and_do_not_depend_on_their_number() -> None:
    prior = fresh().prior("snow")
    few, many = (Latents.near(prior, count, 7).weight for count in (3, 8))
    assert torch.equal(few, many[:3])
    assert 0 < (many - prior.mean).abs().max() < 0.5


@pytest.mark.parametrize(("recipe", "message"), [
    (replace(RECIPE, latents=None), "has no `latents:`"),
    (replace(RECIPE, augment=Augment(flip=True)), "leave out the recipe's `augment:`"),
])  # fmt: skip
def test_a_recipe_that_is_for_other_tasks_is_an_error(recipe: Recipe, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        train(fresh(), recipe)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_latents_are_fitted_in_any_type_of_number(dtype: torch.dtype) -> None:
    model = fresh().to(dtype).eval()
    pictures = torch.stack([model.transforms("snow")(DATA.test[i][0]) for i in range(2)])
    with torch.no_grad():
        begun = psnr(model(model.prior("snow").mean.repeat(2, 1), task="snow").float(), pictures)
        found = model.answering("snow")(pictures)
    assert found.dtype == dtype
    assert (psnr(found.float(), pictures) > begun).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, of inputs that are no leaves
def test_a_compiled_network_is_trained_alike() -> None:
    plain, other = train(fresh()), train(fresh(), execution=loop.Execution(compile=True))
    assert other["PSNR"] == pytest.approx(plain["PSNR"], abs=0.3)


def test_a_training_goes_on_from_latents_that_the_model_has() -> None:
    model, still = fresh(), replace(RECIPE, epochs=1, latents=Optimizer("sgd", 1e-12))
    train(model)
    found = model.latents["snow"].clone()
    train(model, still)
    torch.testing.assert_close(model.latents["snow"], found)
    afresh = fresh()
    afresh.load_task_tensors("snow", model.task_tensors("snow"))
    train(afresh, still)
    assert not torch.allclose(afresh.latents["snow"], found, atol=1e-2)


OWN = """format: 1
entries:
  net-ftn-landscapes:
    backbone: zoo/biggan32x0.125
    method: {{name: ftn, rank: 1}}
    benchmark: landscapes
    classes: {{winter: 3}}
    kinds: {{winter: generation}}
    recipe: {recipe}
"""


def test_several_processes_share_the_pictures(tmp_path: Path) -> None:
    """Each finds the latents of its share; all end with one model, that of a single process but for rounding."""
    recipe, registry, weights = tmp_path / "r.yaml", tmp_path / "own.yaml", tmp_path / "b.safetensors"
    text = (
        Path("recipes/landscapes/ftn.yaml")
        .read_text()
        .replace("batch: 30", "batch: 8\nsamples: 24\nstatistics: frozen")
    )
    recipe.write_text(text)
    registry.write_text(OWN.format(recipe=recipe))
    torch.manual_seed(0)
    from safetensors.torch import save_file

    save_file(zoo.backbones.build("zoo/biggan32x0.125").state_dict(), weights)
    common = ["--registry", str(registry), "train", "net-ftn-landscapes", "--cpu", "--quiet", "--max-steps", "6"]
    common += ["--backbone-weights", str(weights), "--out"]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29613"]
    for name, start in (("one", []), ("two", launch)):
        command = [sys.executable, *start, "-m", "zoo", *common, str(tmp_path / name)]
        subprocess.run(command, check=True, timeout=300)
    one, two = (read(tmp_path / name / "winter.safetensors") for name in ("one", "two"))
    for key in ("PSNR", "train_PSNR", "train_loss"):
        assert two[1]["metrics"][key] == pytest.approx(one[1]["metrics"][key], rel=0.02)
    latents = [read(tmp_path / name / "winter.latents")[0]["latents"] for name in ("one", "two")]
    torch.testing.assert_close(latents[1], latents[0], atol=5e-3, rtol=0)
    assert latents[0].std() > 0.01
