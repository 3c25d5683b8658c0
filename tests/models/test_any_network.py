"""Any network works (fused is unfused, gradients arrive, what is frozen keeps every bit) or is refused by name."""

from __future__ import annotations

import copy
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

import zoo
from tests.models.networks import network
from zoo.errors import OptionError, ZooError
from zoo.models import proof

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("ftn", {"rank": 2}), ("parallel", {}), ("series", {}), ("ssf", {}), ("bitfit", {}), ("finetune", {}), ("bn", {}),
    ("lora", {"rank": 2, "layers": ["blocks.*"]}),
]  # fmt: skip
CLOSE = {torch.float32: 1e-5, torch.float64: 1e-9, torch.bfloat16: 3e-2}


def shaken(model: zoo.TaskModel, task: str = "a") -> zoo.TaskModel:
    """The model, the task's parameters moved: many methods begin where they add nothing."""
    torch.manual_seed(1)
    with torch.no_grad():
        for _, parameter in model.task_parameters(task):
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def difference(model: zoo.TaskModel, *inputs: Any, task: str = "a", **named: Any) -> float:
    """Of the fused network from the model, relative to the largest output."""
    with torch.no_grad():
        expected = model(*inputs, task=task, **named)
        found = model.fuse(task)(*inputs, **named)
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def without_gradient(model: zoo.TaskModel, *inputs: Any, task: str = "a") -> list[str]:
    """The parameters that a step on these inputs leaves without one."""
    model(*inputs, task=task).float().square().sum().backward()
    return [name for name, p in model.task_parameters(task) if p.grad is None or not p.grad.any()]


# -- the rule ---------------------------------------------------------------------------------------------------------


def fate(net: nn.Module, x: Tensor, method: str, options: dict[str, Any]) -> str:
    """Hold the rule on one network; whether it "works", or how it is refused."""
    try:
        model = zoo.adapt(net, {"a": 3, "b": 2}, method, **options)
        digest, other = model.backbone_sha256(), model(x, task="b").detach()
        optimizer = torch.optim.SGD([p for _, p in model.task_parameters("a")], 1e-3)
        model.train()
        for _ in range(2):
            optimizer.zero_grad()
            lost = without_gradient(model, x)
            optimizer.step()
        model.eval()
        apart = difference(model, x)
    except ZooError as error:
        return str(error)
    assert not lost
    assert apart <= CLOSE[x.dtype]
    assert model.backbone_sha256() == digest
    assert torch.equal(model(x, task="b"), other)
    return "works"


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_random_networks_work_or_are_refused_by_name() -> None:
    fates = [fate(*network(random.Random(seed)), *METHODS[seed % len(METHODS)]) for seed in range(160)]
    refused = [text for text in fates if text != "works"]
    assert len(refused) <= 0.2 * len(fates)
    assert all("blocks." in text and "layers=" in text for text in refused)


@settings(max_examples=40, deadline=None)
@given(draw=st.randoms(use_true_random=False), method=st.sampled_from(METHODS))
def test_any_other_random_network_does_too(draw: random.Random, method: tuple[str, dict[str, Any]]) -> None:
    net, x = network(draw)
    fate(net, x, *method)


# -- layers that are read, not called at all, or not for the gradient ------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "ftn_o", "ftn"])
def test_layers_whose_weights_a_function_is_given_act(method: str) -> None:
    net = torchvision.models.SwinTransformer([4, 4], 16, [2], [2], [2, 2], num_classes=10)
    model, x = shaken(zoo.adapt(net, {"a": 4}, method, rank=2)), torch.randn(2, 3, 32, 32)
    assert not without_gradient(model, x)
    assert difference(model, x) <= 1e-5
    assert any(path.endswith(("qkv", "proj")) for path, _ in model.sites("a"))


class Small(nn.Module):
    """A stem, a middle, a classifier."""

    def __init__(self, middle: nn.Module | None = None, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 3) if middle is None else middle
        self.fc = nn.Linear(width, 5)

    def middle(self, x: Tensor) -> Tensor:
        made: Tensor = self.conv(x)
        return made

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.fc(self.middle(self.norm(self.stem(x)).relu()).mean((2, 3)))
        return made


