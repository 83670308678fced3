"""Shards that a secondary rank writes into the folder that rank 0 has opened."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from blake3 import blake3

from prunectl.output.journal import Journal, JsonObject, secondary_journal
from prunectl.output.osfiles import os_errors, real_path, undone_by
from prunectl.output.resumable import ResumableFolder
from prunectl.output.target import journal_file, work_folder

_APPEARS = 15.0
"""Seconds until a shared disk shows one host the writes of another."""


def seen_outside(journal: Path, work: Path, wanted: str) -> str:
    """Return :meth:`ResumableFolder.seen` of a folder that another process has open.

    Args:
        journal, work: of the folder. wanted: the value of that process.

    Returns:
        ``wanted``; '' if it does not appear in time.
    """
    until = time.monotonic() + _APPEARS
    while True:
        try:
            found = blake3(journal.read_bytes()).hexdigest()
        except OSError:
            found = ""
        if found == wanted and work.is_dir():
            return found
        if time.monotonic() > until:
            return ""
        time.sleep(0.2)


class SecondaryFolder(ResumableFolder):
    """Shards of an :class:`OutputFolder` that rank 0 has open and will put in place.

    Only half-written files are ever removed. Finished shards are recorded in a separate journal,
    which rank 0 takes over when it resumes, and deletes when it is done.

    Args:
        target, fingerprint: as given to rank 0. number: the number of this rank, from 1.
        finished: the finished shards from which rank 0 continues.
    """

    def __init__(
        self, target: Path, fingerprint: str, number: int, finished: Mapping[str, JsonObject]
    ) -> None:
        with os_errors(target):
            real = real_path(target)
        own = secondary_journal(journal_file(real), number)
        super().__init__(work_folder(real), own, target, fingerprint)
        self._first = journal_file(real)
        self.finished = dict(finished)

    def sees(self, wanted: str) -> str:
        """Return :meth:`ResumableFolder.seen`; '' if ``wanted`` does not appear in time."""
        return seen_outside(self._first, self.work, wanted)

    def __enter__(self) -> Self:
        with os_errors(self._asked):
            self._journal = Journal(self._journal_path, self._asked)
        self._closer = ThreadPoolExecutor(1, "prunectl-fsync")
        with undone_by(lambda: self._give_up(keep=True)), os_errors(self._asked):
            self._journal.restart(self._fingerprint, self.work)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._give_up(keep=True)
