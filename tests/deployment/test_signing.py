"""Signed, handed on, and checked offline: the signature holds, and any file that changes breaks it."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tests.hub import LoopbackHub
from zoo.cli.base import main
from zoo.deployment.parcel import bundle, push
from zoo.deployment.signing import check_signature, sign
from zoo.errors import CheckFailed, OptionError, WeightsError
from zoo.storage import bundles

NAME = "resnet20-parallel_svd-shapes"  # with a backbone, adapters, a shared file and a recipe


def keys(folder: Path, name: str = "key", password: bytes | None = None) -> tuple[Path, Path]:
    """A private and a public key, each in a file."""
    made = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    guard = BestAvailableEncryption(password) if password else NoEncryption()
    private.write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, guard))
    public.write_bytes(made.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words), catch_exceptions=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a bundle of the entry has, as a folder."""
    return Path(shutil.copytree(bundles.unpacked(bundle(NAME, tmp_path / "it.zoo"))[0], tmp_path / "folder"))


def test_one_signature_holds_wherever_the_entry_comes_from(
    hub: LoopbackHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoo.deployment.parcel.draw", lambda *_: False)
    private, public = keys(tmp_path)
    signature = sign(NAME, private, tmp_path / "model.sig")
    push(NAME, "me/zoo", signature=signature)
    file = bundle(NAME, tmp_path / "signed.zoo", signature=signature)
    assert check_signature(f"hf://me/zoo/{NAME}", public) == check_signature(file, public) == 10

    def unreachable(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    hub.shutdown()
    monkeypatch.setattr(socket, "create_connection", unreachable)
    monkeypatch.setattr(socket.socket, "connect", unreachable)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for place in (f"hf://me/zoo/{NAME}", str(file)):
        done = run("verify", place, "--signed-by", str(public))
        assert done.exit_code == 0, done.output
        assert "10 files are as the holder of" in done.output
    assert check_signature(NAME, public, signature) == check_signature(folder, public, signature) == 10


@pytest.mark.parametrize("change", [{"measured": {"sketch": 99.9}}, {"note": "mine"}, {"tolerance": 50.0}])
def test_what_a_registry_says_of_an_entry_is_signed(change: dict[str, object], folder: Path, tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    signature = sign(NAME, private, tmp_path / "model.sig")
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    bundles.pack(tmp_path / "same.zoo", files, {"entry": NAME})
    assert check_signature(tmp_path / "same.zoo", public, signature) == 10
    data = yaml.safe_load((folder / "registry.yaml").read_text())
    for key, value in change.items():
        data["entries"][NAME][key] = value
    (folder / "registry.yaml").write_text(yaml.safe_dump(data))
    bundles.pack(tmp_path / "evil.zoo", files, {"entry": NAME})
    with pytest.raises(CheckFailed, match=r"registry\.yaml"):
        check_signature(tmp_path / "evil.zoo", public, signature)


def test_a_folder_and_what_is_done_to_it(folder: Path, tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    signature = sign(folder, private)
    assert signature == folder / "zoo.sig"
    count = check_signature(folder, public)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != signature)
    assert count == len(files)
    assert {path.suffix for path in files} >= {".yaml", ".safetensors"}
    for path in files:  # of every kind: registry, recipe, adapter, what is shared, backbone
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(CheckFailed, match=path.name):
            check_signature(folder, public)
        path.unlink()
        with pytest.raises((CheckFailed, OptionError), match=path.name):
            check_signature(folder, public)
        path.write_bytes(whole)
    (folder / "more.yaml").write_text("")
    with pytest.raises(CheckFailed, match=r"more\.yaml"):
        check_signature(folder, public)
    (folder / "more.yaml").unlink()
    assert check_signature(folder, public) == count
    with pytest.raises(OptionError, match="one more file of what it signs"):
        sign(folder, private, folder / "other.sig")
    (folder / "link").symlink_to(private)
    with pytest.raises(OptionError, match="cannot be signed"):
        sign(folder, private)


def test_another_key_and_an_altered_signature(folder: Path, tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    signature = sign(folder, private)
    other = keys(tmp_path, "other")[1]
    done = run("verify", str(folder), "--signed-by", str(other))
    assert done.exit_code == 1
    assert "is not what" in done.output
    whole = signature.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        signature.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CheckFailed):
            check_signature(folder, public)
    signature.unlink()
    with pytest.raises(WeightsError, match="There is no signature"):
        check_signature(folder, public)


def test_keys_that_are_none(folder: Path, tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    locked = keys(tmp_path, "locked", b"word")[0]
    wrong = tmp_path / "rsa.pem"
    wrong.write_bytes(
        rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    for key in (public, wrong, locked, tmp_path / "none.pem", tmp_path):
        with pytest.raises(OptionError, match="cannot be used as a private key"):
            sign(folder, key)
    assert sign(folder, locked, password="word").exists()
    for key in (private, tmp_path / "none.pub"):
        with pytest.raises(OptionError, match="cannot be used as a public key"):
            check_signature(folder, key)
    (tmp_path / "empty").mkdir()
    with pytest.raises(OptionError, match=r"has no registry\.yaml"):
        sign(tmp_path / "empty", private)
    with pytest.raises(OptionError, match="There is no signature"):
        bundle(NAME, tmp_path / "x.zoo", signature=tmp_path / "none.sig")
    assert run("verify", NAME, "--signature", "x").exit_code == 2
