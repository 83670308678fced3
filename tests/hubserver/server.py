"""The routes of the Hub, and who may use them."""

from __future__ import annotations

import contextlib
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from hubserver import reading, writing
from hubserver.faults import Fault, Faults
from hubserver.store import Account, Commit, Entry, Repo, Store
from hubserver.wire import Dead, Refusal, Wire

_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_REV = r"(?P<revision>[^/]+)"
_TYPE = r"/api/(?P<type>model|dataset|space)s"

ROUTES: dict[str, tuple[str, str, Callable[..., None]]] = {
    "whoami": ("GET", r"/api/whoami-v2", reading.whoami),
    "create": ("POST", r"/api/repos/create", writing.create),
    "validate": ("POST", r"/api/validate-yaml", writing.validate),
    "info": ("GET", rf"{_TYPE}/{_REPO}(?:/revision/{_REV})?", reading.info),
    "tree": ("GET", rf"{_TYPE}/{_REPO}/tree/{_REV}(?:/(?P<path>.+))?", reading.tree),
    "paths": ("POST", rf"{_TYPE}/{_REPO}/paths-info/{_REV}", reading.paths),
    "refs": ("GET", rf"{_TYPE}/{_REPO}/refs", reading.refs),
    "discussions": ("GET", rf"{_TYPE}/{_REPO}/discussions", reading.discussions),
    "branch": ("POST", rf"{_TYPE}/{_REPO}/branch/(?P<branch>[^/]+)", writing.branch),
    "preupload": ("POST", rf"{_TYPE}/{_REPO}/preupload/{_REV}", writing.preupload),
    "commit": ("POST", rf"{_TYPE}/{_REPO}/commit/{_REV}", writing.commit),
    "batch": ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", writing.batch),
    "verify": ("POST", rf"/{_REPO}\.git/info/lfs/objects/verify", writing.verify),
    "complete": ("POST", r"/lfs-complete/(?P<oid>[0-9a-f]{64})", writing.complete),
    "put": ("PUT", r"/lfs-storage/(?P<oid>[0-9a-f]{64})(?:/(?P<part>\d+))?", writing.put),
    "resolve": (
        "GET",
        rf"(?:/(?P<type>dataset)s)?/{_REPO}/resolve/{_REV}/(?P<path>.+)",
        reading.resolve,
    ),
    "cdn": ("GET", r"/cdn/(?P<oid>[0-9a-f]{64})", reading.cdn),
}
"""Method, path and handler by name; the names are those that faults are given for."""


@dataclass(frozen=True)
class Request:
    """One request: ``route`` is ``unknown`` where there is none, ``name`` that of the file whose
    bytes it asks for."""

    route: str
    token: str
    path: str
    name: str


