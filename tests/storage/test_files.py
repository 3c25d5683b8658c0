"""Weights files: whole or not at all, checked before use, never a pickle."""

from __future__ import annotations

import errno
import gc
import hashlib
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import equal
from zoo.errors import WeightsError
from zoo.storage import resources, tensors
from zoo.storage.fetch import check, download, fetch
from zoo.storage.files import WeightsFile, atomic_path, sha256
from zoo.storage.hub import hub_file

SOME = {"a": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)}


def test_round_trip(tmp_path: Path) -> None:
    tensors.write(tmp_path / "x.safetensors", SOME, {"k": [1, "ü"]})
    read, header = tensors.read(tmp_path / "x.safetensors")
    assert equal(read, SOME)
    assert header == {"k": [1, "ü"]}


def test_the_same_content_makes_the_same_bytes(tmp_path: Path) -> None:
    digests = set()
    for i in range(5):
        file = tmp_path / f"{i}.safetensors"
        tensors.write(file, SOME, {"b": 1, "a": 2, "c": {"z": 1, "y": 2}})
        digests.add(sha256(file))
    assert len(digests) == 1


def test_a_truncated_file_an_altered_one_and_a_pickle_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    tensors.write(file, SOME, {})
    whole = file.read_bytes()
    good = WeightsFile("file:x.safetensors", hashlib.sha256(whole).hexdigest(), len(whole))
    assert fetch(good, tmp_path) == file

    file.write_bytes(whole[:-3])
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        tensors.read(file)
    with pytest.raises(WeightsError, match=f"has {len(whole) - 3} bytes and not {len(whole)}"):
        check(file, good)

    file.write_bytes(whole[:-1] + b"\x01")
    with pytest.raises(WeightsError, match="it was altered"):
        check(file, good)

    class Evil:
        def __reduce__(self) -> tuple[Any, Any]:
            return pytest.fail, ("a pickle was loaded",)

    file.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        tensors.read(file)
    with pytest.raises(WeightsError, match="There is no weights file"):
        tensors.read(tmp_path / "none.safetensors")


