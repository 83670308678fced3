"""A small, strict Hugging Face Hub on 127.0.0.1: the few routes that a download needs.

Status codes and headers are those of the real Hub: an unknown repository is 401 to strangers and
404 to those who have a token, since its existence is nobody's business.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_thisIsTheSecretOfTheTests"


@dataclass
class Repo:
    """One repository at one commit."""

    files: dict[str, bytes]
    commit: str = "c0ffee" + "0" * 34
    branches: tuple[str, ...] = ("main",)
    private: bool = False
    gated: bool = False
    lfs: tuple[str, ...] = ()
    """Files that are kept in LFS: their ETag is their sha256."""


@dataclass
class Hub:
    """The server's state, and what it has been asked for.

    Attributes:
        fail: answer every request with this status.
        html: answer every request with a web page, as a captive portal does.
        cut: break off the body of these files in the middle.
        requests: method, path and bearer token of each request.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    fail: int = 0
    html: bool = False
    cut: set[str] = field(default_factory=set)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    url: str = ""

    def fetched(self) -> list[str]:
        """Names of the files whose bytes were asked for, sorted; each request counts."""
        gets = [path for method, path, _ in self.requests if method == "GET"]
        return sorted(
            path.split("/resolve/")[1].split("/", 1)[1] for path in gets if "/resolve/" in path
        )


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """Run a Hub in a thread until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.hub.requests.append((self.command, path, token))
        if self.hub.fail:
            return self._answer(self.hub.fail, b"broken")
        if self.hub.html:
            return self._answer(200, b"<html>please log in</html>", {"Content-Type": "text/html"})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self._with_repo(match[1], match[2] or "main", token, self._info)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?", path):
            return self._with_repo(match[1], match[2], token, self._tree)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            name = match[3]
            return self._with_repo(
                match[1], match[2], token, lambda _, repo: self._file(repo, name), files=True
            )
        return self._error(404, "Unknown", f"no route {path}")

    do_HEAD = do_GET

    def _with_repo(self, repo_id, revision, token, answer, *, files=False) -> None:  # type: ignore[no-untyped-def]
        repo = self.hub.repos.get(repo_id)
        if token not in ("", TOKEN):
            return self._error(401, "", "Invalid credentials in Authorization header")
        if repo is None or (repo.private and not token):
            return self._error(404 if token else 401, "RepoNotFound", "Repository not found")
        if repo.gated and files and not token:
            return self._error(401, "GatedRepo", "Access to model is restricted")
        if repo.gated and files:
            return self._error(403, "GatedRepo", "You are not in the authorized list")
        if revision not in (*repo.branches, repo.commit):
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return answer(repo_id, repo)  # type: ignore[no-any-return]

    def _info(self, repo_id: str, repo: Repo) -> None:
        siblings = [{"rfilename": name} for name in repo.files]
        self._json(
            {"_id": "1", "id": repo_id, "modelId": repo_id, "sha": repo.commit, "tags": [],
             "private": repo.private, "downloads": 0, "likes": 0, "siblings": siblings}
        )  # fmt: skip

    def _tree(self, _: str, repo: Repo) -> None:
        self._json(
            [
                {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                for name, data in repo.files.items()
            ]
        )

    def _file(self, repo: Repo, name: str) -> None:
        data = repo.files.get(name)
        if data is None:
            return self._error(404, "EntryNotFound", "Entry not found")
        etag = hashlib.sha256(data).hexdigest() if name in repo.lfs else _etag(data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": repo.commit}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span:
            last = int(span[2]) if span[2] else len(data) - 1
            headers["Content-Range"] = f"bytes {span[1]}-{last}/{len(data)}"
            return self._answer(206, data[int(span[1]) : last + 1], headers)
        return self._answer(200, data, headers, cut=name in self.hub.cut)

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, message: str) -> None:
        self._answer(
            status,
            json.dumps({"error": message}).encode(),
            {"X-Error-Code": code, "X-Error-Message": message, "Content-Type": "application/json"},
        )

    def _answer(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut and self.command != "HEAD":
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Tests are not printed at."""


def _etag(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
