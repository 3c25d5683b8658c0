"""Files that are written whole or not at all, their checksums, and what is stated of a weights file."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from zoo.errors import ConfigError, OptionError, WeightsError

BESIDE = 100  # bytes of a name's beginning, and of its ending, that a temporary file is called by
LONGEST_TEXT = 20_000_000  # bytes, of a file that people write


@dataclass(frozen=True)
class WeightsFile:
    """Where a weights file lies, and what it must be."""

    uri: str  # package:…, file:…, hf://owner/repo@<commit>/file, https://… or pypi:name@version/path
    sha256: str
    size: int  # bytes

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise OptionError(f"sha256 must be 64 hexadecimal digits, not {self.sha256!r}")
        if self.size < 1:
            raise OptionError(f"size must be at least 1 byte, not {self.size}")
        if problem := _malformed(self.uri):
            raise OptionError(f"the uri {self.uri[:100]!r} {problem}")


def _malformed(uri: str) -> str:
    """What is wrong with a URI's form; nothing, where it may be one."""
    scheme, _, rest = uri.partition(":")
    if not rest or not rest.isprintable():
        return "has characters that cannot be seen" if rest else "names no place"
    if scheme in ("package", "file"):  # whose names may be in any script
        return ""
    try:
        urlsplit(uri).port  # noqa: B018 - read for what it raises
    except ValueError as error:
        return f"is none: {error}"
    return "" if rest.isascii() and " " not in rest else "has letters that an address writes with %"


def weights_file(file: Path, uri: str) -> WeightsFile:
    """What the registry writes of a file: where it is had, its hash and its size."""
    return WeightsFile(uri, sha256(file), file.stat().st_size)


def read_text(path: Path) -> str:
    """The text of a registry or a recipe; raises ConfigError where it cannot be read, or is too long to be one."""
    try:
        if (size := path.stat().st_size) > LONGEST_TEXT:
            raise ConfigError(str(path), [f"has {size:,} bytes, and may have {LONGEST_TEXT:,}"])
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"cannot be read: {error}"]) from error


def through_links(path: Path) -> Path:
    """What a link names, which is written in its place, so that it stays; any other path as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` only when the block ends without an error.

    Raises:
        WeightsError: the folder cannot be written to or the disk is full; what stood at `path` is unchanged.
    """
    try:
        path = through_links(path)
        # Names are limited in bytes; with the ending, by which some writers go.
        start, ending = (os.fsencode(part)[:BESIDE].decode(errors="ignore") for part in (path.stem, path.suffix))
        temporary = path.parent / f".{start}.{os.urandom(4).hex()}{ending}"
        if path.exists() and not path.is_file():
            raise WeightsError(f"Cannot write {path}: it is there, and no file. Name another.")
        path.parent.mkdir(parents=True, exist_ok=True)
        open(temporary, "xb").close()  # with the rights that the user's umask leaves, unlike those of `tempfile`
    except OSError as error:
        raise WeightsError(f"Cannot write {path}: {error.strerror}. Choose a folder that you may write to.") from error
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise WeightsError(f"Cannot write {path}: {error.strerror or error}. What stood there is unchanged.") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raise WeightsError unless files can be written to a folder, or to where it is to be made: before work that would
    be lost. Nothing is left there.
    """
    import tempfile  # here, and not above: `zoo ls` writes nothing

    absolute = folder.absolute()
    there = next(each for each in (absolute, *absolute.parents) if os.path.lexists(each))
    try:
        with tempfile.TemporaryFile(dir=there) as trial:
            trial.write(b"1")
            trial.flush()
    except OSError as error:
        raise WeightsError(
            f"Cannot write to {folder}: {error.strerror}. Choose a folder that you may write to."
        ) from error


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
