"""A server that speaks the few routes of the Hugging Face Hub which the zoo's client uses, on this machine alone.

    python -m tests.hub --port 8765      # and in another shell: export HF_ENDPOINT=http://127.0.0.1:8765

Repositories live in memory. `faults` are met by the next requests that match them, one each. It stands in for the Hub
where that cannot be reached: routes and replies are those of the client's code, version 2.
"""

from __future__ import annotations

import argparse
import base64
import fnmatch
import hashlib
import json
import re
import socket
import struct
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE = ("*.safetensors", "*.png")  # what is sent as large files, as the Hub's .gitattributes has it


@dataclass
class Fault:
    """What goes wrong with a request: "drop" the line, "short" content, "busy" (429), "broken" (500); "hidden"."""

    kind: str
    method: str
    path: str  # a regular expression


@dataclass
class Repo:
    """Commits, the newest last: the files of each by their paths."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: bool = False

    def commit(self, files: dict[str, bytes], header: dict[str, Any]) -> str:
        told = json.dumps([list(self.commits), header, {path: _sha(data) for path, data in files.items()}])
        name = hashlib.sha1(told.encode(), usedforsecurity=False).hexdigest()
        self.commits[name] = files
        return name

    @property
    def newest(self) -> str:
        return list(self.commits)[-1]

    @property
    def files(self) -> dict[str, bytes]:
        """What the main branch holds."""
        return self.commits[self.newest]


class LoopbackHub(ThreadingHTTPServer):
    """The server, listening on a free port of 127.0.0.1 or on the one that is named; a context manager.

    Attributes:
        repos: by "OWNER/NAME".
        large: contents of large files by their SHA-256; those that no commit names are in no repository.
        faults: that the next requests meet.
        asked: method and path of every request, in their order.
        received: bytes of large files that were sent.
    """

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.asked: list[tuple[str, str]] = []
        self.received = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are none of the server's errors."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LoopbackHub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve("GET")

    def do_HEAD(self) -> None:
        self._serve("HEAD")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def _serve(self, method: str) -> None:
        parts = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(parts.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((method, path))
        self.fault = next((f for f in self.server.faults if f.method == method and re.search(f.path, path)), None)
        if self.fault:
            self.server.faults.remove(self.fault)
            if self.fault.kind == "drop":  # with a reset, as of a cable that was pulled
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
                return
            if self.fault.kind in ("busy", "broken"):
                self._reply({"error": self.fault.kind}, 429 if self.fault.kind == "busy" else 500)
                return
            if self.fault.kind == "hidden":  # as of a repository that one may not see
                self._reply({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
                return
        for wanted, pattern, answer in ROUTES:
            if wanted in (method, "any") and (match := re.fullmatch(pattern, path)):
                answer(self, *match.groups())
                return
        self._reply({"error": f"no route {method} {path}"}, 404)

    def _reply(self, content: Any, status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        headers.setdefault("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            if self.fault and self.fault.kind == "short":
                data, self.close_connection = data[: len(data) // 2], True
            self.wfile.write(data)

    def _repo(self, name: str) -> Repo | None:
        if name not in self.server.repos:
            self._reply({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        return self.server.repos.get(name)

    def _revision(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repo = self._repo(name)
        if repo is None:
            return None
        commit = repo.newest if revision == "main" else revision
        if commit not in repo.commits:
            self._reply({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
            return None
        return commit, repo.commits[commit]

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'me'}/{asked['name'].rpartition('/')[2]}"
        known = name in self.server.repos
        if not known:
            repo = self.server.repos[name] = Repo(private=bool(asked.get("private")))
            repo.commit({".gitattributes": b""}, {"summary": "initial commit"})
        self._reply({"url": f"{self.server.address}/{name}", "id": name}, 409 if known else 200)

    def information(self, name: str, revision: str | None) -> None:
        if found := self._revision(name, revision or "main"):
            commit, files = found
            siblings = [{"rfilename": path, "size": len(data)} for path, data in files.items()]
            self._reply(
                {"id": name, "modelId": name, "sha": commit, "private": False, "siblings": siblings, "tags": []}
            )

    def tree(self, name: str, revision: str) -> None:
        if found := self._revision(name, revision):
            self._reply([_listed(path, data) for path, data in found[1].items()])

    def preupload(self, name: str, revision: str) -> None:
        if found := self._revision(name, revision):
            told = [
                {
                    "path": path, "uploadMode": "lfs" if _is_large(path) else "regular", "shouldIgnore": False,
                    "oid": _oid(path, found[1][path]) if path in found[1] else None,
                }
                for path in (file["path"] for file in json.loads(self.body)["files"])
            ]  # fmt: skip
            self._reply({"files": told})

    def batch(self, name: str) -> None:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            told: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server.large:
                told["actions"] = {
                    action: {"href": f"{self.server.address}/large/{action}/{wanted['oid']}"}
                    for action in ("upload", "verify")
                }
            objects.append(told)
        self._reply({"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        if _sha(self.body) != oid:
            self._reply({"error": "the content is another"}, 400)
            return
        self.server.large[oid] = self.body
        self.server.received += len(self.body)
        self._reply({})

    def verify(self, oid: str) -> None:
        self._reply({}, 200 if oid in self.server.large else 404)

    def commit(self, name: str, revision: str) -> None:
        repo = self._repo(name)
        if repo is None:
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit", repo.newest) != repo.newest:
            self._reply({"error": "A commit has happened since. Please refresh and try again."}, 412)
            return
        files = dict(repo.files)
        for line in lines[1:]:
            value = line["value"]
            large = line["key"] == "lfsFile"
            files[value["path"]] = self.server.large[value["oid"]] if large else base64.b64decode(value["content"])
        made = repo.commit(files, header)
        self._reply({"commitUrl": f"{self.server.address}/{name}/commit/{made}", "commitOid": made, "success": True})

    def resolve(self, name: str, revision: str, path: str) -> None:
        if not (found := self._revision(name, revision)):
            return
        commit, files = found
        if path not in files:
            self._reply({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            return
        data, begin = files[path], re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        headers = {"ETag": f'"{_oid(path, data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if begin:
            headers["Content-Range"] = f"bytes {begin[1]}-{len(data) - 1}/{len(data)}"
        self._reply(data[int(begin[1]) :] if begin else data, 206 if begin else 200, **headers)

    def validate(self) -> None:
        self._reply({"errors": [], "warnings": []})


def _is_large(path: str) -> bool:
    return any(fnmatch.fnmatch(path, pattern) for pattern in LARGE)


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _oid(path: str, data: bytes) -> str:
    """As git names a file's content; of a large file, its SHA-256."""
    if _is_large(path):
        return _sha(data)
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _listed(path: str, data: bytes) -> dict[str, Any]:
    told: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": _oid(path, data)}
    return told | ({"lfs": {"size": len(data), "oid": _sha(data), "pointerSize": 130}} if _is_large(path) else {})


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("GET", rf"/api/models/{REPO}(?:/revision/(.+))?", _Handler.information),
    ("GET", rf"/api/models/{REPO}/tree/([^/]+)", _Handler.tree),
    ("POST", rf"/api/models/{REPO}/preupload/(.+)", _Handler.preupload),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", "/large/upload/([0-9a-f]{64})", _Handler.upload),
    ("POST", "/large/verify/([0-9a-f]{64})", _Handler.verify),
    ("POST", rf"/api/models/{REPO}/commit/(.+)", _Handler.commit),
    ("any", rf"/{REPO}/resolve/([^/]+)/(.+)", _Handler.resolve),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8765)
    with LoopbackHub(parser.parse_args().port) as hub:
        print(f"export HF_ENDPOINT={hub.address} HF_TOKEN=hf_loopback", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
