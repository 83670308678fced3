"""The errors of a push: those of ``errors.py`` for folders that cannot be put on the Hub."""

from __future__ import annotations

from pathlib import Path

from prunectl.errors import OutputError


class PushError(OutputError):
    """The Hub does not take it; what it shows is as it was."""

    def __init__(self, repo: str, why: str, *, hint: str = "") -> None:
        again = "repeat the command: what was uploaded is not uploaded again"
        super().__init__(f"{repo}: {why}", hint=hint or again)
        self.repo, self.why = repo, why


class PushDenied(PushError):
    """No token, one that the Hub does not know, or one that may not write there."""


class PushConflict(PushError):
    """Somebody else has committed meanwhile, or there are files that would have to go."""


class InvalidRepository(PushError):
    """A repository or branch that cannot be, or that is something else than what was asked for."""

    exit_code = 2

    def __init__(self, repo: str, why: str, *, hint: str = "") -> None:
        super().__init__(repo, why, hint=hint or "name it ORG/NAME, as on the Hub")


class NotVerified(OutputError):
    """A folder that is not what its manifest says is not published.

    Attributes:
        problems: a sentence a difference.
    """

    exit_code = 3

    def __init__(self, folder: Path | str, problems: tuple[str, ...]) -> None:
        more = f"; and {len(problems) - 3:,} more" if len(problems) > 3 else ""
        super().__init__(
            f"{folder}: not pushed, since verification failed: {'; '.join(problems[:3])}{more}",
            hint=f"prunectl verify {folder} lists all; prune or export it again, or undo the edits",
        )
        self.folder, self.problems = str(folder), problems
