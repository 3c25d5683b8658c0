"""Networks that share parts of their weights: one interface, whatever is shared, and nothing else moves."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tensorly
import torch
from torch import Tensor, nn

import zoo
from zoo.catalog.task import Preprocessing, Task
from zoo.errors import OptionError, UnknownNameError, WeightsError
from zoo.joint import JointModel, Network, joined, sharings
from zoo.joint.mrn import MRN, Prior
from zoo.joint.stacked import StackedLayer, from_torch, to_torch
from zoo.joint.tables import NETWORKS, network
from zoo.joint.trmtl import TRMTL, parse_pattern
from zoo.models.composed import Borrowed, Composed
from zoo.ring import RingLayer

EIGHT = Preprocessing(8, None, (0.5,), (0.5,))
OPTIONS: dict[str, dict[str, Any]] = {
    "stl": {},
    "mrn": {"specific": 1},
    "dmtrl_tucker": {"rank": 6},
    "dmtrl_tt": {"rank": 6},
    "trmtl": {"pattern": "41", "rank": 3},
}


def mlp(hidden: int = 36, sides: int = 8) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(sides * sides, 64), nn.ReLU(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 3)
    )


def model(method: str, networks: Mapping[str, Network] | None = None, **options: Any) -> JointModel:
    """Two tasks of five classes, or those of some networks, with fresh weights."""
    torch.manual_seed(0)
    networks = networks or {task: Network.of(mlp(), 5) for task in ("a", "b")}
    made = joined(networks, method, options or OPTIONS[method])
    for task, plan in networks.items():
        made.add_task(Task.of(task, plan.outputs, EIGHT))
    return made


IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(3))
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def step(made: JointModel, task: str, optimizer: torch.optim.Optimizer) -> None:
    loss = nn.functional.cross_entropy(made(IMAGES, task=task), LABELS)
    penalty = made.penalty(task)
    (loss if penalty is None else loss + penalty).backward()
    optimizer.step()
    optimizer.zero_grad()


def own(made: JointModel, task: str) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in made.task_tensors(task).items()}


# -- what every way of sharing keeps to -------------------------------------------------------------------------------


def test_the_cases_are_all_ways_of_sharing() -> None:
    assert set(OPTIONS) == set(sharings())


@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_a_step_of_one_task_moves_nothing_of_another_s(method: str, kind: type[torch.optim.Optimizer]) -> None:
    """Bit for bit, with momentum from steps of both tasks in the one optimiser."""
    made = model(method)
    parameters = [p for task in made.tasks for _, p in made.task_parameters(task)] + list(made.common_parameters())
    optimizer = kind(parameters, lr=0.05, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    for task in ("a", "b", "a", "b"):
        step(made, task, optimizer)
    other, mine, shared = own(made, "b"), own(made, "a"), {n: t.clone() for n, t in made.shared_tensors().items()}
    step(made, "a", optimizer)
    assert all(torch.equal(tensor, other[name]) for name, tensor in made.task_tensors("b").items())
    assert any(not torch.equal(tensor, mine[name]) for name, tensor in made.task_tensors("a").items())
    moved = [not torch.equal(tensor, shared[name]) for name, tensor in made.shared_tensors().items()]
    assert any(moved) == (method != "stl")


@pytest.mark.parametrize("method", OPTIONS)
def test_what_is_shared_lives_once(method: str) -> None:
    made = model(method)
    owners = [*(dict(made.task_parameters(task)) for task in made.tasks), dict(made.sharing.named_parameters())]
    places = [{p.data_ptr() for p in named.values()} for named in owners]
    assert all(not one & other for one, other in itertools.combinations(places, 2))
    counted = {id(p) for p in made.parameters()}
    assert len(counted) == sum(map(len, owners))
    before = made(IMAGES, task="a"), made(IMAGES, task="b")
    with torch.no_grad():
        for parameter in made.sharing.parameters():
            parameter.mul_(1.5)
    changed = [not torch.equal(made(IMAGES, task=task), then) for task, then in zip("ab", before, strict=True)]
    assert changed == [method != "stl"] * 2


@pytest.mark.parametrize("method", OPTIONS)
def test_fused_networks_are_torchs_own_and_agree(method: str) -> None:
    made = model(method)
    state = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    for task in made.tasks:
        plain = made.fuse(task)
        assert all(type(part).__module__.startswith("torch.nn.modules.") for part in plain.modules())
        torch.testing.assert_close(plain(IMAGES), made(IMAGES, task=task), rtol=1e-5, atol=1e-5)
        assert [tuple(p.shape) for p in plain.parameters()] == [
            tuple(p.shape) for p in Network.of(mlp(), 5).plain().parameters()
        ]
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter.zero_()
    assert all(torch.equal(tensor, state[name]) for name, tensor in made.state_dict().items())


@pytest.mark.parametrize("method", OPTIONS)
def test_copies_share_among_themselves_alone(method: str) -> None:
    made = model(method)
    copied = copy.deepcopy(made)
    torch.testing.assert_close(copied(IMAGES, task="b"), made(IMAGES, task="b"))
    before = made(IMAGES, task="b")
    with torch.no_grad():
        for parameter in copied.sharing.parameters():
            parameter.add_(1)
    assert torch.equal(made(IMAGES, task="b"), before)
    assert torch.equal(copied(IMAGES, task="b"), before) == (method == "stl")


@pytest.mark.parametrize("method", OPTIONS)
def test_files_bring_back_every_bit(method: str, tmp_path: Path) -> None:
    made, again = model(method), joined({t: Network.of(mlp(), 5) for t in "ab"}, method, OPTIONS[method])
    with torch.no_grad():
        for tensor in made.state_dict().values():
            tensor.add_(0.01 * torch.randn_like(tensor))
    for task in made.tasks:
        made.save_adapter(task, tmp_path / f"{task}.safetensors")
    if method != "stl":
        with pytest.raises(WeightsError, match="belongs to other shared tensors"):
            again.load_adapter(tmp_path / "a.safetensors")
    again.load_shared_tensors(made.shared_tensors())
    for task in ("b", "a"):
        assert again.load_adapter(tmp_path / f"{task}.safetensors").classes == made.task(task).classes
        assert torch.equal(again(IMAGES, task=task), made(IMAGES, task=task))
    other = joined({t: Network.of(mlp(), 5) for t in "ab"}, "stl" if method != "stl" else "mrn", {})
    with pytest.raises(WeightsError, match=f"the method '{method}'"):
        other.load_adapter(tmp_path / "a.safetensors")


def test_a_task_can_be_forgotten_and_added_anew() -> None:
    made = model("trmtl")
    before = made(IMAGES, task="a")
    made.remove_task("b")
    assert made.tasks == ("a",)
    assert torch.equal(made(IMAGES, task="a"), before)
    with pytest.raises(UnknownNameError, match="a"):
        made(IMAGES, task="b")
    made.add_task(Task.of("b", 5))
    with pytest.raises(OptionError, match="a task 'b' already"):
        made.add_task(Task.of("b", 5))
    made.remove_task("b")
    with pytest.raises(OptionError, match="has 4 classes; its network was made for 5"):
        made.add_task(Task.of("b", 4))
    with pytest.raises(UnknownNameError, match="Known: a, b"):
        made.add_task(Task.of("surprise", 5))
    with pytest.raises(OptionError, match="was made with the options"):
        made.add_task(Task.of("b", 5), {"pattern": "40", "rank": 3})


def test_options_are_checked_by_name() -> None:
    networks = {"a": Network.of(mlp(), 5)}
    with pytest.raises(OptionError, match="needs pattern, rank"):
        joined(networks, "trmtl", {})
    with pytest.raises(OptionError, match="does not take ranks; its options are: rank"):
        joined(networks, "dmtrl_tt", {"ranks": 3})
    with pytest.raises(UnknownNameError, match="trmtl"):
        joined(networks, "trmlt", {})
    with pytest.raises(OptionError, match="two Linear, Conv2d or LSTM layers at least"):
        Network.of(nn.Sequential(nn.Linear(3, 3)), 2)


# -- TRMTL: patterns --------------------------------------------------------------------------------------------------


def cores(made: JointModel, task: str) -> list[list[Tensor]]:
    return [layer.ring.cores for layer in made.branches[task].modules() if isinstance(layer, RingLayer)]


@pytest.mark.parametrize(
    ("pattern", "shared"),
    [("41", [{1, 2, 3, 4}, {1}]), ([2, 0], [{1, 2}, set()]), ([[1, 3], [4]], [{1, 3}, {4}]), ("0", [set(), set()])],
)
def test_the_cores_of_the_pattern_are_the_same_and_no_others(pattern: Any, shared: list[set[int]]) -> None:
    made = model("trmtl", pattern=pattern, rank=3)
    for one, other, places in zip(cores(made, "a"), cores(made, "b"), shared, strict=True):
        same = {k for k, (g, h) in enumerate(zip(one, other, strict=True), 1) if g.data_ptr() == h.data_ptr()}
        assert same == places


def test_a_pattern_that_cannot_hold_names_layer_core_and_shapes() -> None:
    networks = {"a": Network.of(mlp(36), 5), "b": Network.of(mlp(27), 5)}
    made = joined(networks, "trmtl", {"pattern": "40", "rank": 3})
    assert isinstance(made.sharing, TRMTL)
    able = made.sharing.shareable()
    bad = next(place for place in (1, 2, 3, 4) if place not in able[1])
    one, other = (made.sharing.shapes[task][1][bad - 1] for task in ("a", "b"))
    words = f"Core {bad} of layer 2 .* {'×'.join(map(str, one))} in a and {'×'.join(map(str, other))} in b"
    with pytest.raises(OptionError, match=words):
        joined(networks, "trmtl", {"pattern": [[], [bad]], "rank": 3})
    joined(networks, "trmtl", {"pattern": [4, able[1]], "rank": 3})
    with pytest.raises(OptionError, match="Layer 3 cannot share cores: a alone has such a layer"):
        deeper = nn.Sequential(mlp(36), nn.ReLU(), nn.Linear(3, 4))
        joined({"a": Network.of(deeper, 5), "b": Network.of(mlp(), 5)}, "trmtl", {"pattern": "401", "rank": 3})
    with pytest.raises(OptionError, match="Core 5 of layer 1 cannot be shared: it is missing in a"):
        joined(networks, "trmtl", {"pattern": "5", "rank": 3})
    with pytest.raises(OptionError, match="for 3 layers; the networks have 2 at most"):
        joined(networks, "trmtl", {"pattern": "111", "rank": 3})


@pytest.mark.parametrize("pattern", ["4x", [-1], [[0]], [[1, 1]], [True], [1.5], 4, [["1"]]])
def test_what_is_no_pattern_is_said_to_be_none(pattern: Any) -> None:
    with pytest.raises(OptionError, match="A pattern gives for each layer"):
        parse_pattern(pattern, 3)


def test_three_tasks_of_different_depth_width_and_input_share_what_fits() -> None:
    """The paper's Tables 3 and 11 in small: cores of the first layers, private ones beyond."""
    networks = {
        "deep": network("digits_mlp", 5),
        "wide": network("digits16_mlp", 4),
        "own": Network.of(mlp(36), 3),
    }
    with pytest.raises(OptionError, match="Core 1 of layer 1"):
        joined(networks, "trmtl", {"pattern": "1", "rank": 3})
    two = {name: plan for name, plan in networks.items() if name != "own"}
    made = model("trmtl", two, pattern="21", rank=3)
    assert made(torch.randn(2, 1, 8, 8), task="deep").shape == (2, 5)
    assert made(torch.randn(2, 1, 16, 16), task="wide").shape == (2, 4)
    counts = {task: made.count_parameters(task) for task in made.tasks}
    assert counts["deep"].shared == 9 * (16 + 16 + 16)
    assert counts["deep"].per_task == 9 * (8 + 8 + 3 * 16 + 16 + 16 + 8 + 8)
    assert counts["wide"].per_task == 9 * (16 + 16 + 16 + 8 + 8)


