"""A hidden folder of shards from which a later run of the same job continues.

A shard counts as finished once it is durable; a journal next to the folder lists the finished
shards. The caller renames the folder into place, or copies the parts it needs and then removes the
folder.
"""

from __future__ import annotations

import shutil
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from prunectl.events import Note, OnEvent, ignore_events
from prunectl.output.journal import (
    Entries,
    Journal,
    JsonObject,
    has_entries,
    is_entry_of,
    secondary_journals,
)
from prunectl.output.osfiles import (
    make_parents,
    os_errors,
    remove,
    remove_empty,
    sync_folder,
    undone_by,
)
from prunectl.output.parts import PartsShard, PartsWriter
from prunectl.output.shards import Shard, ShardWriter

_MAX_CLOSING = 4
"""Shards that may wait to become durable; each holds an open file."""


class ResumableFolder:
    """Context manager for one folder; finished shards are kept when an error leaves the block.

    Threads that write into its shards must have ended before the block is left.

    Args:
        work: the folder, into which nothing else writes.
        journal: the list of finished shards, and the lock; on the same disk.
        asked: the output that the user named; messages show it.
        fingerprint: digest of everything that determines the shards' bytes (source, arguments, tool
            version): a run continues an unfinished folder only if the fingerprint is the same.
        part: the word for a shard in messages.
        read_again: whether the shards are read soon and should stay in the page cache.
        on_event: receives a :class:`Note` on what happens to an unfinished folder found there.

    Attributes:
        work: the folder that is written.
        part: as given.
        finished: journal entries by shard name, each with ``records`` as given to :meth:`finish`.
        damaged: the same for shards that an earlier run finished and that have since been damaged.

    Raises:
        OutputConflict: on entry: another process writes the folder.
        CannotWrite, NoSpace: on entry and in every method, if the system refuses.
    """

    def __init__(
        self,
        work: Path,
        journal: Path,
        asked: Path,
        fingerprint: str,
        *,
        part: str = "shard",
        read_again: bool = False,
        on_event: OnEvent = ignore_events,
    ) -> None:
        self.work = work
        self._journal_path = journal
        self._asked, self._fingerprint = asked, fingerprint
        self.part, self._read_again, self._on_event = part, read_again, on_event
        self.finished: dict[str, JsonObject] = {}
        self.damaged: dict[str, JsonObject] = {}
        self._remembered: dict[str, Any] = {}
        self._is_measured = False  # by an earlier run
        self._writers: dict[str, ShardWriter | PartsWriter] = {}  # shards that are not durable yet
        self._closing: deque[Future[None]] = deque()
        self._discarded = False

    # --- entering -------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        with os_errors(self._asked):
            made = make_parents(self.work.parent)
            with undone_by(lambda: remove_empty(list(self.work.parents)[:made])):
                self._journal = Journal(self._journal_path, self._asked)
            self._journal.made_parents = made
        self._closer = ThreadPoolExecutor(1, "prunectl-fsync")
        with (
            undone_by(lambda: self._give_up(keep=self.work.exists())),
            os_errors(self._asked),
        ):
            self._settle()
            self._resume_or_start()
        return self

    def _settle(self) -> None:
        """Hook for work under the lock, before anything else."""

    def _resume_or_start(self) -> None:
        found = self._journal.load(self._fingerprint, self.work)
        for path in secondary_journals(self._journal_path):
            more = self._journal.take_over(path, self._fingerprint, self.work, self._asked)
            if found is not None:
                found.finished.update(more.finished)
                found.damaged.update(more.damaged)
        if found is None:
            if self.work.exists():
                shutil.rmtree(self.work)
                left = f"discarding unfinished {self.part}s of another run"
                self._on_event(Note(f"{self._asked}: {left}"))
            self.work.mkdir()
            sync_folder(self.work.parent)
            self._journal.restart(self._fingerprint, self.work)
            found = Entries()
        self.finished, self.damaged = found.finished, found.damaged
        self._remembered, self._is_measured = found.remembered, bool(found.remembered)
        for entry in self.work.iterdir():
            if entry.name not in self.finished:
                remove(entry)

    def tell_resumed(self) -> None:
        """Report the parts of an earlier run that are reused, and the damaged ones."""
        texts = []
        if self.finished:
            texts.append(f"continuing from {self._finished()} of an earlier run")
        elif self._is_measured:
            texts.append("continuing from the measurements of an earlier run")
        if len(self.damaged) == 1:
            texts.append(f"one {self.part} was damaged and is written again")
        elif self.damaged:
            texts.append(f"{len(self.damaged)} {self.part}s were damaged and are written again")
        if texts:
            self._on_event(Note(f"{self._asked}: {'; '.join(texts)}", warning=bool(self.damaged)))

    def _finished(self) -> str:
        count = len(self.finished)
        return f"{count:,} finished {self.part}{'s' if count != 1 else ''}"

    # --- writing --------------------------------------------------------------------------------

    def records_of(self, shard: Shard) -> list[JsonObject] | None:
        """Return the records of an already finished shard, byte for byte this one; else None."""
        entry = self.finished.get(shard.name)
        if entry is None or not is_entry_of(entry, shard):
            return None
        records: list[JsonObject] = entry["records"]
        return records

    def open_shard(self, shard: Shard) -> ShardWriter:
        """Start a weights file; write all of its tensors, then hand it to :meth:`finish`."""
        self.finished.pop(shard.name, None)
        writer = ShardWriter(self.work, shard, self._asked, read_again=self._read_again)
        self._writers[shard.name] = writer
        return writer

    def parts_of(self, shard: PartsShard) -> list[JsonObject] | None:
        """Return the records of an already finished compressed file; else None.

        Its header is known only after encoding, so the fingerprint must determine which tensors are
        in which file.
        """
        entry = self.finished.get(shard.name)
        return None if entry is None else entry["records"]

    def open_parts(self, shard: PartsShard, room: int) -> PartsWriter:
        """Start a compressed file; write all of its parts, then hand it to :meth:`finish`."""
        self.finished.pop(shard.name, None)
        writer = PartsWriter(self.work, shard, room, self._asked)
        self._writers[shard.name] = writer
        return writer

    def finish(self, writer: ShardWriter | PartsWriter, records: list[JsonObject]) -> None:
        """Make a shard durable and record it in the journal, in the background.

        The disk writes while the next shard is computed; this method waits for a slower disk. An
        error of an earlier shard is raised here or in :meth:`wait`.

        Args:
            writer: with everything written.
            records: JSON-ready facts about the shard's tensors, returned when a later run resumes.
        """
        while self._closing and (self._closing[0].done() or len(self._closing) >= _MAX_CLOSING):
            self._closing.popleft().result()
        self._closing.append(self._closer.submit(self._close_shard, writer, records))

    def wait(self) -> None:
        """Wait until all finished shards are durable; raise the error of any of them."""
        for future in self._closing:
            future.result()

    def _close_shard(self, writer: ShardWriter | PartsWriter, records: list[JsonObject]) -> None:
        writer.close()
        shard = writer.shard
        assert shard is not None  # a closed writer knows its header
        with os_errors(self._asked):
            self.finished[writer.name] = self._journal.add(shard, records)
        del self._writers[writer.name]

    def spoil(self, name: str) -> None:
        """Discard a finished shard, for this run and for a later one."""
        with os_errors(self._asked):
            (self.work / name).unlink(missing_ok=True)
        self.damaged[name] = self.finished.pop(name)

    def remember(self, key: str, value: Any) -> None:
        """Keep a JSON value for a later run; it is durable on return."""
        with os_errors(self._asked):
            self._journal.remember(key, value)
        self._remembered[key] = value

    def remembered(self, key: str) -> Any:
        """Return a value that this or an earlier run has kept; None if there is none."""
        return self._remembered.get(key)

    # --- ending ---------------------------------------------------------------------------------

    def seen(self) -> str:
        """Return a value that is the same for exactly the processes that see this folder."""
        with os_errors(self._asked):
            return self._journal.digest()

    def discard(self) -> None:
        """When the block is left, remove finished shards too, and the folders created for them.

        For an error that a later run that continues from these shards would only meet again.
        """
        self._discarded = True

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._give_up(keep=False)
        if isinstance(error, KeyboardInterrupt):
            self._tell_kept(error)

    def _give_up(self, *, keep: bool) -> None:
        """Remove unfinished files, and the others too if a later run cannot continue from them."""
        self._closer.shutdown(cancel_futures=True)
        for writer in self._writers.values():
            writer.abort()
        if keep or self._is_kept():
            self._journal.close()
            return
        shutil.rmtree(self.work, ignore_errors=True)
        with suppress(OSError):  # on a failed disk, only the first error is reported
            self._journal.remove()
        # Folders that are no longer empty are kept.
        remove_empty(list(self.work.parents)[: self._journal.made_parents])

    def _is_kept(self) -> bool:
        noted = self.finished or self._remembered
        by_others = any(has_entries(path) for path in secondary_journals(self._journal_path))
        return bool(noted or by_others) and not self._discarded

    def _tell_kept(self, error: KeyboardInterrupt) -> None:
        """Report how to continue, once: the error may leave both an output and its calibration."""
        if not self._is_kept() or getattr(error, "__notes__", None):
            return
        kept = "the measurements" if self._remembered else "the shards of other ranks"
        if self.finished:
            kept = self._finished()
        text = f"{self._asked}: kept {kept}; the same command continues from there"
        error.add_note(text)
        self._on_event(Note(text))
