"""Pushed to a hub or put into one file, everything deleted, and loaded again: the same to the bit, or refused."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import yaml
from click.testing import CliRunner, Result
from huggingface_hub import ModelCard
from PIL import Image

import zoo
from tests.hub import Fault, LoopbackHub, Repo
from zoo.catalog import index
from zoo.catalog.entry import Entry
from zoo.catalog.handover import put_in
from zoo.catalog.places import registry_at, registry_with
from zoo.catalog.registry import Registry, default_registry
from zoo.catalog.schema import parse
from zoo.cli.base import main
from zoo.deployment.parcel import bundle, push
from zoo.deployment.signing import check_signature
from zoo.errors import ConfigError, OptionError, WeightsError, ZooError
from zoo.storage import bundles, resources

# Of a backbone, of networks of their own, with a shared file, with weights of a package, with latents.
NAMES = ("resnet20-bn-shapes", "mlp-trmtl_410-digits", "resnet20-parallel_svd-shapes", "biggan32-ftn-r4-landscapes")
NAME = "resnet20-bn-shapes"
NOWHERE = {"sha256": 64 * "0", "size": 1}


@pytest.fixture(autouse=True)
def quickly(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the pictures of tasks, which twins take seconds to draw."""
    if "pictured" not in request.node.name:
        monkeypatch.setattr("zoo.deployment.parcel.draw", lambda *_: False)


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words), catch_exceptions=False)


def outputs(model: zoo.models.multitask.MultiTaskModel) -> dict[str, torch.Tensor]:
    found = {}
    for task in model.tasks:
        inputs = torch.rand(2, *model.input_shape(task), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            found[task] = model(inputs, task=task)
    return found


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[task], second[task]) for task in first)


@pytest.mark.parametrize("name", NAMES)
def test_pushed_deleted_and_loaded_by_name(name: str, hub: LoopbackHub, tmp_path: Path) -> None:
    expected = outputs(zoo.load(name))
    made = zoo.push(name, "me/zoo")
    assert made.commit == hub.repos["me/zoo"].newest
    assert {path: len(data) for path, data in hub.repos["me/zoo"].files.items() if data} == made.files
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert same(outputs(zoo.load(f"hf://me/zoo/{name}")), expected)
    assert same(outputs(zoo.load(name, registry="hf://me/zoo")), expected)
    assert same(outputs(zoo.load(f"hf://me/zoo@{made.commit}/{name}")), expected)


