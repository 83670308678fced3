"""An output folder that is complete or absent, whatever happens while it is written.

Everything is written into a hidden sibling, made durable, and put in place by one rename at the
end. A run that stops early leaves its finished shards, and the same job later continues from them.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from blake3 import blake3

from prunectl.errors import CannotWrite, OutputConflict
from prunectl.events import Note, OnEvent, ignore_events
from prunectl.output.osfiles import (
    create_file,
    exchange,
    is_safe_relative,
    os_errors,
    sync_folder,
    undone_by,
)
from prunectl.output.records import FileRecord
from prunectl.output.resumable import ResumableFolder
from prunectl.output.target import check_target, journal_file, replaced_folder, work_folder

_COPY_BLOCK = 4 << 20


class OutputFolder(ResumableFolder):
    """Context manager for one output; leaving it without :meth:`commit` writes no output.

    Args:
        target: the path of the output; symbolic links are followed.
        force: replace an existing checkpoint at ``target``.
        protected: paths that must survive (the source).

    Raises:
        OutputConflict: at once, see :func:`check_target`; on entry, if another process writes it.
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
        self._force, self._protected = force, tuple(protected)
        self.target = check_target(target, force=force, protected=protected)
        work, journal = work_folder(self.target), journal_file(self.target)
        super().__init__(work, journal, target, fingerprint, on_event=on_event)
        self._committed = False

    # --- entering -------------------------------------------------------------------------------

    def _settle(self) -> None:
        self._restore_replaced()
        self._check()

    def _check(self) -> None:
        check_target(self._asked, force=self._force, protected=self._protected)

    def _restore_replaced(self) -> None:
        """Finish a swap that was killed between the two renames of :meth:`_swap`."""
        old = replaced_folder(self.target)
        if not old.exists():
            return
        if self.target.exists() and any(self.target.iterdir()):
            shutil.rmtree(old)
        else:
            old.rename(self.target)
            self._on_event(Note(f"{self._asked}: the previous output was restored", warning=True))

    # --- writing --------------------------------------------------------------------------------

    def write_bytes(self, relative: str, data: bytes) -> FileRecord:
        """Write a small file into the output; its mode follows the umask.

        Raises:
            CannotWrite: the name leaves the output folder, or is the name of a weights file.
        """
        return self.write_parts(relative, [data], len(data))

    def write_parts(self, relative: str, parts: Iterable[bytes], expected: int = 0) -> FileRecord:
        """Write a file from consecutive parts; about ``expected`` bytes.

        Raises:
            CannotWrite: as :meth:`write_bytes`.
        """
        path = self._path_of(relative)
        digest, size = blake3(), 0
        with os_errors(self._asked / relative, expected):
            path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(create_file(path), "wb") as file:
                for part in parts:
                    file.write(part)
                    digest.update(part)
                    size += len(part)
                file.flush()
                os.fsync(file.fileno())
        return FileRecord(relative, size, digest.hexdigest())

    def write_side_file(self, relative: str, source_path: Path) -> FileRecord:
        """Copy a file's bytes into the output; links are followed, mode and times are not copied.

        Raises:
            CannotWrite: as :meth:`write_bytes`, or the source file cannot be read.
        """
        self._path_of(relative)
        with os_errors(source_path):
            source = source_path.open("rb")
        with source:
            size = os.fstat(source.fileno()).st_size
            return self.write_parts(relative, iter(partial(source.read, _COPY_BLOCK), b""), size)

    def _path_of(self, relative: str) -> Path:
        if not is_safe_relative(relative):
            raise CannotWrite(self._asked, f"the file name '{relative}' leaves the output folder")
        # In this order: a shard that becomes durable in between moves from the second to the first.
        if relative in self._writers or relative in self.finished:
            raise CannotWrite(self._asked, f"'{relative}' is the name of a weights file")
        return self.work / relative

    # --- ending ---------------------------------------------------------------------------------

    def commit(self) -> None:
        """Put the complete output in place; until the rename, the target is unchanged.

        Raises:
            OutputConflict: something was created at the target in the meantime; the work is kept.
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
            raise OutputConflict(self._asked, "was created while the output was written") from error

    def _swap(self) -> Path:
        """Exchange the work folder with the old output; return the new path of the old one."""
        if exchange(self.work, self.target):
            return self.work
        old = replaced_folder(self.target)
        self.target.rename(old)
        with undone_by(lambda: old.rename(self.target)):
            self.work.rename(self.target)
        return old

    def _delete_old(self, old: Path) -> None:
        shutil.rmtree(old, ignore_errors=True)
        if old.exists():
            self._on_event(Note(f"{old}: the replaced output could not be deleted", warning=True))

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if not self._committed:
            super().__exit__(kind, error, trace)
            return
        self._closer.shutdown()
        try:
            self._journal.remove()
        except OSError as failed:  # the next run with this output removes it
            why = f"is complete, but its journal could not be removed: {failed.strerror}"
            self._on_event(Note(f"{self._asked}: {why}", warning=True))
