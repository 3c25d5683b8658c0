"""TaskModel: its promises about tasks, fusing, freezing and threads, against plain torch."""

from __future__ import annotations

import copy
import functools
import threading
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import zoo
from tests.conftest import SmallNet, disturb, equal, snapshot
from zoo.catalog.task import Task
from zoo.errors import OptionError, UnknownNameError, WeightsError
from zoo.models.adapted import TaskModel
from zoo.models.placement import Placement
from zoo.storage import tensors

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("name", "per_rank", "norms", "backbone"),
    [  # FTN, Section 4.1.1 prints the first two; the others were recomputed from the architectures
        ("resnet34", 16_291, 17_024, 21_284_672),
        ("resnet50", 49_204, 53_120, 23_508_032),
        ("resnet18", 8_723, 9_600, 11_176_512),
        ("efficientnet_b4", 154_311, 125_200, 17_548_616),
    ],
)
def test_parameter_counts_are_the_papers(name: str, per_rank: int, norms: int, backbone: int) -> None:
    for rank in (1, 3):
        model = TaskModel(torchvision.models.get_model(name), "ftn", {"rank": rank})
        model.add_task(Task.of("t", 10))
        counted = model.count_parameters("t")
        assert (counted.backbone, counted.per_task) == (backbone, rank * per_rank + norms)


def test_every_convolution_but_the_stem_is_adapted() -> None:
    layers = Placement().find(torchvision.models.resnet50(), zoo.increments.get_method("ftn"))
    assert len(layers.adapted) == 52  # FTN, Appendix B
    assert "conv1" not in layers.adapted
    assert layers.heads == ("fc",)


def test_a_fused_model_is_plain_and_agrees(small_model: TaskModel) -> None:
    for task, classes in (("a", 5), ("b", 7)):
        plain = small_model.fuse(task)
        assert type(plain) is SmallNet
        assert not any(type(m).__module__.startswith("zoo") for m in plain.modules())
        assert plain.state_dict().keys() == SmallNet(classes).state_dict().keys()
        with torch.no_grad():
            out = small_model(IMAGES, task=task)
            torch.testing.assert_close(plain(IMAGES), out, rtol=1e-5, atol=1e-5)
        assert out.shape == (4, classes)


def test_a_fused_model_shares_nothing(small_model: TaskModel) -> None:
    plain = small_model.fuse("a")
    with torch.no_grad():
        before = small_model(IMAGES, task="a")
        for tensor in plain.state_dict().values():
            tensor.zero_()
        assert torch.equal(small_model(IMAGES, task="a"), before)


def test_fused_equals_a_network_built_by_hand(small_model: TaskModel) -> None:
    """The weights are the frozen ones plus ΔW, the norms and the head the task's own, and nothing else."""
    plain, tensors = small_model.fuse("a").state_dict(), small_model.task_tensors("a")
    frozen = small_model.backbone_tensors()
    for name in plain:
        if name in tensors:  # norms and head
            assert torch.equal(plain[name], tensors[name])
        elif name == "body.0.weight":
            out, inn, k = (tensors[f"body.0.{f}_factor"] for f in ("out", "in", "spatial"))
            delta = torch.einsum("or,rc,rk->ock", out, inn, k).view(12, 8, 3, 3)
            torch.testing.assert_close(plain[name], frozen[name] + delta)
        elif name in ("stem.weight", "stem.bias"):
            assert torch.equal(plain[name], frozen[name])


def test_a_thousand_switches_and_fusions_change_no_bit(small_model: TaskModel) -> None:
    before = snapshot(small_model.state_dict())
    outputs = {task: small_model(IMAGES, task=task) for task in small_model.tasks}
    for i in range(1000):
        task = small_model.tasks[i % 2]
        small_model.fuse(task)
        if i % 100 == 0:
            assert torch.equal(small_model(IMAGES, task=task), outputs[task])
    assert equal(small_model.state_dict(), before)


def test_training_a_task_moves_no_frozen_bit_and_no_other_task(small_model: TaskModel) -> None:
    frozen, other = snapshot(small_model.backbone_tensors()), snapshot(small_model.task_tensors("b"))
    own = snapshot(small_model.task_tensors("a"))
    optimizer = torch.optim.SGD([p for p in small_model.parameters() if p.requires_grad], 0.1, momentum=0.9)
    small_model.train()
    for _ in range(3):
        optimizer.zero_grad()
        small_model(IMAGES, task="a").sum().backward()
        optimizer.step()
    assert equal(small_model.backbone_tensors(), frozen)
    assert equal(small_model.task_tensors("b"), other)
    after = small_model.task_tensors("a")
    assert all(not torch.equal(after[name], own[name]) for name in own)  # running statistics included


