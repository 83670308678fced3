"""The journal of an unfinished output: its finished shards, and the lock of its only writer.

The journal has JSON lines: first the fingerprint, the work folder's inode and the number of folders
created to hold it, then one line for each finished shard, and for each value kept for a later run.
Each line holds its own BLAKE3; the first torn or damaged line and all later ones are ignored. The
journal is next to the work folder, so that the finished folder never holds it. It names the folder
by inode, so that an old output that was just exchanged into the work folder's place is not mistaken
for an unfinished one.

Several processes that write one output have separate journals, since a shared disk could mix their
lines: that of rank 0, and one for each *secondary rank*. The next run takes over the entries of
secondary ranks.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from prunectl.documents import parse_json
from prunectl.errors import OutputConflict
from prunectl.output.osfiles import is_safe_relative
from prunectl.output.shards import Shard

FORMAT = 2

JsonObject = dict[str, Any]

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
"""Some cluster file systems have no flock; there, nothing is locked, and all else works."""

_HELD = {errno.EWOULDBLOCK, errno.EACCES}


@dataclass(frozen=True, slots=True)
class Entries:
    """The entries of a journal.

    Attributes:
        finished, damaged: lines by shard name: of shards that are in the folder, and of shards that
            are missing, or have another size or header.
        remembered: values by key.
    """

    finished: dict[str, JsonObject] = field(default_factory=dict)
    damaged: dict[str, JsonObject] = field(default_factory=dict)
    remembered: dict[str, Any] = field(default_factory=dict)


class Journal:
    """An open and locked journal file. All methods pass on ``OSError``.

    Attributes:
        made_parents: number of folders above the output created for it, by this run or by an
            earlier one that it continues or replaces.

    Raises:
        OutputConflict: another process holds the lock.
    """

    def __init__(self, path: Path, target: Path) -> None:
        self._path = path
        self._fd = _open_locked(path, target)
        self.made_parents = 0

    def load(self, fingerprint: str, work: Path) -> Entries | None:
        """Return the entries on the shards in ``work``; None if the journal is of another job.

        An incomplete last line, left by a kill, is cut off, so that the next line starts cleanly.
        """
        lines, length = _whole_lines(self._read())
        first = lines[0] if lines else {}
        made = first.get("made_parents")
        if type(made) is int:
            self.made_parents = max(self.made_parents, made)
        if not work.is_dir() or first != self._first_line(fingerprint, work):
            return None
        os.ftruncate(self._fd, length)
        found = Entries()
        for line in lines[1:]:
            if "key" in line:
                found.remembered[line["key"]] = line["value"]
            else:
                found.damaged[line["shard"]] = line  # the last line of a shard counts
        for name in [name for name, line in found.damaged.items() if _is_complete(line, work)]:
            found.finished[name] = found.damaged.pop(name)
        return found

    def restart(self, fingerprint: str, work: Path) -> None:
        """Clear the journal and begin with ``work``, which exists and is empty."""
        os.ftruncate(self._fd, 0)
        self._append(self._first_line(fingerprint, work))

    def is_of(self, folder: Path) -> bool:
        """Return whether ``folder`` is the work folder with which the journal began."""
        lines, _ = _whole_lines(self._read())
        return bool(lines) and lines[0].get("folder") == folder.stat().st_ino

    def add(self, shard: Shard, records: list[JsonObject]) -> JsonObject:
        """Record a shard that is durable under its final name; return once the line is durable."""
        entry: JsonObject = {
            "shard": shard.name,
            "size": shard.size,
            "header_size": len(shard.header.data),
            "header_blake3": blake3(shard.header.data).hexdigest(),
            "records": records,
        }
        self._append(entry)
        return entry

    def remember(self, key: str, value: Any) -> None:
        """Keep a JSON value; return once the line is durable."""
        self._append({"key": key, "value": value})

    def take_over(self, path: Path, fingerprint: str, work: Path, target: Path) -> Entries:
        """Record the finished shards of a secondary rank of an earlier run; delete its journal.

        Raises:
            OutputConflict: the secondary rank still works.
        """
        journal = Journal(path, target)
        try:
            found = journal.load(fingerprint, work) or Entries()
            for entry in found.finished.values():
                self._append(entry)
        finally:
            journal.remove()
        return found

    def digest(self) -> str:
        """Return the BLAKE3 of the contents, which is the same on all hosts that see the folder."""
        return blake3(self._read()).hexdigest()

    def close(self) -> None:
        """Release the lock; the journal stays for a later run."""
        os.close(self._fd)

    def remove(self) -> None:
        """Delete the journal and those of secondary ranks, then release the lock."""
        try:
            for path in (self._path, *secondary_journals(self._path)):
                path.unlink(missing_ok=True)
        finally:
            os.close(self._fd)

    def _first_line(self, fingerprint: str, work: Path) -> JsonObject:
        return {
            "prunectl_journal": FORMAT,
            "fingerprint": fingerprint,
            "folder": work.stat().st_ino,
            "made_parents": self.made_parents,
        }

    def _read(self) -> bytes:
        with os.fdopen(os.dup(self._fd), "rb") as file:
            file.seek(0)
            return file.read()

    def _append(self, line: JsonObject) -> None:
        os.lseek(self._fd, 0, os.SEEK_END)
        data = memoryview(_encode(line))
        while data.nbytes:
            data = data[os.write(self._fd, data) :]
        os.fsync(self._fd)


def secondary_journal(path: Path, number: int) -> Path:
    """Return the journal of the secondary rank ``number``, next to that of rank 0."""
    return path.with_name(f"{path.name}-{number}")


def secondary_journals(path: Path) -> list[Path]:
    """Return the existing journals of secondary ranks."""
    begin = f"{path.name}-"
    try:
        with os.scandir(path.parent) as entries:  # a folder of such a name is somebody else's
            names = [
                one.name
                for one in entries
                if one.name.startswith(begin) and one.is_file(follow_symlinks=False)
            ]
    except FileNotFoundError:
        return []
    return [path.with_name(name) for name in sorted(names) if name[len(begin) :].isdecimal()]


def has_entries(path: Path) -> bool:
    """Return whether a journal, which another process may hold, has more than its first line."""
    try:
        return len(_whole_lines(path.read_bytes())[0]) > 1
    except OSError:
        return False


def clean_up_finished(path: Path, target: Path, olds: Sequence[Path]) -> None:
    """Remove the leftovers of a run that was killed after its output was in place.

    The journal is of that run if it names the target's own inode, which a rename keeps. Best
    effort: nothing is raised, and nothing is removed while another process holds the lock.

    Args:
        path: of the journal.
        target: the output, in place.
        olds: possible paths of the replaced output.
    """
    if not path.is_file() or not target.is_dir():
        return
    try:
        journal = Journal(path, target)
    except (OutputConflict, OSError):
        return
    try:
        finished = journal.is_of(target)
        if finished:
            for old in olds:
                shutil.rmtree(old, ignore_errors=True)
            for one in (path, *secondary_journals(path)):
                one.unlink(missing_ok=True)
    except OSError:
        return
    finally:
        journal.close()


def check_free(path: Path, target: Path) -> None:
    """Check that no process holds a journal, which need not exist; nothing is written.

    Raises:
        OutputConflict: a process holds it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            raise _conflict(target) from None
    finally:
        os.close(fd)


