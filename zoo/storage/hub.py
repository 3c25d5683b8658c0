"""The Hugging Face Hub: what is asked of it, and what is handed to it. The one file that knows its client."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from zoo.errors import OptionError, WeightsError, sentence
from zoo.storage import resources

PATIENCE = 5.0  # seconds in which the Hub's server has to answer at all
REGISTRY, DATA = "registry.yaml", "*.yaml"  # of a repository that is a registry: what is read before any weights are
MOST_DATA, MOST_FILES = 20_000_000, 10_000  # bytes of all such files, and their number
COMMIT = r"[0-9a-f]{40}"
TOO_MANY = 429  # from this status on it is the server's trouble, and not the asker's


class Address(NamedTuple):
    """What `hf://OWNER/REPO[@REVISION][/INSIDE]` names."""

    repo: str
    revision: str | None
    inside: str  # the name of an entry; "" where the repository itself is meant

    @classmethod
    def of(cls, text: str) -> Address:
        """Raises OptionError where the text is no such address."""
        match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/([\w.-]+))?/?", text)
        if not match:
            raise OptionError(f"{text!r} is not of the form hf://OWNER/REPO, @REVISION and /NAME after it if need be.")
        return cls(match[1], match[2], match[3] or "")


def hub_file(repo: str, name: str, revision: str | None = None) -> Path:
    """A file of a repository on the Hugging Face Hub: from the Hub's own cache, or kept in the zoo's.

    With HF_HUB_OFFLINE set, nothing is asked of the network. That there is no network is found out at once, and not by
    the Hub's own trials, which take half a minute.

    Args:
        revision: a commit; None takes the newest of the main branch, or without a network what a cache holds of it.

    Raises:
        WeightsError: it is in no cache, and cannot be downloaded; the folders searched are named.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if {"", ".", ".."} & set(name.split("/")):
        raise WeightsError(f"{name!r} of {repo} leaves the repository.")
    caches, kept, offline = resources.hub_caches(), None, ""
    try:
        found = [try_to_load_from_cache(repo, name, cache_dir=cache, revision=revision) for cache in caches]
        kept = next((Path(path) for path in found if isinstance(path, str)), None)
        if kept and (revision or _asked_offline()):
            return kept
        offline = _offline()
        options: dict[str, Any] = {"local_files_only": True} if offline else {}
        return Path(hf_hub_download(repo, name, revision=revision, cache_dir=caches[-1], **options))
    except Exception as error:  # the client's errors have no base in common, nor have those of what it asks with
        if kept:
            return kept
        raise WeightsError(
            f"{name} of {repo} is not in {' or '.join(map(str, caches))}, and cannot be downloaded: "
            f"{offline or _words(error)}. Check the network and the name, or set HF_HOME to the folder that has it."
        ) from error


