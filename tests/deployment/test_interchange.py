"""LoRA checkpoints, to and from the installed PEFT: the logits have to be the same."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import timm
import torch
from click.testing import CliRunner
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

import zoo
from tests.conftest import SmallNet, disturb
from zoo.catalog.registry import Registry, default_registry
from zoo.cli.base import main
from zoo.deployment.interchange import CONFIG, WEIGHTS, load_peft, save_peft
from zoo.errors import OptionError, WeightsError
from zoo.storage import tensors

SMALL = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3}


def vit(classes: int = 6) -> nn.Module:
    torch.manual_seed(1)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=6, **SMALL).eval()
    network.reset_classifier(classes)
    return network


def checkpoint(folder: Path, network: nn.Module, **config: object) -> nn.Module:
    """A model of PEFT's whose adapter is far from zero, saved to a folder."""
    peft = get_peft_model(network, LoraConfig(**config)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    peft.save_pretrained(folder)
    return peft


def images() -> Tensor:
    return torch.randn(3, 3, 32, 32)


FORMS = {
    "packed": {"r": 4, "lora_alpha": 8, "target_modules": ["qkv"], "modules_to_save": ["head"]},
    "the backbone's classifier": {"r": 3, "lora_alpha": 1, "target_modules": ["qkv", "proj"]},
    "several ranks": {"r": 4, "lora_alpha": 8, "target_modules": ["qkv", "fc1"], "modules_to_save": ["head"],
                      "rank_pattern": {"fc1": 2}, "alpha_pattern": {"blocks.1.mlp.fc1": 5}},
    "rank-stabilised": {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ["fc2"]},
    "norms": {"r": 2, "target_modules": ["qkv"], "modules_to_save": ["head", "norm1", "norm"]},
    "a convolution": {"r": 2, "target_modules": ["patch_embed.proj", "qkv"]},
    "all, the classifier too": {"r": 2, "target_modules": "all-linear"},
    "the classifier": {"r": 2, "target_modules": ["qkv", "head"]},
}  # fmt: skip


@pytest.mark.parametrize("config", FORMS.values(), ids=FORMS)
def test_a_checkpoint_of_peft_gives_its_logits(tmp_path: Path, config: dict[str, object]) -> None:
    peft = checkpoint(tmp_path, vit(), **config)
    model = zoo.load_peft(tmp_path, vit())
    with torch.no_grad():
        expected = peft(x := images())
        torch.testing.assert_close(model(x, task="task"), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.fuse("task")(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("method", "options"), [
    ("lora", {"rank": 3, "alpha": 6}), ("lora", {"rank": 2, "layers": ["patch_embed.proj", "*.fc1"]}),
    ("ftn_qv", {"rank": 3}), ("ftn_o", {"rank": 3}), ("ftn", {"rank": 2}), ("ftn", {"rank": 2, "norms": ["norm"]}),
])  # fmt: skip
def test_peft_loads_what_the_zoo_writes(tmp_path: Path, method: str, options: dict[str, object]) -> None:
    model = zoo.adapt(vit(), {"a": 4}, method, **options)  # type: ignore[arg-type]
    disturb(model, "a")
    save_peft(model, "a", tmp_path / "peft")
    peft = PeftModel.from_pretrained(vit(4), str(tmp_path / "peft")).eval()
    again = load_peft(tmp_path / "peft", vit(4), task="a")
    with torch.no_grad():
        expected = model(x := images(), task="a")
        torch.testing.assert_close(peft(x), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(again(x, task="a"), expected, rtol=1e-5, atol=1e-5)
    assert again.task("a") == model.task("a")
    with pytest.raises(OptionError, match="holds a checkpoint already"):
        save_peft(model, "a", tmp_path / "peft")


def test_batch_norms_travel_with_their_statistics(tmp_path: Path) -> None:
    network = SmallNet(4).eval()
    model = zoo.adapt(network, {"a": 4}, "ftn", rank=2, layers=["body.0", "hidden"])
    disturb(model, "a")
    save_peft(model, "a", tmp_path)
    peft = PeftModel.from_pretrained(copy.deepcopy(network), str(tmp_path)).eval()
    again = load_peft(tmp_path, network)
    with torch.no_grad():
        expected = model(x := images(), task="a")
        torch.testing.assert_close(again(x, task="task"), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(peft(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("model", "message"), [
    (lambda: zoo.adapt(SmallNet(), {"a": 4}, "ftn", rank=2), r"body\.3 is grouped"),
    (lambda: zoo.adapt(vit(), {"a": 4}, "kadaptation", rank=2), "no product of two thin matrices"),
    (lambda: zoo.adapt(vit(), {"a": 4}, "ssf"), "no product of two thin matrices"),
    (lambda: zoo.adapt(vit(), {"a": 4}, "features"), "adapts no layer"),
])  # fmt: skip
def test_what_would_not_be_exact_is_refused(tmp_path: Path, model: object, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        save_peft(model(), "a", tmp_path / "peft")  # type: ignore[operator]
    assert not (tmp_path / "peft").exists()


@pytest.mark.parametrize(("change", "message"), [
    ({"use_dora": True}, "use_dora=True, which has no counterpart"),
    ({"bias": "all"}, "bias='all'"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
    ({"loftq_config": {"loftq_bits": 4}}, "loftq_config"),
    ({"something_new": True}, "something_new=True"),
    ({"peft_type": "IA3"}, "its peft_type is 'IA3'"),
])  # fmt: skip
def test_what_lora_cannot_do_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    checkpoint(tmp_path, vit(), r=2, target_modules=["qkv"])
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | change))
    with pytest.raises(OptionError, match=message):
        load_peft(tmp_path, vit())


@pytest.mark.parametrize("change", [
    {"lora_alpha": None}, {"lora_alpha": "x"}, {"lora_alpha": float("nan")}, {"alpha_pattern": [1]},
    {"alpha_pattern": {"(": 2}}, {"lora_alpha": 10**400}, {"alpha_pattern": {"(.|.)*!": 1}},
    {"alpha_pattern": {20 * ".?" + "!": 1}}, {"alpha_pattern": {4 * ".*" + "!": 1}},
])  # fmt: skip
def test_a_damaged_configuration_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    checkpoint(tmp_path, vit(), r=2, target_modules=["qkv"])
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | change))
    with pytest.raises(WeightsError, match="damaged"):
        load_peft(tmp_path, vit())


@pytest.mark.parametrize("shapes", [
    {"qkv.lora_A": (0, 24), "qkv.lora_B": (72, 0)}, {"qkv.lora_A": ()}, {"qkv.lora_B": ()}, {"qkv.lora_A": (24,)},
    {"qkv.lora_B": (72,)}, {"qkv.lora_B": (72, 3)}, {"head.lora_A": (2, 24), "head.lora_B": (6, 3)},
    {"head": ()}, {"head": (5,)}, {"head": (5, 7)}, {"head": (0, 24)}, {"head": (5, 24)},
    {"head": (6, 24), "head.lora_A": (2, 24), "head.lora_B": (5, 2)},
])  # fmt: skip
def test_tensors_whose_shapes_do_not_fit_are_named(tmp_path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    checkpoint(tmp_path, vit(), r=2, target_modules=["blocks.0.attn.qkv"], modules_to_save=["head"])
    found, _ = tensors.read(tmp_path / WEIGHTS)
    for part, shape in shapes.items():
        path = f"blocks.0.attn.{part}" if part.startswith("qkv") else part
        found[f"base_model.model.{path}.weight"] = torch.ones(shape)
    save_file(found, tmp_path / WEIGHTS)
    with pytest.raises(WeightsError, match=r"no product|no classifier|adapts head|backbone's layer is"):
        load_peft(tmp_path, vit())


@pytest.mark.parametrize("part", ["blocks.0.attn.qkv.lora_A", "blocks.0.attn.qkv.lora_B", "head"])
@pytest.mark.parametrize(
    "kind", [torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.int64, torch.bool], ids=str
)
def test_only_real_numbers_make_a_weight(tmp_path: Path, part: str, kind: torch.dtype) -> None:
    checkpoint(tmp_path, vit(), r=2, target_modules=["blocks.0.attn.qkv"], modules_to_save=["head"])
    found, _ = tensors.read(tmp_path / WEIGHTS)
    name = f"base_model.model.{part}.weight"
    save_file(found | {name: found[name].to(kind)}, tmp_path / WEIGHTS)
    if kind.is_floating_point:
        model = load_peft(tmp_path, vit().to(kind) if kind is torch.float64 else vit())
        if part == "head":
            kept = model.task_tensors("task")["head.weight"].double()
            torch.testing.assert_close(kept, found[name].to(kind).double(), rtol=0, atol=0)
        return
    with pytest.raises(WeightsError, match=rf"{part}.weight holds {kind}, and no real numbers"):
        load_peft(tmp_path, vit())


class Forms(nn.Module):
    """Convolutions on which PEFT's LoRA is something else than the zoo's, and names that end alike."""

    def __init__(self, **form: object) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.odd = nn.Conv2d(8, 8, 3, **{"padding": 1, **form})  # type: ignore[arg-type]
        self.pre_fc = nn.Linear(8, 8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.fc(self.pre_fc(self.odd(self.stem(x)).mean((2, 3))))
        return outputs


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups")
@pytest.mark.parametrize("form", [{"dilation": 2}, {"padding_mode": "circular"}, {"groups": 2}])
def test_forms_that_differ_in_peft_are_refused_both_ways(tmp_path: Path, form: dict[str, object]) -> None:
    checkpoint(tmp_path, Forms(**form), r=2, target_modules=["odd"])
    with pytest.raises(OptionError, match="odd is grouped, dilated"):
        load_peft(tmp_path, Forms(**form))
    model = zoo.adapt(Forms(**form), {"a": 4}, "lora", rank=2, layers=["odd"])
    with pytest.raises(OptionError, match="odd is grouped, dilated"):
        save_peft(model, "a", tmp_path / "new")


def test_names_that_end_alike_are_refused(tmp_path: Path) -> None:
    model = zoo.adapt(Forms(), {"a": 4}, "lora", rank=2, layers=["odd"])
    with pytest.raises(OptionError, match="PEFT would take pre_fc for fc"):
        save_peft(model, "a", tmp_path / "new")


def test_what_the_backbone_has_no_place_for_is_named(tmp_path: Path) -> None:
    checkpoint(tmp_path, vit(), r=2, target_modules=["qkv"], modules_to_save=["head"])
    network = vit()
    network.head = nn.Linear(24, 6, bias=False)
    with pytest.raises(WeightsError, match=r"head\.bias, which the backbone has no place for"):
        load_peft(tmp_path, network)


def test_a_checkpoint_of_something_else_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"There is no .*adapter_config\.json"):
        load_peft(tmp_path, vit())
    checkpoint(tmp_path, vit(), r=2, target_modules=["qkv"])
    with pytest.raises(WeightsError, match=r"no Conv2d or Linear layer blocks\.0\.attn\.qkv"):
        load_peft(tmp_path, SmallNet())
    wide = timm.create_model("vit_tiny_patch16_224", num_classes=6, **{**SMALL, "embed_dim": 36})
    with pytest.raises(WeightsError, match=r"72 × 24; the backbone's layer is 108 × 36"):
        load_peft(tmp_path, wide)
    found, _ = tensors.read(tmp_path / WEIGHTS)
    one = {key: tensor for key, tensor in found.items() if "lora_A" in key}
    tensors.write(tmp_path / WEIGHTS, one, {})
    with pytest.raises(WeightsError, match=r"one factor of .* alone"):
        load_peft(tmp_path, vit())
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(WeightsError, match="does not read"):
        load_peft(tmp_path, vit())


def test_the_command_line_converts_there_and_back(tmp_path: Path) -> None:
    name = "resnet20-lora-own"
    arguments = ["convert", str(tmp_path / "peft"), "--backbone", "zoo/resnet20@shapes", "--task", "clipart"]
    network = zoo.load("resnet20-features-shapes", task="clipart", fuse=True)
    peft = checkpoint(tmp_path / "peft", network, r=2, target_modules=["conv2"], modules_to_save=["fc"])
    found = CliRunner().invoke(main, [*arguments, "--name", name, "-o", str(tmp_path / "own")], catch_exceptions=False)
    assert found.exit_code == 0
    assert f"Wrote {name}" in found.output
    registry = default_registry().merged(Registry.read(tmp_path / "own" / "registry.yaml"))
    model = zoo.load(name, registry=registry)
    with torch.no_grad():
        torch.testing.assert_close(model(x := images(), task="clipart"), peft.eval()(x), rtol=1e-5, atol=1e-5)
    command = ["--registry", str(tmp_path / "own" / "registry.yaml"), "convert", name, "--task", "clipart"]
    back = CliRunner().invoke(main, [*command, "-o", str(tmp_path / "back")], catch_exceptions=False)
    assert back.exit_code == 0
    again = PeftModel.from_pretrained(
        zoo.load("resnet20-features-shapes", task="clipart", fuse=True), tmp_path / "back"
    )
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x), peft(x), rtol=1e-5, atol=1e-5)
    for own, message in ((name, "has an entry"), ("../up", "cannot name an entry"), (".", "cannot name an entry")):
        twice = CliRunner().invoke(main, [*arguments, "--name", own, "-o", str(tmp_path / "own")])
        assert twice.exit_code == 2
        assert message in twice.stderr
    wrong = CliRunner().invoke(main, ["convert", "resnet20-bn-shapes", "-o", str(tmp_path / "x")])
    assert wrong.exit_code == 2
    assert "--task, of clipart" in wrong.stderr