@dataclass
class Hub:
    """The running server, its state, and what it has been asked for.

    Attributes:
        requests: in order.
        part_size: LFS files that are larger go up in parts of so many bytes.
        page_size: entries on a page of a tree.
        lists_sizes: False: what is said about a repository has only the names of its files.
        knows_ranges: False: each answer is the whole file, as from a plain mirror.
        sent: bytes of each file that have been sent, and ('') of other answers. A piece counts
            before it goes out, so that a client that has read everything finds it counted.
        ranges: name and Range header of each request for bytes that has one.
        connections: where each connection that was opened comes from.
    """

    store: Store
    url: str = ""
    faults: Faults = field(default_factory=Faults)
    requests: list[Request] = field(default_factory=list)
    part_size: int = 1 << 40
    page_size: int = 4
    lists_sizes: bool = True
    knows_ranges: bool = True
    sent: Counter[str] = field(default_factory=Counter)
    ranges: list[tuple[str, str]] = field(default_factory=list)
    connections: list[tuple[str, int]] = field(default_factory=list)

    def fail(self, route: str, **what: Any) -> Fault:
        """Let something go wrong; see :class:`Fault`."""
        assert route in (*ROUTES, "*")
        fault = Fault(route, **what)
        self.faults.add(fault)
        return fault

    def asked(self, route: str) -> int:
        """How often a route was asked."""
        return sum(request.route == route for request in self.requests)

    def fetched(self) -> list[str]:
        """Names of the files whose bytes were asked for, sorted; each request counts."""
        elsewhere = {one.name for one in self.requests if one.route == "cdn"}
        asked = (one for one in self.requests if one.route == "cdn" or one.name not in elsewhere)
        return sorted(one.name for one in asked if one.name)

    def count(self, name: str, size: int) -> None:
        """Add to ``sent``; requests are answered side by side."""
        with self.store.lock:
            self.sent[name] += size

    def take_sent(self) -> dict[str, int]:
        """``sent``, which starts again at nothing."""
        with self.store.lock:
            taken = dict(self.sent)
            self.sent.clear()
        return taken

    def forget(self) -> None:
        """What was asked and sent so far."""
        self.take_sent()
        for known in (self.requests, self.ranges, self.connections):
            known.clear()

    def environment(self, token: str | None = None) -> dict[str, str]:
        """Variables that let a process use this Hub, and only this one."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            **({"HF_TOKEN": token} if token else {}),
        }

    # --- what tests put in and look at ----------------------------------------------------------

    def repo(self, repo_id: str, type_: str = "model") -> Repo:
        return self.store.repos[type_, repo_id]

    def put(
        self,
        repo_id: str,
        files: Mapping[str, bytes | Path | Entry | None],
        *,
        ref: str = "refs/heads/main",
        private: bool = False,
        title: str = "by hand",
        type_: str = "model",
        lfs: Collection[str] | None = None,
    ) -> Commit:
        """Commit files as somebody else would; None deletes one. A new branch begins at main.

        Args:
            lfs: files that are kept in LFS, in a repository without the Hub's own .gitattributes;
                by default it is the rules there that say so.
        """
        with self.store.lock:
            repo = self.store.repos.get((type_, repo_id))
            bare = lfs is not None
            repo = repo or self.store.create(repo_id, type_, private=private, bare=bare)
            repo.refs.setdefault(ref, repo.refs["refs/heads/main"])
            head = repo.resolve(ref)
            assert head is not None
            entries = dict(head.files)
            for name, data in files.items():
                entries.pop(name, None)
                if data is not None:
                    data = data.read_bytes() if isinstance(data, Path) else data
                    if isinstance(data, Entry):
                        entries[name] = data
                    elif self.store.is_lfs(head, name) if lfs is None else name in lfs:
                        entries[name] = self.store.add_lfs(repo, data)
                    else:
                        entries[name] = self.store.add_git(data)
            return self.store.add_commit(repo, ref, entries, title)

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Names and bytes of a revision."""
        commit = self.repo(repo_id).resolve(revision)
        assert commit is not None
        return self.store.contents(commit)

    def states(self, repo_id: str) -> list[dict[str, bytes]]:
        """What the repository held after each change of any branch, from its creation on."""
        repo = self.repo(repo_id)
        return [self.store.contents(repo.commits[oid]) for _, oid in repo.history]


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Hub]:
    """Run a Hub in a thread until the block ends; its bytes are kept in ``folder``."""
    hub = Hub(Store(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(Wire):
    """Finds the route, lets the faults happen, and checks who asks."""

    hub: Hub

    def setup(self) -> None:
        super().setup()
        self.hub.connections.append(self.client_address)

    def do_GET(self) -> None:
        self.is_read = False
        try:
            self._serve()
        except Refusal as refusal:
            self.refuse(refusal)
        except (Dead, ConnectionError, TimeoutError):
            self.close_connection = True

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        if body:
            self.hub.count("", len(body))
        super().answer(status, body, headers)

    do_HEAD = do_POST = do_PUT = do_GET

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def _serve(self) -> None:
        method = "GET" if self.command == "HEAD" else self.command
        for name, (verb, pattern, handle) in ROUTES.items():
            found = re.fullmatch(pattern, self.path_only) if verb == method else None
            if found is None:
                continue
            parts = {key: unquote(text) for key, text in found.groupdict().items() if text}
            has_bytes = name in ("resolve", "cdn") and self.command == "GET"
            file = self.query.get("name", parts.get("path", "")) if has_bytes else ""
            self.hub.requests.append(Request(name, self.token, self.path_only, file))
            self.fault = self.hub.faults.take(name, file)
            self._fail_first()
            handle(self, **parts)
            return
        self.hub.requests.append(Request("unknown", self.token, self.path_only, ""))
        raise Refusal(404, f"no route {self.command} {self.path_only}")

    def _fail_first(self) -> None:
        fault = self.fault
        if fault is None:
            return
        if fault.call:
            fault.call()
        if fault.cut == "before":
            self.die()
        if fault.status:
            raise Refusal(fault.status, fault.message, headers=fault.headers)

    # --- who asks -------------------------------------------------------------------------------

    def account(self) -> Account | None:
        """Who asks; None without a token."""
        if not self.headers.get("Authorization"):
            return None
        found = self.hub.store.accounts.get(self.token)
        if found is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return found

    def visible(self, repo_id: str, type_: str = "model") -> Repo:
        """A repository that whoever asks may know of; others do not learn that it is there."""
        account = self.account()
        repo = self.hub.store.repos.get((type_, repo_id))
        hidden = repo is not None and repo.private
        if repo is None or (hidden and not (account and account.is_member(_namespace(repo_id)))):
            status = 404 if account else 401
            raise Refusal(status, "Repository not found", "RepoNotFound")
        return repo

    def writable(self, repo_id: str, type_: str = "model") -> Repo:
        """A repository that whoever asks may change."""
        repo = self.visible(repo_id, type_)
        account = self.account()
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        if not account.may_write(_namespace(repo_id)):
            raise Refusal(403, "you must use a write token to upload to a repository.")
        return repo

    def opened(self, repo: Repo) -> None:
        """Refuse the files of a gated repository to those who are not let in."""
        account = self.account()
        if repo.gated and not (account and account.is_member(_namespace(repo.id))):
            status = 403 if account else 401
            raise Refusal(status, f"Access to model {repo.id} is restricted.", "GatedRepo")

    def commit_of(self, repo: Repo, revision: str) -> Commit:
        found = repo.resolve(revision)
        if found is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def link(self, path: str, **query: str) -> str:
        """An absolute address on this server."""
        text = "&".join(f"{key}={quote(value, safe='')}" for key, value in query.items())
        return f"{self.hub.url}{path}" + (f"?{text}" if text else "")


def _namespace(repo_id: str) -> str:
    return repo_id.partition("/")[0]
