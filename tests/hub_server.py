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
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_thisIsTheSecretOfTheTests"

_PIECE = 1 << 20


@dataclass(frozen=True)
class OnDisk:
    """A large file that stays on the disk: of it, no more is in memory than what is sent at once.

    Its digest is made up of its name and size: to know the true one, all of it would be read.
    """

    path: Path

    def __len__(self) -> int:
        return self.path.stat().st_size

    def __getitem__(self, span: slice) -> bytes:
        first, last, _ = span.indices(len(self))
        with self.path.open("rb") as file:
            file.seek(first)
            return file.read(max(0, last - first))

    @property
    def facts(self) -> bytes:
        return f"{self.path.name} {len(self)}".encode()


@dataclass
class Repo:
    """One repository at one commit."""

    files: dict[str, bytes | OnDisk]
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
        fail_files: answer requests for bytes of these files with this status.
        cut: break off the body of these files in the middle, unless a range is asked for.
        cut_ranges: break off the answer to a range of these files, so many times.
        knows_ranges: False: each answer is the whole file, as from a plain mirror.
        lists_sizes: False: what is said of a repository has the names of its files only.
        wait: called with the name of a file whose bytes are asked for, before they are sent.
        cdn: files in LFS are sent from this address, as the same server under another name.
        tokens_at_cdn: bearer tokens that came with requests there.
        requests: method, path and bearer token of each request.
        sent: how many bytes of each file have been sent. A piece counts before it goes out, so that
            whoever has read it all finds it counted.
        ranges: name and Range header of each request for bytes that has one.
        connections: where each connection that was opened comes from.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    fail: int = 0
    html: bool = False
    fail_files: dict[str, int] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    cut_ranges: dict[str, int] = field(default_factory=dict)
    knows_ranges: bool = True
    cdn: str = ""
    tokens_at_cdn: list[str] = field(default_factory=list)
    lists_sizes: bool = True
    wait: Callable[[str], None] = lambda name: None
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    ranges: list[tuple[str, str]] = field(default_factory=list)
    connections: list[tuple[str, int]] = field(default_factory=list)
    url: str = ""
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def count(self, name: str, size: int) -> None:
        """Add to ``sent``; requests are answered side by side."""
        with self._counting:
            self.sent[name] += size

    def take_sent(self) -> dict[str, int]:
        """``sent``, which starts again at nothing."""
        with self._counting:
            taken = dict(self.sent)
            self.sent.clear()
        return taken

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

    def setup(self) -> None:
        super().setup()
        self.hub.connections.append(self.client_address)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.hub.cdn.endswith(self.headers.get("Host", "-")):
            self.hub.tokens_at_cdn.append(token)
            repo_id, name = path.strip("/").split(":")
            return self._file(self.hub.repos[repo_id], name)
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
        wants_sizes = "blobs=true" in urlsplit(self.path).query.lower()
        siblings = [
            {"rfilename": name} | (_facts(repo, name, data) if wants_sizes else {})
            for name, data in repo.files.items()
        ]
        if not self.hub.lists_sizes:
            siblings = [{"rfilename": name} for name in repo.files]
        self._json(
            {"_id": "1", "id": repo_id, "modelId": repo_id, "sha": repo.commit, "tags": [],
             "private": repo.private, "downloads": 0, "likes": 0, "siblings": siblings}
        )  # fmt: skip

    def _tree(self, _: str, repo: Repo) -> None:
        entries: list[dict[str, object]] = []
        for name, data in repo.files.items():
            entries.append({"type": "file", "path": name, "size": len(data), "oid": _etag(data)})
            if name in repo.lfs:
                sha256 = _sha256(data)
                entries[-1]["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 134}
        self._json(entries)

    def _file(self, repo: Repo, name: str) -> None:
        data = repo.files.get(name)
        if data is None:
            return self._error(404, "EntryNotFound", "Entry not found")
        etag = _sha256(data) if name in repo.lfs else _etag(data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": repo.commit}
        at_cdn = self.hub.cdn.endswith(self.headers.get("Host", "-"))
        if self.hub.cdn and name in repo.lfs and not at_cdn:
            repo_id = next(key for key, value in self.hub.repos.items() if value is repo)
            headers |= {"Location": f"{self.hub.cdn}/{repo_id}:{name}", "X-Linked-Etag": etag}
            headers["X-Linked-Size"] = str(len(data))
            return self._answer(302, b"", headers)
        if self.command != "HEAD":
            self.hub.wait(name)
        if self.command != "HEAD" and (status := self.hub.fail_files.get(name)):
            return self._answer(status, b"broken")
        asked = self.headers.get("Range", "")
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", asked) if self.hub.knows_ranges else None
        if span is None:
            return self._answer(200, data, headers, name, cut=name in self.hub.cut)
        self.hub.ranges.append((name, asked))
        first, last = int(span[1]), min(int(span[2] or len(data)), len(data) - 1)
        if first >= len(data):
            headers["Content-Range"] = f"bytes */{len(data)}"
            return self._answer(416, b"", headers)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        cuts = self.hub.cut_ranges.get(name, 0)
        self.hub.cut_ranges[name] = max(cuts - 1, 0)
        return self._answer(206, data, headers, name, cut=cuts > 0, span=(first, last + 1))

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, message: str) -> None:
        self._answer(
            status,
            json.dumps({"error": message}).encode(),
            {"X-Error-Code": code, "X-Error-Message": message, "Content-Type": "application/json"},
        )

    def _answer(
        self,
        status: int,
        body: bytes | OnDisk,
        headers: dict[str, str] | None = None,
        name: str = "",
        cut: bool = False,
        span: tuple[int, int] | None = None,
    ) -> None:
        first, last = span or (0, len(body))
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(last - first))
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut:
            last = first + (last - first) // 2
        with contextlib.suppress(ConnectionError):  # who has read enough hangs up
            for start in range(first, last, _PIECE):
                piece = body[start : min(start + _PIECE, last)]
                self.hub.count(name, len(piece))
                self.wfile.write(piece)
        if cut:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Tests are not printed at."""


def _facts(repo: Repo, name: str, data: bytes | OnDisk) -> dict[str, object]:
    """What the listing says of a file beside its name, where it is asked to."""
    facts: dict[str, object] = {"size": len(data), "blobId": _etag(data)}
    if name in repo.lfs:
        sha256 = _sha256(data)
        facts["lfs"] = {"size": len(data), "sha256": sha256, "pointerSize": 134}
    return facts


def _sha256(data: bytes | OnDisk) -> str:
    return hashlib.sha256(data.facts if isinstance(data, OnDisk) else data).hexdigest()


def _etag(data: bytes | OnDisk) -> str:
    content = data.facts if isinstance(data, OnDisk) else data
    return hashlib.sha1(b"blob %d\0" % len(data) + content).hexdigest()
