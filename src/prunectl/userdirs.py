"""The user's folders: the meaning of ``~``, and the cache, whose contents can be made again."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

KEPT_PER_KIND = 64
"""Cache files of one kind to keep; the measurement of a 7B model takes about 20 MB."""


def expanded(text: str | os.PathLike[str]) -> Path:
    """A path from the user; ``~`` and ``~user`` at its start are home folders, as in a shell.

    The ``~`` of an unknown user is kept. Only a text that begins with ``~`` is expanded: ``./~`` is
    a file in the current folder. Its path is absolute, since a relative Path would drop the ``./``.
    """
    named = os.fspath(text)
    path = Path(os.path.expanduser(named))  # noqa: PTH111 - a Path would be without the ./
    hides_home = str(path).startswith("~") and not named.startswith("~")
    return path.absolute() if hides_home else path


def cache_dir() -> Path:
    """``$PRUNECTL_CACHE_DIR`` if set, else the platform's cache folder for prunectl."""
    chosen = os.environ.get("PRUNECTL_CACHE_DIR")
    if not chosen:
        import platformdirs

        return Path(platformdirs.user_cache_dir("prunectl"))
    return expanded(chosen)


def write_cache_file(name: str, write: Callable[[BinaryIO], object]) -> Path | None:
    """Write a cache file through a temporary name, so that readers see all of it or nothing.

    Returns its path, or None if the cache cannot be written: a failing cache costs time, but must
    not cost the result.
    """
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}-")
    except OSError:
        return None
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        target = folder / name
        Path(temporary).replace(target)
        forget_oldest(folder, name)
    except OSError:
        return None
    else:
        return target
    finally:
        with contextlib.suppress(OSError):
            Path(temporary).unlink(missing_ok=True)


def forget_oldest(folder: Path, name: str) -> None:
    """Keep the newest files of a kind (the name up to its first '-'), and delete older ones.

    ``name`` itself is kept, even if the clock was set back and all others are from the future.
    """
    kind = f"{name.partition('-')[0]}-*"
    others = [path for path in folder.glob(kind) if path.name != name]
    by_age = sorted(others, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in by_age[KEPT_PER_KIND - 1 :]:
        path.unlink(missing_ok=True)