@pytest.mark.parametrize("rank", [0, -1, 2.5, True, [2, 0, 2, 2]])
def test_ranks_are_whole_numbers(rank: Any) -> None:
    with pytest.raises(OptionError, match="rank of TRMTL must be a whole number"):
        model("trmtl", pattern="0", rank=rank)


# -- the paper's counts -----------------------------------------------------------------------------------------------


def test_the_counts_of_table_1() -> None:
    """Hidden layers without bias; heads left out of what is compared, but where the paper's figure is had with them."""
    two = {task: network("mnist_mlp", 5) for task in ("odd", "even")}
    heads = 2 * 256 * 5

    def total(method: str, **options: Any) -> int:
        made = model(method, two, **options)
        return made.count_parameters("odd").total(made.tasks)

    assert total("stl") + 2 * 256 * 10 == pytest.approx(6_060_000, abs=500)  # heads of ten outputs, as in Table 6
    assert total("mrn", strength=1e-3) + heads == pytest.approx(3_096_000, abs=500)
    assert 13_000 <= total("trmtl", pattern="420", rank=5) < total("trmtl", pattern="410", rank=5) <= 16_000


@pytest.mark.parametrize("name", [n for n in NETWORKS if n.startswith(("digits", "clips", "shapes", "mnist_"))])
def test_networks_fuse_whatever_is_in_them(name: str) -> None:
    made = model("trmtl", {"t": network(name, 6)}, pattern="0", rank=2)
    sizes = {"digits_mlp": (1, 8, 8), "digits16_mlp": (1, 16, 16), "shapes_mlp": (3, 32, 32), "mnist_mlp": (1, 28, 28),
             "shapes16_mlp": (3, 16, 16), "shapes_grey_mlp": (1, 32, 32), "clips_lstm": (12, 1, 16, 16)}  # fmt: skip
    x, plain = torch.randn(3, *sizes[name]), made.fuse("t")
    torch.testing.assert_close(plain(x), made(x, task="t"), rtol=1e-5, atol=1e-5)
    layers = [part for part in plain.modules() if not list(part.children())]
    assert {type(layer).__module__.partition(".modules")[0] for layer in layers} == {"torch.nn"}
    with pytest.raises(UnknownNameError, match=name):
        network(f"{name}s", 3)


