"""Training: schedules, seeds, what moves, and that a stopped run ends where an undisturbed one does."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

import zoo
from tests.conftest import SmallNet, equal, snapshot, write_images
from zoo.catalog.recipe import Augment, Optimizer, Recipe, load_recipe, recipe_names
from zoo.catalog.registry import default_registry
from zoo.catalog.task import Preprocessing, Task
from zoo.datasets import Images, Splits, fraction_of, get_benchmark, held_out
from zoo.errors import DataError, OptionError, TrainingError, WeightsError
from zoo.increments import get_method
from zoo.joint import JointModel, Network, joined
from zoo.models.adapted import TaskModel
from zoo.training import batches, loop, optimizers
from zoo.training.loop import Execution

SGD = Optimizer("sgd", 0.05, momentum=0.9)
RECIPE = Recipe(
    "a try",
    3,
    6,
    SGD,
    Optimizer("adam", 0.01),
    input=Preprocessing(16, 16),
    augment=Augment("random", 2, flip=True),
    threads=1,
)


class Noise(Images):
    """So many random images of two classes; class 1 is brighter."""

    def __init__(self, count: int = 20) -> None:
        generator = torch.Generator().manual_seed(5)
        self.pixels = torch.randint(0, 156, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
        self.pixels[1::2] += 90

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.pixels[index], index % 2


DATA = Splits(("dark", "bright"), Noise(), Noise(10))


def fresh(method: str = "ftn") -> TaskModel:
    torch.manual_seed(1)
    model = zoo.adapt(SmallNet(), {}, method, **({"rank": 2} if method == "ftn" else {}))
    model.add_task(Task.of("t", DATA.classes, RECIPE.input))
    return model


def train(model: TaskModel, recipe: Recipe = RECIPE, **options: object) -> dict[str, float]:
    return loop.train_tasks(model, {"t": DATA}, recipe, quiet=True, **options)  # type: ignore[arg-type]


def test_it_learns() -> None:
    model = fresh()
    figures = train(model, replace(RECIPE, epochs=10))
    assert figures["accuracy"] > 90
    assert not model.training


@pytest.mark.parametrize("method", ["ftn", "bn", "features", "finetune"])
def test_the_frozen_weights_stay_bit_for_bit(method: str) -> None:
    model = fresh(method)
    frozen, own = snapshot(model.backbone_tensors()), snapshot(model.task_tensors("t"))
    train(model)
    assert equal(model.backbone_tensors(), frozen)
    assert all(not torch.equal(tensor, own[name]) for name, tensor in model.task_tensors("t").items())


def test_scratch_trains_the_backbone_itself() -> None:
    model = fresh("scratch")
    before = snapshot(model.backbone_tensors())
    train(model)
    same = {name for name, tensor in model.backbone_tensors().items() if torch.equal(tensor, before[name])}
    assert same <= {"stem.bias", "body.3.bias"}  # a norm follows: they have no effect, and so no gradient


def test_two_runs_agree_bit_for_bit_and_another_seed_differs() -> None:
    models = [fresh(), fresh(), fresh()]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        torch.manual_seed(99)  # what was drawn before is of no account
        train(model, replace(RECIPE, seed=seed))
    assert equal(models[0].task_tensors("t"), models[1].task_tensors("t"))
    assert not equal(models[0].task_tensors("t"), models[2].task_tensors("t"))


@pytest.mark.parametrize("after", [1, 4, 5, 9])
def test_a_run_stopped_anywhere_ends_as_an_undisturbed_one(after: int, tmp_path: Path) -> None:
    undisturbed = fresh()
    train(undisturbed)

    class Stopped(Exception):
        pass

    class Stopping(Noise):
        left = after * RECIPE.batch

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            self.left -= 1
            if self.left < 0:
                raise Stopped
            return super().__getitem__(index)

    file = tmp_path / "t.checkpoint"
    with pytest.raises(Stopped):
        loop.train_tasks(fresh(), {"t": replace(DATA, train=Stopping())}, RECIPE, checkpoint_file=file, quiet=True)
    resumed = fresh()
    train(resumed, checkpoint_file=file, resume=True)
    assert equal(resumed.task_tensors("t"), undisturbed.task_tensors("t"))


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.checkpoint"
    train(fresh(), checkpoint_file=file)
    for other in (replace(RECIPE, sha256="b"), replace(RECIPE, seed=4)):
        with pytest.raises(WeightsError, match="was made with recipe"):
            train(fresh(), other, checkpoint_file=file, resume=True)
    with pytest.raises(WeightsError, match="max_steps"):
        train(fresh(), checkpoint_file=file, resume=True, execution=Execution(max_steps=2))
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(WeightsError, match="not a whole"):
        train(fresh(), checkpoint_file=file, resume=True)


def test_schedules_are_the_formulas() -> None:
    cosine = replace(RECIPE, schedule="cosine")
    assert [optimizers.schedule(cosine, p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert optimizers.schedule(cosine, 0.25) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    polynomial = replace(RECIPE, schedule="polynomial", power=0.9)
    assert optimizers.schedule(polynomial, 0.3) == pytest.approx(0.7**0.9)
    assert optimizers.schedule(replace(RECIPE, schedule="constant"), 0.9) == 1
    warm = replace(cosine, warmup=0.2)
    assert [optimizers.schedule(warm, p) for p in (0, 0.1, 0.2, 1)] == pytest.approx([0, 0.5, 1, 0])


def test_cosine_agrees_with_torchs_scheduler() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], 0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for step in range(20):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * optimizers.schedule(RECIPE, step / 20))
        optimizer.step()
        scheduler.step()


def test_increments_and_the_rest_have_optimisers_of_their_own() -> None:
    model = fresh()
    first, second = optimizers.build_optimizers(model, ["t"], RECIPE)
    assert isinstance(first, torch.optim.Adam)
    assert isinstance(second, torch.optim.SGD)
    ids = [{id(p) for group in o.param_groups for p in group["params"]} for o in (first, second)]
    assert ids[0] == {id(p) for p in model.increment_parameters("t")}
    assert ids[0] | ids[1] == {id(p) for _, p in model.task_parameters("t")}
    assert not ids[0] & ids[1]
    (single,) = optimizers.build_optimizers(fresh("finetune"), ["t"], replace(RECIPE, increments=None))
    assert len(single.param_groups[0]["params"]) == len(list(SmallNet().parameters()))


@pytest.mark.parametrize("execution", [Execution(compile=True), Execution(channels_last=False)])
def test_how_steps_are_carried_out_changes_little(execution: Execution) -> None:
    plain, other = fresh(), fresh()
    figures = [
        train(model, replace(RECIPE, epochs=10), execution=e) for model, e in ((plain, None), (other, execution))
    ]
    assert figures[1]["loss"] == pytest.approx(figures[0]["loss"], abs=0.1)
    x = torch.rand(4, 3, 16, 16)
    assert torch.allclose(plain(x, task="t"), other(x, task="t"), atol=0.5)
    assert other.backbone._compiled_call_impl is None


def test_the_network_compiles_without_a_break() -> None:
    model = fresh()
    with model.selection.use("t"):
        explained = torch._dynamo.explain(model.backbone)(torch.rand(4, 3, 16, 16))
    torch._dynamo.reset()
    assert explained.graph_break_count == 0


def test_one_scaler_serves_both_optimisers() -> None:
    """Gradients that were scaled up are scaled down again for both, and an overflow is survived."""
    plain, scaled = ([torch.nn.Parameter(torch.ones(3)) for _ in range(2)] for _ in range(2))
    x = torch.tensor([1.0, -2.0, 3.0])

    def run(parameters: list[torch.nn.Parameter], scaler: torch.amp.GradScaler | None, steps: int) -> None:
        both = [torch.optim.Adam(parameters[:1], 0.1), torch.optim.SGD(parameters[1:], 0.1)]
        for _ in range(steps):
            loss = ((parameters[0] * x).sum() - 1) ** 2 + (parameters[1] * x).sum() ** 2
            (scaler.scale(loss) if scaler else loss).backward()
            optimizers.update(both, scaler)

    run(plain, None, 8)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)  # it grows while the eight steps go on
    run(scaled, scaler, 8)
    assert scaler.get_scale() > 4
    assert all(torch.allclose(a, b) for a, b in zip(plain, scaled, strict=True))
    fresh = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    run(fresh, torch.amp.GradScaler("cpu", init_scale=3e38), 1)
    assert all(torch.equal(p, torch.ones(3)) for p in fresh)


def test_held_out_images_are_training_images_that_are_not_trained_on() -> None:
    held = held_out(DATA, 0.2, 7)
    parts = [{id_of(images[i][0]) for i in range(len(images))} for images in (held.train, held.test)]  # type: ignore[arg-type]
    assert [len(part) for part in parts] == [16, 4]
    assert parts[0] | parts[1] == {id_of(DATA.train[i][0]) for i in range(20)}
    assert [held_out(DATA, 0.2, 7).test[i][1] for i in range(4)] == [held.test[i][1] for i in range(4)]
    with pytest.raises(DataError, match="leaves none"):
        held_out(DATA, 0.01, 7)


def test_fractions_are_nested_and_leave_the_test_images_alone() -> None:
    parts = [fraction_of(DATA, fraction, 7) for fraction in (0.2, 0.5, 1.0)]
    ids = [{id_of(part.train[i][0]) for i in range(len(part.train))} for part in parts]  # type: ignore[arg-type]
    assert [len(part) for part in ids] == [4, 10, 20]
    assert ids[0] < ids[1] < ids[2]
    assert all(part.test is DATA.test for part in parts)
    with pytest.raises(DataError, match="leaves none"):
        fraction_of(DATA, 0.05, 7)


def id_of(image: Tensor) -> bytes:
    return image.numpy().tobytes()


def test_the_augmentations_give_inputs_of_the_right_size() -> None:
    image = torch.zeros(3, 50, 70, dtype=torch.uint8)
    to = Preprocessing(32, 40)
    for crop in ("random", "random_resized", "none"):
        transform = to.transform(batches.augmentations(Augment(crop, 2, flip=True), to))
        assert transform(image).shape == (3, 32, 32)


def test_a_batch_that_processes_cannot_share() -> None:
    class Three:
        num_processes = 3

    assert batches.per_process(6, Three()) == 2  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="cannot be shared by 3"):
        batches.per_process(32, Three())  # type: ignore[arg-type]


USERS = {name: [e for e in default_registry().entries() if e.recipe == name] for name in recipe_names()}
JOINT = [name for name, entries in USERS.items() if entries and entries[0].networks]


@pytest.mark.parametrize("name", [name for name in recipe_names() if name not in JOINT])
def test_every_recipe_runs_two_steps(name: str, tmp_path: Path) -> None:
    """On tiny images in the recipe's own form, by the method that its entries use."""
    recipe = replace(load_recipe(name), batch=4, epochs=1)
    data = get_benchmark("folder").splits("d", write_images(tmp_path, {"d": ["x", "y"]}, per_class=4, size=64))
    used = [entry.method for entry in USERS[name]]
    own = name.partition("/")[2].removeprefix("paper_")
    method = dict(used[0]) if used else {"name": "scratch" if own.startswith("pretrain") else own}
    if method["name"] in ("ftn", "ftn_qv", "ftn_o", "lora", "kadaptation"):
        method.setdefault("rank", 2)
    method.pop("layers", None)  # of another network
    network: torch.nn.Module = SmallNet()
    if get_method(method["name"]).projections:
        network = VisionTransformer(img_size=recipe.input.size, embed_dim=24, depth=1, num_heads=3)
    model = zoo.adapt(network, {}, method.pop("name"), **method)
    model.add_task(Task.of("d", data.classes, recipe.input))
    before = snapshot(model.state_dict())
    figures = loop.train_tasks(model, {"d": data}, recipe, execution=Execution(max_steps=2), quiet=True)
    assert math.isfinite(figures["loss"])
    assert not equal(model.state_dict(), before)


