"""Fine-tuned networks as small files: what the singular values say of the errors, and what comes back whole."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import zoo
from tests.conftest import SmallNet
from tests.increments.test_decomposed import LAYERS
from zoo.compression.fine_tuned import Factorised, factorise
from zoo.compression.forms import FORMS, fill, largest
from zoo.compression.layers import norms
from zoo.errors import OptionError, WeightsError
from zoo.increments import get_method
from zoo.increments.base import Increment
from zoo.increments.forms import weight_of


def increment_of(layer: nn.Module, form: str, rank: int) -> Increment:
    return get_method(FORMS[form]).build(layer, {"rank": rank})


def singular(matrix: Tensor) -> np.ndarray:  # type: ignore[type-arg]
    return np.linalg.svd(matrix.numpy(), compute_uv=False)


def tuned_net() -> tuple[nn.Module, nn.Module]:
    """A network, and a copy with every tensor changed and a head of another size."""
    torch.manual_seed(0)
    base = SmallNet().eval()
    tuned = copy.deepcopy(base)
    tuned.classifier = nn.Linear(16, 4)
    for tensor in tuned.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.05 * torch.rand_like(tensor))
    return base, tuned


@pytest.mark.parametrize("form", ["cp", "svd"])
@pytest.mark.parametrize("layer", [nn.Conv2d(6, 8, 3), nn.Conv2d(6, 8, 1), nn.Linear(6, 8)])
def test_components_that_are_not_needed_can_be_trained(layer: nn.Module, form: str) -> None:
    planted, found = increment_of(layer, form, 1), increment_of(layer, form, 4)
    for parameter in planted.parameters():
        parameter.data.normal_()
    weight = weight_of(layer).detach()
    delta = planted.delta(weight).detach()
    assert fill(found, delta.double())[1] < 1e-4
    (found.delta(weight) * torch.randn_like(weight)).sum().backward()
    gradients = found.get_parameter("out_factor").grad
    assert gradients is not None
    sizes = gradients.norm(dim=0)
    assert sizes.min() > 1e-2 * sizes.max()


@settings(max_examples=25, deadline=None)
@given(
    layer=st.sampled_from(LAYERS), form=st.sampled_from(sorted(FORMS)), rank=st.integers(1, 3), seed=st.integers(0, 9)
)
def test_a_delta_of_the_form_comes_back(layer: nn.Module, form: str, rank: int, seed: int) -> None:
    torch.manual_seed(seed)
    planted, found = increment_of(layer, form, rank), increment_of(layer, form, rank)
    for parameter in planted.parameters():
        parameter.data.normal_()
    delta = planted.delta(weight_of(layer).detach().double()).detach()
    norm, error = fill(found, delta)
    assert norm == pytest.approx(float(delta.norm())) and error <= 1e-4
    torch.testing.assert_close(found.delta(delta).detach(), delta, rtol=0, atol=1e-3 * float(delta.abs().max()))


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_errors_are_those_of_the_singular_values_that_are_cut(rank: int) -> None:
    layer = nn.Conv2d(10, 12, 3)
    delta = torch.randn(12, 10, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    modes = delta.flatten(2).permute(2, 0, 1)  # (k², C_out, C_in)
    errors = {form: np.prod(fill(increment_of(layer, form, rank), delta)) for form in FORMS}

    cut = singular(delta.transpose(1, 2).reshape(36, 30))[rank:]
    assert errors["svd"] == pytest.approx(float(np.linalg.norm(cut)), rel=1e-4)

    first = singular(modes.reshape(9, -1))[rank:]  # the train is cut once, and what is left of it once more
    _, values, right = torch.linalg.svd(modes.reshape(9, -1), full_matrices=False)
    rest = (values[:rank, None] * right[:rank]).reshape(rank * 12, 10)
    second = singular(rest)[rank:]
    assert errors["tt"] == pytest.approx(float(np.hypot(np.linalg.norm(first), np.linalg.norm(second))), rel=1e-4)

    by_mode = [modes.movedim(mode, 0).reshape(modes.shape[mode], -1) for mode in range(3)]
    cuts = [np.linalg.norm(singular(matrix)[rank:]) for matrix in by_mode]
    assert max(cuts) * (1 - 1e-6) <= errors["tucker"] <= np.linalg.norm(cuts) * (1 + 1e-6)
    assert errors["cp"] >= max(cuts) * (1 - 1e-6)  # whose matrix by any mode has that rank


@pytest.mark.parametrize("form", FORMS)
def test_of_a_large_rank_the_fine_tuned_network_comes_back(form: str, tmp_path: object) -> None:
    base, tuned = tuned_net()
    before = copy.deepcopy(base.state_dict())
    rank = 40 if form == "cp" else 100
    made = factorise(
        tuned, base, form, rank, task="pets", classes=["a", "b", "c", "d"], preprocessing=zoo.Preprocessing(16, None)
    )
    assert isinstance(made, Factorised) and made.error < (1e-3 if form == "cp" else 1e-5)
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())
    whole = copy.deepcopy(tuned)
    for name in made.left:  # which a small file leaves out
        whole.state_dict()[name].copy_(before[name])
    assert set(made.left) == {"stem.weight", "stem.bias", "body.3.bias", "hidden.bias"}
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(made.model(images, task="pets"), whole(images), rtol=1e-2, atol=2e-3)
    assert made.model.task("pets").classes == ("a", "b", "c", "d")
    assert sum(layer.parameters for layer in made.layers) < sum(
        p.numel() for name, p in made.model.task_parameters("pets")
    )


def test_what_changed_most_is_told_first_and_a_layer_that_did_not_change_is_no_error() -> None:
    base, _ = tuned_net()
    tuned = copy.deepcopy(base)
    made = factorise(tuned, base, "cp", 2)
    assert made.error == 0 and not made.left and all(layer.norm == layer.error == 0 for layer in made.layers)
    first = next(name for name, p in base.named_parameters() if p.ndim == 4)
    tuned.get_parameter(first).data.add_(1)
    assert list(factorise(tuned, base, "cp", 2).left) == [first]


def test_names_with_prefixes_and_old_files_are_taken() -> None:
    base, tuned = tuned_net()
    whole = factorise(tuned, base, "svd", 2)
    state = {f"_orig_mod.module.{name}": t for name, t in tuned.state_dict().items() if not name.endswith("tracked")}
    again = factorise(state, base, "svd", 2)
    assert again.layers == whole.layers and again.left == whole.left


def test_what_does_not_fit_is_told(caplog: pytest.LogCaptureFixture) -> None:
    base, tuned = tuned_net()
    with pytest.raises(OptionError, match="cp, tt, svd, tucker, not 'cpd'"):
        factorise(tuned, base, "cpd")
    with pytest.raises(OptionError, match="rank"):
        factorise(tuned, base, "cp", 0)
    with pytest.raises(WeightsError, match="missing"):
        factorise(nn.Linear(3, 4), base)
    state = dict(tuned.state_dict())
    name = next(name for name, tensor in state.items() if tensor.ndim == 4)
    with pytest.raises(WeightsError, match=f"{name} has shape"):
        factorise({**state, name: state[name][:1]}, base)
    with pytest.raises(WeightsError, match=f"{name} holds a value"):
        factorise({**state, name: torch.full_like(state[name], torch.nan)}, base)
    with pytest.raises(WeightsError, match="no classifier"):
        factorise({key: tensor for key, tensor in state.items() if not key.startswith("classifier.")}, base)


def test_the_result_is_saved_fused_and_trained_on(tmp_path: object) -> None:
    base, tuned = tuned_net()
    made = factorise(tuned, base, "tt", 2, preprocessing=zoo.Preprocessing(16, None)).model
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(made.fuse("task")(images), made(images, task="task"), rtol=1e-4, atol=1e-4)
    made(images, task="task").sum().backward()
    assert all(p.grad is not None for p in made.increment_parameters("task"))


def test_a_rank_above_what_a_layer_has_is_what_it_has_and_small_changes_survive_few_bits() -> None:
    base, tuned = tuned_net()
    for form in FORMS:
        made = factorise(tuned, base, form, 1000)
        assert {layer.path: layer.rank for layer in made.layers} == {
            path: largest(form, site.frozen_weight.shape) for path, site in made.model.adapted()
        }
    half = copy.deepcopy(base).to(torch.bfloat16)
    exact = float((tuned.get_parameter("hidden.weight") - half.hidden.weight.float()).detach().norm())  # type: ignore[union-attr, operator]
    made = factorise(tuned, half, "svd", 100)
    assert {layer.path: layer.norm for layer in made.layers}["hidden"] == pytest.approx(exact, rel=1e-5)
    assert norms(made.model, "task")["hidden"] == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_that_did_not_change_can_be_trained_on(form: str) -> None:
    base, _ = tuned_net()
    made = factorise(copy.deepcopy(base), base, form, 2, preprocessing=zoo.Preprocessing(16, None)).model
    assert all(size == 0 for size in norms(made, "task").values())
    made.train()
    made(torch.randn(4, 3, 16, 16), task="task").square().sum().backward()
    for path, site in made.adapted():
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in site.tasks["task"].parameters()), path


def test_what_a_checkpoint_lacks_of_norms_and_head_is_told() -> None:
    base, tuned = tuned_net()
    for missing in ("classifier.bias", "bn.running_mean"):
        state = {name: tensor for name, tensor in tuned.state_dict().items() if name != missing}
        with pytest.raises(WeightsError, match=missing):
            factorise(state, base, "svd", 2)
    with pytest.raises(WeightsError, match="no tensor, but str"):
        factorise({"a": "b"}, base)  # type: ignore[dict-item]
