"""Methods on vision transformers: which weights they change, by how much, and that fusing and exporting keep it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from zoo.export import run, session, to_onnx

import zoo
from tests.conftest import disturb
from zoo.catalog.registry import default_registry
from zoo.errors import OptionError
from zoo.increments.low_rank import HeadFactors, LowRank
from zoo.loader import counted_parameters
from zoo.models.adapted import TaskModel
from zoo.models.attention import projections

METHODS = [
    ("ftn_qv", {"rank": 3}), ("ftn_o", {"rank": 3}), ("lora", {"rank": 3, "alpha": 6}),
    ("kadaptation", {"rank": 2, "products": 4}), ("ssf", {}), ("bitfit", {}), ("finetune", {}), ("features", {}),
]  # fmt: skip
SMALL = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 7}
NETWORKS = {
    "class token": lambda: timm.create_model("vit_tiny_patch16_224", **SMALL),
    "pooled, no bias": lambda: timm.create_model("vit_tiny_patch16_224", global_pool="avg", class_token=False,
                                                 qkv_bias=False, **SMALL),
    "distilled": lambda: timm.create_model("deit_tiny_distilled_patch16_224", **SMALL),
    "windowed": lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=24,
                                          depths=(2, 2), num_heads=(2, 4), num_classes=7),
    "separate q and kv": lambda: timm.create_model("pvt_v2_b0", embed_dims=(16, 16, 24, 24), depths=(1, 1, 1, 1),
                                                   num_heads=(2, 2, 2, 2), sr_ratios=(2, 2, 1, 1), num_classes=7),
    "separate q, k and v": lambda: timm.create_model("cait_xxs24_224", img_size=32, embed_dim=24, depth=2, num_heads=3,
                                                     num_classes=7, init_values=0.5),
}  # fmt: skip


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[request.param]().eval()  # type: ignore[no-untyped-call]


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32)


@pytest.mark.parametrize(("method", "options"), METHODS, ids=[m for m, _ in METHODS])
def test_fused_equals_unfused(network: nn.Module, method: str, options: dict[str, object]) -> None:
    model = zoo.adapt(network, {"a": 5}, method, **options)  # type: ignore[arg-type]
    untouched = {name: tensor.clone() for name, tensor in model.backbone_tensors().items()}
    disturb(model, "a")
    plain, x = model.fuse("a"), images()
    assert {type(m).__module__.split(".")[0] for m in plain.modules()} <= {"torch", "timm"}
    with torch.no_grad():
        torch.testing.assert_close(plain(x), model(x, task="a"), rtol=1e-4, atol=1e-5)
    for name, tensor in model.backbone_tensors().items():
        assert torch.equal(tensor, untouched[name])


@pytest.mark.parametrize("method", ["lora", "kadaptation", "ssf", "bitfit", "finetune"])
def test_a_fresh_task_is_the_backbone(network: nn.Module, method: str) -> None:
    options = {"lora": {"rank": 2}, "kadaptation": {"rank": 2, "products": 4}}.get(method, {})
    model = zoo.adapt(network, {"a": 7}, method, **options)
    for head in model.head_paths:
        model.backbone.get_submodule(head).tasks["a"].load_state_dict(network.get_submodule(head).state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(x := images(), task="a"), network(x), rtol=1e-5, atol=1e-6)


def test_rows_are_what_the_network_uses_them_for(network: nn.Module) -> None:
    """A constant added to all keys changes no attention; added to the queries or the values, it changes the outputs."""
    x, found = images(), projections(network)
    with torch.no_grad():
        for path in found:
            layer = network.get_submodule(path)
            layer.bias = nn.Parameter(torch.zeros(layer.out_features)) if layer.bias is None else layer.bias
        before = network(x)
        for kind in ("key", "query", "value"):
            for path, projection in found.items():
                if kind in projection.rows:
                    rows = projection.rows[kind]
                    network.get_submodule(path).bias[rows] += 10 * torch.randn(rows.stop - rows.start)
            now = network(x)
            assert torch.allclose(now, before, rtol=1e-3, atol=1e-4) is (kind == "key")
            before = now


def test_key_rows_stay_bit_identical() -> None:
    network = NETWORKS["class token"]()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        network.blocks[0].attn.qkv.weight[24:30] = -0.0  # adding a zero would turn it into +0
    for method in ("ftn_qv", "lora"):
        model = zoo.adapt(network, {"a": 5}, method, rank=2)
        disturb(model, "a")
        plain = model.fuse("a")
        for before, after in zip(network.blocks, plain.blocks, strict=True):
            old, new = (b.attn.qkv.weight.detach().view(torch.int32) for b in (before, after))
            assert torch.equal(new[24:48], old[24:48])
            assert not torch.equal(new[:24], old[:24])
            assert not torch.equal(new[48:], old[48:])


# -- the paper's counts and formulas ----------------------------------------------------------------------------------


def test_additional_parameters_are_the_papers() -> None:
    """FTN, Section 3.2 and Table 3; KAdaptation by the formula, which cannot give the 80.7 K of the table."""
    registry = default_registry()
    counts = {
        method: counted_parameters(registry.entry(f"vit_b32_clip-{method}-r4-clip5"), registry).per_task
        for method in ("ftn_qv", "ftn_o", "lora", "kadaptation")
    }
    assert counts["ftn_qv"] == 81_024
    assert counts["ftn_o"] == 40_512
    assert counts["lora"] == 147_456
    assert counts["kadaptation"] == 2 * (2 * 12 * 4 * 768 + 4**3)


@pytest.mark.parametrize(("blocks", "rank", "dim", "heads"), [(1, 1, 4, 2), (3, 5, 6, 4), (2, 7, 16, 3), (5, 2, 8, 1)])
def test_counts_follow_the_formulas(blocks: int, rank: int, dim: int, heads: int) -> None:
    model = dim * heads
    network = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=model, depth=blocks, num_heads=heads, num_classes=3
    )
    count = lambda method, **o: zoo.adapt(network, {"a": 2}, method, **o).count_parameters("a").per_task  # noqa: E731
    assert count("ftn_qv", rank=rank) == 2 * blocks * rank * (model + dim + heads)
    assert count("ftn_o", rank=rank) == blocks * rank * (model + dim + heads)
    assert count("lora", rank=rank) == 4 * blocks * rank * model
    assert count("kadaptation", rank=rank, products=2) == 2 * (2 * blocks * rank * model + 2**3)
    ssf = 2 * (model + blocks * (model + 3 * model + model + model + 4 * model + model) + model)
    assert count("ssf") == ssf


@pytest.mark.parametrize("output", [False, True])
def test_head_factors_are_a_cp_tensor(output: bool) -> None:
    """Against Eq. 2 on the weight as a tensor (d_model, d, n), its heads being what PyTorch's layer makes of them."""
    torch.manual_seed(0)
    factors = HeadFactors(model=12, dim=4, heads=3, rank=5, output=output)
    up, down = factors.matrices()
    tensor = torch.einsum("mr,dr,hr->mdh", factors.model, factors.dim, factors.head)
    for head in range(3):
        rows = slice(4 * head, 4 * head + 4)
        block = (up @ down)[:, rows] if output else (up @ down)[rows].T
        torch.testing.assert_close(block, tensor[:, :, head])