def is_entry_of(entry: JsonObject, shard: Shard) -> bool:
    """Return whether an entry is about exactly this shard: same tensors at the same offsets."""
    return bool(entry["header_blake3"] == blake3(shard.header.data).hexdigest())


def _conflict(target: Path) -> OutputConflict:
    return OutputConflict(
        target,
        "another prunectl is writing this output now",
        hint="wait until it ends, or choose another -o",
    )


def _open_locked(path: Path, target: Path) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(fd)
                if error.errno not in _HELD:
                    raise
                raise _conflict(target) from None
        # The previous holder may have deleted the file between our open and our lock.
        if path.exists() and os.path.samestat(path.stat(), os.fstat(fd)):
            return fd
        os.close(fd)


def _encode(line: JsonObject) -> bytes:
    return _text({**line, "blake3": blake3(_text(line)).hexdigest()}) + b"\n"


def _text(line: JsonObject) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode()


def _whole_lines(data: bytes) -> tuple[list[JsonObject], int]:
    """Return the leading lines that are intact, and their length in bytes."""
    lines: list[JsonObject] = []
    length = 0
    for text in data.split(b"\n")[:-1]:
        try:
            line = parse_json(text)
        except ValueError:
            break
        if not isinstance(line, dict) or "blake3" not in line:
            break
        if line.pop("blake3") != blake3(_text(line)).hexdigest():
            break
        lines.append(line)
        length += len(text) + 1
    return lines, length


def _is_complete(entry: JsonObject, work: Path) -> bool:
    match entry:
        case {
            "shard": str(name),
            "size": int(size),
            "header_size": int(header_size),
            "header_blake3": str(digest),
            "records": list(),
        }:
            path = work / name
        case _:
            return False
    if not is_safe_relative(name) or path.is_symlink() or not path.is_file():
        return False
    if path.stat().st_size != size:
        return False
    with path.open("rb") as file:
        return blake3(file.read(header_size)).hexdigest() == digest
