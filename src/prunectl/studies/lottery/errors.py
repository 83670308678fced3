"""Errors of a search for a lottery ticket."""

from __future__ import annotations

from pathlib import Path

from prunectl.errors import OutputError, UsageError


class NoSchedule(UsageError):
    """Rounds and a rate that do not lead to the sparsity."""


class OtherLottery(OutputError):
    """The folder holds the rounds of another search."""

    exit_code = 2

    def __init__(self, folder: Path, *, is_known: bool = True) -> None:
        if is_known:
            why = "holds rounds of another model, other data or other settings"
            hint = "choose another -o; the command that it belongs to is in its lottery.json"
        else:
            why = "holds scores, and no lottery.json that tells of what"
            hint = "choose another -o"
        super().__init__(f"{folder} {why}", hint=hint)
        self.folder = folder