def test_head_factors_start_as_the_paper_says() -> None:
    for factor in HeadFactors(model=400, dim=300, heads=200, rank=20, output=False).parameters():
        assert abs(float(factor.detach().mean())) < 0.005
        assert float(factor.detach().std()) == pytest.approx(0.05, rel=0.1)


def test_alpha_scales_by_the_rank() -> None:
    network = NETWORKS["class token"]()  # type: ignore[no-untyped-call]
    for method, scale in (("ftn_qv", 10 / 4), ("ftn_o", 100 / 4), ("lora", 1.0)):
        model = zoo.adapt(network, {"a": 5}, method, rank=4)
        increments = [site.tasks["a"] for path, site in model.sites("a") if path not in model.head_paths]
        assert {i.scale for i in increments if isinstance(i, LowRank)} == {scale}


def test_kadaptation_is_a_sum_of_kronecker_products() -> None:
    model = zoo.adapt(NETWORKS["class token"](), {"a": 5, "b": 3}, "kadaptation", rank=2, products=4)  # type: ignore[no-untyped-call]
    disturb(model, "a")
    first, second = (model.backbone.get_submodule(f"blocks.{i}.attn.qkv") for i in (0, 1))
    slow = first.tasks["a"].slow["query"].a  # kept with the first layer, and used by all
    assert "slow" not in {name.partition(".")[0] for name, _ in second.tasks["a"].named_parameters()}
    fast = second.tasks["a"].fast["query"]
    expected = sum(torch.kron(slow[i], fast.u[i] @ fast.v[i].T) for i in range(4))
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(second.tasks["a"].delta(second.weight)[:24], expected)
    assert first.tasks["b"].slow["query"].a is not slow