IMAGES = torch.randn(4, 3, 9, 9)


class ReadsAll(Small):
    """Reads its convolution's, its norm's and its classifier's tensors."""

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        x = F.batch_norm(self.stem(x), norm.running_mean, norm.running_var, norm.weight, norm.bias)
        x = F.conv2d(x, self.conv.weight, self.conv.bias).mean((2, 3))
        return F.linear(F.normalize(x), F.normalize(self.fc.weight))


def test_tensors_that_a_network_reads_are_the_tasks_own() -> None:
    model = shaken(zoo.adapt(ReadsAll(), {"a": 3, "b": 2}, rank=2))
    assert difference(model, IMAGES) <= 1e-5
    assert set(without_gradient(model, IMAGES)) == {"fc.bias"} or not without_gradient(model, IMAGES)
    outputs = model(IMAGES)  # in one pass, layers could not tell whose weight is read
    assert all(torch.equal(outputs[task], model(IMAGES, task=task)) for task in model.tasks)


def test_a_method_of_a_layers_own_class_runs_under_the_tasks_weight() -> None:
    class Folded(nn.Conv2d):
        def twice(self, x: Tensor) -> Tensor:
            return self.forward(x) + self.forward(x)

    class Net(Small):
        def middle(self, x: Tensor) -> Tensor:
            made: Tensor = self.conv.twice(x)  # type: ignore[operator]
            return made

    model = shaken(zoo.adapt(Net(Folded(4, 4, 3)), {"a": 3}, rank=2))
    assert difference(model, IMAGES) <= 1e-5
    assert not without_gradient(model, IMAGES)


class WithIdle(Small):
    """Has layers that only training calls, and one that nothing does."""

    def __init__(self) -> None:
        super().__init__()
        del self.fc
        self.aux = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.fc = nn.Linear(4, 5)

    def middle(self, x: Tensor) -> Tensor:
        made: Tensor = self.conv(x)
        return made + self.aux(made) if self.training else made


@pytest.mark.parametrize("train", [False, True])
def test_a_layer_that_is_not_called_is_named_before_any_step(train: bool) -> None:
    model = zoo.adapt(WithIdle(), {"a": 3}, rank=2).train(train)
    with pytest.raises(OptionError, match=r"aux\.0, aux\.1 are not called.*layers=.*may_rest=\['aux\.\*'\]"):
        model(IMAGES, task="a")
    assert int(model.backbone.get_submodule("norm").tasks["a"].num_batches_tracked) == 0  # type: ignore[operator, index, union-attr]
    rests = zoo.adapt(WithIdle(), {"a": 3}, rank=2, may_rest=["aux.*"]).train(train)
    assert rests(IMAGES, task="a").shape == (4, 3)
    assert difference(rests.eval(), IMAGES) <= 1e-5
    with pytest.raises(OptionError, match="'axu' matches none"):
        zoo.adapt(WithIdle(), {"a": 3}, rank=2, may_rest=["axu"])


def test_googlenets_auxiliary_heads_are_named_and_may_rest() -> None:
    net = torchvision.models.googlenet(init_weights=False)
    with pytest.raises(OptionError, match=r"may_rest=\['aux1\.\*', 'aux2\.\*'\]"):
        zoo.adapt(net, {"a": 4}, rank=2)(torch.randn(1, 3, 64, 64), task="a")
    assert zoo.adapt(net, {"a": 4}, rank=2, may_rest=["aux*"])(torch.randn(1, 3, 64, 64), task="a").shape == (1, 4)


