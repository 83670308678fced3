"""Routes that only read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from hubserver.store import Commit, Entry
from hubserver.wire import Refusal

if TYPE_CHECKING:
    from hubserver.server import Handler

SIGNATURE = "signed-by-the-hub"


def whoami(at: Handler) -> None:
    account = at.account()
    if account is None:
        raise Refusal(401, "Invalid username or password.")
    orgs = [{"type": "org", "name": name} for name in account.orgs]
    token = {"type": "access_token", "accessToken": {"role": account.role}}
    at.answer_json({"type": "user", "name": account.name, "orgs": orgs, "auth": token})


def info(at: Handler, type: str, repo: str, revision: str = "main") -> None:
    found = at.visible(repo, type)
    commit = at.commit_of(found, revision)
    wants_sizes = at.query.get("blobs", "").lower() == "true" and at.hub.lists_sizes
    at.answer_json(
        {
            "_id": "1",
            "id": found.id,
            "modelId": found.id,
            "sha": commit.oid,
            "private": found.private,
            "gated": "manual" if found.gated else False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [
                {"rfilename": name} | (facts(entry) if wants_sizes else {})
                for name, entry in sorted(commit.files.items())
            ],
        },
        X_Repo_Commit=commit.oid,
    )


def facts(entry: Entry) -> dict[str, Any]:
    """What a listing says about a file, where it is asked to."""
    found: dict[str, Any] = {"size": entry.size, "blobId": entry.oid}
    if entry.sha256:
        lfs = {"sha256": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
        found["lfs"] = lfs
    return found


def tree(at: Handler, type: str, repo: str, revision: str, path: str = "") -> None:
    found = at.visible(repo, type)
    commit = at.commit_of(found, revision)
    entries = _entries(commit, path, at.query.get("recursive", "").lower() == "true")
    start = int(at.query.get("cursor", "0"))
    page = entries[start : start + at.hub.page_size]
    headers = {"X_Repo_Commit": commit.oid}
    if start + len(page) < len(entries):
        query = at.query | {"cursor": str(start + len(page))}
        headers["Link"] = f'<{at.link(at.path_only, **query)}>; rel="next"'
    at.answer_json(page, **headers)


def _entries(commit: Commit, path: str, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{path}/" if path else ""
    names = [name for name in sorted(commit.files) if name.startswith(prefix)]
    if path and not names:
        raise Refusal(404, f"{path} does not exist", "EntryNotFound")
    folders = {
        "/".join(name.split("/")[:depth])
        for name in names
        for depth in range(prefix.count("/") + 1, name.count("/") + 1)
    }
    found = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": name} for name in folders]
    found += [as_json(name, commit.files[name]) for name in names]
    if not recursive:
        found = [entry for entry in found if "/" not in str(entry["path"]).removeprefix(prefix)]
    return sorted(found, key=lambda entry: str(entry["path"]))


def as_json(name: str, entry: Entry) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "file", "oid": entry.oid, "size": entry.size, "path": name}
    if entry.sha256:
        found["lfs"] = {
            "oid": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size
        }  # fmt: skip
    return found


def paths(at: Handler, type: str, repo: str, revision: str) -> None:
    commit = at.commit_of(at.visible(repo, type), revision)
    wanted = parse_qs(at.body().decode()).get("paths", [])
    at.answer_json([as_json(name, commit.files[name]) for name in wanted if name in commit.files])


def refs(at: Handler, type: str, repo: str) -> None:
    found = at.visible(repo, type)
    groups: dict[str, list[dict[str, str]]] = {"branches": [], "converts": [], "tags": []}
    if at.query.get("include_prs"):
        groups["pullRequests"] = []
    for ref, commit in found.refs.items():
        kind, name = ref.removeprefix("refs/").split("/", 1)
        group = {"heads": "branches", "tags": "tags", "pr": "pullRequests"}[kind]
        if group in groups:
            groups[group].append({"name": name, "ref": ref, "targetCommit": commit})
    at.answer_json(groups)


def discussions(at: Handler, type: str, repo: str) -> None:
    found = at.visible(repo, type)
    if at.query.get("type") not in (None, "all", "pull_request"):
        raise Refusal(400, "this Hub has only pull requests")
    listed = [
        {
            "title": title,
            "num": number,
            "author": {"name": "writer"},
            "createdAt": "2026-01-01T00:00:00.000Z",
            "status": "open",
            "repo": {"name": found.id, "type": type},
            "isPullRequest": True,
        }
        for number, title in enumerate(found.pulls, start=1)
    ]
    listed.reverse()  # newest first
    at.answer_json({"discussions": listed, "count": len(listed), "start": 0})


def resolve(at: Handler, repo: str, revision: str, path: str, type: str = "model") -> None:
    found = at.visible(repo, type)
    commit = at.commit_of(found, revision)
    at.opened(found)
    entry = commit.files.get(path)
    headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
    if entry is None:
        raise Refusal(404, "Entry not found", "EntryNotFound", headers)
    if entry.sha256 is None:
        _send(at, at.hub.store.path_of(entry), path, headers | {"ETag": f'"{entry.oid}"'})
        return
    # Another host, as the real storage is: a client that sends its token there too is refused.
    address = at.link(f"/cdn/{entry.sha256}", Signature=SIGNATURE, name=path)
    headers |= {
        "X-Linked-Size": str(entry.size),
        "X-Linked-Etag": f'"{entry.sha256}"',
        "Location": address.replace("127.0.0.1", "localhost"),
    }
    at.answer(302, b"", headers)


def cdn(at: Handler, oid: str) -> None:
    """Where large files are kept; whoever has a signed address may read."""
    if at.query.get("Signature") != SIGNATURE:
        raise Refusal(403, "no signature")
    if at.token:
        raise Refusal(400, "a token was sent to the storage")
    path = at.hub.store.lfs_path(oid)
    if not path.exists():
        raise Refusal(404, "no such object")
    _send(at, path, at.query["name"], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})


def _send(at: Handler, path: Path, name: str, headers: dict[str, str]) -> None:
    asked = at.headers.get("Range", "")
    span = re.fullmatch(r"bytes=(\d+)-(\d*)", asked) if at.hub.knows_ranges else None
    status, first, last, size = 200, 0, path.stat().st_size, path.stat().st_size
    if span is not None:
        at.hub.ranges.append((name, asked))
        status, first, last = 206, int(span[1]), min(int(span[2] or size) + 1, size)
        if first >= last:
            total = {"Content-Range": f"bytes */{size}"}
            raise Refusal(416, "the range is beyond the end", headers=total)
        headers["Content-Range"] = f"bytes {first}-{last - 1}/{size}"
    for count in at.answer_file(status, path, first, last, headers):
        at.hub.count(name, count)