def hub_data(repo: str, revision: str | None = None) -> tuple[Path, str]:
    """The folder with a repository's registry and recipes, in the zoo's cache, and the commit that they are of.

    Args:
        revision: a branch, a tag or a commit; by default the newest of the main branch. Without a network, what the
            cache holds of it.

    Raises:
        WeightsError: the repository cannot be reached and is in no cache, or has no registry.yaml.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import tqdm

    class Quiet(tqdm):
        """No bar, for files that are small."""

        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **{**named, "disable": True})  # type: ignore[no-untyped-call]

    for cache in resources.hub_caches():  # a commit is the same for ever
        kept = cache / f"models--{repo.replace('/', '--')}" / "snapshots" / str(revision)
        if revision and re.fullmatch(COMMIT, revision) and (kept / REGISTRY).is_file():
            return kept, revision
    given: dict[str, Any] = {"revision": revision, "cache_dir": resources.hub_caches()[-1], "allow_patterns": DATA}
    offline = _offline()
    try:
        if offline:
            folder = Path(snapshot_download(repo, local_files_only=True, **given))
        else:
            info = _client().model_info(repo, revision=revision, files_metadata=True)
            _check_size(repo, {file.rfilename: file.size or 0 for file in info.siblings or ()})
            folder = Path(snapshot_download(repo, tqdm_class=Quiet, **given))
            if folder.name != info.sha:  # what was measured is another commit than what was fetched
                raise WeightsError(f"Somebody has committed to {repo} at this moment. Try again.")
    except WeightsError:
        raise
    except Exception as error:
        with contextlib.suppress(Exception):  # a hub that is ill: what the cache knows will do
            if not getattr(error, "response", None) or error.response.status_code >= TOO_MANY:  # type: ignore[attr-defined]
                kept = Path(snapshot_download(repo, local_files_only=True, **given))
                if (kept / REGISTRY).is_file():
                    return kept, kept.name
        raise WeightsError(
            f"The repository {repo}{f' at {revision}' if revision else ''} is not in {given['cache_dir']}, and cannot "
            f"be read: {offline or _words(error)}. Check its name, the network, and HF_TOKEN if it is private."
        ) from error
    if not (folder / REGISTRY).is_file():
        raise WeightsError(f"hf://{repo} has no {REGISTRY}: it is no zoo. `zoo push` makes one.")
    return folder, folder.name


def _check_size(repo: str, files: Mapping[str, int]) -> None:
    """Raise WeightsError where the files that are read of a repository before any weights are too large to be such."""
    sizes = [size for name, size in files.items() if fnmatch.fnmatch(name, DATA)]
    if len(sizes) > MOST_FILES:
        raise WeightsError(f"{repo} has {len(sizes):,} {DATA} files, and may have {MOST_FILES:,}: it is no zoo.")
    if (total := sum(sizes)) > MOST_DATA:
        raise WeightsError(
            f"The {DATA} files of {repo} have {total:,} bytes, and may have {MOST_DATA:,}: it is no zoo."
        )


class Head(NamedTuple):
    """What a repository holds now."""

    commit: str
    files: tuple[str, ...]


def head(repo: str) -> Head | None:
    """The newest commit of a repository's main branch and the paths of its files; None where there is none."""
    from huggingface_hub.errors import RepositoryNotFoundError

    with asking(f"{repo} cannot be looked at"):
        try:
            info = _client().model_info(repo)
        except RepositoryNotFoundError:
            return None
        return Head(str(info.sha), tuple(file.rfilename for file in info.siblings or ()))


def commit(repo: str, files: Mapping[str, Path], message: str, before: Head | None, private: bool = False) -> str:
    """Put files into a repository by one commit; what stands there unchanged is not sent again.

    The commit is the last thing that is sent: until then the repository is as it was.

    Args:
        files: by their paths in the repository.
        before: what it held when they were made; None makes the repository.

    Returns:
        The commit's hash.

    Raises:
        WeightsError: something was not sent, or somebody else has committed in the meantime.
    """
    from huggingface_hub import CommitOperationAdd

    with asking(f"The push to {repo} did not come to its end"):
        if before is None:  # one that is there, and may not be read, is not written over
            _client().create_repo(repo, private=private, exist_ok=False)
        operations = [CommitOperationAdd(path, str(file)) for path, file in files.items()]
        made = _client().create_commit(
            repo, operations, commit_message=message, parent_commit=before.commit if before else None
        )
        return str(made.oid)


@contextlib.contextmanager
def asking(failed: str) -> Iterator[None]:
    """Around calls of the Hub's client: whatever it raises becomes a WeightsError that begins so."""
    from huggingface_hub import constants

    if offline := _offline():
        raise WeightsError(f"{failed}: {offline}.")
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:
        advice = ""
        if getattr(getattr(error, "response", None), "status_code", 0) in (401, 403):
            advice = " Set HF_TOKEN to a token that may do this."
        raise WeightsError(f"{failed}: {_words(error)} ({constants.ENDPOINT}).{advice}") from error


def _client() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="ftn-zoo")


def _words(error: BaseException) -> str:
    """What the client says first, what the server said, and of an upload what stopped it."""
    cause = sentence(error.__cause__) if isinstance(error, RuntimeError) and error.__cause__ else ""
    told = getattr(error, "server_message", None) or cause
    return f"{sentence(error).rstrip('.')}{f' ({told})' if told else ''}"


def _asked_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _offline() -> str:
    """Why the Hub is not asked, in words; empty where it can be."""
    from huggingface_hub import constants

    if _asked_offline():
        return "HF_HUB_OFFLINE is set"
    return "" if _reachable(constants.ENDPOINT) else f"{constants.ENDPOINT} cannot be reached"


def _reachable(address: str) -> bool:
    """Whether a server answers within seconds; taken for granted where a proxy stands between."""
    if {"http", "https", "all"} & set(urllib.request.getproxies()):
        return True
    parts = urllib.parse.urlsplit(address)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    answered = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection((parts.hostname or "", port), timeout=PATIENCE).close()
            answered.set()
        done.set()

    done = threading.Event()  # names of several addresses, and those that are looked up in vain, take a wait for each
    threading.Thread(target=connect, daemon=True).start()
    done.wait(PATIENCE)
    return answered.is_set()
