"""Signatures: one over an entry's registry, recipe and weights, or over a folder, by OpenSSF's model-signing.

What is signed is the list of all files with their SHA-256. An entry's files are the same wherever it comes from: of the
package, a repository, a bundle or a folder. So one signature holds for all of these.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoo.catalog.places import HUB, entry_of
from zoo.catalog.registry import OWN, Registry
from zoo.deployment.parcel import SIGNATURE, parcel
from zoo.errors import CheckFailed, OptionError, UnknownNameError, WeightsError, extra, sentence
from zoo.storage import bundles, hub, resources
from zoo.storage.files import atomic_path

WHAT = "A signature"


def sign(
    what: str | Path, key: str | Path, out: str | Path | None = None, *, password: str | None = None,
    registry: Registry | str | Path | None = None,
) -> Path:  # fmt: skip
    """Sign a folder with a registry, or an entry, wherever it comes from.

    Args:
        what: the folder, or the name or address of an entry as of `zoo.load`.
        key: the file of a private key on an elliptic curve (P-256, P-384 or P-521), as PEM.
        out: where the signature goes; by default `zoo.sig` in the folder, or `<entry>.sig` here.
        password: of the key, where it is encrypted.

    Raises:
        OptionError: the key cannot be read, or is of another kind.
        WeightsError: files of the entry cannot be had.
        MissingExtraError: model-signing is not installed.
    """
    with extra("sign", WHAT):
        from model_signing import signing
    try:
        signer = signing.Config()  # type: ignore[no-untyped-call]
        signer.use_elliptic_key_signer(private_key=key, password=password and password.encode())  # type: ignore[arg-type]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise OptionError(f"{key} cannot be used as a private key of an elliptic curve: {sentence(error)}") from error
    with _gathered(what, registry) as (folder, _):
        place = Path(out) if out else _beside(what, folder)
        written, root = place.resolve(), folder.resolve()
        if written.is_relative_to(root) and written != root / SIGNATURE:
            raise OptionError(f"{place} would be one more file of what it signs: call it {SIGNATURE}, or go elsewhere.")
        signer.set_hashing_config(_hashing())
        with tempfile.TemporaryDirectory() as apart:  # and not in the folder, whose files are listed
            made = Path(apart) / SIGNATURE
            try:
                signer.sign(folder, made)
            except (OSError, ValueError) as error:  # a link, a pipe: what is no file of the folder's own
                raise OptionError(f"{what} cannot be signed: {sentence(error)}") from error
            with atomic_path(place) as temporary:
                shutil.copyfile(made, temporary)
    return place


def check_signature(
    what: str | Path, key: str | Path, signature: str | Path | None = None, *,
    registry: Registry | str | Path | None = None,
) -> int:  # fmt: skip
    """Check that every file of a folder or an entry is what the holder of a key signed; no network is needed.

    Args:
        key: the file of the public key, as PEM.
        signature: by default the one that lies in the folder, repository or bundle, or `<entry>.sig` here.

    Returns:
        The number of files.

    Raises:
        CheckFailed: a file was altered, added or taken away, or the signature is another key's.
        OptionError: the public key cannot be read.
        WeightsError: there is no signature, or files of the entry cannot be had.
    """
    with extra("sign", WHAT):
        from model_signing import verifying
    try:
        verifier = verifying.Config()  # type: ignore[no-untyped-call]
        verifier.use_elliptic_key_verifier(public_key=key)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise OptionError(f"{key} cannot be used as a public key of an elliptic curve: {sentence(error)}") from error
    with _gathered(what, registry) as (folder, origin):
        place = Path(signature) if signature else _that_came_with(origin, folder.name) or _beside(what, folder)
        if not place.is_file():
            raise WeightsError(f"There is no signature {place}. `zoo sign` makes one; name it with --signature.")
        verifier.set_hashing_config(_hashing())
        try:
            verifier.verify(folder, place)
        except Exception as error:  # of the file's form, of cryptography, and of what differs
            raise CheckFailed(f"{what} is not what {key} signed: {_differing(sentence(error))}") from error
        return len(list(_hashing().hash(folder).resource_descriptors()))


def _differing(words: str) -> str:
    """The library's words without the digests, which tell people nothing."""
    return re.sub(r": Expected .*?, Actual .*?\)'", "", words)


def _hashing() -> Any:
    """What is listed of a folder: all files but the signature itself."""
    from model_signing import hashing

    return hashing.Config().set_ignored_paths(  # type: ignore[no-untyped-call]
        paths=[SIGNATURE], ignore_git_paths=True
    )


@contextlib.contextmanager
def _gathered(what: str | Path, registry: Registry | str | Path | None) -> Iterator[tuple[Path, str]]:
    """The folder that is signed, the user's or an entry's files as a bundle of it has them; and the entry's origin."""
    if (Path(what) / OWN).is_file():
        yield Path(what), ""
        return
    try:
        entry, known = entry_of(what, registry)
    except UnknownNameError:
        if Path(what).is_dir():
            raise OptionError(f"{what} has no {OWN}: it is no folder of entries.") from None
        raise
    with tempfile.TemporaryDirectory() as temporary:
        folder = resources.within(Path(temporary), entry.name)
        folder.mkdir()
        for path, file in parcel(entry, known, "file:", folder).files.items():
            place = resources.within(folder, path)
            if file != place:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)
        yield folder, entry.origin


def _beside(what: str | Path, folder: Path) -> Path:
    return folder / SIGNATURE if folder == Path(what) else Path(f"{folder.name}.sig")


def _that_came_with(origin: str, name: str) -> Path | None:
    """The signature beside an entry of a repository or a bundle."""
    if not origin:
        return None
    if not origin.startswith(HUB):
        own = bundles.unpacked(Path(origin))[0] / SIGNATURE
        return own if own.is_file() else None
    address = hub.Address.of(origin)
    with contextlib.suppress(WeightsError):  # none was pushed
        return hub.hub_file(address.repo, f"{name}/{SIGNATURE}", address.revision)
    return None