def test_nothing_but_the_repository_is_used(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = outputs(zoo.load(NAME))
    push(NAME, "me/zoo")
    state = yaml.safe_load(hub.repos["me/zoo"].files["registry.yaml"])["entries"][NAME]
    uris = [state["backbone_weights"]["uri"], *(file["uri"] for file in state["weights"].values())]
    assert all(uri.startswith("hf://me/zoo/") for uri in uris)
    monkeypatch.setattr(resources, "packaged_weights_dir", lambda: tmp_path / "none")
    assert same(outputs(zoo.load(f"hf://me/zoo/{NAME}")), expected)
    hub.shutdown()
    hub.server_close()  # and from the cache alone
    assert same(outputs(zoo.load(f"hf://me/zoo/{NAME}")), expected)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert same(outputs(zoo.load(f"hf://me/zoo/{NAME}")), expected)


def test_what_is_there_is_not_sent_again_and_other_entries_stay(hub: LoopbackHub) -> None:
    first = push(NAME, "me/zoo")
    sent = hub.received
    assert push(NAME, "me/zoo").commit == first.commit
    assert hub.received == sent
    push("resnet20-features-shapes", "me/zoo")
    adapters = sum(len(d) for path, d in hub.repos["me/zoo"].files.items() if path.startswith("resnet20-features"))
    assert hub.received - sent < adapters  # the backbone is there
    assert registry_at("hf://me/zoo").names() == [NAME, "resnet20-features-shapes"]
    card = hub.repos["me/zoo"].files["README.md"].decode()
    assert f'zoo.load("hf://me/zoo/{NAME}")' in card
    assert ModelCard(card).data.model_name == "resnet20-features-shapes"
    assert len(zoo.load(f"hf://me/zoo/{NAME}").tasks) == 6


def test_a_readme_of_somebodys_own_stays(hub: LoopbackHub) -> None:
    push(NAME, "me/zoo")
    hub.repos["me/zoo"].commit({**hub.repos["me/zoo"].files, "README.md": b"mine"}, {"summary": "mine"})
    push("resnet20-features-shapes", "me/zoo")
    assert hub.repos["me/zoo"].files["README.md"] == b"mine"


def test_a_trial_sends_nothing_and_asks_nothing(hub: LoopbackHub) -> None:
    made = push(NAME, "me/zoo", dry_run=True)
    assert not hub.asked
    assert not made.commit
    assert push(NAME, "me/zoo").files == made.files


@pytest.mark.parametrize("kind", ["drop", "busy", "broken"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/models/me/zoo$"), ("POST", "create"), ("POST", "preupload"), ("POST", "batch"),
        ("PUT", "large/upload"), ("POST", "large/verify"), ("POST", "/commit/"),
    ],
)  # fmt: skip
def test_an_interrupted_push_leaves_the_repository_as_it_was(
    kind: str, method: str, path: str, hub: LoopbackHub
) -> None:
    push("resnet20-features-shapes", "me/zoo")
    before = dict(hub.repos["me/zoo"].commits)
    hub.faults += [Fault(kind, method, path) for _ in range(1)]
    try:
        push(NAME, "me/zoo")
    except ZooError as error:
        assert hub.repos["me/zoo"].commits == before
        assert "The push to me/zoo did not come to its end" in str(error) or "cannot be looked at" in str(error)
        push(NAME, "me/zoo")
    assert len(hub.repos["me/zoo"].commits) == len(before) + 1
    assert registry_at("hf://me/zoo").names() == [NAME, "resnet20-features-shapes"]


def test_somebody_else_committed_in_the_meantime(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    push(NAME, "me/zoo")
    real = zoo.storage.hub.commit

    def late(*given: object, **named: object) -> str:
        hub.repos["me/zoo"].commit({**hub.repos["me/zoo"].files, "theirs": b"1"}, {"summary": "theirs"})
        return real(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("zoo.storage.hub.commit", late)
    with pytest.raises(WeightsError, match="A commit has happened since"):
        push("resnet20-features-shapes", "me/zoo")
    assert "theirs" in hub.repos["me/zoo"].files
    assert registry_at("hf://me/zoo").names() == [NAME]


@pytest.mark.parametrize("kind", ["drop", "busy", "broken", "short"])
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/api/models/me/zoo$"), ("GET", "tree"), ("HEAD", "sketch"), ("GET", "resolve.*sketch")],
)
def test_a_download_in_trouble_is_right_or_a_sentence(kind: str, method: str, path: str, hub: LoopbackHub) -> None:
    expected = outputs(zoo.load(NAME, task="sketch"))
    push(NAME, "me/zoo")
    hub.faults.append(Fault(kind, method, path))
    with contextlib.suppress(WeightsError):
        assert same(outputs(zoo.load(f"hf://me/zoo/{NAME}", task="sketch")), expected)
    assert same(outputs(zoo.load(f"hf://me/zoo/{NAME}", task="sketch")), expected)


def test_an_altered_file_of_a_repository_is_refused(hub: LoopbackHub) -> None:
    push(NAME, "me/zoo")
    files = dict(hub.repos["me/zoo"].files)
    adapter = bytearray(files[f"{NAME}/sketch.safetensors"])
    adapter[-1] ^= 1
    hub.repos["me/zoo"].commit({**files, f"{NAME}/sketch.safetensors": bytes(adapter)}, {"summary": "evil"})
    with pytest.raises(WeightsError, match="was altered"):
        zoo.load(f"hf://me/zoo/{NAME}")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"recipe": "../../elsewhere.yaml"}, "leaves its folder"),
        ({"recipe": "/etc/elsewhere.yaml"}, "leaves its folder"),
        ({"weights": {"sketch": NOWHERE | {"uri": "file:../x.safetensors"}}}, "leaves the repository"),
        ({"weights": {"sketch": NOWHERE | {"uri": "package:../../x"}}}, "leaves its folder"),
        ({"backbone": "!!python/name:os.system"}, "Unknown backbone"),
    ],
)  # fmt: skip
def test_a_repository_names_nothing_outside_itself(
    change: dict[str, object], said: str, hub: LoopbackHub, tmp_path: Path
) -> None:
    push(NAME, "me/zoo")
    data = yaml.safe_load(hub.repos["me/zoo"].files["registry.yaml"])
    data["entries"][NAME] |= {"data_root": str(tmp_path)} | change
    files = {**hub.repos["me/zoo"].files, "registry.yaml": yaml.safe_dump(data).encode()}
    hub.repos["me/zoo"].commit(files, {"summary": "evil"})
    with pytest.raises(ZooError, match=said):
        zoo.load(f"hf://me/zoo/{NAME}", task="sketch")
    if "recipe" not in change:
        assert registry_at("hf://me/zoo").entry(NAME).data_root is None


