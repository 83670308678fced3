"""What a revision on the Hub holds, and what of a folder it lacks."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunectl.events import Advanced, OnEvent, PhaseDone, PhaseStarted

Content = Path | bytes
"""A file to publish: where it is, or what it holds."""

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file on the Hub: bytes, git's id of it, and its SHA-256 if it is a large one."""

    size: int
    blob_id: str
    sha256: str | None


@dataclass(frozen=True, slots=True)
class HubState:
    """A revision as it was when it was looked at: ``commit`` is its id."""

    commit: str
    private: bool
    files: dict[str, HubFile]


def listed_files(entries: Iterable[Any]) -> dict[str, HubFile] | None:
    """Files by name from huggingface_hub's entries; None if a size is none: no Hub says that."""
    files = {}
    for entry in entries:
        if type(entry.size) is not int:
            return None
        sha256 = entry.lfs.sha256 if entry.lfs else None
        files[entry.path] = HubFile(entry.size, entry.blob_id, sha256)
    return files


Digests = dict[str, str]
"""SHA-256 of large files by name, so that none is read twice."""


def differing(
    files: Mapping[str, Content], state: HubState, digests: Digests, on_event: OnEvent
) -> dict[str, Content]:
    """The files that the Hub lacks or holds with other bytes.

    Only files of equal size are hashed.

    Args:
        digests: those that are known; those that had to be made are added.
    """
    known = {
        name: content
        for name, content in files.items()
        if name in state.files and _size(content) == state.files[name].size
    }
    on_event(PhaseStarted("comparing", sum(map(_size, known.values()))))
    found = {}
    for name, content in files.items():
        there = state.files.get(name)
        if there is None or name not in known or not _is_same(name, content, there, digests):
            found[name] = content
        if name in known:
            on_event(Advanced("comparing", _size(content), name))
    on_event(PhaseDone("comparing"))
    return found


def _is_same(name: str, content: Content, there: HubFile, digests: Digests) -> bool:
    if there.sha256 is None:
        return _digest(content, hashlib.sha1(b"blob %d\0" % _size(content))) == there.blob_id
    if name not in digests:
        digests[name] = _digest(content, hashlib.sha256())
    return digests[name] == there.sha256


def matching(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Names that fit one of the globs; one that ends with a slash means the whole folder."""
    globs = [f"{glob}*" if glob.endswith("/") else glob for glob in patterns]
    return [name for name in names if any(fnmatch.fnmatchcase(name, glob) for glob in globs)]


def _size(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _digest(content: Content, digest: hashlib._Hash) -> str:
    if isinstance(content, bytes):
        digest.update(content)
        return digest.hexdigest()
    with content.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