def test_any_bit_that_changes_is_found_wherever_the_file_lies(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    tensors.write(file, SOME, {"classes": ["Käfer", "dog"], "format": 1, "rate": 0.1})
    whole = file.read_bytes()
    for position in range(8 * len(whole)):
        altered = bytearray(whole)
        altered[position // 8] ^= 1 << position % 8
        file.write_bytes(altered)
        with pytest.raises(WeightsError):
            tensors.read(file)


def test_reading_leaves_nothing_behind(tmp_path: Path) -> None:
    """A service loads for ever; and every type of tensor comes back, by whichever way it is read."""
    types = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8, torch.float64)
    many = {f"{number}": torch.arange(6).view(2, 3).to(kind) for number, kind in enumerate(types)}
    many["number"], many["none"] = torch.tensor(3.0), torch.zeros(0, 4)
    tensors.write(tmp_path / "many.safetensors", many, {})
    assert equal(tensors.read(tmp_path / "many.safetensors")[0], many)
    tensors.write(tmp_path / "x.safetensors", {f"{number}": torch.ones(2) for number in range(100)}, {})
    tensors.read(tmp_path / "x.safetensors")
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(40):
            tensors.read(tmp_path / "x.safetensors")
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 100_000  # of four thousand tensors
    finally:
        tracemalloc.stop()


def test_a_file_of_before_loads_with_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    save_file(SOME, tmp_path / "old.safetensors", metadata={tensors.HEADER: '{"format": 1}'})
    save_file(SOME, tmp_path / "other.safetensors", metadata={"format": "pt"})
    for name, header, notes in (("old", {"format": 1}, 1), ("other", {}, 1)):
        read, found = tensors.read(tmp_path / f"{name}.safetensors")
        assert equal(read, SOME)
        assert found == header
        assert len(caplog.messages) == notes
    assert "no checksum" in caplog.text


def test_a_header_is_not_read_that_would_fill_the_memory(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    with open(file, "wb") as long:
        long.write((tensors.LONGEST_HEADER + 1).to_bytes(8, "little"))
        long.truncate(tensors.LONGEST_HEADER + 100)
    with pytest.raises(WeightsError, match="would have 25,000,001 bytes"):
        tensors.read(file)
    deep = '{"zoo": ' + 100_000 * "[" + 100_000 * "]" + "}"
    save_file(SOME, file, metadata={tensors.HEADER: deep})
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        tensors.read(file)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    save_file({"layer.weight": torch.tensor([1.0, value])}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"the tensor layer\.weight holds a value that is not finite"):
        tensors.read(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [("float8_e4m3fn", 0x7F), ("float8_e5m2", 0x7E), ("float8_e8m0fnu", 0xFF), ("float8_e4m3fnuz", 0x80)],
)
def test_small_types_that_are_not_finite_are_named(dtype: str, bits: int, tmp_path: Path) -> None:
    narrow = torch.tensor([0x38, bits], dtype=torch.uint8).view(getattr(torch, dtype))
    save_file({"bad": narrow}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="bad holds a value that is not finite"):
        tensors.read(tmp_path / "x.safetensors")


def test_a_type_that_torch_cannot_compute_with_is_named(tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}'
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"ab")
    with pytest.raises(WeightsError, match=r"x\.safetensors"):
        tensors.read(tmp_path / "x.safetensors")


def test_other_sorts_of_numbers_do_not_fit() -> None:
    own = {"w": torch.zeros(2), "n": torch.tensor(0)}
    tensors.check_tensors(own, {"w": torch.zeros(2).half(), "n": torch.tensor(0, dtype=torch.int32)}, "x")
    for given in (torch.zeros(2, dtype=torch.complex64), torch.zeros(2, dtype=torch.int64), torch.zeros(2).bool()):
        with pytest.raises(WeightsError, match=r"w holds .*, not real numbers"):
            tensors.check_tensors(own, {**own, "w": given}, "x")
    counter = {"norm.num_batches_tracked": torch.tensor(0)}
    tensors.check_tensors(counter, {"norm.num_batches_tracked": torch.tensor(1.5)}, "x")  # of tasks that were averaged
    with pytest.raises(WeightsError, match="holds bool, not integers"):
        tensors.check_tensors(counter, {"norm.num_batches_tracked": torch.tensor(True)}, "x")
    with pytest.raises(WeightsError, match="n holds bool, not integers"):
        tensors.check_tensors(own, {**own, "n": torch.tensor(True)}, "x")


def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.safetensors"
    tensors.write(file, SOME, {})
    before = file.read_bytes()

    def full(data: object, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half a fi")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(WeightsError, match=r"No space left on device.*unchanged"):
        tensors.write(file, {"a": torch.zeros(9)}, {})
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_really_full_device_is_reported(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(WeightsError, match="Cannot write"), atomic_path(tmp_path / "x") as temporary:
        temporary.unlink()
        temporary.symlink_to("/dev/full")
        temporary.write_bytes(b"x" * 100_000)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (1, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.int64, torch.bool], ids=str)
def test_tensors_of_every_shape_come_back(shape: tuple[int, ...], kind: torch.dtype, tmp_path: Path) -> None:
    whole = {"a": torch.ones(shape).to(kind)}
    tensors.write(tmp_path / "it.safetensors", whole, {"said": 1})
    found, header = tensors.read(tmp_path / "it.safetensors")
    torch.testing.assert_close(found, whole, rtol=0, atol=0)
    assert (header, tensors.fingerprint(found)) == ({"said": 1}, tensors.fingerprint(whole))


@pytest.mark.parametrize("name", [80 * "字" + ".yaml", 62 * "🎨" + ".svg", 124 * "é", "a." + 120 * "é", "x" * 255])
def test_names_as_long_as_a_disk_takes_them_can_be_written(name: str, tmp_path: Path) -> None:
    """A disk counts bytes, not letters."""
    with atomic_path(tmp_path / name) as temporary:
        temporary.write_bytes(b"it")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, b"it")]


def test_longer_names_are_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="File name too long"), atomic_path(tmp_path / (256 * "x")):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="Choose a folder that you may write to"):
        tensors.write(tmp_path / "file" / "x.safetensors", SOME, {})


def test_a_link_that_names_itself_is_written_over_and_a_folder_is_not(tmp_path: Path) -> None:
    (tmp_path / "loop.safetensors").symlink_to(tmp_path / "loop.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    tensors.write(tmp_path / "loop.safetensors", SOME, {})
    assert equal(tensors.read(tmp_path / "loop.safetensors")[0], SOME)
    with pytest.raises(WeightsError, match="it is there, and no file"):
        tensors.write(tmp_path / "folder.safetensors", SOME, {})


def test_fingerprints_depend_on_names_types_shapes_and_values() -> None:
    digests = {
        tensors.fingerprint(t)
        for t in (
            {"a": torch.zeros(2, 3)}, {"b": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2)},
            {"a": torch.zeros(2, 3).half()}, {"a": torch.zeros(2, 3), "b": torch.zeros(1)}, {"a": torch.ones(2, 3)},
        )
    }  # fmt: skip
    assert len(digests) == 6
    layout = torch.randn(2, 3, 4, 5)
    same = layout.to(memory_format=torch.channels_last)
    assert tensors.fingerprint({"a": layout}) == tensors.fingerprint({"a": same})


