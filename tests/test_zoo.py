"""Every entry of the zoo at its real input size: built, fused, exported, compared; and every recipe.

`make slow` runs these; `make test` fuses and exports one of each family of graphs.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from zoo.export import run, session, to_onnx

import zoo
from tests.conftest import disturb
from tests.datasets import layouts
from zoo.backbones.lookup import architecture
from zoo.catalog.entry import Entry
from zoo.catalog.registry import Registry, default_registry
from zoo.cli.base import main
from zoo.datasets import get_benchmark
from zoo.storage import tensors
from zoo.storage.files import WeightsFile, sha256
from zoo.training.publishing import publish

ENTRIES = [default_registry().entry(name) for name in default_registry().names()]
FAMILIES = {  # of graphs, by what their networks' names begin with, and the one that stands for each in `make test`
    "efficientnet": "efficientnet_b4-features-sketch", "resnet": "resnet50-ftn-r20-sketch",
    "vit": "vit_b32_clip-ftn_o-r4-clip5", "deeplab": "resnet18-ftn-r1-nyud", "mlp": "mlp-trmtl_410-mnist_odd_even",
    "cnn": "cnn-trmtl_432-omniglot5", "lstm": "lstm-trmtl_4-clips", "biggan": "biggan32-ftn-r4-landscapes",
}  # fmt: skip
SIZES = {"sketch": {224}, "domainnet": {224}, "domainnet_joint": {224}, "decathlon": {72}, "shapes": {32},
         "pentathlon": {24, 28, 32, 36, 40}, "places": {64}, "clip5": {224}, "nyud": {425}, "rooms": {48},
         "mnist_odd_even": {28}, "omniglot5": {105}, "omniglot_mnist": {28, 105}, "cifar10_3": {16, 32}, "ucf11": {120},
         "officehome": {224}, "adience_celeba": {218, 227}, "digits": {8, 16}, "shapes2": {16, 32},
         "clips": {16}, "pictures": {128}, "emoji": {128}, "streets": {240}, "landscapes": {32}, "seasons": {128},
         "scenery": {32}}  # fmt: skip


def sizes(entry: Entry) -> set[int]:
    special = {"efficientnet_b4": {380}, "resnet26": {64}}
    return next((size for name, size in special.items() if name in entry.backbone), SIZES[entry.benchmark])


def marked(entry: Entry, quick: bool = False) -> object:
    """A case for pytest: slow, unless it is a quick one."""
    return pytest.param(entry, marks=[] if quick else [pytest.mark.slow])


def test_each_family_of_graphs_has_its_quick_test() -> None:
    for entry in ENTRIES:
        network = entry.name if entry.networks else entry.backbone.removeprefix("zoo/").removeprefix("timm/tf_")
        network = network.removeprefix("torchvision/").removeprefix("timm/").removeprefix("entry/")
        assert any(network.startswith(family) for family in FAMILIES), network
    assert set(FAMILIES.values()) <= {entry.name for entry in ENTRIES}


def but_for_rank(entry: Entry) -> str:
    """What of an entry decides which graph it becomes, but for the sizes in it."""
    method = {key: value for key, value in entry.method.items() if key != "rank"}
    return repr((entry.backbone, entry.networks, method, entry.form, sorted(set(entry.kinds.values()))))


# Of entries that differ in their rank, their images or their classes alone, the first; and those of `make test`.
FIRST = {but_for_rank(entry): entry.name for entry in reversed(ENTRIES)}
EXPORTED = [e for e in ENTRIES if e.name in {*FIRST.values(), *FAMILIES.values()}]


@pytest.mark.parametrize("entry", [marked(e, e.name in FAMILIES.values()) for e in EXPORTED], ids=lambda e: e.name)
def test_fusing_and_exporting_change_nothing(entry: Entry, tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = entry.tasks[0]
    model = zoo.load(entry.name, task=task, weights=None)
    disturb(model, task)
    known, plain = model.task(task), model.fuse(task)
    assert known.preprocessing.size in sizes(entry)
    images = torch.randn(1, *model.input_shape(task))
    with torch.no_grad():
        logits = model(images, task=task)
        torch.testing.assert_close(plain(images), logits, rtol=1e-3, atol=1e-4 * float(logits.abs().max()))
    model = None  # the largest networks have a gigabyte and more
    parity = to_onnx(plain, tmp_path / "graph.onnx", task=known, images=images)  # which compares with `plain`
    assert parity.passed
    assert parity.images == 1 + 3 + 1
    if entry.name in FAMILIES.values():  # and here with the unfused model, in a session of its own
        found = torch.from_numpy(run(session(tmp_path / "graph.onnx"), images.numpy()))
        torch.testing.assert_close(found, logits, rtol=1e-3, atol=2e-4 * float(logits.abs().max()))
    (tmp_path / "graph.onnx").unlink()


# -- recipes, through the command line ------------------------------------------------------------------------------

# One entry of each recipe; adapters that begin with another entry's are trained in test_runs.py.
OF_RECIPE = {entry.recipe: entry for entry in reversed(ENTRIES) if not entry.source or entry.networks}


def command(*arguments: object, status: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result


@pytest.fixture(scope="session")
def random_backbones(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, str]]:
    """By the backbone's name, a file of random weights and its hash, made once, as none can be downloaded here."""
    folder = tmp_path_factory.mktemp("backbones")

    @functools.cache
    def made(backbone: str) -> tuple[Path, str]:
        file = folder / f"{hashlib.sha256(backbone.encode()).hexdigest()}.safetensors"
        torch.manual_seed(0)
        tensors.write(file, architecture(backbone, default_registry()).state_dict(), {})
        return file, sha256(file)

    return made


