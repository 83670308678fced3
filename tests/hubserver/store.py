"""What the Hub keeps: accounts, repositories, commits, and the bytes of every file on disk."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import threading
from dataclasses import dataclass, field
from pathlib import Path

ORG = "org"
"""The organization that the writer and the reader belong to."""

WRITER = "hf_writerSecretOfTheTests0001"
READER = "hf_readerSecretOfTheTests0002"
STRANGER = "hf_strangerSecretOfTheTests0003"
UNKNOWN = "hf_anExpiredSecretOfTheTests0004"
PLAIN = "no-prefix-but-secret-all-the-same"
SECRETS = (READER, STRANGER, WRITER, UNKNOWN, PLAIN)


@dataclass(frozen=True)
class Account:
    """Who a token stands for; ``role`` is that of the token, ``read`` or ``write``."""

    name: str
    role: str
    orgs: tuple[str, ...]

    def is_member(self, namespace: str) -> bool:
        return namespace in (self.name, *self.orgs)

    def may_write(self, namespace: str) -> bool:
        return self.role == "write" and self.is_member(namespace)


@dataclass(frozen=True)
class Entry:
    """A file of a commit: its git object id, its size, and its SHA-256 if it is in LFS."""

    oid: str
    size: int
    sha256: str | None = None

    @property
    def pointer_size(self) -> int:
        return len(pointer(self.sha256 or "", self.size))


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    description: str
    files: dict[str, Entry]


@dataclass
class Repo:
    """One repository.

    Attributes:
        refs: full names (``refs/heads/main``) to commits.
        history: each (ref, commit) that was ever shown, in order.
        large: SHA-256 of the LFS objects that were uploaded to it, committed or not.
        pulls: titles of the pull requests; number n is the n-th.
    """

    id: str
    type: str = "model"
    private: bool = False
    gated: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    history: list[tuple[str, str]] = field(default_factory=list)
    pulls: list[str] = field(default_factory=list)
    large: set[str] = field(default_factory=set)

    def resolve(self, revision: str) -> Commit | None:
        """The commit of a branch, tag, pull request or commit id."""
        for ref in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if ref in self.refs:
                return self.commits[self.refs[ref]]
        return self.commits.get(revision)


class Store:
    """All state; whoever changes or compares it holds ``lock``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.RLock()
        self.repos: dict[tuple[str, str], Repo] = {}
        self.accounts = {
            WRITER: Account("writer", "write", (ORG,)),
            READER: Account("reader", "read", (ORG,)),
            STRANGER: Account("stranger", "write", ()),
        }
        for part in ("git", "lfs", "incoming"):
            (folder / part).mkdir(parents=True, exist_ok=True)

    # --- bytes ----------------------------------------------------------------------------------

    def git_path(self, oid: str) -> Path:
        return self.folder / "git" / oid

    def lfs_path(self, sha256: str) -> Path:
        return self.folder / "lfs" / sha256

    def add_git(self, data: bytes) -> Entry:
        oid = git_oid(data)
        self.git_path(oid).write_bytes(data)
        return Entry(oid, len(data))

    def add_lfs(self, repo: Repo, data: bytes) -> Entry:
        sha256 = hashlib.sha256(data).hexdigest()
        self.lfs_path(sha256).write_bytes(data)
        repo.large.add(sha256)
        return self.lfs_entry(sha256)

    def add_link(self, repo: Repo, path: Path) -> Entry:
        """A large file that stays where it is. Its digest is one of its name and size: the true one
        would take reading all of it."""
        sha256 = hashlib.sha256(f"{path.name} {path.stat().st_size}".encode()).hexdigest()
        self.lfs_path(sha256).symlink_to(path.absolute())
        repo.large.add(sha256)
        size = path.stat().st_size
        return Entry(git_oid(pointer(sha256, size)), size, sha256)

    def lfs_entry(self, sha256: str) -> Entry:
        """The entry of an object that is stored; its bytes are hashed again."""
        path = self.lfs_path(sha256)
        with path.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == sha256
        size = path.stat().st_size
        return Entry(git_oid(pointer(sha256, size)), size, sha256)

    def path_of(self, entry: Entry) -> Path:
        return self.lfs_path(entry.sha256) if entry.sha256 else self.git_path(entry.oid)

    # --- repositories ---------------------------------------------------------------------------

    def create(
        self, repo_id: str, type_: str = "model", *, private: bool = False, bare: bool = False
    ) -> Repo:
        """A new repository, with the first commit that the Hub makes itself; ``bare``: an empty
        one."""
        repo = Repo(repo_id, type_, private)
        self.repos[type_, repo_id] = repo
        attributes = "".join(
            f"{pattern} filter=lfs diff=lfs merge=lfs -text\n"
            for pattern in ("*.bin", "*.h5", "*.onnx", "*.pt", "*.safetensors")
        )
        files = {} if bare else {".gitattributes": self.add_git(attributes.encode())}
        self.add_commit(repo, "refs/heads/main", files, "initial commit")
        return repo

    def add_commit(
        self, repo: Repo, ref: str, files: dict[str, Entry], title: str, description: str = ""
    ) -> Commit:
        """Put a commit on top of ``ref``; that is the one moment at which the state changes."""
        parent = repo.refs.get(ref)
        listing = sorted((name, entry.oid) for name, entry in files.items())
        text = json.dumps([parent, title, description, len(repo.commits), listing])
        commit = Commit(
            hashlib.sha1(text.encode()).hexdigest(), parent, title, description, dict(files)
        )
        repo.commits[commit.oid] = commit
        self.move(repo, ref, commit)
        return commit

    def move(self, repo: Repo, ref: str, commit: Commit) -> None:
        repo.refs[ref] = commit.oid
        repo.history.append((ref, commit.oid))

    def contents(self, commit: Commit) -> dict[str, bytes]:
        return {name: self.path_of(entry).read_bytes() for name, entry in commit.files.items()}

    def is_lfs(self, commit: Commit | None, name: str) -> bool:
        """Whether the repository's own .gitattributes puts a file into LFS."""
        entry = commit.files.get(".gitattributes") if commit else None
        text = self.path_of(entry).read_text() if entry else ""
        return tracks(text, name)


def tracks(attributes: str, name: str) -> bool:
    """Whether the text of a .gitattributes has an LFS rule for ``name``."""
    for line in attributes.splitlines():
        pattern, *rules = line.split()[:2] or [""]
        target = name if "/" in pattern else name.rpartition("/")[2]
        if rules == ["filter=lfs"] and fnmatch.fnmatchcase(target, pattern):
            return True
    return False


def pointer(sha256: str, size: int) -> bytes:
    """What git holds in the place of an LFS file."""
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    ).encode()


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