def test_a_frozen_trunk_stands_in_front_and_in_the_fused_network(tmp_path: Path) -> None:
    trunk = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Flatten(), nn.Identity())
    plan = Network.of(nn.Sequential(nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 2)), 5)
    made = joined({"a": plan, "b": plan}, "trmtl", {"pattern": "2", "rank": 2, "cores": 2}, trunk, ("3.",))
    made.load_backbone_tensors({**trunk.state_dict(), "3.weight": torch.zeros(1)})
    for task in "ab":
        made.add_task(Task.of(task, 5, EIGHT))
    made.train()
    before = {name: tensor.clone() for name, tensor in made.backbone_tensors().items()}
    made(IMAGES, task="a").sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.backbone_tensors().items())
    assert all(p.grad is None for p in made.trunk.parameters())
    made.eval()
    torch.testing.assert_close(made.fuse("a")(IMAGES), made(IMAGES, task="a"), rtol=1e-5, atol=1e-5)
    assert made.count_parameters("a").backbone == 4 * 9 + 4 + 8
    made.save_adapter("a", tmp_path / "a.safetensors")
    other = joined({"a": plan, "b": plan}, "trmtl", {"pattern": "2", "rank": 2, "cores": 2}, copy.deepcopy(trunk))
    other.load_shared_tensors(made.shared_tensors())
    with torch.no_grad():
        other.trunk.get_parameter("0.bias").add_(1)
    with pytest.raises(WeightsError, match="trained on another backbone"):
        other.load_adapter(tmp_path / "a.safetensors")


