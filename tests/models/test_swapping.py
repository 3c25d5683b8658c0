"""A fused network becomes another task's in place: bit for bit what a fresh fuse gives, and never compiled again."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import zoo
from tests.conftest import SmallNet, disturb, equal, snapshot
from tests.models.test_dense import four_tasks
from zoo.errors import OptionError
from zoo.increments.lookup import methods
from zoo.models.adapted import TaskModel


def model_of(method: str = "ftn", **tasks: int) -> TaskModel:
    torch.manual_seed(0)
    options = {
        "ftn": {"rank": 3}, "lora": {"rank": 2}, "kadaptation": {"rank": 1, "products": 2},
        "tt": {"rank": 2}, "svd": {"rank": 2}, "tucker": {"rank": 2},
    }.get(method, {})  # fmt: skip
    layers = {"layers": ["body.0", "hidden"]} if method in ("lora", "kadaptation") else {}
    model = zoo.adapt(SmallNet(), tasks or {"a": 5, "b": 5, "c": 5}, method=method, **layers, **options)
    for task in model.tasks:
        disturb(model, task)
    return model


SERVED = [name for name, method in methods().items() if method.projections == () or method.whole]


@pytest.mark.parametrize("method", SERVED)
def test_a_swapped_network_is_bit_for_bit_a_fused_one_of_the_task(method: str) -> None:
    model = (
        model_of(method) if not methods()[method].trains_backbone else pytest.skip("tasks are not trained beside it")
    )
    before, images = snapshot(model.state_dict()), torch.randn(3, 3, 16, 16)
    plain = model.fuse("a")
    own = dict(plain.named_parameters())
    for task in ("b", "c", "a", "b"):
        zoo.swap(plain, model, task)
        fresh = model.fuse(task)
        assert equal(plain.state_dict(), fresh.state_dict())
        assert torch.equal(plain(images), fresh(images))
    assert all(own[name] is parameter for name, parameter in plain.named_parameters()), "the same tensors"
    assert equal(model.state_dict(), before)


def test_a_thousand_swaps_leave_no_drift() -> None:
    model = model_of()
    plain, fresh = model.fuse("a"), {task: model.fuse(task).state_dict() for task in model.tasks}
    for turn in range(1000):
        zoo.swap(plain, model, model.tasks[turn % 3])
    assert equal(plain.state_dict(), fresh["a"])  # 999 = 333 · 3
    zoo.swap(plain, model, "c")
    assert equal(plain.state_dict(), fresh["c"])


def test_what_was_compiled_is_not_compiled_again() -> None:
    model, images, counter = model_of(), torch.randn(2, 3, 16, 16), CompileCounter()
    compiled = torch.compile(model.fuse("a"), backend=counter)
    with torch.no_grad():
        compiled(images)
        assert counter.frame_count == 1
        for task in ("b", "c", "a"):
            zoo.swap(compiled, model, task)
            assert torch.equal(compiled(images), model.fuse(task)(images))
    assert counter.frame_count == 1


def test_a_narrower_task_takes_the_head_of_a_wider_one() -> None:
    model, images = model_of("ftn", wide=9, narrow=4), torch.randn(3, 3, 16, 16)
    plain = model.fuse("wide")
    zoo.swap(plain, model, "narrow")
    with torch.no_grad():
        logits = plain(images)
        torch.testing.assert_close(logits[:, :4], model.fuse("narrow")(images), rtol=1e-6, atol=1e-6)
    assert bool((logits[:, 4:] == -math.inf).all())
    zoo.swap(plain, model, "wide")
    assert equal(plain.state_dict(), model.fuse("wide").state_dict())


def test_another_type_of_number_is_rounded_to_as_a_fused_network_would_be() -> None:
    model = model_of()
    plain = model.fuse("a").to(torch.bfloat16)
    zoo.swap(plain, model, "b")
    assert equal(plain.state_dict(), model.fuse("b").to(torch.bfloat16).state_dict())


def test_what_does_not_fit_changes_nothing() -> None:
    model = model_of("ftn", wide=9, narrow=4)
    plain = model.fuse("narrow")
    before = snapshot(plain.state_dict())
    with pytest.raises(OptionError, match=r"classifier\.weight is \(4, 16\), the task's \(9, 16\).*most classes"):
        zoo.swap(plain, model, "wide")
    with pytest.raises(OptionError, match=r"no tensor stem\.weight|no tensor body"):
        zoo.swap(nn.Linear(2, 2), model, "wide")
    with pytest.raises(zoo.ZooError, match="task"):
        zoo.swap(plain, model, "else")
    assert equal(plain.state_dict(), before)


def test_a_network_whose_weights_are_constants_of_what_was_compiled_is_refused() -> None:
    model = model_of()
    frozen = torch.compile(model.fuse("a"), options={"freezing": True})
    with pytest.raises(OptionError, match="freezing"):
        zoo.swap(frozen, model, "b")


class Bare(nn.Module):
    """Ends in a classifier without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.conv(self.stem(x)).mean((2, 3)))
        return made


def test_a_head_without_a_bias_cannot_say_that_further_classes_are_none() -> None:
    model = zoo.adapt(Bare(), {"wide": 5, "narrow": 3}, rank=1)
    plain = model.fuse("wide")
    with pytest.raises(OptionError, match=r"head\.weight"):
        zoo.swap(plain, model, "narrow")


def test_maps_of_fewer_channels_are_refused() -> None:
    """They are resized after the head, where -inf becomes no number."""
    model = four_tasks("ftn", None, rank=2)
    with pytest.raises(OptionError, match="cannot become edge"):
        zoo.swap(model.fuse("semseg"), model, "edge")
