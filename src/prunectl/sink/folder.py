"""An output folder that is complete or absent, whatever happens while it is written.

Everything is written into a hidden sibling, made durable, and put in place by one rename at the
end. A run that stops early leaves its finished shards, and the same job later goes on from them.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

from blake3 import blake3

from prunectl.errors import CannotWrite, OutputConflict
from prunectl.events import Note, OnEvent, ignore_events
from prunectl.sink.journal import Journal, JsonObject, is_entry_of
from prunectl.sink.osfiles import (
    Buffer,
    create_file,
    exchange,
    is_safe_relative,
    make_parents,
    os_errors,
    remove,
    sync_folder,
)
from prunectl.sink.parts import PartsShard, PartsWriter
from prunectl.sink.records import FileRecord
from prunectl.sink.shards import Shard, ShardWriter
from prunectl.sink.target import check_target, journal_file, replaced_folder, work_folder

_COPY_BLOCK = 4 << 20
_MAX_CLOSING = 4
"""Shards that may wait to become durable; each holds an open file."""


class OutputFolder:
    """Context manager for one output; leaving it without :meth:`commit` gives the output up.

    Threads that write into its shards must have ended before it is left.

    Args:
        target: where the output shall be.
        fingerprint: digest of all that decides the output's bytes (source, arguments, tool
            version): an unfinished output is gone on with only if its fingerprint is the same.
        force: replace an existing checkpoint at ``target``.
        protected: paths that must survive (the source).
        on_event: told, as :class:`Note`, what becomes of an unfinished output found there.

    Attributes:
        work: the folder that is written into.
        finished: journal entries by shard name, each with ``records`` as given to :meth:`finish`.

    Raises:
        OutputConflict: on entry, see :func:`check_target`; or another process writes this output.
        CannotWrite, NoSpace: on entry and in every method, if the system refuses.
    """

    def __init__(
        self,
        target: Path,
        fingerprint: str,
        *,
        force: bool,
        protected: Sequence[Path],
        on_event: OnEvent = ignore_events,
    ) -> None:
        self.target = target
        self._asked = target
        self._fingerprint = fingerprint
        self._force = force
        self._protected = tuple(protected)
        self._on_event = on_event
        self.finished: dict[str, JsonObject] = {}
        self._writers: dict[str, ShardWriter | PartsWriter] = {}  # those that are not durable yet
        self._closing: deque[Future[None]] = deque()
        self._committed = self._discarded = False

    # --- entering -------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.target = self._check()
        self.work = work_folder(self.target)
        with os_errors(self._asked):
            made = make_parents(self.target.parent)
            self._journal = Journal(journal_file(self.target), self._asked)
            self._journal.made_parents = made
        self._closer = ThreadPoolExecutor(1, "prunectl-fsync")
        try:
            with os_errors(self._asked):
                self._restore_replaced()
                self._check()
                self._resume_or_start()
        except BaseException:
            self._give_up(keep=self.work.exists())
            raise
        return self

    def _check(self) -> Path:
        return check_target(self._asked, force=self._force, protected=self._protected)

    def _restore_replaced(self) -> None:
        """Finish what a kill between the two renames of :meth:`_swap` left undone."""
        old = replaced_folder(self.target)
        if not old.exists():
            return
        if self.target.exists() and any(self.target.iterdir()):
            shutil.rmtree(old)
        else:
            old.rename(self.target)
            self._on_event(Note(f"{self._asked}: the previous output was put back", warning=True))

    def _resume_or_start(self) -> None:
        found = self._journal.load(self._fingerprint, self.work)
        if found is None:
            if self.work.exists():
                shutil.rmtree(self.work)
                self._on_event(Note(f"{self.work.name}: left by another run, discarded"))
            self.work.mkdir()
            sync_folder(self.work.parent)
            self._journal.restart(self._fingerprint, self.work)
            return
        self.finished = found
        for entry in self.work.iterdir():
            if entry.name not in found:
                remove(entry)
        if found:
            count = f"{len(found)} finished shard{'s' if len(found) != 1 else ''}"
            self._on_event(Note(f"{self._asked}: going on from {count} of an earlier run"))

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
        writer = ShardWriter(self.work, shard)
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
        writer = PartsWriter(self.work, shard, room)
        self._writers[shard.name] = writer
        return writer

    def finish(self, writer: ShardWriter | PartsWriter, records: list[JsonObject]) -> None:
        """Make a shard durable and note it in the journal, in the background.

        Disks write while the next shard is computed; a disk that is slower than that is waited for
        here. An error of an earlier shard is raised here or in :meth:`commit`.

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

    def write_bytes(self, relative: str, data: Buffer) -> FileRecord:
        """Write a small file into the output; its mode follows the umask.

        Raises:
            CannotWrite: the name leaves the output folder, or is that of a weights file.
        """
        path = self._path_of(relative)
        with os_errors(path, memoryview(data).nbytes):
            path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(create_file(path), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        return FileRecord(relative, memoryview(data).nbytes, blake3(data).hexdigest())

    def write_side_file(self, relative: str, source_path: Path) -> FileRecord:
        """Copy a file's bytes into the output; links are followed, mode and times are not copied.

        Raises:
            CannotWrite: as :meth:`write_bytes`, or the source file cannot be read.
        """
        path = self._path_of(relative)
        digest, size = blake3(), 0
        with os_errors(source_path):
            source = source_path.open("rb")
        with source, os_errors(path, os.fstat(source.fileno()).st_size):
            path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(create_file(path), "wb") as file:
                while block := source.read(_COPY_BLOCK):
                    file.write(block)
                    digest.update(block)
                    size += len(block)
                file.flush()
                os.fsync(file.fileno())
        return FileRecord(relative, size, digest.hexdigest())

    def _path_of(self, relative: str) -> Path:
        if not is_safe_relative(relative):
            raise CannotWrite(self._asked, f"the file name '{relative}' leaves the output folder")
        # In this order: a shard that becomes durable meanwhile goes from the second to the first.
        if relative in self._writers or relative in self.finished:
            raise CannotWrite(self._asked, f"'{relative}' is the name of a weights file")
        return self.work / relative

    # --- ending ---------------------------------------------------------------------------------

    def commit(self) -> None:
        """Put the complete output in place; until the rename inside, the target is as it was.

        Raises:
            OutputConflict: something came to be at the target meanwhile; the work is kept.
            ValueError: a shard was opened and not finished.
        """
        self.wait()
        if self._writers:
            raise ValueError("a shard was opened and not finished")
        with os_errors(self._asked):
            for folder, _, _ in os.walk(self.work):
                sync_folder(Path(folder))
            self._check()
            if self.target.exists() and any(self.target.iterdir()):
                old = self._swap()
            else:
                old = None
                self._move_in()
            self._committed = True
            sync_folder(self.target.parent)
            if old is not None:
                self._delete_old(old)

    def _move_in(self) -> None:
        try:
            self.work.rename(self.target)  # also over an empty folder, in one step
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                raise
            raise OutputConflict(self._asked, "came to be while the output was written") from error

    def _swap(self) -> Path:
        """Exchange the work folder with the old output; returns where the old one is now."""
        if exchange(self.work, self.target):
            return self.work
        old = replaced_folder(self.target)
        self.target.rename(old)
        try:
            self.work.rename(self.target)
        except BaseException:
            old.rename(self.target)
            raise
        return old

    def _delete_old(self, old: Path) -> None:
        shutil.rmtree(old, ignore_errors=True)
        if old.exists():
            self._on_event(Note(f"{old}: the replaced output could not be deleted", warning=True))

    def discard(self) -> None:
        """When the block is left, remove finished shards too, and the folders made for them.

        For an error that a later run, going on from these shards, would only meet again.
        """
        self._discarded = True

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._committed:
            self._closer.shutdown()
            with os_errors(self._asked):
                self._journal.remove()
        else:
            self._give_up(keep=False)

    def _give_up(self, *, keep: bool) -> None:
        """Leave the target as it was, and the work too if a later run can go on from it."""
        self._closer.shutdown(cancel_futures=True)
        for writer in self._writers.values():
            writer.abort()
        if keep or (self.finished and not self._discarded):
            self._journal.close()
            return
        shutil.rmtree(self.work, ignore_errors=True)
        self._journal.remove()
        for parent in list(self.target.parents)[: self._journal.made_parents]:
            try:
                parent.rmdir()
            except OSError:
                return  # something else was put there meanwhile