def test_what_is_too_large_for_a_registry_is_not_fetched(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    push(NAME, "me/zoo")
    hub.repos["me/zoo"].commit({**hub.repos["me/zoo"].files, "a/b.yaml": bytes(5000)}, {"summary": "evil"})
    monkeypatch.setattr("zoo.storage.hub.MOST_DATA", 4000)
    with pytest.raises(WeightsError, match="and may have 4,000"):
        registry_at("hf://me/zoo")
    assert not any(path.endswith("b.yaml") for _, path in hub.asked)


def test_the_tasks_are_pictured_beside_the_card(hub: LoopbackHub, tmp_path: Path) -> None:
    push("mlp-stl-digits", "me/zoo")
    files = hub.repos["me/zoo"].files
    assert b"](mlp-stl-digits/tasks.png)" in files["README.md"]
    assert b"](tasks.png)" in files["mlp-stl-digits/README.md"]
    assert b"license: apache-2.0" in files["README.md"]
    (tmp_path / "tasks.png").write_bytes(files["mlp-stl-digits/tasks.png"])
    with Image.open(tmp_path / "tasks.png") as picture:
        assert len(set(picture.convert("L").tobytes())) > 10


@pytest.mark.parametrize("name", ["../../../victim", "/tmp/victim", "a/b", "..", "", ".hidden"])
@pytest.mark.parametrize("kind", ["entry", "task"])
def test_names_of_a_place_that_are_paths(kind: str, name: str, tmp_path: Path) -> None:
    whole = bundles.unpacked(bundle(NAME, tmp_path / "it.zoo"))[0]
    data = yaml.safe_load((whole / "registry.yaml").read_text())
    known = data["entries"].pop(NAME)
    if kind == "task":
        for part in ("classes", "weights", "measured"):
            known[part] = {name if task == "sketch" else task: value for task, value in known[part].items()}
    data["entries"][name if kind == "entry" else NAME] = known
    files = {path.relative_to(whole).as_posix(): path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    file = crafted(tmp_path / "evil.zoo", {**files, "registry.yaml": yaml.safe_dump(data).encode()})
    for act in (lambda: registry_at(file), lambda: zoo.load(str(file)), lambda: check_signature(file, "none.pub")):
        with pytest.raises(ZooError, match=r"cannot name an? (entry|task)|cannot be used as"):
            act()


def test_an_index_beside_a_foreign_registry_is_not_believed(tmp_path: Path) -> None:
    whole = bundles.unpacked(bundle(NAME, tmp_path / "it.zoo"))[0]
    text = (whole / "registry.yaml").read_text()
    key = index.key_of(text.encode())
    entries = [replace(entry, note="evil") for entry in Registry.read(whole).entries()]
    index.save(key, entries, [], {}, tmp_path / "evil.index")
    files = {path.relative_to(whole).as_posix(): path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    files["registry.index"] = (tmp_path / "evil.index").read_bytes()
    assert registry_at(crafted(tmp_path / "evil.zoo", files)).entry(NAME).note != "evil"


def test_what_a_place_says_of_backbones_counts_for_its_own_entries_alone(tmp_path: Path) -> None:
    whole = bundles.unpacked(bundle(NAME, tmp_path / "it.zoo"))[0]
    data = yaml.safe_load((whole / "registry.yaml").read_text())
    evil = NOWHERE | {"uri": "file:evil"}
    data["pins"] = {"timm/resnet18.a1_in1k": evil}
    data["backbones"] = {"zoo/resnet20@shapes": {
        "benchmark": "shapes", "task": "real", "recipe": "shapes/pretrain", "parameters": 1, "weights": evil,
    }}  # fmt: skip
    files = {path.relative_to(whole).as_posix(): path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    file = crafted(tmp_path / "evil.zoo", {**files, "registry.yaml": yaml.safe_dump(data).encode()})
    registry = registry_with(file)
    assert registry.pins == default_registry().pins
    assert registry.backbone("zoo/resnet20@shapes") == default_registry().backbone("zoo/resnet20@shapes")


def test_entries_of_every_form_go_out_and_come_back(hub: LoopbackHub, tmp_path: Path) -> None:
    """On a network of timm's, which is named and not sent; without figures; behind another entry; of a decoder."""
    name = "timm/test_resnet.r160_in1k"
    torch.manual_seed(0)
    network = timm.create_model(name.removeprefix("timm/"))
    hub.repos[name] = Repo()
    hub.repos[name].commit({"model.safetensors": safetensors.torch.save(network.state_dict())}, {"summary": "first"})
    model = zoo.adapt(network, {"a": 3}, "bn")
    model.save_adapter("a", tmp_path / "mine" / "own" / "a.safetensors")
    recipe = {
        "backbone": name,
        "method": {"name": "bn"},
        "benchmark": "folder",
        "classes": {"a": 3},
        "recipe": "folder/bn",
    }
    entry = parse(Entry, recipe, [])
    assert entry is not None
    entry = replace(entry, name="own", folder=tmp_path / "mine")
    made = put_in(tmp_path / "mine", entry, {"a": tmp_path / "mine" / "own" / "a.safetensors"})
    expected = outputs(zoo.load("own", registry=tmp_path / "mine"))
    sent = push("own", "me/own", registry=tmp_path / "mine")
    assert not any(path.startswith("backbones/") for path in sent.files)
    assert same(outputs(zoo.load("hf://me/own/own")), expected)
    file = bundle("hf://me/own/own", tmp_path / "own.zoo")
    assert same(outputs(zoo.load(file)), expected)
    again = push("hf://me/own/own", "me/again")
    assert not any(path.startswith("backbones/") for path in again.files)
    assert made.measured is None

    dense = bundle("resnet20-decoder_bn-rooms", tmp_path / "dense.zoo")
    with zipfile.ZipFile(dense) as archive:
        assert any(path.startswith("backbones/") for path in archive.namelist())


def test_a_renamed_repository_and_a_copy_in_a_folder(hub: LoopbackHub, tmp_path: Path) -> None:
    expected = outputs(zoo.load(NAME, task="sketch"))
    push(NAME, "me/zoo")
    hub.repos["You/Renamed"] = hub.repos.pop("me/zoo")
    assert same(outputs(zoo.load(f"hf://You/Renamed/{NAME}", task="sketch")), expected)
    for path, data in hub.repos["You/Renamed"].files.items():
        (tmp_path / "copy" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / path).write_bytes(data)
    registry = Registry.read(tmp_path / "copy").over(default_registry())
    assert same(outputs(zoo.load(NAME, task="sketch", registry=registry)), expected)


def test_a_repository_that_may_not_be_read_is_not_written_over(hub: LoopbackHub) -> None:
    push(NAME, "me/zoo")
    hub.faults.append(Fault("hidden", "GET", "/api/models/me/zoo$"))
    before = dict(hub.repos["me/zoo"].commits)
    with pytest.raises(WeightsError, match="did not come to its end"):
        push("resnet20-features-shapes", "me/zoo")
    assert hub.repos["me/zoo"].commits == before


@pytest.mark.parametrize("kind", ["busy", "broken", "drop"])
def test_a_hub_that_is_ill_and_a_cache_that_knows(kind: str, hub: LoopbackHub) -> None:
    expected = outputs(zoo.load(NAME, task="sketch"))
    commit = push(NAME, "me/zoo").commit
    zoo.load(f"hf://me/zoo/{NAME}")
    hub.faults += [Fault(kind, "GET", "/api/models/") for _ in range(20)]
    for address in (f"hf://me/zoo@{commit}/{NAME}", f"hf://me/zoo/{NAME}"):
        assert same(outputs(zoo.load(address, task="sketch")), expected)


def test_training_what_is_elsewhere_needs_a_folder(tmp_path: Path) -> None:
    file = bundle("mlp-stl-digits", tmp_path / "it.zoo")
    done = run("train", str(file), "--max-steps", "1")
    assert done.exit_code == 2
    assert "--out" in done.output


def test_no_code_of_a_repository_runs(hub: LoopbackHub) -> None:
    push(NAME, "me/zoo")
    files = {**hub.repos["me/zoo"].files, "zoo.py": b"raise SystemExit(1)", "registry.py": b"raise SystemExit(1)"}
    files["registry.yaml"] += b"\nevil: !!python/object/apply:os.system ['exit 1']\n"
    hub.repos["me/zoo"].commit(files, {"summary": "evil"})
    with pytest.raises(ConfigError, match="python"):
        registry_at("hf://me/zoo")
    assert not any(path.endswith(".py") for _, path in hub.asked)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("ls", "hf://me/none"), "cannot be read: 404"),
        (("ls", "hf://me"), "is not of the form hf://OWNER/REPO"),
        (("ls", "hf://me/zoo/../../x"), "is not of the form hf://OWNER/REPO"),
        (("ls", "hf://me/zoo@none"), "cannot be read: 404"),
        (("info", "hf://me/zoo"), f"name one of its entries: {NAME}"),
        (("info", "hf://me/zoo/resnet20-bn-shape"), f"Did you mean {NAME}"),
        (("push", NAME, "hf://me/zoo@main"), "without a revision"),
        (("push", NAME, "me"), "is not of the form"),
        (("push", "resnet34-ftn-r40-domainnet", "me/zoo"), "No weights of"),
        (("bundle", NAME, "-o", "x.zip"), "is to end in .zoo"),
        (("info", "none.zoo"), "is no whole bundle"),
    ],
)
def test_wrong_addresses_get_a_sentence(words: tuple[str, ...], said: str, hub: LoopbackHub) -> None:
    push(NAME, "me/zoo")
    done = run(*words)
    assert done.exit_code in (1, 2)
    assert said in done.output
    assert "Traceback" not in done.output


def test_commands_take_an_address_for_a_name(hub: LoopbackHub, tmp_path: Path) -> None:
    push(NAME, "me/zoo")
    assert NAME in run("ls", "hf://me/zoo").output
    assert "resnet20-features-shapes" not in run("ls", "hf://me/zoo").output
    for words in (("info", f"hf://me/zoo/{NAME}"), ("info", NAME, "--registry", "hf://me/zoo")):
        assert "hf://me/zoo@" in run(*words).output
    done = run("export", f"hf://me/zoo/{NAME}", "--task", "sketch", "-o", str(tmp_path / "onnx"))
    assert done.exit_code == 0, done.output


def test_the_stores_adapters_are_not_taken_for_a_repositorys(hub: LoopbackHub, tmp_path: Path) -> None:
    expected = outputs(zoo.load(NAME, task="sketch"))
    push(NAME, "me/zoo")
    model = zoo.load(NAME, task="sketch")
    model.task_tensors("sketch")["bn1.bias"].add_(1)
    model.save_adapter("sketch", tmp_path / "home" / NAME / "sketch.safetensors")
    assert not same(outputs(zoo.load(NAME, task="sketch")), expected)
    assert same(outputs(zoo.load(f"hf://me/zoo/{NAME}", task="sketch")), expected)


def test_the_whole_way_by_the_environment_alone(hub: LoopbackHub, tmp_path: Path) -> None:
    """As a stranger goes it, in processes of their own."""
    environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1"}

    def zoo_command(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "zoo", *words], capture_output=True, text=True, env=environment, check=False
        )

    sent = zoo_command("push", "mlp-stl-digits", "me/zoo", "--json")
    assert sent.returncode == 0, sent.stderr
    assert "mlp-stl-digits/odd.safetensors" in {row["file"] for row in json.loads(sent.stdout)}
    shown = zoo_command("ls", "hf://me/zoo", "--json")
    assert [row["name"] for row in json.loads(shown.stdout)] == ["mlp-stl-digits"]


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_is_loaded_in_place_of_a_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    expected = outputs(zoo.load(name))
    file = bundle(name, tmp_path / "it.zoo")
    assert zipfile.ZipFile(file).testzip() is None
    again = bundle(name, tmp_path / "again.zoo")
    assert file.read_bytes() == again.read_bytes()
    monkeypatch.setattr(resources, "packaged_weights_dir", lambda: tmp_path / "none")
    assert same(outputs(zoo.load(str(file))), expected)
    assert same(outputs(zoo.load(name, registry=file)), expected)
    assert run("ls", str(file)).exit_code == run("info", str(file)).exit_code == 0
    held = sorted(path for path in (tmp_path / "cache" / "bundles").rglob("*") if path.is_file())
    held[0].unlink()
    next(path for path in held if path.name == "registry.yaml").write_text("entries: {}")
    assert same(outputs(zoo.load(str(file))), expected)
    (tmp_path / "link.zoo").symlink_to(file)
    before = file.stat().st_ino
    bundle(str(again), tmp_path / "link.zoo")
    assert (tmp_path / "link.zoo").is_symlink()
    assert file.stat().st_ino != before


