"""A hidden folder of shards that a later run of the same job goes on with.

Every shard is durable before it counts, and a journal beside the folder lists those that are. Who
uses it puts the folder in its place, or takes what it needs of it and has it removed.
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
from prunectl.output.osfiles import make_parents, os_errors, remove, remove_empty, sync_folder
from prunectl.output.parts import PartsShard, PartsWriter
from prunectl.output.shards import Shard, ShardWriter

_MAX_CLOSING = 4
"""Shards that may wait to become durable; each holds an open file."""


class ResumableFolder:
    """Context manager for one folder; what is finished stays when an error leaves the block.

    Threads that write into its shards must have ended before it is left.

    Args:
        work: the folder, which nobody else writes into.
        journal: the list of what is finished, and the lock; on the same disk.
        asked: the output that people asked for: messages name this one.
        fingerprint: digest of all that decides the shards' bytes (source, arguments, tool version):
            an unfinished folder is gone on with only if its fingerprint is the same.
        part: what messages call a shard.
        read_again: whether the shards are read soon, so that memory had better hold them.
        on_event: told, as :class:`Note`, what becomes of an unfinished folder found there.

    Attributes:
        work: the folder that is written into.
        part: as given.
        finished: journal entries by shard name, each with ``records`` as given to :meth:`finish`.
        damaged: the same of shards that an earlier run finished and that are not whole any more.

    Raises:
        OutputConflict: on entry: another process writes it.
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
        self._writers: dict[str, ShardWriter | PartsWriter] = {}  # those that are not durable yet
        self._closing: deque[Future[None]] = deque()
        self._discarded = False

    # --- entering -------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        with os_errors(self._asked):
            made = make_parents(self.work.parent)
            try:
                self._journal = Journal(self._journal_path, self._asked)
            except BaseException:
                remove_empty(list(self.work.parents)[:made])
                raise
            self._journal.made_parents = made
        self._closer = ThreadPoolExecutor(1, "prunectl-fsync")
        try:
            with os_errors(self._asked):
                self._settle()
                self._resume_or_start()
        except BaseException:
            self._give_up(keep=self.work.exists())
            raise
        return self

    def _settle(self) -> None:
        """What has to be seen to while nobody else can write here, before anything else."""

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
                left = f"{self.part}s that another run left unfinished are discarded"
                self._on_event(Note(f"{self._asked}: {left}"))
            self.work.mkdir()
            sync_folder(self.work.parent)
            self._journal.restart(self._fingerprint, self.work)
            found = Entries()
        self.finished, self.damaged = found.finished, found.damaged
        self._remembered = found.remembered
        for entry in self.work.iterdir():
            if entry.name not in self.finished:
                remove(entry)

    def tell_resumed(self) -> None:
        """Say what of an earlier run is gone on from, and what of it is not."""
        texts = []
        if self.finished:
            texts.append(f"going on from {self._finished()} of an earlier run")
        elif self._remembered:
            texts.append("going on from what an earlier run measured")
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
        """The records of a shard that is already finished, byte for byte this one; else None."""
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
        """The records of a compressed file that is already finished; else None.

        Its header is not known before it is encoded: that it is this one follows from the
        fingerprint, which must decide which tensors go into which file.
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
        """Make a shard durable and note it in the journal, in the background.

        Disks write while the next shard is computed; a disk that is slower than that is waited for
        here. An error of an earlier shard is raised here or in :meth:`wait`.

        Args:
            writer: with everything written.
            records: JSON-ready facts on the shard's tensors, given back when a later run resumes.
        """
        while self._closing and (self._closing[0].done() or len(self._closing) >= _MAX_CLOSING):
            self._closing.popleft().result()
        self._closing.append(self._closer.submit(self._close_shard, writer, records))

    def wait(self) -> None:
        """Wait until all finished shards are durable; raises what went wrong with one."""
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
        """A finished shard is none after all: neither for this run nor for a later one."""
        with os_errors(self._asked):
            (self.work / name).unlink(missing_ok=True)
        self.damaged[name] = self.finished.pop(name)

    def remember(self, key: str, value: Any) -> None:
        """Keep a JSON value for a later run; it is durable on return."""
        with os_errors(self._asked):
            self._journal.remember(key, value)
        self._remembered[key] = value

    def remembered(self, key: str) -> Any:
        """A value that this or an earlier run has kept; None if none has."""
        return self._remembered.get(key)

    # --- ending ---------------------------------------------------------------------------------

    def seen(self) -> str:
        """What is the same for all processes that see this very folder, and for no others."""
        with os_errors(self._asked):
            return self._journal.digest()

    def discard(self) -> None:
        """When the block is left, remove finished shards too, and the folders made for them.

        For an error that a later run, going on from these shards, would only meet again.
        """
        self._discarded = True

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._give_up(keep=False)
        if isinstance(error, KeyboardInterrupt):
            self._tell_kept(error)

    def _give_up(self, *, keep: bool) -> None:
        """Drop what is half done, and all else too if a later run could not go on from it."""
        self._closer.shutdown(cancel_futures=True)
        for writer in self._writers.values():
            writer.abort()
        if keep or self._is_kept():
            self._journal.close()
            return
        shutil.rmtree(self.work, ignore_errors=True)
        with suppress(OSError):  # of a disk that has failed, what failed first is told
            self._journal.remove()
        # What holds something that was put there meanwhile stays.
        remove_empty(list(self.work.parents)[: self._journal.made_parents])

    def _is_kept(self) -> bool:
        noted = self.finished or self._remembered
        by_others = any(has_entries(path) for path in secondary_journals(self._journal_path))
        return bool(noted or by_others) and not self._discarded

    def _tell_kept(self, error: KeyboardInterrupt) -> None:
        """Say how to go on, once: an output and what it is made from may both be left by this."""
        if not self._is_kept() or getattr(error, "__notes__", None):
            return
        kept = "what was measured" if self._remembered else "what other ranks finished"
        if self.finished:
            kept = self._finished()
        text = f"{self._asked}: kept {kept}; the same command goes on from there"
        error.add_note(text)
        self._on_event(Note(text))
