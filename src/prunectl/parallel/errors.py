"""Errors of several processes that work on one command."""

from __future__ import annotations

import re

from prunectl.errors import PrunectlError


class RankFailed(PrunectlError):
    """Another process failed, so this one ends too, with the other's exit code.

    Attributes:
        rank, host: the process that failed.
        why: its error message.
    """

    def __init__(self, rank: int, host: str, why: str, *, hint: str = "", code: int = 1) -> None:
        super().__init__(f"rank {rank} on {host}: {why}", hint=hint)
        self.rank, self.host, self.why, self.exit_code = rank, host, why, code


class RanksLost(PrunectlError):
    """The processes cannot find each other, or lost contact."""

    def __init__(self, why: str, *, hint: str = "") -> None:
        super().__init__(
            f"the processes lost one another: {why}",
            hint=hint
            or "see what ended the first one; the same command resumes from the finished work",
        )
        self.why = why


class RanksDiffer(PrunectlError):
    """Two processes see different files or settings."""

    def __init__(self, what: str, rank: int, *, hint: str) -> None:
        super().__init__(f"rank {rank} and rank 0 do not see the same {what}", hint=hint)
        self.what, self.rank = what, rank


def in_short(error: BaseException) -> str:
    """The first sentence of torch's message, without the source location."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return re.sub(r"^\[[^\]]*\]\s*", "", line).split(". ")[0].rstrip(".")