def test_adapters_of_every_method_survive_a_file(tmp_path: Path) -> None:
    for method, options in METHODS:
        network = NETWORKS["class token"]()  # type: ignore[no-untyped-call]
        model, again = (zoo.adapt(network, {}, method, **options) for _ in range(2))  # type: ignore[arg-type]
        model.add_task(zoo.Task.of("a", 5))
        disturb(model, "a")
        model.save_adapter("a", tmp_path / f"{method}.safetensors")
        again.load_adapter(tmp_path / f"{method}.safetensors")
        with torch.no_grad():
            assert torch.equal(model(x := images(), task="a"), again(x, task="a"))


# -- on any layers ----------------------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """Convolutions of several forms and linear layers, with and without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.strided = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.hidden = nn.Linear(16, 12, bias=False)
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.grouped(F.relu(self.strided(F.relu(self.stem(x))))))
        outputs: Tensor = self.fc(F.relu(self.hidden(x.mean((2, 3)))))
        return outputs


@pytest.mark.parametrize(("method", "options"), [
    ("lora", {"rank": 2, "layers": ["*"]}), ("ssf", {}), ("bitfit", {}),
    ("kadaptation", {"rank": 2, "products": 4, "layers": ["strided", "hidden"]}),
])  # fmt: skip
def test_named_layers_are_adapted_whole(method: str, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = zoo.adapt(Mixed(), {"a": 5}, method, **options)  # type: ignore[arg-type]
    disturb(model, "a")
    with torch.no_grad():
        torch.testing.assert_close(model.fuse("a")(x := images()), model(x, task="a"), rtol=1e-4, atol=1e-5)


def test_ssf_scales_and_shifts_what_the_layer_makes() -> None:
    model = zoo.adapt(Mixed(), {"a": 5}, "ssf")
    disturb(model, "a")
    for path, shape in (("grouped", (2, 16, 8, 8)), ("hidden", (2, 16))):
        site, x = model.backbone.get_submodule(path), torch.randn(shape)
        own = site.tasks["a"]
        wide = (1, -1, 1, 1) if path == "grouped" else (1, -1)
        expected = site._frozen()(x) * own.scale.view(wide) + own.shift.view(wide)
        with model.selection.use("a"):
            torch.testing.assert_close(site(x), expected)
        torch.testing.assert_close(site.plain("a")(x), expected)


# -- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("build", "method", "options", "message"), [
    (torchvision.models.resnet18, "ftn_qv", {"rank": 2}, "ResNet has no attention whose query and value.*qkv"),
    (torchvision.models.vit_b_32, "ftn_o", {"rank": 2}, "MultiheadAttention"),
    (lambda: timm.create_model("beit_base_patch16_224", embed_dim=24, depth=1, num_heads=2), "lora", {"rank": 2},
     "no attention whose query and value"),
    (NETWORKS["class token"], "ftn_qv", {"rank": 2, "layers": ["blocks.0.mlp.fc1"]}, "matches none of the layers"),
    (NETWORKS["class token"], "lora", {"rank": 2, "projections": ["keys"]}, "some of query, key, value, output"),
    (NETWORKS["class token"], "ftn", {"rank": 2, "projections": ["key"]}, "takes no projections"),
    (NETWORKS["class token"], "kadaptation", {"rank": 2, "products": 5}, r"blocks\.0\.attn\.qkv.*24 × 24"),
    (NETWORKS["class token"], "ftn_o", {"rank": 0}, "rank must be"),
    *((NETWORKS["class token"], "lora", {"rank": 2, "alpha": a}, "alpha must be") for a in (0, "x", float("nan"))),
    (NETWORKS["class token"], "kadaptation", {"rank": 2, "products": 2.0}, "number of products must be"),
    (NETWORKS["class token"], "kadaptation", {"rank": "2"}, "rank must be"),
    (NETWORKS["class token"], "lora", {"rank": 2, "layers": "blocks.0.*"}, "layers must be a list"),
])  # fmt: skip
def test_what_cannot_be_adapted_is_an_error(
    build: object, method: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        zoo.adapt(build(), {"a": 5}, method, **options)  # type: ignore[operator, arg-type]


@pytest.mark.parametrize("name", ["maxvit_rmlp_pico_rw_256", "tiny_vit_5m_224", "efficientformer_l1", "gcvit_xxtiny"])
def test_rows_in_another_order_are_left_alone(name: str) -> None:
    """No layer of these is cut into thirds that would mix queries, keys and values."""
    network = timm.create_model(name, num_classes=3)
    with torch.no_grad():
        odd = {path for path, p in projections(network).items() if len(p.rows) > 1}
    modules = dict(network.named_modules())
    for path in odd:
        assert modules[path].out_features == 3 * modules[path].in_features
        assert not hasattr(modules[path.rpartition(".")[0]], "key_dim")
    if name != "gcvit_xxtiny":  # whose local blocks are as usual
        assert not odd


def test_output_projections_are_called_where_the_packed_layer_is_not() -> None:
    network = timm.create_model("beit_base_patch16_224", embed_dim=24, depth=1, num_heads=2)
    model = zoo.adapt(network, {"a": 5}, "ftn_o", rank=2)
    assert {path for path, _ in model.sites("a")} == {"blocks.0.attn.proj", *model.head_paths}
    before = model(x := torch.randn(1, 3, 224, 224), task="a")
    disturb(model, "a")
    assert not torch.equal(model(x, task="a"), before)


@pytest.mark.parametrize("method", ["lora", "kadaptation"])
def test_linear_layers_take_inputs_of_any_shape(method: str) -> None:
    model = zoo.adapt(Mixed(), {"a": 5}, method, rank=2, layers=["hidden"])
    disturb(model, "a")
    site = model.backbone.get_submodule("hidden")
    for shape in ((16,), (0, 16), (3, 16), (2, 3, 16), (2, 2, 3, 16)):
        with torch.no_grad(), model.selection.use("a"):
            torch.testing.assert_close(site(x := torch.randn(shape)), site.plain("a")(x), rtol=1e-5, atol=1e-6)


def test_slow_factors_stay_shared_in_a_copy() -> None:
    model = zoo.adapt(NETWORKS["class token"](), {"a": 5, "b": 3}, "kadaptation", rank=2)  # type: ignore[no-untyped-call]
    disturb(model, "a")
    copied = copy.deepcopy(model).double()
    model.remove_task("a")
    first, second = (copied.backbone.get_submodule(f"blocks.{i}.attn.qkv").tasks["a"] for i in (0, 1))
    assert second._slow["query"] is first.slow["query"]
    with torch.no_grad():
        torch.testing.assert_close(copied.fuse("a")(x := images().double()), copied(x, task="a"))


def test_projections_choose_among_those_of_attention() -> None:
    network = NETWORKS["class token"]()  # type: ignore[no-untyped-call]
    model = zoo.adapt(network, {"a": 5}, "lora", rank=2, projections=["key", "output"], layers=["blocks.1.*"])
    sites = {path: site.role.rows for path, site in model.sites("a") if path not in model.head_paths}  # type: ignore[union-attr]
    assert sites == {"blocks.1.attn.qkv": {"key": slice(24, 48)}, "blocks.1.attn.proj": {"output": slice(0, 24)}}


def test_all_classifiers_of_a_distilled_network_are_the_tasks() -> None:
    model: TaskModel = zoo.adapt(NETWORKS["distilled"](), {"a": 5}, "ftn_o", rank=2)  # type: ignore[no-untyped-call]
    assert model.head_paths == ("head", "head_dist")
    assert model(images(), task="a").shape == (2, 5)


# -- deployed ---------------------------------------------------------------------------------------------------------


def test_a_fused_transformer_exports_with_any_batch(tmp_path: Path) -> None:
    model = zoo.adapt(NETWORKS["class token"](), {"a": 5}, "ftn_qv", rank=2,  # type: ignore[no-untyped-call]
                      preprocessing=zoo.Preprocessing(32, None))  # fmt: skip
    disturb(model, "a")
    plain = model.fuse("a")
    assert to_onnx(plain, tmp_path / "a.onnx", task=model.task("a")).passed
    graph = session(tmp_path / "a.onnx")
    for count in (1, 3, 8):
        with torch.no_grad():
            expected = plain(x := images(count))
        torch.testing.assert_close(torch.from_numpy(run(graph, x.numpy())), expected, rtol=1e-3, atol=1e-5)