def test_a_bundle_of_a_bundle_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    first = bundle(NAME, tmp_path / "it.zoo")
    assert bundle(str(first), tmp_path / "again.zoo").read_bytes() == first.read_bytes()


def test_another_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "it.zoo").write_text("mine")
    with pytest.raises(OptionError, match="is no bundle; it is not overwritten"):
        bundle(NAME, tmp_path / "it.zoo")
    assert (tmp_path / "it.zoo").read_text() == "mine"
    with zipfile.ZipFile(tmp_path / "photos.zoo", "w") as archive:
        archive.writestr("precious.txt", "mine")
    with pytest.raises(OptionError, match="is no bundle; it is not overwritten"):
        bundle(NAME, tmp_path / "photos.zoo")


def test_any_byte_of_a_bundle_that_changes_is_refused_or_nothing_hangs_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    expected = outputs(zoo.load("mlp-trmtl_410-digits"))
    whole = bundle("mlp-trmtl_410-digits", tmp_path / "it.zoo").read_bytes()
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(len(whole), (40,), generator=generator).tolist()
    listing = whole.rindex(b"PK\x01\x02")
    places += torch.randint(listing - 400, len(whole), (40,), generator=generator).tolist()
    for number, place in enumerate(places):
        altered = bytearray(whole)
        altered[place] ^= 1 << number % 8
        (tmp_path / "altered.zoo").write_bytes(altered)
        try:
            assert same(outputs(zoo.load(str(tmp_path / "altered.zoo"))), expected)
        except ZooError:
            continue


