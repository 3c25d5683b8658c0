"""A task for each row of a batch: row by row what the task's fused network gives, whatever the rows beside it."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

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
from zoo.models.mixing import InTurn, MixedLayer

SMALL = Preprocessing(12, None)
OPTIONS: dict[str, dict[str, Any]] = {
    "ftn": {"rank": 2}, "lora": {"rank": 2}, "kadaptation": {"rank": 1, "products": 2}, "parallel_svd": {"rank": 2},
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
    assert list(model._mixes._alike.values()) == [True], "one network does it"
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
    [(["a", "x"], UnknownNameError, "x"), (["a"], OptionError, "1 tasks were given for 2"),
     ([], OptionError, "0 tasks"),
     (torch.tensor([0, 3]), OptionError, "numbers 0 to 2"), (torch.tensor([-1, 0]), OptionError, "numbers 0 to 2"),
     (torch.tensor([0.0, 1.0]), OptionError, "whole numbers"), (torch.tensor(1), OptionError, "whole numbers"),
     (torch.tensor([[0, 1]]), OptionError, "whole numbers")],
)  # fmt: skip
def test_what_is_no_task_for_each_row_is_told(wrong: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words), torch.no_grad():
        model_of("bn")(torch.randn(2, 3, 12, 12), task=wrong)


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
def test_the_model_itself_can_be_compiled_once_it_has_run() -> None:
    model, images, counter = model_of("ftn"), torch.randn(4, 3, 12, 12), CompileCounter()
    model(images, task=torch.tensor([0, 1, 2, 0]))
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=False)
    for numbers in ([0, 0, 0, 0], [2, 1, 0, 2]):
        agree(compiled(images, task=torch.tensor(numbers)), row_by_row(model, images, numbers))
    assert counter.frame_count == 1


@torch.no_grad()
def test_maps_of_dense_tasks_and_those_of_few_channels() -> None:
    model, images, numbers = four_tasks("ftn", None, rank=2).eval(), torch.randn(4, 3, 24, 40), [3, 1, 2, 0]
    for _ in range(2):
        found = model(images, task=numbers)
    agree(found, row_by_row(model, images, numbers), 1e-4)
    assert list(model._mixes._alike.values()) == [True]


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
    assert list(model._mixes._alike.values()) == [True], "one network does it"


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
