"""Errors of several processes that work on one command."""

from __future__ import annotations

import re

from prunectl.errors import PrunectlError


class RankFailed(PrunectlError):
    """Another process could not go on, so that this one cannot either.

    It ends with that one's exit code.

    Attributes:
        rank, host: which. why: in its words.
    """

    def __init__(self, rank: int, host: str, why: str, *, hint: str = "", code: int = 1) -> None:
        super().__init__(f"rank {rank} on {host}: {why}", hint=hint)
        self.rank, self.host, self.why, self.exit_code = rank, host, why, code


class RanksLost(PrunectlError):
    """The processes cannot find, or no longer hear, one another."""

    def __init__(self, why: str, *, hint: str = "") -> None:
        super().__init__(
            f"the processes lost one another: {why}",
            hint=hint
            or "see what ended the first of them; the same command goes on from what is done",
        )
        self.why = why


class RanksDiffer(PrunectlError):
    """Two processes do not see the same."""

    def __init__(self, what: str, rank: int, *, hint: str) -> None:
        super().__init__(f"rank {rank} and rank 0 do not see the same {what}", hint=hint)
        self.what, self.rank = what, rank


def in_short(error: BaseException) -> str:
    """The first sentence of what torch says, without the place in its source."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return re.sub(r"^\[[^\]]*\]\s*", "", line).split(". ")[0].rstrip(".")