def test_features_keep_the_frozen_norms_in_evaluation_mode() -> None:
    model = zoo.adapt(SmallNet(), {"a": 5}, method="features")
    frozen = snapshot(model.backbone_tensors())
    model.train()
    with torch.no_grad():
        model(IMAGES, task="a")
    assert equal(model.backbone_tensors(), frozen)
    assert {name for name, _ in model.task_parameters("a")} == {"classifier.weight", "classifier.bias"}


def test_finetuning_owns_every_weight_and_starts_as_the_backbone() -> None:
    net = SmallNet()
    model = zoo.adapt(net, {"a": 5}, method="finetune")
    owned = {name for name, _ in model.task_parameters("a")}
    assert owned == set(dict(net.named_parameters()))
    plain = model.fuse("a").state_dict()
    assert all(torch.equal(t, plain[n]) for n, t in net.state_dict().items() if not n.startswith("classifier"))


def test_two_threads_serve_two_tasks_of_one_model(small_model: TaskModel) -> None:
    expected = {task: small_model(IMAGES, task=task).detach() for task in small_model.tasks}
    wrong: list[str] = []
    barrier = threading.Barrier(2)

    def work(task: str) -> None:
        barrier.wait()
        for _ in range(200):
            if not torch.equal(small_model(IMAGES, task=task), expected[task]):
                wrong.append(task)

    threads = [threading.Thread(target=work, args=(task,)) for task in small_model.tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Checkpointed(nn.Module):
    """A network whose body is run again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.net, self.reentrant = SmallNet(), reentrant

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        x = torch.relu(net.bn(net.stem(x)))
        x = checkpoint(net.body, x, use_reentrant=self.reentrant)
        out: Tensor = net.classifier(torch.relu(net.hidden(x.mean((2, 3)))))
        return out


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("other_thread", [False, True])
def test_a_recomputed_forward_pass_serves_the_same_task(reentrant: bool, other_thread: bool) -> None:
    net = Checkpointed(reentrant)
    model = zoo.adapt(net, {"a": 5, "b": 5}, rank=2, norms=["net.bn"])
    straight = zoo.adapt(net.net, {"a": 5, "b": 5}, rank=2, norms=["bn"])
    for task in model.tasks:
        disturb(model, task)
        straight.load_task_tensors(task, {n.removeprefix("net."): t for n, t in model.task_tensors(task).items()})
    x = IMAGES.clone().requires_grad_()
    loss = model(x, task="a").sum() + 2 * model(x, task="b").sum()  # one graph, two tasks
    if other_thread:
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
    else:
        loss.backward()
    (straight(IMAGES, task="a").sum() + 2 * straight(IMAGES, task="b").sum()).backward()
    for task in model.tasks:
        mine, theirs = dict(model.task_parameters(task)), dict(straight.task_parameters(task))
        for name, parameter in mine.items():
            torch.testing.assert_close(parameter.grad, theirs[name.removeprefix("net.")].grad)


def test_a_layer_called_outside_the_model_says_so(small_model: TaskModel) -> None:
    with pytest.raises(OptionError, match="No task is selected"):
        small_model.backbone(IMAGES)


def test_adding_and_removing_a_task_leaves_the_others_alone(small_model: TaskModel) -> None:
    before = snapshot(small_model.state_dict())
    small_model.add_task(Task.of("c", 3), {"rank": 5})
    assert small_model(IMAGES, task="c").shape == (4, 3)
    small_model.remove_task("c")
    assert equal(small_model.state_dict(), before)
    with pytest.raises(OptionError, match="has a task 'a' already"):
        small_model.add_task(Task.of("a", 3))
    for bad in ("a b", "../x", "", "keys", "forward", "shared"):
        with pytest.raises(OptionError, match="cannot name a task"):
            small_model.add_task(Task.of(bad, 3))
    with pytest.raises(OptionError, match="whole number"):
        small_model.add_task(Task.of("d", 3), {"rank": 0})
    assert equal(small_model.state_dict(), before)
    with pytest.raises(UnknownNameError, match="Unknown task 'sketchh'"):
        small_model(IMAGES, task="sketchh")


def test_a_copied_model_selects_for_itself(small_model: TaskModel) -> None:
    twin = copy.deepcopy(small_model)
    assert torch.equal(twin(IMAGES, task="a"), small_model(IMAGES, task="a"))
    assert twin.selection is not small_model.selection


def test_adapter_files_carry_everything_and_are_checked(small_model: TaskModel, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    small_model.save_adapter("a", file, {"entry": "x"})
    fresh = zoo.adapt(SmallNet(), {}, rank=3)
    fresh.load_backbone_tensors(small_model.backbone_tensors())
    assert fresh.load_adapter(file) == small_model.task("a")
    assert equal(fresh.task_tensors("a"), small_model.task_tensors("a"))  # batch-norm statistics among them
    assert torch.equal(fresh(IMAGES, task="a"), small_model(IMAGES, task="a"))

    stranger = zoo.adapt(SmallNet(), {}, rank=3)
    with pytest.raises(WeightsError, match="trained on another backbone"):
        stranger.load_adapter(file)
    with pytest.raises(WeightsError, match="method 'ftn'; this model's is 'bn'"):
        zoo.adapt(SmallNet(), {}, method="bn").load_adapter(file)
    tensors.write(file, small_model.task_tensors("a"), {"format": 1, "task": "a"})
    with pytest.raises(WeightsError, match="damaged header"):
        fresh.load_adapter(file)
    tensors.write(file, small_model.task_tensors("a"), {})
    with pytest.raises(WeightsError, match="no adapter file of this version"):
        fresh.load_adapter(file)
    assert stranger.tasks == ()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("classes",), 10**12), (("classes",), "abc"), (("method", "rank"), 10**9), (("method", "rank"), {"*": 10**9}),
        (("method",), [["name", "ftn"], ["rank", 3]]), (("method",), "ftn"), (("method",), None),
        (("preprocessing",), None), (("preprocessing",), [1]), (("preprocessing", "size"), float("nan")),
        (("preprocessing", "size"), True), (("preprocessing", "size"), 10**9), (("preprocessing", "resize"), 10**30),
        (("preprocessing", "mean"), ["a", "b", "c"]),
        (("preprocessing", "std"), [float("inf")] * 3),
    ],
)  # fmt: skip
def test_what_a_header_states_is_looked_at_before_anything_is_made_of_it(
    path: tuple[str, ...], value: object, small_model: TaskModel, tmp_path: Path
) -> None:
    file = tmp_path / "a.safetensors"
    small_model.save_adapter("a", file)
    own, header = tensors.read(file)
    *above, last = path
    functools.reduce(lambda part, key: part[key], above, header)[last] = value
    tensors.write(file, own, header)
    small_model.remove_task("a")
    with pytest.raises(WeightsError, match="damaged header"):
        small_model.load_adapter(file)
    assert "a" not in small_model.tasks


def test_a_rank_above_what_layers_have_is_saved_and_loaded(tmp_path: Path) -> None:
    for method in ("svd", "tt", "tucker"):
        model = zoo.adapt(SmallNet(), {"a": 3}, method, rank=200)
        model.save_adapter("a", tmp_path / "a.safetensors")
        expected = model(IMAGES, task="a")
        model.remove_task("a")
        model.load_adapter(tmp_path / "a.safetensors")
        assert torch.equal(model(IMAGES, task="a"), expected)


def test_misfit_tensors_are_all_named_and_nothing_changes(small_model: TaskModel) -> None:
    before = snapshot(small_model.task_tensors("a"))
    wrong = dict(before)
    wrong["extra"] = wrong.pop("classifier.bias")
    wrong["bn.weight"] = torch.zeros(3)
    with pytest.raises(WeightsError) as error:
        small_model.load_task_tensors("a", wrong)
    for part in ("missing classifier.bias", "unexpected extra", "bn.weight has shape (3,), not (8,)"):
        assert part in str(error.value)
    assert equal(small_model.task_tensors("a"), before)


def test_adapt_leaves_the_users_module_alone() -> None:
    net = SmallNet()
    before = snapshot(net.state_dict())
    model = zoo.adapt(net, {"a": ["cat", "dog"]}, rank=2)
    model.train()
    model(IMAGES, task="a").sum().backward()
    assert equal(net.state_dict(), before)
    assert all(p.requires_grad for p in net.parameters())
    assert model.task("a").classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("build", "head"),
    [
        (torchvision.models.squeezenet1_1, "classifier.1"),
        (torchvision.models.mobilenet_v3_small, "classifier.3"),
        (torchvision.models.vgg11, "classifier.6"),
        (torchvision.models.densenet121, "classifier"),
        (lambda: timm.create_model("resnet10t"), "fc"),
        (lambda: timm.create_model("tf_efficientnet_b0"), "classifier"),  # Conv2dSame, BatchNormAct2d
        (lambda: timm.create_model("convnext_atto"), "head.fc"),
        (lambda: timm.create_model("vit_tiny_patch16_224"), "head"),
        (lambda: timm.create_model("resnetv2_50"), "head.fc"),  # a 1×1 convolution
    ],
)
def test_adapt_works_on_networks_it_has_never_seen(build: object, head: str) -> None:
    net = build().eval()  # type: ignore[operator]
    model = zoo.adapt(net, {"a": 5}, rank=2)
    disturb(model, "a")
    assert model.head_paths == (head,)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        out = model(x, task="a")
        torch.testing.assert_close(model.fuse("a")(x), out, rtol=1e-4, atol=1e-4 * out.abs().max().item())
    assert out.shape == (1, 5)
    assert type(model.fuse("a")) is type(net)


def test_each_choice_can_be_overridden() -> None:
    model = zoo.adapt(SmallNet(), {"a": 5}, rank=2, layers=["stem", "body.*"], norms=["bn"], head="hidden")
    owned = {name.rpartition(".")[0] for name, _ in model.task_parameters("a")}
    assert owned == {"stem", "body.0", "body.3", "bn", "hidden"}
    for wrong, message in [
        ({"layers": ["layer9.*"]}, "'layer9.\\*' matches none of the layers to adapt; such are stem"),
        ({"norms": ["ln"]}, "matches none of the norms"),
        ({"head": "fc"}, "'fc' is or holds no Conv2d or Linear layer"),
    ]:
        with pytest.raises(OptionError, match=message):
            zoo.adapt(SmallNet(), {"a": 5}, rank=2, **wrong)  # type: ignore[arg-type]
    for method, options, message in [
        ("ftn", {}, "needs rank; its options are: rank, route"),
        ("ftn", {"rank": 2, "alpha": 1}, "does not take alpha"),
        ("bn", {"rank": 2}, "does not take rank; its options are: none"),
    ]:
        with pytest.raises(OptionError, match=message):
            zoo.adapt(SmallNet(), {"a": 5}, method, **options)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="no Conv2d or Linear layer"):
        zoo.adapt(nn.Sequential(nn.ReLU()), {"a": 5}, rank=2)


def test_layers_that_torch_reads_without_calling_stay_frozen() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mix = nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 8, 1)
            self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.fc = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.mix(self.stem(x)).flatten(2).transpose(1, 2)
            out: Tensor = self.fc(self.encoder(tokens).mean(1))
            return out

    model = zoo.adapt(Encoder().eval(), {"a": 3}, rank=2)
    disturb(model, "a")
    assert {name.partition(".")[0] for name, _ in model.task_parameters("a")} == {"mix", "fc"}
    with torch.no_grad():
        torch.testing.assert_close(model.fuse("a")(IMAGES), model(IMAGES, task="a"), rtol=1e-5, atol=1e-5)


def test_hooks_of_the_users_network_run_once_before_and_after_fusing() -> None:
    net = SmallNet().eval()
    for layer in (net.bn, net.classifier, net.body[0]):
        layer.register_forward_hook(lambda module, inputs, output: 1.5 * output)
    model = zoo.adapt(net, {"a": 10}, rank=2)
    model.load_task_tensors(
        "a", {**model.task_tensors("a"), **{f"classifier.{n}": p for n, p in net.classifier.named_parameters()}}
    )
    for name, tensor in model.task_tensors("a").items():
        if name.endswith("out_factor"):
            tensor.zero_()
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES, task="a"), net(IMAGES))
        torch.testing.assert_close(model.fuse("a")(IMAGES), net(IMAGES))


def test_a_weight_that_is_computed_is_refused_by_name() -> None:
    net = SmallNet()
    torch.nn.utils.parametrizations.weight_norm(net.hidden)
    with pytest.raises(OptionError, match="hidden computes its weight"):
        zoo.adapt(net, {"a": 3}, rank=2)


def test_a_module_that_stands_in_two_places_is_adapted_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)
            self.two = self.one

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(self.two(self.one(self.stem(x)).relu()).mean((2, 3)))
            return out

    model = zoo.adapt(Twice(), {"a": 3}, rank=2)
    assert model.backbone.one is model.backbone.two
    plain = model.fuse("a")
    assert plain.one is plain.two
    with torch.no_grad():
        torch.testing.assert_close(plain(IMAGES), model(IMAGES, task="a"), rtol=1e-5, atol=1e-5)