# -- DMTRL: against tensorly ------------------------------------------------------------------------------------------


def conv_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(96, 2))


@pytest.mark.parametrize("plain", [mlp, conv_net])
@pytest.mark.parametrize("method", ["dmtrl_tucker", "dmtrl_tt"])
def test_dmtrl_begins_as_tensorlys_factorisation(method: str, plain: Any) -> None:
    sources = {task: Network.of(plain(), 5).plain() for task in ("a", "b", "c")}
    networks = {task: Network.of(plain(), 5) for task in sources}
    full = model(method, networks, rank=10_000)
    assert all(error < 1e-5 for error in full.begin(sources).values())
    for task, source in sources.items():  # biases and heads too
        torch.testing.assert_close(full(IMAGES, task=task), source(IMAGES), rtol=1e-4, atol=1e-5)
    small = model(method, networks, rank=2)
    errors = small.begin(sources)
    for number, factors in small.sharing.get_submodule("layers").named_children():
        made = [layer for layer in small.branches["a"].modules() if isinstance(layer, StackedLayer)]
        layer = next(each for each in made if each.factors[0] is factors)
        place = next(name for name, part in small.branches["a"].named_modules() if part is layer)
        stack = torch.stack([from_torch(s.get_submodule(place).get_parameter("weight")) for s in sources.values()], -1)
        stack = stack.detach().double().numpy()
        own = torch.stack([small.branches[t].get_submodule(place).get_parameter("own") for t in sources])
        with tensorly.backend_context("numpy"):
            if method == "dmtrl_tt":
                ranks = factors.ranks  # type: ignore[union-attr]
                expected = tensorly.tt_to_tensor(tensorly.decomposition.tensor_train(stack, ranks))
            else:
                ranks = [*factors.ranks, own.shape[1]]  # type: ignore[misc]
                expected = tensorly.tucker_to_tensor(tensorly.decomposition.tucker(stack, ranks))
        found = torch.stack([small.branches[t].get_submodule(place).weight() for t in sources]).detach()  # type: ignore[operator]
        for weight, task in zip(found, range(3), strict=True):
            torch.testing.assert_close(
                from_torch(weight).double(), torch.tensor(expected[..., task]), rtol=1e-3, atol=1e-4
            )
        error = torch.tensor(stack - expected).norm() / torch.tensor(stack).norm()
        assert errors[f"layer {number}"] == pytest.approx(float(error), rel=1e-2)