class Detaches(Small):
    """Keeps the gradient from its middle."""

    def middle(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            made: Tensor = self.conv(x)
        return made


def test_a_layer_that_no_gradient_reaches_is_named_before_any_step() -> None:
    model = zoo.adapt(Detaches(), {"a": 3}, rank=2)
    assert difference(model, IMAGES) <= 1e-5  # to be used as it is
    fresh = zoo.adapt(Detaches(), {"a": 3}, rank=2).train()
    with pytest.raises(OptionError, match=r"norm, conv are out of the gradient's reach.*may_rest"):
        fresh(IMAGES, task="a")
    with pytest.raises(OptionError, match="conv"):
        zoo.adapt(Detaches(), {"a": 3}, rank=2).prove("a", IMAGES)


class Remembers(Small):
    """Keeps what it computed first, for whatever task."""

    def middle(self, x: Tensor) -> Tensor:
        if not hasattr(self, "kept"):
            self.kept = self.conv(x).detach()
        return self.kept[: len(x)] + 0 * self.conv(x)


def test_a_fused_network_that_differs_is_refused_with_the_layer() -> None:
    model = zoo.adapt(Remembers(), {"a": 3}, rank=2)
    model(IMAGES, task="a")
    shaken(model)
    assert not hasattr(model.fuse("a"), "sites")
    del model.backbone.kept
    model.backbone.__dict__["kept"] = torch.zeros(4, 4, 5, 5)
    broken = zoo.adapt(Small(), {"a": 3}, rank=2)
    broken(IMAGES, task="a")
    shaken(broken)
    broken.backbone.get_submodule("conv").frozen_class = type(
        "Off", (nn.Conv2d,), {"forward": lambda s, x: s._conv_forward(x, s.weight, None)}
    )  # type: ignore[assignment]
    broken.backbone.get_submodule("conv").__dict__["serve"] = lambda task, x: x[:, :, 1:-1, 1:-1]
    with pytest.raises(OptionError, match=r"differs from the model by .* conv is used"):
        broken.fuse("a")


def test_rounding_alone_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shaken(zoo.adapt(Small(), {"a": 3}, rank=2, route="factored"))
    model(IMAGES, task="a")
    monkeypatch.setitem(proof.TOLERANCES, 4, 0.0)
    assert type(model.fuse("a")) is Small


# -- no classifier, inputs of the network's own, networks that are adapted already ------------------------------------


@pytest.mark.parametrize(
    "net",
    [
        lambda: timm.create_model("resnet10t", num_classes=0),
        lambda: timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32),
        lambda: without(torchvision.models.resnet18(), "fc"),
        lambda: without(torchvision.models.vgg11(), "classifier"),
        lambda: without(torchvision.models.convnext_tiny(), "classifier.2"),
    ],
)
def test_a_network_without_a_classifier_says_how_to_give_one(net: Callable[[], nn.Module]) -> None:
    with pytest.raises(OptionError, match=r"has no classifier.*torch\.nn\.Linear\(.*head="):
        zoo.adapt(net(), {"a": 4}, rank=2)


def without(net: nn.Module, path: str) -> nn.Module:
    net.set_submodule(path, nn.Identity())
    return net


def test_a_last_layer_whose_outputs_are_not_free_is_no_head() -> None:
    class Squares(Small):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).view(len(x), 5, 1)

    with pytest.raises(OptionError, match=r"With fc replaced by a's own, the network does not run.*head="):
        zoo.adapt(Squares(), {"a": 3}, rank=2)(IMAGES, task="a")
    with pytest.raises(RuntimeError):  # the inputs are at fault
        zoo.adapt(Squares(), {"a": 3}, rank=2)(IMAGES[:, :2], task="a")