def crafted(file: Path, files: dict[str, bytes], *, compressed: bool = False, manifest: object = None) -> Path:
    """A zip as no bundle is."""
    sums = {
        name: {"sha256": bundles.hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in files.items()
    }
    told = {"format": 1, "entry": NAME, "files": sums} if manifest is None else manifest
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, data in {"manifest.json": json.dumps(told).encode(), **files}.items():
            archive.writestr(name, data)
    return file


def zip64(file: Path) -> Path:
    """One of many files whose end, in the older form, tells of five."""
    whole = crafted(file, {f"{i}": b"" for i in range(bundles.MOST_FILES + 1)}).read_bytes()
    mark, *disks, _, _, listing, place, _ = bundles.END.unpack(whole[-bundles.END.size :])
    count = bundles.MOST_FILES + 2
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, listing, place)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(whole) - bundles.END.size, 1)
    end = bundles.END.pack(mark, *disks, 5, 5, 100, bundles.LARGEST, 0)
    file.write_bytes(whole[: -bundles.END.size] + record + locator + end)
    return file


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a//b", "..", "a\\b", "a/"])
def test_no_path_of_a_bundle_leaves_its_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    with pytest.raises(WeightsError, match="is no whole bundle"):
        bundles.unpacked(crafted(tmp_path / "x.zoo", {name: b"1"}))
    assert not list(tmp_path.rglob("x")) + list(tmp_path.rglob("b"))


def test_bombs_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    for made, said in (
        (crafted(tmp_path / "deflated.zoo", {"x": bytes(10**7)}, compressed=True), "is compressed"),
        (crafted(tmp_path / "many.zoo", {f"{i}": b"" for i in range(bundles.MOST_FILES + 1)}), "it lists"),
        (
            crafted(tmp_path / "else.zoo", {"x": b"1"}, manifest={"format": 1, "entry": NAME, "files": {}}),
            "other files",
        ),
        (crafted(tmp_path / "new.zoo", {}, manifest={"format": 2, "files": {}}), "its format is 2"),
        (crafted(tmp_path / "nameless.zoo", {}, manifest={"format": 1, "files": {}}), "names no entry"),
        (zip64(tmp_path / "zip64.zoo"), "is larger than|allowed"),
        (crafted(tmp_path / "list.zoo", {}, manifest=[]), "is no whole bundle"),
    ):
        with pytest.raises(WeightsError, match=said):
            bundles.unpacked(made)
    assert not list((tmp_path / "cache").rglob("x"))
