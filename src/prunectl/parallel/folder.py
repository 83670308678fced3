"""One output folder that all ranks write into."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunectl.output.folder import OutputFolder
from prunectl.output.resumable import ResumableFolder
from prunectl.output.secondary_rank import SecondaryFolder
from prunectl.parallel.run import Run

SAME = "all need the same files, command and versions of prunectl, torch and transformers"
SHARED_DISK = "give -o a folder on a disk that all hosts share"


@contextmanager
def shared_folder(
    run: Run,
    target: Path,
    fingerprint: str,
    *,
    force: bool,
    protected: Sequence[Path],
) -> Iterator[ResumableFolder]:
    """The output folder. On rank 0 an :class:`OutputFolder`; only rank 0 commits it.

    Raises:
        RanksDiffer: a rank has another source or other settings, or does not see the folder.
            OutputConflict, CannotWrite, NoSpace: as :class:`OutputFolder`.
    """
    ranks = run.ranks
    ranks.check_same("weights and settings", fingerprint, hint=SAME)
    if ranks.is_first:
        folder = OutputFolder(
            target, fingerprint, force=force, protected=protected, on_event=run.on_event
        )
        with folder as sink:
            seen, _ = ranks.broadcast((sink.seen(), sink.finished))
            ranks.check_same("output folder", seen, hint=SHARED_DISK)
            yield sink
        return
    nothing: tuple[str, dict[str, Any]] = ("", {})
    wanted, finished = ranks.broadcast(nothing)
    secondary = SecondaryFolder(target, fingerprint, ranks.number, finished)
    ranks.check_same("output folder", secondary.sees(wanted), hint=SHARED_DISK)
    with secondary:
        yield secondary
