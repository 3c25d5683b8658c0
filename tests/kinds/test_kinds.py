"""Kinds of tasks: losses and metrics against plain torch and cases with known answers."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from zoo.catalog import recipe
from zoo.errors import DataError
from zoo.kinds import IGNORE, get_kind
from zoo.kinds._boundaries import ODSF, matches

RECIPE = recipe.load_recipe("rooms/ftn")


# -- losses ---------------------------------------------------------------------------------------------------------


def test_losses_are_those_of_plain_torch() -> None:
    torch.manual_seed(0)
    outputs, labels = torch.randn(2, 5, 6, 7), torch.randint(0, 5, (2, 6, 7))
    labels[0, :2] = IGNORE
    loss = get_kind("segmentation").loss(outputs, labels, RECIPE)
    torch.testing.assert_close(loss, F.cross_entropy(outputs, labels, ignore_index=IGNORE))

    one, edges = torch.randn(2, 1, 6, 7), torch.randint(0, 2, (2, 6, 7))
    edges[1, 0] = IGNORE
    p, known = one[:, 0].sigmoid(), edges != IGNORE
    each = torch.where(edges == 1, -0.95 * p.log(), -0.05 * (1 - p).log())[known]
    torch.testing.assert_close(get_kind("edges").loss(one, edges, RECIPE), each.mean())

    metres = torch.rand(2, 1, 6, 7) + 0.5
    metres[0, 0, 0, :3] = torch.tensor([0.0, float("inf"), float("nan")])
    valid = metres.isfinite() & (metres > 0)
    torch.testing.assert_close(get_kind("depth").loss(one, metres, RECIPE), (one[valid] - metres[valid]).abs().mean())

    vectors, normals = torch.randn(2, 3, 6, 7), F.normalize(torch.randn(2, 3, 6, 7), dim=1)
    normals[0, :, 0] = 0
    valid = normals.norm(dim=1) > 0.5
    error = (vectors / vectors.norm(dim=1, keepdim=True) - normals).abs().movedim(1, -1)[valid]
    torch.testing.assert_close(get_kind("normals").loss(vectors, normals, RECIPE), error.mean())


@pytest.mark.parametrize(("kind", "target"), [
    ("segmentation", torch.full((2, 4, 4), IGNORE)), ("edges", torch.full((2, 4, 4), IGNORE)),
    ("depth", torch.zeros(2, 1, 4, 4)), ("depth", torch.full((2, 1, 4, 4), float("inf"))),
    ("normals", torch.zeros(2, 3, 4, 4)),
])  # fmt: skip
def test_a_target_that_is_all_ignored_gives_no_loss_and_no_gradient(kind: str, target: Tensor) -> None:
    outputs = torch.randn(2, {"segmentation": 5, "normals": 3}.get(kind, 1), 4, 4, requires_grad=True)
    known = get_kind(kind)
    loss = known.loss(outputs, target, RECIPE)
    loss.backward()
    assert loss.item() == 0
    assert outputs.grad is not None
    assert not outputs.grad.any()
    meter = known.meter(5)
    meter.update(*known.compared(outputs.detach(), target))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics', of a mean of nothing
        if kind != "edges":
            with pytest.raises(DataError, match="nothing to measure"):
                known.figure(meter)


# -- metrics --------------------------------------------------------------------------------------------------------


def figure(kind: str, outputs: Tensor, targets: Tensor, classes: int = 1) -> float:
    known = get_kind(kind)
    meter = known.meter(classes).set_dtype(torch.float64)
    for output, target in zip(outputs.split(1), targets.split(1), strict=True):  # image by image
        meter.update(*known.compared(output, target))
    return known.figure(meter)


def test_miou_is_counted_over_the_whole_set() -> None:
    targets = torch.tensor([[[0, 0, 1, 1]], [[0, 2, 2, IGNORE]]])
    predicted = torch.tensor([[[0, 1, 1, 1]], [[0, 2, 0, 2]]])
    outputs = F.one_hot(predicted, 4).movedim(-1, 1).float()
    # class 0: 2 of {3 true, 3 predicted} = 2/4; class 1: 2/3; class 2: 1/2; class 3 is nowhere
    assert figure("segmentation", outputs, targets, 4) == pytest.approx(100 * np.mean([2 / 4, 2 / 3, 1 / 2]))


def test_rmse_is_over_all_valid_pixels() -> None:
    targets = torch.tensor([[[[1.0, 2.0, 0.0]]], [[[4.0, float("inf"), 1.0]]]])
    outputs = torch.tensor([[[[1.5, 2.0, 9.0]]], [[[2.0, 9.0, 1.0]]]])
    assert figure("depth", outputs, targets) == pytest.approx(((0.25 + 0 + 4 + 0) / 4) ** 0.5)


def test_the_mean_angle_is_exact_for_small_and_large_ones() -> None:
    tiny = 1e-4
    targets = torch.tensor([[0.0, 0, 1], [0, 0, 1], [0, 0, 1], [0, 1, 0], [0, 0, 0]]).T.view(1, 3, 1, 5)
    outputs = torch.tensor([[0.0, 0, 7], [3**0.5, 0, 1], [tiny, 0, 1], [0, -2, 0], [1, 1, 1]]).T.view(1, 3, 1, 5)
    assert figure("normals", outputs, targets) == pytest.approx((0 + 60 + np.rad2deg(tiny) + 180) / 4, rel=1e-6)


def test_pixels_are_matched_as_an_optimal_assignment_matches_them() -> None:
    draw = np.random.default_rng(0)
    for radius in (1.0, 1.5, 2.5, 4.0):
        found, true = (draw.uniform(size=(12, 15)) < 0.25 for _ in range(2))
        a, b = np.argwhere(found), np.argwhere(true)
        near = np.hypot(*(a[:, None] - b[None]).transpose(2, 0, 1)) <= radius
        rows, columns = linear_sum_assignment(~near)
        assert matches(found, true, radius) == near[rows, columns].sum()
    assert matches(np.zeros((3, 3), bool), np.ones((3, 3), bool), 2) == 0


def odsf(probabilities: np.ndarray, true: np.ndarray, **options: float) -> float:
    meter = ODSF(**options)
    meter.update(torch.from_numpy(probabilities)[None], torch.from_numpy(true)[None])
    return float(meter.compute())


def test_odsf_of_cases_with_known_answers() -> None:
    true = np.zeros((40, 60), np.int64)
    true[:, 20] = 1  # 40 pixels
    line = true.astype(np.float64)
    assert odsf(0.8 * line, true) == 1
    assert odsf(np.roll(line, 1, 1), true) == 1  # a pixel off: 0.011 of the diagonal is 0.8, but neighbours may match
    assert odsf(np.roll(line, 3, 1), true) == 0
    assert odsf(np.roll(line, 3, 1), true, tolerance=0.05) == 1  # 3.6 pixels
    assert odsf(np.zeros_like(line), true) == 0
    half = line.copy()
    half[20:] = 0
    assert odsf(half, true) == pytest.approx(2 * 1 * 0.5 / 1.5)  # precision 1, recall 1/2
    both = np.maximum(line, np.roll(line, 20, 1))
    assert odsf(both, true) == pytest.approx(2 * 0.5 * 1 / 1.5)  # precision 1/2, recall 1
    wrong = np.maximum(line, 0.3 * np.roll(line, 20, 1))
    assert odsf(wrong, true) == 1  # at the best threshold the weaker line is gone
    thick = np.maximum.reduce([np.roll(line, i, 1) for i in (-1, 0, 1)])
    assert odsf(thick, true) > 0.95  # thinned to a line; its ends may lose a pixel
    ignored = true.copy()
    ignored[:, 39:42] = IGNORE
    assert odsf(np.maximum(line, np.roll(line, 20, 1)), ignored) == 1  # what is found where nothing is known is dropped


def test_the_best_threshold_is_the_data_sets_not_the_images() -> None:
    true = np.zeros((2, 20, 20), np.int64)
    true[:, :, 5] = 1
    false = np.roll(true, 8, 2)
    first, second = 0.9 * true[0] + 0.5 * false[0], 0.4 * true[1] + 0.0 * false[1]
    meter = ODSF()
    meter.update(torch.from_numpy(np.stack([first, second])), torch.from_numpy(true))
    # at 0.4 both true lines and a false one: P 2/3, R 1; above 0.5 one line of two: P 1, R 1/2
    assert float(meter.compute()) == pytest.approx(0.8)
