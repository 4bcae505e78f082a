"""A stand-in for the hub on 127.0.0.1: what `huggingface_hub` asks of it, gates, bad tokens and cut lines included."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

LARGE = 4096  # bytes from which a file is served from another host, as the hub serves what git LFS holds


@dataclass
class Repository:
    """Files by path. `gated`: listed for everyone, given to `granted` tokens only. `cuts`: where to hang up, once each.

    `kind` is `models` or `spaces`.
    """

    files: dict[str, bytes]
    gated: bool = False
    granted: set[str] = field(default_factory=set)
    kind: str = "models"
    cuts: dict[str, list[int]] = field(default_factory=dict)

    @property
    def commit(self) -> str:
        listed = sorted((name, hashlib.sha1(data).hexdigest()) for name, data in self.files.items())
        return hashlib.sha1(repr(listed).encode()).hexdigest()


@dataclass(frozen=True)
class Seen:
    """One request: `range` is its Range header, `token` what came as a bearer, `sent` how many bytes went back."""

    method: str
    path: str
    range: str | None
    token: str | None
    sent: int = 0


class Hub(ThreadingHTTPServer):
    """`repositories` by id, `tokens` that exist; `log` is everything that was asked. `broken` answers 503 to all."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, Repository]) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.repositories = repositories
        self.tokens: set[str] = set()
        self.log: list[Seen] = []
        self.broken = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def store(self) -> str:
        """The other host, where large files lie."""
        return f"http://localhost:{self.server_port}/store"

    def downloads(self) -> list[str]:
        """`repository:file` of every download, in order, as often as it was asked for."""
        return [seen.path for seen in self.log if seen.method == "GET" and ":" in seen.path]


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlparse(self.path).path).strip("/")
        if self.server.broken:
            return self._send(503, {}, b"")
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        if bearer is not None and bearer not in self.server.tokens and not path.startswith("store/"):
            message = "Invalid credentials in Authorization header"
            return self._send(401, {"X-Error-Message": message}, b'{"error": "invalid"}', path, bearer)
        kind, rest = "models", path
        if path.startswith("api/"):
            kind, rest = path.removeprefix("api/").split("/", 1)
        elif path.startswith(("spaces/", "store/")):
            kind, rest = path.split("/", 1)
        name = "/".join(rest.split("/")[:2])
        repository = self.server.repositories.get(name)
        if repository is None or kind not in (repository.kind, "store"):
            status = 404 if bearer else 401  # the hub doesn't tell strangers what exists
            return self._send(status, {"X-Error-Code": "RepoNotFound"}, b'{"error": "not found"}', path, bearer)
        if path.startswith("api/"):
            siblings = [{"rfilename": file} for file in repository.files]
            card = {"_id": "1", "id": name, "sha": repository.commit, "siblings": siblings, "tags": []}
            return self._send(200, {}, json.dumps(card).encode(), path, bearer)
        file = rest.split("/", 4)[4] if kind != "store" else rest.split("/", 2)[2]
        said = f"{name}:{file}"
        if kind != "store" and repository.gated and bearer not in repository.granted:
            code = 401 if bearer is None else 403
            return self._send(code, {"X-Error-Code": "GatedRepo"}, b'{"error": "gated"}', said, bearer)
        if (data := repository.files.get(file)) is None:
            about = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repository.commit}
            return self._send(404, about, b"", said, bearer)
        tag = hashlib.sha256(data).hexdigest()
        about = {"X-Repo-Commit": repository.commit, "ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
        if len(data) >= LARGE and kind != "store":
            about |= {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{tag}"'}
            return self._send(302, about | {"Location": f"{self.server.store}/{name}/{file}"}, b"", path, bearer)
        wanted = self.headers.get("Range")
        first = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        if wanted:
            about["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        cuts = repository.cuts.get(file, []) if self.command == "GET" else []
        cut = cuts.pop(0) if cuts else None
        self._send(206 if wanted else 200, about, data[first:], said, bearer, cut)

    def _send(
        self,
        status: int,
        headers: dict[str, str],
        body: bytes,
        said: str = "",
        token: str | None = None,
        cut: int | None = None,
    ) -> None:
        sent = 0 if self.command == "HEAD" else len(body if cut is None else body[:cut])
        self.server.log.append(Seen(self.command, said, self.headers.get("Range"), token, sent))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut] if cut is not None else body)
            self.wfile.flush()
        if cut is not None:
            self.close_connection = True


@contextmanager
def serving(repositories: dict[str, Repository]) -> Iterator[Hub]:
    """The stand-in, answering until the block ends."""
    hub = Hub(repositories)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


@contextmanager
def asked_by_the_client(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let `huggingface_hub` in this process ask the stand-in, with an empty cache in `folder` and no stored login."""
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import reset_sessions

    from csm.checkpoint import hub as client

    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)  # what is kept of a cut line; 10 MB as shipped
    monkeypatch.setattr(client, "PAUSE", 0.01)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "CSM_FALLBACK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    reset_sessions()
    try:
        yield
    finally:
        reset_sessions()


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_HUB_OFFLINE=1 does at the start of a process."""
    from huggingface_hub import constants
    from huggingface_hub.utils import reset_sessions

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    reset_sessions()
