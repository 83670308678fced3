"""Routes that change something, checked as strictly as the real Hub checks them, or more."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import uuid
from typing import TYPE_CHECKING, Any

from hubserver.cards import check_card
from hubserver.reading import SIGNATURE
from hubserver.store import Commit, Entry, Repo, git_oid, tracks
from hubserver.wire import Refusal

if TYPE_CHECKING:
    from hubserver.server import Handler

LARGEST_REGULAR = 10_000_000
"""Larger files must be in LFS."""

LFS_JSON = "application/vnd.git-lfs+json"
_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9]([\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)
_BRANCH = re.compile(r"(?!.*(\.\.|//|@\{))[\w.@+-][\w./@+-]*(?<![/.])", re.ASCII)


def create(at: Handler) -> None:
    body = at.json_body()
    name, type_ = body["name"], body.get("type", "model")
    account = at.account()
    if account is None:
        raise Refusal(401, "Invalid username or password.")
    owner = body.get("organization") or account.name
    repo_id = f"{owner}/{name}"
    if not _NAME.fullmatch(name) or name.endswith(".git"):
        raise Refusal(400, f"Invalid repo name: {repo_id}")
    if not account.may_write(owner):
        what = f'the rights to create a {type_} under the namespace "{owner}"'
        raise Refusal(403, f"You don't have {what}")
    with at.hub.store.lock:
        url = at.link(f"/{repo_id}")
        if any((kind, repo_id) in at.hub.store.repos for kind in ("model", "dataset", "space")):
            error = f"You already created this {type_} repo"
            at.answer_json({"error": error, "url": url}, 409)
            return
        at.hub.store.create(repo_id, type_, private=body.get("visibility") == "private")
    at.answer_json({"url": url, "id": "1", "name": repo_id})


def validate(at: Handler) -> None:
    body = at.json_body()
    errors, warnings = check_card(body["content"])
    found = {
        "errors": [{"message": text} for text in errors],
        "warnings": [{"message": text} for text in warnings],
    }
    status = 400 if errors else 200
    if at.headers.get("Accept") == "text/plain":
        at.answer(status, "\n".join(errors + warnings).encode(), {"Content-Type": "text/plain"})
    else:
        at.answer_json(found, status)


def branch(at: Handler, type: str, repo: str, branch: str) -> None:
    found = at.writable(repo, type)
    start = at.commit_of(found, at.json_body().get("startingPoint") or "main")
    if not _BRANCH.fullmatch(branch) or branch.startswith("refs/"):
        raise Refusal(400, f"Invalid reference for a branch: {branch}")
    with at.hub.store.lock:
        if f"refs/heads/{branch}" in found.refs:
            raise Refusal(409, f"Reference already exists: refs/heads/{branch}")
        at.hub.store.move(found, f"refs/heads/{branch}", start)
    at.answer(201)


def preupload(at: Handler, type: str, repo: str, revision: str) -> None:
    found = at.visible(repo, type) if at.query.get("create_pr") else at.writable(repo, type)
    commit = at.commit_of(found, revision)
    body = at.json_body()
    ignored = body.get("gitIgnore")
    if ignored is None and ".gitignore" in commit.files:
        ignored = at.hub.store.path_of(commit.files[".gitignore"]).read_text()
    files = []
    for file in body["files"]:
        name, size = file["path"], int(file["size"])
        sample = base64.b64decode(file["sample"], validate=True)
        if len(sample) > 512 or len(sample) > size:
            raise Refusal(400, f"the sample of {name} is too long")
        is_lfs = size > LARGEST_REGULAR or at.hub.store.is_lfs(commit, name) or b"\0" in sample
        entry = commit.files.get(name)
        files.append(
            {
                "path": name,
                "uploadMode": "lfs" if is_lfs else "regular",
                "shouldIgnore": _is_ignored(ignored or "", name),
                "oid": (entry.sha256 or entry.oid) if entry else None,
            }
        )
    at.answer_json({"commitOid": commit.oid, "files": files})


def _is_ignored(gitignore: str, name: str) -> bool:
    """Plain names and ``*.suffix``: enough to see that nobody is surprised by a .gitignore."""
    base = name.rpartition("/")[2]
    return any(
        line == base or (line.startswith("*.") and base.endswith(line[1:]))
        for line in map(str.strip, gitignore.splitlines())
    )


# --- LFS ----------------------------------------------------------------------------------------


def batch(at: Handler, repo: str) -> None:
    """https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md"""
    body = at.json_body()
    found = at.writable(repo) if "ref" in body else at.visible(repo)
    if at.account() is None:
        raise Refusal(401, "Invalid username or password.")
    if LFS_JSON not in at.headers.get("Accept", ""):
        raise Refusal(406, f"this route speaks {LFS_JSON}")
    if body["operation"] != "upload" or body["hash_algo"] != "sha256":
        raise Refusal(422, "only uploads named by sha256")
    objects = [_actions(at, found, item["oid"], item["size"]) for item in body["objects"]]
    at.answer_json({"transfer": "basic", "objects": objects})


def _actions(at: Handler, repo: Repo, oid: str, size: int) -> dict[str, Any]:
    found: dict[str, Any] = {"oid": oid, "size": size}
    if not re.fullmatch(r"[0-9a-f]{64}", oid):
        return found | {"error": {"code": 422, "message": "the oid is not a sha256"}}
    if oid in repo.large:
        return found
    signed = {"X-Amz-Signature": SIGNATURE, "size": str(size), "repo": repo.id}
    upload: dict[str, Any] = {"href": at.link(f"/lfs-storage/{oid}", **signed)}
    if size > at.hub.part_size:
        upload["href"] = at.link(f"/lfs-complete/{oid}", **signed)
        upload["header"] = {"chunk_size": str(at.hub.part_size)}
        for number in range(1, -(-size // at.hub.part_size) + 1):
            upload["header"][str(number)] = at.link(f"/lfs-storage/{oid}/{number}", **signed)
    verify = {"href": at.link(f"/{repo.id}.git/info/lfs/objects/verify")}
    return found | {"actions": {"upload": upload, "verify": verify}}


def put(at: Handler, oid: str, part: str = "") -> None:
    """The storage behind the Hub: a signed address is enough, and a token must not get there."""
    if at.query.get("X-Amz-Signature") != SIGNATURE:
        raise Refusal(403, "SignatureDoesNotMatch")
    if at.headers.get("Authorization"):
        raise Refusal(400, "a token was sent to the storage")
    store = at.hub.store
    incoming = store.folder / "incoming" / uuid.uuid4().hex
    digest, size = hashlib.sha256(), 0
    with incoming.open("wb") as file:
        for block in at.blocks():
            file.write(block)
            digest.update(block)
            size += len(block)
    if part:
        incoming.rename(store.folder / "incoming" / f"{oid}.{part}")
    elif digest.hexdigest() != oid or str(size) != at.query["size"]:
        raise Refusal(400, "XAmzContentSHA256Mismatch")
    else:
        incoming.rename(store.lfs_path(oid))
        store.repos["model", at.query["repo"]].large.add(oid)
    at.answer(200, b"", {"ETag": f'"{digest.hexdigest()}"'})


def complete(at: Handler, oid: str) -> None:
    body = at.json_body()
    store = at.hub.store
    data = b""
    for part in body["parts"]:
        piece = (store.folder / "incoming" / f"{oid}.{part['partNumber']}").read_bytes()
        if part["etag"].strip('"') != hashlib.sha256(piece).hexdigest():
            raise Refusal(400, "a part has another ETag")
        data += piece
    if body["oid"] != oid or hashlib.sha256(data).hexdigest() != oid:
        raise Refusal(400, "the parts do not make up the object")
    store.add_lfs(store.repos["model", at.query["repo"]], data)
    at.answer_json({"success": True})


def verify(at: Handler, repo: str) -> None:
    found = at.visible(repo)
    body = at.json_body()
    path = at.hub.store.lfs_path(body["oid"])
    if body["oid"] not in found.large or path.stat().st_size != body["size"]:
        raise Refusal(404, "the object is not there")
    at.answer_json({"message": "ok"})


# --- commits ------------------------------------------------------------------------------------


def commit(at: Handler, type: str, repo: str, revision: str) -> None:
    wants_pull = bool(at.query.get("create_pr"))
    found = at.visible(repo, type) if wants_pull else at.writable(repo, type)
    if at.account() is None:
        raise Refusal(401, "Invalid username or password.")
    if at.headers.get("Content-Type") != "application/x-ndjson":
        raise Refusal(415, "a commit is application/x-ndjson")
    lines = [json.loads(line) for line in at.body().splitlines()]
    if not lines or lines[0]["key"] != "header" or not lines[0]["value"]["summary"]:
        raise Refusal(400, "the first line is the header, with a summary")
    header = lines[0]["value"]
    with at.hub.store.lock:
        base = at.commit_of(found, revision)
        ref = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
        if ref not in found.refs:
            raise Refusal(400, f"{revision} is no branch")
        if header.get("parentCommit", base.oid) != base.oid:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = _apply(at, found, base, lines[1:])
        url = ""
        if wants_pull:
            found.pulls.append(header["summary"])
            ref = f"refs/pr/{len(found.pulls)}"
            found.refs[ref] = base.oid
            url = at.link(f"/{repo}/discussions/{len(found.pulls)}")
        description = header.get("description", "")
        made = at.hub.store.add_commit(found, ref, files, header["summary"], description)
    at.answer_json(
        {
            "success": True,
            "commitOid": made.oid,
            "commitUrl": at.link(f"/{repo}/commit/{made.oid}"),
            "hookOutput": "",
            "pullRequestUrl": url or None,
        }
    )


def _apply(at: Handler, repo: Repo, base: Commit, lines: list[dict[str, Any]]) -> dict[str, Entry]:
    """The files after the operations; nothing is changed if one of them is wrong."""
    files = dict(base.files)
    seen: set[str] = set()
    for line in lines:
        value = line["value"]
        name = value["path"]
        if name in seen or name.startswith("/") or ".." in name.split("/"):
            raise Refusal(400, f"{name}: named twice, or outside")
        seen.add(name)
        if line["key"] == "file":
            files[name] = _regular(at, base, name, value)
        elif line["key"] == "lfsFile":
            files[name] = _large(at, repo, name, value)
        elif line["key"] == "deletedFile":
            if files.pop(name, None) is None:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        else:
            raise Refusal(400, f"this Hub knows no operation {line['key']}")
    _track(at, files)
    if files == base.files:
        raise Refusal(400, "the commit changes nothing; a client should not have sent it")
    return files


def _regular(at: Handler, base: Commit, name: str, value: dict[str, str]) -> Entry:
    try:
        data = base64.b64decode(value["content"], validate=True)
    except binascii.Error:
        raise Refusal(400, f"{name}: not base64") from None
    if len(data) > LARGEST_REGULAR or (data and at.hub.store.is_lfs(base, name)):
        raise Refusal(400, f"{name}: belongs into LFS")
    if name == "README.md" and (errors := check_card(data.decode())[0]):
        raise Refusal(400, f"Invalid metadata in README.md: {errors[0]}")
    assert git_oid(data) == at.hub.store.add_git(data).oid
    return at.hub.store.add_git(data)


def _large(at: Handler, repo: Repo, name: str, value: dict[str, Any]) -> Entry:
    if value["algo"] != "sha256" or value["oid"] not in repo.large:
        raise Refusal(400, f"LFS pointer of {name} points to a file that does not exist")
    entry = at.hub.store.lfs_entry(value["oid"])
    if entry.size != value["size"]:
        raise Refusal(400, f"LFS pointer of {name} has another size")
    return entry


def _track(at: Handler, files: dict[str, Entry]) -> None:
    """Add a rule to .gitattributes for each LFS file that has none, as the Hub does."""
    entry = files.get(".gitattributes")
    text = at.hub.store.path_of(entry).read_text() if entry else ""
    added = text
    for name in sorted(name for name, entry in files.items() if entry.sha256):
        if not tracks(added, name):
            gap = "" if not added or added.endswith("\n") else "\n"
            added += f"{gap}{name} filter=lfs diff=lfs merge=lfs -text\n"
    if added != text:
        files[".gitattributes"] = at.hub.store.add_git(added.encode())