def on_a_small_scale(
    entry: Entry, folder: Path, random_backbones: Callable[[str], tuple[Path, str]], name: str = "small"
) -> Entry:
    """The entry with random backbone weights, and batches of two in one epoch."""
    recipe = folder / f"{name}.yaml"
    command("cp", entry.recipe, recipe)
    text = re.sub(r"(?m)^epochs: \d+", "epochs: 1", recipe.read_text())
    text = re.sub(r"(?m)^samples: \d+", "samples: 4", text)
    recipe.write_text(re.sub(r"(?m)^batch: \d+", "batch: 2", text))
    small = replace(entry, name=name, recipe=str(recipe), weights=None, shared=None, measured=None, baseline="")
    if not entry.backbone:
        return small
    file, digest = random_backbones(entry.backbone.removeprefix("deeplab/"))
    (folder / "backbone.safetensors").unlink(missing_ok=True)
    try:
        (folder / "backbone.safetensors").hardlink_to(file)
    except OSError:  # a file system without links
        shutil.copy(file, folder / "backbone.safetensors")
    weights = WeightsFile("file:backbone.safetensors", digest, file.stat().st_size)
    return replace(small, backbone_weights=weights)


@pytest.mark.parametrize("entry", [marked(entry) for entry in OF_RECIPE.values()], ids=lambda e: e.recipe)
def test_every_recipe_trains_two_steps_and_its_result_evaluates(
    entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_backbones: Callable[[str], tuple[Path, str]]
) -> None:
    """On the benchmark's real layout; then `verify` evaluates what was trained, and finds what training has stated."""
    monkeypatch.setattr("zoo.models.latents.STEPS", 2)  # of fitting latents, which takes long with large networks
    needs_root = get_benchmark(entry.benchmark).needs_root
    root = layouts.shared(entry.benchmark, monkeypatch) if needs_root else None
    data = ("--data-root", root) if root else ()
    small, registry, file = on_a_small_scale(entry, tmp_path, random_backbones), Registry(), tmp_path / "registry.yaml"
    if entry.source:
        source = on_a_small_scale(default_registry().entry(entry.source), tmp_path, random_backbones, "source")
        small = replace(small, source="source")
        registry.update(source)
    registry.update(small)
    registry.write(file)
    if entry.source:
        command("--registry", file, "train", "source", "--max-steps", 2, "--quiet", *data)
    out, task = tmp_path / "out", entry.tasks[-1]
    wanted = () if entry.networks else ("--task", task)  # networks are trained together
    steps = len(entry.tasks) if entry.networks else 2
    command("--registry", file, "train", "small", *wanted, "--max-steps", steps, "--out", out, "--quiet", *data)
    files = {each: out / f"{each}.safetensors" for each in (entry.tasks if entry.networks else [task])}
    header = tensors.read(files[task])[1]
    assert header["preprocessing"]["size"] in sizes(entry)

    kept = {each: entry.classes[each] for each in files}
    alone = replace(small, classes=kept, kinds={each: entry.kind(each) for each in files})
    registry.update(publish(alone, files, "file:out/"))
    registry.write(file)
    checks = json.loads(command("--registry", file, "verify", "small", "--json", *data).stdout)
    metric, found = entry.metric(task), {(check["task"], check["check"]): check for check in checks}
    assert all(check["passed"] for check in checks)
    assert ("all", "parameters") in found
    value = float(found[task, metric.name]["detail"].split()[0])
    assert value == pytest.approx(header["metrics"][metric.name], abs=0.02)
