"""A small hub on the loopback, that answers what huggingface_hub asks of one."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMITS = {"main": "a" * 40, "v1": "b" * 40}
LARGE = (".safetensors", ".gguf")  # whose tag is a sha256, as of files in LFS


class Hub:
    """The models of a hub: {"org/name": {"file": bytes}}; and what to do wrong.

    cut: bytes after which each answer with a large file ends; asked: (method, path, range).
    """

    def __init__(self, models: Mapping[str, Mapping[str, bytes]]) -> None:
        self.models = models
        self.gated: set[str] = set()
        self.status: int | None = None
        self.cut: int | None = None
        self.wrong: set[str] = set()
        self.asked: list[tuple[str, str, str | None]] = []
        self.tokens: set[str | None] = set()
        self.url = ""

    def fetched(self) -> list[str]:
        """Return the names of the files whose content was asked for."""
        paths = [path for method, path, _ in self.asked if method == "GET" and "/resolve/" in path]
        return sorted(path.rpartition("/resolve/")[2].partition("/")[2] for path in paths)


@contextmanager
def serving(models: Mapping[str, Mapping[str, bytes]]):
    """Yield a Hub that listens on a port of the loopback."""
    hub = Hub(models)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((self.command, path, self.headers.get("Range")))
            hub.tokens.add(self.headers.get("Authorization"))
            about = path.startswith("/api/models/")
            name, _, rest = path.removeprefix("/api/models/" if about else "/").partition(
                "/revision/" if about else "/resolve/"
            )
            revision, _, file = rest.partition("/")
            revision = (rest if about else revision) or "main"
            if hub.status is not None:
                return self._send(hub.status, b"", {})
            if name in hub.gated:
                return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
            if name not in hub.models:
                return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            if revision not in {*COMMITS, *COMMITS.values()}:
                return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            commit = COMMITS.get(revision, revision)
            files = hub.models[name]
            if about:
                return self._send(200, json.dumps(_about(name, commit, files)).encode(), {})
            if file not in files:
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            content, headers = files[file], {"X-Repo-Commit": commit}
            headers["ETag"] = f'"{_tag(file, content)}"'
            if file in hub.wrong:
                content = bytes(len(content))
            first = int((self.headers.get("Range") or "bytes=0-")[6:].partition("-")[0])
            if first:
                headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            cut = hub.cut if file.endswith(LARGE) else None
            return self._send(206 if first else 200, content[first:], headers, body, cut)

        def _send(self, code, content, headers, body=True, cut=None) -> None:
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content[:cut])
            if body and cut is not None and cut < len(content):
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _tag(name: str, content: bytes) -> str:
    kind = hashlib.sha256 if name.endswith(LARGE) else hashlib.sha1
    return kind(content).hexdigest()


def _about(name: str, commit: str, files: Mapping[str, bytes]) -> dict:
    rows = []
    for file, content in files.items():
        row: dict = {"rfilename": file, "size": len(content), "blobId": _tag(file, content)}
        if file.endswith(LARGE):
            row["lfs"] = {"size": len(content), "sha256": _tag(file, content), "pointerSize": 134}
        rows.append(row)
    return {"id": name, "modelId": name, "sha": commit, "siblings": rows, "tags": [],
            "private": False, "downloads": 0, "likes": 0}  # fmt: skip