def test_downloads_are_checked_each_time(tmp_path: Path) -> None:
    source = tmp_path / "net-12345678.bin"
    source.write_bytes(b"weights")
    digest = sha256(source)
    path = download(source.as_uri(), digest[:8])
    assert path.read_bytes() == b"weights"
    path.write_bytes(b"altered")
    with pytest.raises(WeightsError, match=rf"not {digest[:8]}"):
        download(source.as_uri(), digest[:8])
    with pytest.raises(WeightsError, match="SHA-256"):
        download(source.as_uri(), "0" * 64)
    assert not any((tmp_path / "cache" / ("0" * 64)).iterdir())
    with pytest.raises(WeightsError, match="Cannot download"):
        download((tmp_path / "none").as_uri(), digest)


def test_uris_of_an_unknown_form_are_refused(tmp_path: Path) -> None:
    for uri in ("ftp://x/y", "hf://owner/repo@main/file", "hf://owner/repo/file", "x:y"):
        with pytest.raises(WeightsError, match=r"no URI of a weights file|is not of the form"):
            fetch(WeightsFile(uri, "0" * 64, 1), tmp_path)


def test_files_of_the_hugging_face_hub_are_pinned_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []
    stored = tmp_path / "from-hub"
    stored.write_bytes(b"weights")

    def hub(repo: str, name: str, *, revision: str, cache_dir: Path) -> str:
        asked.append((repo, name, revision))
        return str(stored)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub)
    monkeypatch.setattr("zoo.storage.hub._reachable", lambda _: True)
    commit = "a" * 40
    file = WeightsFile(f"hf://owner/repo@{commit}/sub/x.safetensors", sha256(stored), 7)
    assert fetch(file, tmp_path) == stored
    assert asked == [("owner/repo", "sub/x.safetensors", commit)]
    stored.write_bytes(b"altered")
    with pytest.raises(WeightsError, match="it was altered"):
        fetch(file, tmp_path)


def test_torchvisions_own_files_are_read_by_their_names_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real loading code on a file of the real form, from a local address."""
    import torchvision
    from torchvision.models import ResNet18_Weights

    import zoo
    from zoo.backbones import pretrained_tensors
    from zoo.catalog.registry import Registry

    net = torchvision.models.resnet18()
    file = tmp_path / "r.pth"
    torch.save(net.state_dict(), file)
    named = file.rename(tmp_path / f"resnet18-{sha256(file)[:8]}.pth")
    weights = ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(type(weights), "url", named.as_uri(), raising=False)
    model = zoo.adapt(torchvision.models.resnet18(), {}, rank=1)
    model.load_backbone_tensors(pretrained_tensors("torchvision/resnet18@IMAGENET1K_V1", Registry()))
    assert torch.equal(model.backbone.conv1.weight, net.conv1.weight)

    class Evil:
        def __reduce__(self) -> tuple[Any, Any]:
            return pytest.fail, ("a pickle was loaded",)

    torch.save({"x": Evil()}, file)
    named = file.rename(tmp_path / f"resnet18-{sha256(file)[:8]}.pth")
    monkeypatch.setattr(type(weights), "url", named.as_uri(), raising=False)
    with pytest.raises(WeightsError, match="restricted reader"):
        pretrained_tensors("torchvision/resnet18@IMAGENET1K_V1", Registry())


def test_the_hubs_own_cache_is_looked_at_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0" * 40
    for variable, value, hub in (
        ("HF_HOME", tmp_path / "home", tmp_path / "home" / "hub"),
        ("HF_HUB_CACHE", tmp_path / "cache", tmp_path / "cache"),
    ):
        place = hub / "models--timm--net" / "snapshots" / commit
        place.mkdir(parents=True)
        (place / "model.safetensors").write_bytes(variable.encode())
        (hub / "models--timm--net" / "refs").mkdir()
        (hub / "models--timm--net" / "refs" / "main").write_text(commit)
        monkeypatch.setenv(variable, str(value))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        for revision in (commit, None):
            assert hub_file("timm/net", "model.safetensors", revision).read_bytes() == variable.encode()
    with pytest.raises(
        WeightsError, match=f"of timm/other is not in {tmp_path / 'cache'} or .*HF_HUB_OFFLINE is set.*HF_HOME"
    ):
        hub_file("timm/other", "model.safetensors")


def test_without_a_network_the_hub_is_not_asked_for_half_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    from zoo.backbones import pretrained_tensors
    from zoo.catalog.registry import Registry

    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://127.0.0.1:1")  # where nothing listens
    asked = []
    real = huggingface_hub.hf_hub_download

    def watched(*arguments: object, **options: object) -> object:
        asked.append(options.get("local_files_only"))
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", watched)
    with pytest.raises(WeightsError, match=r"https://127\.0\.0\.1:1 cannot be reached.*--backbone-weights FILE"):
        pretrained_tensors("timm/resnet18.a1_in1k", Registry())
    assert asked == [True]


def test_a_tilde_is_the_users_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_HOME", "~/store")
    monkeypatch.setenv("ZOO_CACHE", "~/cache")
    assert resources.store_dir() == Path.home() / "store"
    assert resources.cache_dir() == Path.home() / "cache"