class Generator(nn.Module):
    """Of a code, a class, and a scale by name."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 8)
        self.first = nn.Linear(8, 16)
        self.up = nn.ConvTranspose2d(16, 8, 4, 2, 1)
        self.out = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, z: Tensor, y: Tensor, *, scale: float = 1.0) -> Tensor:
        x = self.first(z + scale * self.embedding(y)).view(-1, 16, 1, 1).repeat(1, 1, 4, 4)
        made: Tensor = self.out(self.up(x, output_size=(9, 9)).relu())
        return made


def test_every_input_of_the_network_passes_through() -> None:
    model, z, y = shaken(zoo.adapt(Generator(), {"a": 3}, rank=2)), torch.randn(4, 8), torch.arange(4)
    assert model(z, y, task="a").shape == (4, 3, 9, 9)
    for inputs, named in (((z, y), {}), ((z,), {"y": y, "scale": 2.0}), ((), {"z": z, "y": y})):
        assert difference(model, *inputs, **named) <= 1e-5
    assert not torch.equal(model(z, y, task="a"), model(z, y, scale=2.0, task="a"))
    assert torch.equal(model(z, y)["a"], model(z, y, task="a"))


def test_the_task_is_a_keyword() -> None:
    model = zoo.adapt(Small(), {"a": 3}, rank=2)
    with pytest.raises(OptionError, match=r"model\(images, task='a'\)"):
        model(IMAGES, "a")

    class Taken(Small):
        def forward(self, x: Tensor, task: int = 0) -> Tensor:
            return super().forward(x)

    with pytest.raises(OptionError, match="Taken has an input called task"):
        zoo.adapt(Taken(), {"a": 3}, rank=2)


def test_an_adapted_model_is_not_adapted_again() -> None:
    model = zoo.adapt(Small(), {"a": 4}, rank=2)
    for inner in (model, nn.Sequential(model), model.backbone):
        with pytest.raises(OptionError, match="add_task"):
            zoo.adapt(inner, {"b": 3}, rank=2)


def test_a_network_that_cannot_be_copied_or_has_no_sizes_is_refused(tmp_path: Path) -> None:
    net = Small()
    with (tmp_path / "log").open("w") as net.log, pytest.raises(OptionError, match="cannot be copied"):  # type: ignore[assignment]
        zoo.adapt(net, {"a": 3}, rank=2)
    with pytest.raises(OptionError, match=r"conv\.weight of Small has no size yet"):
        zoo.adapt(Small(nn.LazyConv2d(4, 3)), {"a": 3}, rank=2)


# -- what is frozen ----------------------------------------------------------------------------------------------------


class OwnNorm(nn.Module):
    """A norm that torch does not know, and a count of passes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("passes", torch.zeros((), dtype=torch.long))
        self.inner = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.passes = self.passes + 1  # another tensor in its place
        if self.training:
            self.mean.lerp_(x.detach().mean((0, 2, 3)), 0.1)
        made: Tensor = self.inner(x - self.mean[:, None, None])
        return made