@pytest.mark.parametrize("name", JOINT)
def test_every_joint_recipe_runs_a_round(name: str, tmp_path: Path) -> None:
    """A batch of each task, on tiny images in the recipe's own forms, by the way of sharing that its entries use."""
    recipe, entry = replace(load_recipe(name), batch=4, epochs=1), USERS[name][0]
    data = get_benchmark("folder").splits("d", write_images(tmp_path, {"d": ["x", "y"]}, per_class=4, size=64))
    inputs = {task: math.prod((recipe.of(task).input.channels, *recipe.of(task).input.shape)) for task in entry.tasks}
    networks = {
        task: Network.of(
            nn.Sequential(nn.Flatten(), nn.Linear(size, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)), 2
        )
        for task, size in inputs.items()
    }
    method = entry.method["name"]
    options = {"trmtl": {"pattern": "01", "rank": 2, "cores": 2}, "stl": {}, "mrn": {}}.get(method, {"rank": 2})
    model = joined(networks, method, options)
    for task in entry.tasks:
        model.add_task(Task.of(task, data.classes, recipe.of(task).input))
    before = snapshot(model.state_dict())
    execution = Execution(max_steps=len(entry.tasks))
    figures = loop.train_tasks(model, dict.fromkeys(entry.tasks, data), recipe, execution=execution, quiet=True)
    assert {f"{task}/loss" for task in entry.tasks} <= set(figures)
    assert all(not equal(model.task_tensors(task), own) for task, own in per_task(model, before).items())


def per_task(model: JointModel, state: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """The tasks' tensors in a state of a joint model."""
    begins = {task: f"branches.{task}." for task in model.tasks}
    return {
        task: {name.removeprefix(begin): tensor for name, tensor in state.items() if name.startswith(begin)}
        for task, begin in begins.items()
    }


def test_a_diverged_training_is_no_result(tmp_path: Path) -> None:
    wild = replace(RECIPE, rest=Optimizer("sgd", 1e30))
    with pytest.raises(TrainingError, match="has diverged"):
        train(fresh(), wild, checkpoint_file=tmp_path / "t")


def test_what_an_accelerator_cannot_give_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OptionError, match="pip install tensorboard"):
        loop.make_accelerator(tracker="tensorboard")
