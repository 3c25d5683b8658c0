"""Bundles: a zoo in one file, which is a plain zip of a registry, its recipes and weights, and a manifest.

Nothing in it is compressed, so that it unpacks to no more than its own size. It is unpacked into the cache, once, and
only if every file is the manifest's.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from zoo.errors import WeightsError
from zoo.storage import resources
from zoo.storage.files import atomic_path, sha256

MANIFEST = "manifest.json"
FORMAT = 1
MOST_FILES = 10_000
LONGEST_LISTING = 5_000_000  # bytes, of the zip's directory and of the manifest
END = struct.Struct("<4s4H2LH")  # of a zip: its mark, numbers of disks and of files, the directory's size and place
BLOCK = 1 << 20
EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file, so that equal content makes an equal bundle


def pack(file: Path, files: Mapping[str, Path], facts: Mapping[str, Any]) -> None:
    """Write files, by their paths inside, to one bundle, atomically.

    Args:
        facts: what the manifest says beside the files' hashes and sizes.
    """
    listed = {name: {"sha256": sha256(path), "size": path.stat().st_size} for name, path in sorted(files.items())}
    manifest = json.dumps({"format": FORMAT, **facts, "files": listed}, indent=1).encode()
    with atomic_path(file) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(MANIFEST, EPOCH), manifest)
        for name in listed:
            with (
                open(files[name], "rb") as source,
                archive.open(zipfile.ZipInfo(name, EPOCH), "w", force_zip64=True) as out,
            ):
                shutil.copyfileobj(source, out, BLOCK)


def unpacked(file: Path) -> tuple[Path, dict[str, Any]]:
    """The folder in the cache that has a bundle's files, and what its manifest says.

    Raises:
        WeightsError: it is no bundle, or not as it was made; nothing of it is kept then.
    """
    try:
        _check_end(file)
        with zipfile.ZipFile(file) as archive:
            manifest = _manifest(archive, file)
            folder = resources.cache_dir() / "bundles" / sha256(file)
            if not folder.is_dir():
                _unpack(archive, manifest, folder, file)
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, TypeError, RecursionError, NotImplementedError) as error:
        raise WeightsError(f"{file} is no whole bundle of `zoo bundle` ({error}). Fetch it again.") from error
    return folder, manifest


def _check_end(file: Path) -> None:
    """Look at the last bytes of a zip, before its directory is read into memory."""
    with open(file, "rb") as opened:
        opened.seek(max(0, file.stat().st_size - END.size))
        mark, _, _, _, count, listing, _, comment = END.unpack(opened.read(END.size).rjust(END.size))
    if mark != b"PK\x05\x06" or comment:
        raise ValueError("it does not end as a zip without a comment does")
    if count > MOST_FILES or listing > LONGEST_LISTING:
        raise ValueError(f"it lists {count:,} files in {listing:,} bytes; {MOST_FILES:,} are allowed")


def _manifest(archive: zipfile.ZipFile, file: Path) -> dict[str, Any]:
    """What a bundle's manifest says, where the archive is as it states."""
    held = {info.filename: info for info in archive.infolist()}
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
    if held.keys() != {MANIFEST, *manifest["files"]} or len(held) != len(archive.infolist()):
        raise ValueError("it holds other files than its manifest names")
    if (total := sum(info.file_size for info in held.values())) > file.stat().st_size:
        raise ValueError(f"its files would have {total:,} bytes")
    return manifest


def _unpack(archive: zipfile.ZipFile, manifest: Mapping[str, Any], folder: Path, file: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as temporary:
        made = Path(temporary) / "made"
        for name, stated in manifest["files"].items():
            target = resources.within(made, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256()
            with archive.open(name) as source, open(target, "wb") as out:
                while block := source.read(BLOCK):
                    digest.update(block)
                    out.write(block)
            if digest.hexdigest() != stated["sha256"]:
                raise ValueError(f"{name} has SHA-256 {digest.hexdigest()}, not the manifest's {stated['sha256']}")
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process was first, with the same
                raise
