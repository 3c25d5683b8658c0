"""Bundles: a zoo in one file, which is a plain zip of a registry, its recipes and weights, and a manifest.

Nothing in it is compressed, so that it unpacks to no more than its own size. It is unpacked into the cache, once, and
only if every file is the manifest's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from zoo.errors import OptionError, WeightsError
from zoo.storage import resources
from zoo.storage.files import atomic_path, sha256

MANIFEST = "manifest.json"
UNREADABLE = (  # what a zip that is damaged, or holds something else, raises
    zipfile.BadZipFile, OSError, ValueError, KeyError, TypeError, RecursionError, NotImplementedError,
)  # fmt: skip
FORMAT = 1
MOST_FILES = 10_000
LARGEST = 2**32 - 1  # bytes, of a zip of the plain form
LONGEST_LISTING = 5_000_000  # bytes, of the zip's directory and of the manifest
END = struct.Struct("<4s4H2LH")  # of a zip: its mark, numbers of disks and of files, the directory's size and place
BLOCK = 1 << 20
EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file, so that equal content makes an equal bundle


def pack(file: Path, files: Mapping[str, Path], facts: Mapping[str, Any]) -> None:
    """Write files, by their paths inside, to one bundle, atomically.

    Args:
        facts: what the manifest says beside the files' hashes and sizes.
    """
    if (total := sum(path.stat().st_size for path in files.values())) > LARGEST - LONGEST_LISTING:
        raise OptionError(f"A bundle has at most {LARGEST:,} bytes, and this one would have {total:,}.")
    listed = {name: {"sha256": sha256(path), "size": path.stat().st_size} for name, path in sorted(files.items())}
    manifest = json.dumps({"format": FORMAT, **facts, "files": listed}, indent=1).encode()
    with atomic_path(file) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(MANIFEST, EPOCH), manifest)
        for name in listed:
            with (
                open(files[name], "rb") as source,
                archive.open(zipfile.ZipInfo(name, EPOCH), "w") as out,
            ):
                shutil.copyfileobj(source, out, BLOCK)


def unpacked(file: Path) -> tuple[Path, dict[str, Any]]:
    """The folder in the cache that has a bundle's files, and what its manifest says.

    Raises:
        WeightsError: it is no bundle, or not as it was made; nothing of it is kept then.
    """
    try:
        with open(file, "rb") as opened:  # once: what is hashed is what is unpacked
            _check_end(opened)
            folder = resources.cache_dir() / "bundles" / hashlib.file_digest(opened, "sha256").hexdigest()
            size = opened.tell()
            with zipfile.ZipFile(opened) as archive:
                manifest = _manifest(archive, size)
                if folder.is_dir() and not _is_whole(folder, manifest):  # somebody tidied up
                    shutil.rmtree(folder, ignore_errors=True)
                if not folder.is_dir():
                    _unpack(archive, manifest, folder)
    except UNREADABLE as error:
        raise WeightsError(f"{file} is no whole bundle of `zoo bundle` ({error}). Fetch it again.") from error
    return folder, manifest


def _is_whole(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether a folder has a bundle's files; tensors are checked when they are read, and the texts here."""
    return all(
        (file := resources.within(folder, name)).is_file()
        and (file.suffix == ".safetensors" or sha256(file) == stated["sha256"])
        for name, stated in manifest["files"].items()
    )


def is_bundle(file: Path) -> bool:
    """Whether a file is a zip with a bundle's manifest."""
    try:
        with zipfile.ZipFile(file) as archive:
            return isinstance(json.loads(archive.read(MANIFEST))["entry"], str)
    except UNREADABLE:
        return False


def _check_end(opened: BinaryIO) -> None:
    """Look at the last bytes of a zip, before its directory is read into memory; the file is at its beginning after."""
    opened.seek(max(0, opened.seek(0, os.SEEK_END) - END.size))
    mark, _, _, _, count, listing, place, comment = END.unpack(opened.read(END.size).rjust(END.size))
    opened.seek(0)
    if mark != b"PK\x05\x06" or comment:
        raise ValueError("it does not end as a zip without a comment does")
    if place == LARGEST:  # what is to be read then stands elsewhere, in a record of its own
        raise ValueError(f"it is larger than {LARGEST:,} bytes")
    if count > MOST_FILES or listing > LONGEST_LISTING:
        raise ValueError(f"it lists {count:,} files in {listing:,} bytes; {MOST_FILES:,} are allowed")


def _manifest(archive: zipfile.ZipFile, size: int) -> dict[str, Any]:
    """What the manifest of a bundle of so many bytes says, where the archive is as it states."""
    held = {info.filename: info for info in archive.infolist()}
    if len(archive.infolist()) > MOST_FILES:  # whatever the end said
        raise ValueError(f"it has {len(archive.infolist()):,} files; {MOST_FILES:,} are allowed")
    if held[MANIFEST].file_size > LONGEST_LISTING:
        raise ValueError("its manifest is too long")
    for name, info in held.items():
        path = PurePosixPath(name)
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ValueError(f"{name} is compressed or encrypted")
        if path.is_absolute() or ".." in path.parts or path.as_posix() != name or info.is_dir() or "\\" in name:
            raise ValueError(f"the path {name!r} leaves its folder, or is none of a file")
    manifest = json.loads(archive.read(MANIFEST))
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ValueError("its manifest lists no files")
    if manifest.get("format") != FORMAT:
        raise ValueError(f"its format is {manifest.get('format')!r}, and this version reads {FORMAT}")
    if not isinstance(manifest.get("entry"), str):
        raise ValueError("its manifest names no entry")
    if held.keys() != {MANIFEST, *manifest["files"]} or len(held) != len(archive.infolist()):
        raise ValueError("it holds other files than its manifest names")
    if (total := sum(info.file_size for info in held.values())) > size:
        raise ValueError(f"its files would have {total:,} bytes")
    return manifest


def _unpack(archive: zipfile.ZipFile, manifest: Mapping[str, Any], folder: Path) -> None:
    """Write the files of a bundle to a folder of the cache, which is there when all of them are."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as temporary:
            made = Path(temporary) / "made"
            for name, stated in manifest["files"].items():
                _unpack_one(archive, name, made, stated["sha256"])
            with contextlib.suppress(OSError):  # another process was first, with the same
                made.rename(folder)
        if not folder.is_dir():
            raise OSError("the folder cannot be moved to its place")
    except OSError as error:
        raise WeightsError(
            f"Cannot unpack a bundle into {folder.parent}: {error.strerror or error}. "
            "Set ZOO_CACHE to a folder that you may write to."
        ) from error


def _unpack_one(archive: zipfile.ZipFile, name: str, folder: Path, wanted: str) -> None:
    target = resources.within(folder, name)
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with archive.open(name) as source, open(target, "wb") as out:
        while block := source.read(BLOCK):
            digest.update(block)
            out.write(block)
    if digest.hexdigest() != wanted:
        raise ValueError(f"{name} has SHA-256 {digest.hexdigest()}, not the manifest's {wanted}")
