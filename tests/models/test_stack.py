"""All tasks in one pass."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.conftest import disturb
from tests.models.test_dense import four_tasks
from zoo.backbones.deeplab import deeplab_resnet20
from zoo.catalog.task import Task
from zoo.models.adapted import TaskModel
from zoo.models.placement import Placement

# -- all tasks in one pass ------------------------------------------------------------------------------------------


def together_and_apart(model: TaskModel, images: Tensor) -> None:
    with torch.no_grad():
        apart = {task: model(images, task=task) for task in model.tasks}
        first, together = model(images), model(images)  # the first time takes both ways and compares
    assert tuple(first) == tuple(together) == model.tasks
    assert all(torch.equal(first[task], apart[task]) for task in apart)
    for task, found in together.items():
        torch.testing.assert_close(found, apart[task], rtol=1e-5, atol=1e-5 * float(apart[task].abs().max()))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("method", "options"),
    [("features", {}), ("bn", {}), ("ftn", {"rank": 3, "route": "factored"}), ("ftn", {"rank": 3, "route": "folded"}),
     ("ftn", {"rank": 3}), ("series", {}), ("parallel", {}), ("finetune", {})],
)  # fmt: skip
def test_one_pass_gives_what_a_pass_for_each_task_gives(method: str, options: dict[str, object], batch: int) -> None:
    model = four_tasks(method, None, **options)
    together_and_apart(model, torch.randn(batch, 3, 21, 30))
    assert list(model._stacks.values()) == [True], "it fell back to a pass for each task"


def test_one_pass_where_tasks_part_late_or_differ_in_rank() -> None:
    torch.manual_seed(0)
    layers = Placement(layers=["encoder.layer3.*"], norms=["encoder.layer3.*"])
    for route in ("folded", "factored"):
        model = TaskModel(deeplab_resnet20(), "ftn", {"rank": 2, "route": route}, layers)
        for task, rank in (("a", 2), ("b", 5), ("c", 2)):
            model.add_task(Task.of(task, 2), {"rank": rank})
            disturb(model, task)
        together_and_apart(model, torch.randn(1, 3, 16, 16))
        calls: list[int] = []
        model.backbone.encoder.layer1.register_forward_hook(lambda _, __, y, calls=calls: calls.append(len(y)))  # type: ignore
        with torch.no_grad():
            model(torch.randn(1, 3, 16, 16))
        assert calls == [1], "what the tasks share is run once"
        together_and_apart(model, torch.randn(2, 3, 16, 16))


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "resnet18", "deit_tiny_distilled_patch16_224"]
)
def test_any_network_answers_for_all_tasks(name: str) -> None:
    """Those that cannot be stacked take a pass for each task; a classifier's logits may differ in number."""
    torch.manual_seed(0)
    method, options = ("bn", {}) if name == "resnet18" else ("lora", {"rank": 2})
    model = TaskModel(timm.create_model(name), method, options)
    for task, classes in (("a", 3), ("b", 5), ("c", 3), ("d", 2)):
        model.add_task(Task.of(task, classes))
        disturb(model, task)
    for batch in (1, 2):
        together_and_apart(model, torch.randn(batch, 3, 224, 224))


def test_one_pass_has_the_gradients_of_a_pass_for_each_task() -> None:
    model, images = four_tasks("ftn", None, rank=2).double(), torch.randn(2, 3, 16, 24).double()
    model(images)
    assert list(model._stacks.values()) == [True]
    gradients = []
    for one_pass in (True, False):
        model.zero_grad()
        outputs = model(images) if one_pass else {task: model(images, task=task) for task in model.tasks}
        sum(output.square().mean() for output in outputs.values()).backward()  # type: ignore[union-attr]
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


def test_an_error_of_the_images_comes_through_and_does_no_harm() -> None:
    model = four_tasks()
    with pytest.raises(RuntimeError):
        model(torch.randn(1, 4, 16, 16))
    assert not model._stacks
    together_and_apart(model, torch.randn(1, 3, 16, 16))
    assert list(model._stacks.values()) == [True]


class Mixing(nn.Module):
    """A network that does something with its features before the head."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head, self.how = Gathering(), how

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.stem(x))
        if self.how == "rows":
            y = y.reshape(len(x), 4, -1).mean(2)[:, :, None, None]
        elif self.how == "loop":
            y = torch.stack([y[i] for i in range(len(x))])
        elif self.how == "batch":
            y = y / y.abs().amax(0)
        elif self.how == "check":
            assert len(y) == len(x)
        found: Tensor = self.head([y, 2 * y], scale=0.5)
        return found


class Gathering(nn.Module):
    """A head that takes a list of features, and something by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 5, 3, padding=2, dilation=2)

    def forward(self, features: list[Tensor], *, scale: float) -> Tensor:
        found: Tensor = scale * self.layer(torch.cat(features, 1))
        return found


@pytest.mark.parametrize(("how", "stacks"), [
    ("none", True), ("rows", False), ("loop", False), ("batch", False), ("check", False),
])  # fmt: skip
def test_one_pass_is_taken_where_it_is_right_alone(how: str, stacks: bool) -> None:
    torch.manual_seed(0)
    model = TaskModel(Mixing(how), "bn", placement=Placement(head="head"))
    for task in ("a", "b", "c"):
        model.add_task(Task.of(task, 2))
        disturb(model, task)
    for size in ((2, 3, 8, 8), (1, 3, 7, 9), (3, 3, 8, 8)):
        together_and_apart(model, torch.randn(size))
    assert set(model._stacks.values()) <= {stacks, True}
    assert (False in model._stacks.values()) is not stacks
    assert model(torch.randn(2, 3, 8, 8), task="a").shape == (2, 2, *((1, 1) if how == "rows" else (8, 8)))