@pytest.mark.parametrize(
    "middle",
    [
        lambda: parametrizations.spectral_norm(nn.Conv2d(4, 4, 3)),
        lambda: nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)),
        lambda: parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
        OwnNorm,
    ],
)
def test_what_is_frozen_keeps_every_bit_in_training(middle: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = zoo.adapt(Small(nn.Sequential(middle(), nn.Conv2d(4, 4, 1))), {"a": 3, "b": 2}, rank=2, layers=["conv.1"])
    digest, other = model.backbone_sha256(), model(IMAGES, task="b")
    model.train()
    for _ in range(5):
        model(IMAGES, task="a").sum().backward()
    model.eval()
    assert model.backbone_sha256() == digest
    assert torch.equal(model(IMAGES, task="b"), other)
    model.save_adapter("a", tmp_path / "a.safetensors")
    model.remove_task("a")
    model.load_adapter(tmp_path / "a.safetensors")
    assert difference(model, IMAGES) <= 1e-5


def test_dropout_stays_on_and_frozen_norms_off() -> None:
    net = Small(nn.Sequential(nn.Conv2d(4, 4, 3), nn.Dropout(0.5), OwnNorm()))
    model = zoo.adapt(net, {"a": 3}, "features").train()
    assert model.backbone.get_submodule("conv.1").training
    assert not model.backbone.get_submodule("norm").training


def test_a_weight_that_the_forward_pass_writes_to_is_named() -> None:
    class Limited(Small):
        def middle(self, x: Tensor) -> Tensor:
            self.stem.weight.data.clamp_(-0.1, 0.1)
            return super().middle(x)

    model = zoo.adapt(Limited(), {"a": 3}, rank=2)
    for _ in range(2):  # also when the weight is limited already
        with pytest.raises(OptionError, match=r"writes to its own weight stem\.weight"):
            model(IMAGES, task="a")


def test_a_pruned_layer_is_refused_and_one_that_is_left_out_stays_as_it_is() -> None:
    net = Small(nn.Sequential(prune.l1_unstructured(nn.Conv2d(4, 4, 3), "weight", 0.5), nn.Conv2d(4, 4, 1)))
    net(IMAGES).sum().backward()
    with pytest.raises(OptionError, match=r"conv\.0 computes its weight"):
        zoo.adapt(net, {"a": 3}, rank=2)
    model = shaken(zoo.adapt(net, {"a": 3}, rank=2, layers=["conv.1"]))
    assert difference(model, IMAGES) <= 1e-5
    assert torch.equal(model.fuse("a").get_submodule("conv.0").weight_mask, net.get_submodule("conv.0").weight_mask)  # type: ignore[arg-type]


# -- one module in two places ------------------------------------------------------------------------------------------


class Decoder(nn.Module):
    """Uses one module twice; its last layer stands in two places too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.out = self.again = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        made: Tensor = self.out(x) + self.again(x)
        return made


class WithDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.same = self.body
        self.decoder = Decoder()

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.decoder(self.same(self.body(self.stem(x))))
        return made


def test_a_module_in_two_places_is_saved_and_loaded_to_the_bit(tmp_path: Path) -> None:
    model = shaken(zoo.adapt(WithDecoder(), {"a": 5}, rank=2, head="decoder"))
    outputs, digest = model(IMAGES, task="a"), model.backbone_sha256()
    assert outputs.shape == (4, 5, 3, 3)
    model.save_adapter("a", tmp_path / "a.safetensors")
    model.remove_task("a")
    assert model.backbone_sha256() == digest  # of which no task is a part
    model.load_adapter(tmp_path / "a.safetensors")
    assert torch.equal(model(IMAGES, task="a"), outputs)
    assert difference(model, IMAGES) <= 1e-5
    assert not without_gradient(model, IMAGES)


# -- types of numbers --------------------------------------------------------------------------------------------------


def test_each_site_takes_its_own_layers_type() -> None:
    net = Small().bfloat16()
    net.norm.float()
    net.norm.running_mean.fill_(100.3)  # type: ignore[union-attr]
    model = zoo.adapt(net, {"a": 3}, rank=2)
    norm = model.backbone.get_submodule("norm").tasks["a"]  # type: ignore[index]
    assert norm.running_mean[0] == torch.tensor(100.3)  # type: ignore[index, union-attr]
    assert {p.dtype for p in model.increment_parameters("a")} == {torch.float32}
    assert difference(shaken(model), IMAGES.bfloat16()) <= 3e-2

    class Scaled(Small):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(1, dtype=torch.float64))
            self._parameters = {"factor": self._parameters["factor"]}

    double = zoo.adapt(Scaled(), {"a": 3}, rank=2)
    assert double(IMAGES, task="a").dtype == torch.float32
    assert difference(shaken(double), IMAGES) <= 1e-5


def test_increments_of_a_bf16_network_move_under_small_steps() -> None:
    model = zoo.adapt(Small().bfloat16(), {"a": 3}, rank=2).train()
    before = [p.detach().clone() for p in model.increment_parameters("a")]
    optimizer = torch.optim.SGD(model.increment_parameters("a"), 1e-4)
    model(IMAGES.bfloat16(), task="a").float().square().sum().backward()
    optimizer.step()
    assert all((a != b).any() for a, b in zip(before, model.increment_parameters("a"), strict=True))


def test_fusing_rounds_once_whatever_surrounds_it() -> None:
    model = shaken(zoo.adapt(Small().bfloat16(), {"a": 3}, rank=2))
    site: Any = model.backbone.get_submodule("conv")
    wide = site.frozen_weight.float()
    expected = (wide + site.tasks["a"].delta(wide)).to(torch.bfloat16)
    assert torch.equal(model.fuse("a").get_submodule("conv").weight, expected)  # type: ignore[arg-type]
    full = shaken(zoo.adapt(Small(), {"a": 3}, rank=2))
    plain = full.fuse("a").state_dict()
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = full.fuse("a").state_dict()
    with torch.inference_mode():
        fused = full.fuse("a")
    assert all(torch.equal(plain[key], under_autocast[key]) for key in plain)
    assert all(torch.equal(plain[key], fused.state_dict()[key]) for key in plain)
    fused.train()(IMAGES).sum().backward()
    with torch.inference_mode():
        made = zoo.adapt(Small(), {"a": 3}, rank=2)
    made.train()(IMAGES, task="a").sum().backward()


# -- the checks themselves change nothing ------------------------------------------------------------------------------


def body() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 5),
    )  # fmt: skip


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = body()
        self.passes = 0
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Any) -> Tensor:
        made: Tensor = self.body(x)
        return made


class OneImage(Outer):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(0), nn.Linear(64, 5))


class OfList(Outer):
    def forward(self, x: list[Tensor]) -> Tensor:
        return torch.cat([self.body(image[None]) for image in x])


class OfGraph(Outer):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)])  # type: ignore[assignment]

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:  # type: ignore[override]
        first, passed, last = self.body
        x = first(nodes).relu()
        made: Tensor = last(x.index_add(0, edges[1], passed(x)[edges[0]]))
        return made


class WritesToItsInput(Outer):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2).sub_(0.5))


@pytest.mark.parametrize(
    ("net", "inputs"),
    [
        (OneImage, (IMAGES[0, :, :8, :8],)),
        (OfList, ([IMAGES[0], IMAGES[1], IMAGES[2]],)),
        (OfGraph, (torch.randn(9, 6), torch.arange(24).view(2, 12) % 9)),
        (WritesToItsInput, (IMAGES,)),
    ],
    ids=["one image", "list", "graph", "in place"],
)  # fmt: skip
def test_inputs_of_any_form_are_served_trained_and_fused(net: Callable[[], nn.Module], inputs: tuple[Any, ...]) -> None:
    model = shaken(zoo.adapt(net(), {"a": 3}, rank=2))
    reference = copy.deepcopy(model)
    reference.first_passes.watched.add("a")  # one that is not looked at
    reference.first_passes.learning.add("a")
    for mode in (False, True):
        ours, theirs = (each.train(mode)(*copy.deepcopy(inputs), task="a") for each in (model, reference))
        assert torch.equal(ours, theirs)
        assert all(torch.equal(model.task_tensors("a")[k], t) for k, t in reference.task_tensors("a").items())
    with torch.no_grad():
        expected = model.eval()(*copy.deepcopy(inputs), task="a")
        found = model.fuse("a")(*copy.deepcopy(inputs))
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_a_network_that_only_trains_and_one_that_uses_its_input_up_are_trained() -> None:
    class TrainsOnly(Outer):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                raise RuntimeError("no evaluation mode")
            return super().forward(x)

    class Reads(Outer):
        def forward(self, x: Any) -> Tensor:
            return super().forward(next(x))

    assert zoo.adapt(TrainsOnly(), {"a": 3}, rank=2).train()(IMAGES, task="a").shape == (4, 3)
    assert zoo.adapt(Reads(), {"a": 3}, rank=2).train()(iter([IMAGES]), task="a").shape == (4, 3)
    with pytest.raises(OptionError, match=r"TrainsOnly does not run on images of .* in evaluation mode: no evaluation"):
        zoo.adapt(TrainsOnly(), {"a": 3}, rank=2).prove("a", IMAGES)


@pytest.mark.parametrize("change", ["double", "bfloat16"])
def test_a_model_may_change_its_type_between_its_first_pass_and_fusing(change: str) -> None:
    model = shaken(zoo.adapt(Small(), {"a": 3}, rank=2))
    model(IMAGES, task="a")
    assert type(getattr(model, change)().fuse("a")) is Small
    other = shaken(zoo.adapt(Small(), {"a": 3}, rank=2))
    with torch.autocast("cpu", torch.bfloat16):
        other(IMAGES.bfloat16(), task="a")
    assert type(other.fuse("a")) is Small


def test_parameters_that_the_user_froze_are_no_fault() -> None:
    model = zoo.adapt(Small(), {"a": 3}, rank=2)
    for parameter in model.increment_parameters("a"):
        parameter.requires_grad_(False)
    model.train()(IMAGES, task="a").sum().backward()


def test_a_detached_layer_is_named_after_passes_in_evaluation_mode_too() -> None:
    model = zoo.adapt(Detaches(), {"a": 3}, rank=2)
    model(IMAGES, task="a")
    with pytest.raises(OptionError, match="out of the gradient's reach"):
        model.train()(IMAGES, task="a")


class MovesBuffers(Outer):
    def first(self, x: Tensor) -> Tensor:
        self.count.add_(1)  # type: ignore[operator]
        made: Tensor = self.body[:4](x)
        return made

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.training:
            self.scale.mul_(0.9).add_(0.1 * x.detach().abs().mean())  # type: ignore[operator]
            x = checkpoint(self.first, x, use_reentrant=False)
        else:
            x = self.first(x)
        made: Tensor = self.body[4:](x * self.scale)
        return made


def test_buffers_are_put_back_under_threads_checkpoints_and_backward_passes() -> None:
    model = zoo.adapt(MovesBuffers(), {"a": 3}, rank=2)
    digest = model.backbone_sha256()
    model.train()
    for _ in range(3):
        model(IMAGES, task="a").sum().backward()
    assert model.backbone_sha256() == digest
    model.eval()
    threads = [threading.Thread(target=lambda: [model(IMAGES, task="a") for _ in range(10)]) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # as on a machine with more to do
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert model.backbone_sha256() == digest
    assert model.backbone.count == 0
    assert copy.deepcopy(model).backbone_sha256() == digest


def test_buffers_are_known_as_soon_as_a_model_has_moved() -> None:
    """And not in the next pass, beside which other threads' may move them."""
    model = zoo.adapt(MovesBuffers(), {"a": 3, "b": 4}, rank=2).eval()
    for moved in (model.mixed(example=IMAGES).double(), model.double()):
        buffers = moved._frozen_buffers
        assert any(known is not None for known in buffers._known)
        for (held, name), known in zip(buffers._places, buffers._known, strict=True):
            assert known is None or known[0] is held[name]


def test_an_embedding_that_limits_itself_is_refused() -> None:
    with pytest.raises(OptionError, match="0 writes to its weight in each pass"):
        zoo.adapt(nn.Sequential(nn.Embedding(5, 8, max_norm=1), nn.Linear(8, 8), nn.Linear(8, 3)), {"a": 3}, rank=2)


@pytest.mark.parametrize("form", ["sequence", "beside", "norm"])
def test_a_classifier_is_known_by_its_name(form: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
            self.classifier: nn.Module = nn.Linear(8, 8)
            if form == "sequence":
                self.classifier = nn.Sequential(nn.Linear(8, 6), nn.Identity())
            self.output = nn.Identity()
            self.norm = nn.LayerNorm(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(self.stem(x)).mean((2, 3))
            made: Tensor = self.output(self.classifier(self.norm(x) if form == "norm" else x))
            return made

    model = shaken(zoo.adapt(Net(), {"a": 3}, rank=2, norms=["norm"] if form == "norm" else None, may_rest=["norm"]))
    assert model(IMAGES, task="a").shape == (4, 3)
    assert difference(model, IMAGES) <= 1e-5


def test_a_layer_with_a_computed_bias_is_refused_and_one_called_by_name_acts() -> None:
    net = Small()
    prune.l1_unstructured(net.conv, "bias", 0.5)
    with pytest.raises(OptionError, match="conv computes its bias"):
        zoo.adapt(net, {"a": 3}, rank=2)

    class Named(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(x, self.weight, self.bias)

    class Net(Small):
        def middle(self, x: Tensor) -> Tensor:
            made: Tensor = self.conv(x=x)
            return made

    model = shaken(zoo.adapt(Net(Named(4, 4, 3)), {"a": 3, "b": 2}, rank=2))
    assert difference(model, IMAGES) <= 1e-5
    assert torch.equal(model(IMAGES)["a"], model(IMAGES, task="a"))


# -- layers of every form ----------------------------------------------------------------------------------------------

FORMS: dict[str, Callable[[], nn.Module]] = {
    "Conv1d": lambda: nn.Conv1d(4, 6, 3, 2, padding=2, dilation=2, groups=2, padding_mode="circular"),
    "Conv3d": lambda: nn.Conv3d(4, 6, 3, (1, 2, 1), padding=1, groups=2),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(4, 6, 3, 2, groups=2, bias=False),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2, dilation=2),
    "ConvTranspose3d": lambda: nn.ConvTranspose3d(4, 6, 3, groups=1),
}
WHOLE = [
    ("ftn", {"rank": 4}), ("parallel", {}), ("parallel", {"rank": 2}), ("series", {}), ("ssf", {}), ("bitfit", {}),
    ("finetune", {}), ("lora", {"rank": 2, "layers": ["body"]}),
    ("kadaptation", {"rank": 2, "products": 2, "layers": ["body"]}),
]  # fmt: skip


class OfForm(nn.Module):
    def __init__(self, body: nn.Module, dimensions: int) -> None:
        super().__init__()
        self.stem = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dimensions - 1](3, 4, 1)
        self.body, self.head = body, nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.body(self.stem(x)).relu().flatten(2).mean(2))
        return made


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("method", "options"), WHOLE, ids=lambda v: v if isinstance(v, str) else "")
def test_layers_of_every_form_take_every_method(
    form: str, method: str, options: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    layer, dimensions = FORMS[form](), int(form[-2])
    model = shaken(zoo.adapt(OfForm(layer, dimensions), {"a": 3}, method, **options))
    x = torch.randn(2, 3, *[6, 7, 5][:dimensions])
    assert difference(model, x) <= 1e-5
    assert type(model.fuse("a").get_submodule("body")) is type(layer)
    assert not without_gradient(model.train(), x)
    outputs = model.eval()(x, task="a")
    model.save_adapter("a", tmp_path / "a.safetensors")
    model.remove_task("a")
    model.load_adapter(tmp_path / "a.safetensors")
    assert torch.equal(model(x, task="a"), outputs)


@pytest.mark.parametrize("form", FORMS)
def test_ftn_on_every_form_is_the_sum_of_outer_products(form: str) -> None:
    layer = FORMS[form]()
    model = shaken(zoo.adapt(OfForm(layer, int(form[-2])), {"a": 3}, rank=3))
    cp: Any = dict(model.sites("a"))["body"].tasks["a"]
    groups: int = layer.groups  # type: ignore[assignment]
    changed = torch.zeros_like(layer.weight)  # type: ignore[arg-type]
    for o in range(6):
        for i in range(4 // groups):
            taps = sum(cp.out_factor[o, r] * cp.in_factor[r, i] * cp.spatial_factor[r] for r in range(3))
            group, within = divmod(o, 6 // groups)
            place = (group * (4 // groups) + i, within) if "Transpose" in form else (o, i)
            changed[place] = taps.view(layer.weight.shape[2:])  # type: ignore[union-attr, index, arg-type]
    found = model.fuse("a").get_submodule("body").weight
    torch.testing.assert_close(found, layer.weight + changed.detach())  # type: ignore[operator]


def test_a_method_that_is_left_with_nothing_says_so() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 5))
    with pytest.raises(OptionError, match="'parallel' finds nothing to adapt"):
        zoo.adapt(net, {"a": 3}, "parallel")
    with pytest.raises(OptionError, match="no attention"):
        zoo.adapt(copy.deepcopy(net), {"a": 3}, "ftn_o", rank=2)
