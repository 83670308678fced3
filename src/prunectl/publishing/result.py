"""What ``push`` did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class PushResult:
    """The whole outcome.

    Attributes:
        folder: what was pushed. repo_id: where to.
        revision: branch that was asked for; None is main.
        changed: whether there is a new commit; False if the Hub had everything already.
        commit: id of the commit that holds the folder's files now. commit_url: where it is shown.
        pull_request: address of the pull request, with ``create_pr``.
        uploaded, deleted: files that the commit changes.
        files: how many files the folder has on the Hub. nbytes: of those in ``uploaded``.
        seconds: wall time, verification included.
    """

    folder: Path
    repo_id: str
    revision: str | None
    changed: bool
    commit: str
    commit_url: str
    pull_request: str | None
    uploaded: tuple[str, ...]
    deleted: tuple[str, ...]
    files: int
    nbytes: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        from prunectl.to_json import to_json

        return {"schema": "prunectl.push/1", **to_json(self)}