@pytest.mark.parametrize("method", ["dmtrl_tucker", "dmtrl_tt"])
def test_dmtrl_leaves_layers_of_several_shapes_to_their_tasks(method: str) -> None:
    networks = {"a": Network.of(mlp(sides=8), 5), "b": Network.of(mlp(sides=4), 5)}
    made = model(method, networks, rank=4)
    kinds = {t: [type(part) for part in made.branches[t] if isinstance(part, nn.Linear | Composed)] for t in "ab"}  # type: ignore[arg-type, union-attr]
    assert kinds["a"] == kinds["b"] == [nn.Linear, StackedLayer, nn.Linear]
    with pytest.raises(OptionError, match="of one shape for all tasks, and there are none"):
        model(method, {"a": Network.of(mlp(36, 8), 5), "b": Network.of(mlp(35, 4), 5)}, rank=4)


@pytest.mark.parametrize("method", ["dmtrl_tucker", "dmtrl_tt"])
def test_dmtrls_fresh_weights_have_xaviers_variance(method: str) -> None:
    found = []
    for _ in range(30):
        made = joined({t: Network.of(mlp(), 5) for t in "ab"}, method, {"rank": 8})
        made.add_task(Task.of("a", 5))
        found.append(
            next(p for p in made.branches["a"].modules() if isinstance(p, Composed)).weight().detach().square().mean()
        )
    assert float(torch.stack(found).mean()) == pytest.approx(2 / 128, rel=0.4)


def test_weights_go_to_the_papers_order_and_back() -> None:
    for weight in (torch.randn(3, 5), torch.randn(3, 5, 2, 4)):
        assert torch.equal(to_torch(from_torch(weight)), weight)
    assert from_torch(torch.randn(3, 5, 2, 4)).shape == (2, 4, 5, 3)


def test_ways_without_a_beginning_say_so() -> None:
    with pytest.raises(OptionError, match="trmtl starts from fresh weights"):
        model("trmtl").begin({})


# -- MRN: against the formulas ----------------------------------------------------------------------------------------


def spd(size: int) -> Tensor:
    root = torch.randn(size, size)
    return root @ root.T + size * torch.eye(size)


def test_the_energy_is_that_of_the_tensor_normal() -> None:
    prior, weights = Prior((4, 3, 2)), torch.randn(4, 3, 2)
    for covariance in prior.covariances:
        covariance.copy_(spd(len(covariance)))
    whole = torch.kron(torch.kron(prior.inputs, prior.outputs), prior.tasks)  # type: ignore[arg-type]
    vector = weights.flatten()
    torch.testing.assert_close(
        prior.energy(weights), vector @ torch.linalg.solve(whole, vector) / 2, rtol=1e-4, atol=1e-5
    )


