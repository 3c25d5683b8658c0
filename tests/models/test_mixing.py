"""A task for each row of a batch: row by row what the task's fused network gives, whatever the rows beside it."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import zoo
from tests.conftest import disturb
from tests.export.test_shared import SERVED
from tests.models.networks import network
from tests.models.test_dense import four_tasks
from zoo.catalog.task import Preprocessing, Task
from zoo.errors import OptionError, UnknownNameError
from zoo.increments.by_row import ByRow
from zoo.models.adapted import TaskModel
from zoo.models.row_layers import InTurn, MixedLayer

SMALL = Preprocessing(12, None)
OPTIONS: dict[str, dict[str, Any]] = {
    "ftn": {"rank": 2}, "lora": {"rank": 2}, "kadaptation": {"rank": 1, "products": 2}, "parallel_svd": {"rank": 2},
    "tt": {"rank": 2}, "svd": {"rank": 2}, "tucker": {"rank": 2},
}  # fmt: skip


class Forms(nn.Module):
    """Convolutions of every form that is run in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 12, 1, stride=2), nn.ReLU(),
            nn.Conv2d(12, 12, 3, padding=2, dilation=2), nn.Conv2d(12, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.Conv2d(8, 8, (1, 3), padding=(0, 1)),
            nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), nn.ConvTranspose2d(8, 8, 3),
        )  # fmt: skip
        self.hidden, self.head = nn.Linear(8, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(torch.relu(self.norm(self.stem(x)))).mean((2, 3))
        made: Tensor = self.head(torch.relu(self.hidden(x)))
        return made


def model_of(method: str = "ftn", backbone: nn.Module | None = None, **options: Any) -> TaskModel:
    torch.manual_seed(0)
    layers = {"layers": ["body.0", "body.2", "hidden"]} if method in ("lora", "kadaptation") and not backbone else {}
    model = zoo.adapt(backbone or Forms(), {}, method=method, **layers, **{**OPTIONS.get(method, {}), **options})
    for name, classes in (("a", 5), ("b", 7), ("c", 3)):
        model.add_task(Task.of(name, classes, SMALL))
        disturb(model, name)
    for tensor in model.shared_tensors().values():
        tensor.normal_(std=0.1)
    return model.eval()


def row_by_row(model: TaskModel, images: Tensor, numbers: list[int]) -> Tensor:
    """What the fused networks give for each row, alone."""
    fused = {number: model.fuse(model.tasks[number]) for number in set(numbers)}
    rows = [fused[number](images[row : row + 1]) for row, number in enumerate(numbers)]
    widest = max(len(model.task(task).classes) for task in model.tasks)
    filled = [row.new_full((1, widest, *row.shape[2:]), -torch.inf) for row in rows]
    for whole, row in zip(filled, rows, strict=True):
        whole[:, : row.shape[1]] = row
    return torch.cat(filled)


def ways(module: nn.Module) -> set[str]:
    return {type(part).__name__ for part in module.modules() if isinstance(part, ByRow | InTurn)}


def one_network(model: TaskModel) -> bool:
    """Whether one network serves the rows, and not one task after another."""
    made = model._mixes._made
    return made is not None and list(made.agrees.values()) == [True]


def agree(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    known = torch.isfinite(expected)
    assert torch.equal(known, torch.isfinite(found))
    scale = float(expected[known].abs().max())
    torch.testing.assert_close(found[known], expected[known], rtol=0, atol=tolerance * scale)


NUMBERS = [2, 0, 1, 1, 0, 2, 2]


@pytest.mark.parametrize("method", SERVED)
@torch.no_grad()
def test_each_row_is_what_its_tasks_fused_network_gives(method: str) -> None:
    model, images = model_of(method), torch.randn(7, 3, 12, 12)
    expected = row_by_row(model, images, NUMBERS)
    first, then = model(images, task=torch.tensor(NUMBERS)), model(images, task=[model.tasks[n] for n in NUMBERS])
    assert one_network(model)
    agree(first, expected)
    agree(then, expected)
    order = torch.randperm(7)
    agree(model(images[order], task=torch.tensor(NUMBERS)[order]), expected[order])
    for row in (0, 3):
        agree(model(images[row : row + 1], task=[NUMBERS[row]]), expected[row : row + 1])


@torch.no_grad()
def test_what_is_kept_whole_stays_below_the_limit() -> None:
    model, images = model_of("ftn"), torch.randn(7, 3, 12, 12)
    large = torch.zeros(1, 3, 64, 64)  # the larger the images are, the more does it pay to keep weights whole
    free, none = (model.mixed(stack_limit=limit, example=large) for limit in (10**9, 0))
    half = model.mixed(stack_limit=free.stacked // 2, example=large)
    assert 0 < half.stacked <= free.stacked // 2
    for made in (free, none, half):
        kept = [
            t for part in made.modules() for name, t in part._buffers.items() if name == "weights" and t is not None
        ]
        assert sum(t.nbytes for t in kept) == made.stacked
        agree(made(images, torch.tensor(NUMBERS)), row_by_row(model, images, NUMBERS))
    assert none.stacked == 0


@torch.no_grad()
def test_every_way_gives_the_same() -> None:
    model, images, numbers = model_of("ftn"), torch.randn(7, 3, 12, 12), torch.tensor(NUMBERS)
    expected, tried = row_by_row(model, images, NUMBERS), set()
    layers = {
        path: part for path, part in model.mixed().network.named_modules() if isinstance(part, MixedLayer | InTurn)
    }
    sites = dict(model._sites)
    for path in layers:
        increments = [sites[path].tasks[task] for task in model.tasks]
        for way in type(increments[0]).by_row(increments, sites[path]._frozen(), 36):
            made = model.mixed()
            other = MixedLayer(sites[path]._frozen(), way.make(), made.rows)
            made.network.set_submodule(path, other)
            agree(made(images, numbers), expected)
            tried |= ways(other)
    assert tried == {"Branch", "ConvolutionBranch", "Stacked", "StackedConvolution"}


class Later(nn.Module):
    """Takes its rows apart in an order of its own."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order
        self.stem, self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)
        self.hidden, self.head = nn.Linear(6, 6), nn.Linear(6, 4)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(self.stem(x))).flatten(2).permute(0, 2, 1)  # (B, P, C)
        if self.order == "positions first":
            x = self.hidden(x.transpose(0, 1).flatten(0, 1)).unflatten(0, (x.shape[1], x.shape[0])).mean(0)
        elif self.order == "images first":
            x = self.hidden(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)
        elif self.order == "batch":
            x = self.hidden(x.mean(1)) / x.mean(1).abs().amax(0)
        elif self.order == "counts":
            self.passes += 1
            x = self.hidden(x.mean(1)) + self.passes
        else:
            x = self.hidden(x).mean(1)
        logits: Any = self.head(x)
        shapes = {"tokens": lambda: logits.unsqueeze(1).repeat(1, 9, 1), "dict": lambda: {"logits": logits}}
        return shapes.get(self.order, lambda: logits)()  # type: ignore[no-any-return]


@pytest.mark.parametrize("first", [[0], [0, 0, 0, 0], [0, 1, 2, 0]])
@pytest.mark.parametrize(("order", "together"), [("positions first", False), ("images first", True), ("counts", True)])
@torch.no_grad()
def test_what_rows_are_whose_does_not_go_by_the_first_batch(order: str, together: bool, first: list[int]) -> None:
    model, images = model_of("ftn", Later(order)), torch.randn(4, 3, 12, 12)
    model(images[: len(first)], task=first)
    for numbers in ([2, 1, 0, 1], [1, 0, 2], [2]):
        found = model(images[: len(numbers)], task=numbers)
        for row, number in enumerate(numbers):
            alone = model(images[row : row + 1], task=model.tasks[number])[0]
            torch.testing.assert_close(found[row, : len(alone)], alone)
    assert one_network(model) == together
    if together:
        mixed, numbers = model.mixed(), torch.tensor([2, 1, 0, 1])
        for _ in range(3):
            made = model._mixes._made
            agree(mixed(images, numbers), model(images, task=numbers))
            assert model._mixes._made is made, "it is made once"
    else:
        with pytest.raises(OptionError, match="cannot take a task for each row in one pass"):
            model.mixed()
    assert model.backbone.passes == 0


@pytest.mark.parametrize(("order", "words"), [("tokens", "classes second"), ("dict", "needs one tensor")])
@torch.no_grad()
def test_outputs_that_hold_no_rows_of_classes_are_refused(order: str, words: str) -> None:
    model = model_of("ftn", Later(order))
    with pytest.raises(OptionError, match=words):
        model(torch.randn(4, 3, 12, 12), task=[0, 1, 2, 0])


@torch.no_grad()
def test_images_of_which_nothing_can_be_told_decide_nothing() -> None:
    model, images = model_of("ftn"), torch.randn(4, 3, 12, 12)
    assert torch.isnan(model(torch.full_like(images, torch.nan), task=[0, 1, 2, 0])).any()
    for _ in range(2):
        agree(model(images, task=[0, 1, 2, 0]), row_by_row(model, images, [0, 1, 2, 0]))
    assert one_network(model)


@pytest.mark.parametrize("method", ["ftn", "finetune", "kadaptation"])
@torch.no_grad()
def test_a_mixed_network_is_a_copy_and_can_be_converted(method: str) -> None:
    model, images, numbers = model_of(method), torch.randn(4, 3, 12, 12), torch.tensor([2, 1, 0, 1])
    model.train()
    mixed = model.mixed()
    assert model.training
    model.eval()
    before, expected = row_by_row(model, images, numbers.tolist()), row_by_row(model, images, numbers.tolist())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wide = mixed.double()
    agree(wide(images.double(), numbers).float(), expected)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    mixed = model.mixed()
    for task in model.tasks:
        disturb(model, task)
    model.remove_task("c")
    agree(mixed(images, numbers), before)
    with pytest.raises(OptionError, match="as many task numbers"):
        mixed(images, numbers[:1])


@torch.no_grad()
def test_a_mixed_network_is_made_in_full_precision_and_told_apart_from_autocast() -> None:
    model, images, numbers = model_of("ftn"), torch.randn(4, 3, 12, 12), [2, 1, 0, 1]
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            model(images, task=numbers)
    for _ in range(2):
        agree(model(images, task=numbers), row_by_row(model, images, numbers))


@torch.no_grad()
def test_threads_that_all_come_first() -> None:
    for _ in range(3):
        model, images = model_of("ftn"), torch.randn(4, 3, 12, 12)

        def answer(case: list[int], model: TaskModel = model, images: Tensor = images) -> Tensor:
            with torch.no_grad():
                found: Tensor = model(images, task=case)
                return found

        cases = [[0, 1, 2, 0], [2, 2, 1, 0], [1, 1, 1, 1], [0, 0, 2, 2]]
        with ThreadPoolExecutor(4) as pool:
            for case, found in zip(cases, pool.map(answer, cases), strict=True):
                agree(found, row_by_row(model, images, case))
        assert one_network(model)


@torch.no_grad()
def test_frozen_and_shared_tensors_that_change_show_too() -> None:
    model, images, numbers = model_of("parallel_svd"), torch.randn(4, 3, 12, 12), [2, 1, 0, 1]
    for _ in range(2):
        model(images, task=numbers)
    for tensor in (*model.shared_tensors().values(), *model.backbone_parameters()):
        tensor.mul_(1.3)
    agree(model(images, task=numbers), row_by_row(model, images, numbers))


@torch.no_grad()
def test_frozen_tensors_are_the_models_own() -> None:
    model = model_of("ftn")
    made = model.mixed(stack_limit=0)
    own = {t.data_ptr() for t in model.backbone_tensors().values()}
    assert made.network.stem.weight.data_ptr() in own
    assert all(
        p.data_ptr() in own for part in made.modules() if isinstance(part, MixedLayer) for p in part.frozen.parameters()
    )
    assert all(p.requires_grad for task in model.tasks for _, p in model.task_parameters(task))


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [(["a", "x"], UnknownNameError, "x"), ([True, False], UnknownNameError, "True"), (3, UnknownNameError, "3"),
      (["a"], OptionError, "1 tasks were given for 2"),
     ([], OptionError, "0 tasks"),
     (torch.tensor([0, 3]), OptionError, "numbers 0 to 2"), (torch.tensor([-1, 0]), OptionError, "numbers 0 to 2"),
     (torch.tensor([0.0, 1.0]), OptionError, "whole numbers"), (torch.tensor(1), OptionError, "whole numbers"),
     (torch.tensor([[0, 1]]), OptionError, "whole numbers")],
)  # fmt: skip
def test_what_is_no_task_for_each_row_is_told(wrong: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words), torch.no_grad():
        model_of("bn")(torch.randn(2, 3, 12, 12), task=wrong)


@torch.no_grad()
def test_tasks_may_be_numbers_of_numpys() -> None:
    model, images = model_of("bn"), torch.randn(2, 3, 12, 12)
    expected = row_by_row(model, images, [2, 0])
    for numbers in (
        np.array([2, 0]),
        [np.int64(2), np.int32(0)],
        (2, 0),
        ["c", "a"],
        torch.tensor([2, 0], dtype=torch.int32),
    ):
        agree(model(images, task=numbers), expected)


def test_gradients_reach_each_rows_own_task() -> None:
    model, images = model_of("ftn").double(), torch.randn(7, 3, 12, 12).double()
    found = model(images, task=torch.tensor(NUMBERS))
    found[torch.isfinite(found)].square().sum().backward()
    mixed = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for row, number in enumerate(NUMBERS):
        model(images[row : row + 1], task=model.tasks[number]).square().sum().backward()
    assert mixed
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(mixed[name], parameter.grad)


@torch.no_grad()
def test_what_changes_of_a_task_shows_in_the_next_pass() -> None:
    model, images = model_of("ftn"), torch.randn(7, 3, 12, 12)
    for _ in range(2):
        model(images, task=NUMBERS)
    disturb(model, "b")
    agree(model(images, task=NUMBERS), row_by_row(model, images, NUMBERS))
    model.load_task_tensors("a", {name: 0.9 * t for name, t in model.task_tensors("a").items()})
    agree(model(images, task=NUMBERS), row_by_row(model, images, NUMBERS))
    model.add_task(Task.of("late", 11, SMALL))
    assert model(images, task=NUMBERS).shape == (7, 11)
    model.remove_task("a")
    with pytest.raises(UnknownNameError):
        model(images, task=["a"] * 7)


@torch.no_grad()
def test_threads_with_rows_of_their_own_do_not_meet() -> None:
    model = model_of("ftn")
    images = torch.randn(7, 3, 12, 12)
    model(images, task=NUMBERS)
    cases = [[random.Random(seed).randrange(3) for _ in range(7)] for seed in range(24)]
    expected = [row_by_row(model, images, case) for case in cases]

    def answer(case: list[int]) -> Tensor:
        with torch.no_grad():
            found: Tensor = model(images, task=case)
            return found

    with ThreadPoolExecutor(4) as pool:
        for found, known in zip(pool.map(answer, cases), expected, strict=True):
            agree(found, known)


@pytest.mark.parametrize("method", ["ftn", "bn", "parallel", "finetune"])
@torch.no_grad()
def test_a_compiled_network_is_compiled_once_for_all_mixtures(method: str) -> None:
    model, images, counter = model_of(method), torch.randn(4, 3, 12, 12), CompileCounter()
    compiled = torch.compile(model.mixed(), backend=counter, fullgraph=True, dynamic=False)
    for numbers in ([0, 0, 0, 0], [2, 1, 0, 2], [1, 1, 2, 2]):
        agree(compiled(images, torch.tensor(numbers)), row_by_row(model, images, numbers))
    assert counter.frame_count == 1


@torch.no_grad()
def test_a_compiled_model_is_never_behind_its_tasks() -> None:
    model, images = model_of("ftn"), torch.randn(4, 3, 12, 12)
    model(images, task=[0, 1, 2, 0])
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        agree(compiled(images, task=torch.tensor([2, 1, 0, 2])), row_by_row(model, images, [2, 1, 0, 2]))
        disturb(model, "b")


@torch.no_grad()
def test_maps_of_dense_tasks_and_those_of_few_channels() -> None:
    model, images, numbers = four_tasks("ftn", None, rank=2).eval(), torch.randn(4, 3, 24, 40), [3, 1, 2, 0]
    for _ in range(2):
        found = model(images, task=numbers)
    agree(found, row_by_row(model, images, numbers), 1e-4)
    assert one_network(model)


@pytest.mark.parametrize(
    ("name", "method", "options"),
    [("vit_tiny_patch16_224", "ftn_qv", {"rank": 2}), ("swin_tiny_patch4_window7_224", "lora", {"rank": 2}),
     ("tf_efficientnet_lite0", "ftn", {"rank": 2}), ("deit_tiny_distilled_patch16_224", "lora", {"rank": 2}),
     ("resnetv2_50x1_bit", "ftn", {"rank": 2})],
)  # fmt: skip
@torch.no_grad()
def test_networks_of_timm(name: str, method: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = TaskModel(timm.create_model(name), method, options)
    for task, classes in (("a", 3), ("b", 5), ("c", 4)):
        model.add_task(Task.of(task, classes))
        disturb(model, task)
    images, numbers = torch.randn(3, 3, 224, 224), [2, 0, 1]
    for _ in range(2):
        found = model(images, task=numbers)
    agree(found, row_by_row(model, images, numbers), 2e-5)
    assert one_network(model)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31), st.sampled_from(["ftn", "bn", "features", "parallel", "series", "ssf", "bitfit", "finetune"])
)
def test_whatever_the_network_each_row_is_its_tasks(seed: int, method: str) -> None:
    """Networks that cannot be run so, or that read the weights of their layers, are served all the same."""
    draw = random.Random(seed)
    backbone, images = network(draw)
    numbers = [draw.randrange(3) for _ in range(len(images))]
    try:
        model = model_of(method, backbone)
        with torch.no_grad():
            expected = row_by_row(model, images, numbers)
            for task in model.tasks:
                model(images, task=task)
    except OptionError:
        return  # a network or a layer that the method does not take: told by name, and tested elsewhere
    with torch.no_grad():
        for _ in range(2):
            found = model(images, task=numbers)
    tolerance = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 6e-2}[images.dtype]
    agree(found.double(), expected.double(), tolerance)