def test_each_covariance_is_the_likeliest_given_the_others() -> None:
    """The first given the two others as they were, the last given both as they are: by explicit Kronecker products."""
    prior, weights = Prior((4, 3, 2)), torch.randn(4, 3, 2)
    for covariance in prior.covariances:
        covariance.copy_(spd(len(covariance)))
    _, outputs, tasks = (covariance.clone() for covariance in prior.covariances)
    prior.estimate(weights)
    for mode, found, others in (
        (0, prior.covariances[0], torch.kron(outputs, tasks)),
        (2, prior.covariances[2], torch.kron(prior.covariances[0], prior.covariances[1])),
    ):
        unfolded = weights.movedim(mode, 0).flatten(1)
        likeliest = unfolded @ torch.linalg.solve(others, unfolded.T) / unfolded.shape[1]
        scale = likeliest.diagonal().mean() if mode else 1.0
        torch.testing.assert_close(found, likeliest / scale, rtol=1e-2, atol=5e-3)  # but for the ridge
    assert not torch.allclose(prior.covariances[1], outputs)
    assert float(prior.covariances[1].diagonal().mean()) == pytest.approx(1.0, rel=2e-3)


def test_the_penalty_pulls_one_task_as_the_whole_energy_does() -> None:
    made = model("mrn", specific=1, strength=0.5)
    assert isinstance(made.sharing, MRN)
    for prior in made.sharing.priors.children():
        assert isinstance(prior, Prior)
        for covariance in prior.covariances:
            covariance.copy_(spd(len(covariance)))
    weights = {t: [made.branches[t].get_submodule(p).get_parameter("weight") for p in ("3", "5")] for t in "ab"}
    whole = 0.5 * sum(
        prior.energy(torch.stack([weights["a"][i].T, weights["b"][i].T], 2))  # type: ignore[operator]
        for i, prior in enumerate(made.sharing.priors.children())
    )
    expected = torch.autograd.grad(whole, weights["a"])  # type: ignore[arg-type]
    penalty = made.penalty("a")
    assert penalty is not None
    torch.testing.assert_close(penalty, whole)
    found = torch.autograd.grad(penalty, weights["a"] + weights["b"], allow_unused=True)
    assert found[2:] == (None, None)
    for one, other in zip(found[:2], expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_an_epoch_changes_the_covariances_and_no_weight() -> None:
    made = model("mrn")
    before = own(made, "a")
    covariances = {n: t.clone() for n, t in made.shared_tensors().items() if n.startswith("priors.")}
    made.end_epoch()
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.task_tensors("a").items())
    assert all(not torch.equal(made.shared_tensors()[name], then) for name, then in covariances.items())
    assert all(torch.linalg.eigvalsh(made.shared_tensors()[name]).min() > 0 for name in covariances)


def test_mrn_shares_lower_layers_whole_and_refuses_what_differs() -> None:
    made = model("mrn", specific=1)
    borrowed = {path for path, part in made.branches["a"].named_modules() if isinstance(part, Borrowed)}
    assert borrowed == {"1"}
    with pytest.raises(OptionError, match=r"needs 3 to have one shape for all tasks, not \(36, 64\) and \(27, 64\)"):
        model("mrn", {"a": Network.of(mlp(36), 5), "b": Network.of(mlp(27), 5)}, strength=0.0)
    with pytest.raises(OptionError, match="needs 5 to have one shape"):
        model("mrn", {"a": Network.of(mlp(), 5), "b": Network.of(mlp(), 4)}, strength=0.0)
    with pytest.raises(OptionError, match="0 <= specific <= 2"):
        model("mrn", specific=3)


@pytest.mark.parametrize("method", OPTIONS)
def test_a_fused_network_becomes_another_tasks_in_place(method: str) -> None:
    made = model(method)
    plain, fresh = made.fuse("a"), made.fuse("b")
    zoo.swap(plain, made, "b")
    assert torch.equal(plain(IMAGES), fresh(IMAGES))


@pytest.mark.parametrize("method", OPTIONS)
def test_each_row_of_a_batch_may_have_a_task_of_its_own(method: str) -> None:
    made, numbers = model(method).eval(), [1, 0, 0, 1, 1, 0]
    with torch.no_grad():
        found = made(IMAGES, task=numbers)
        for row, number in enumerate(numbers):
            torch.testing.assert_close(found[row], made(IMAGES[row : row + 1], task=made.tasks[number])[0])
