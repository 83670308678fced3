"""Where prunectl keeps what it may forget: the user's cache folder, and atomic writes into it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import platformdirs


def cache_dir() -> Path:
    """``$PRUNECTL_CACHE_DIR`` if set, else the platform's cache folder for prunectl."""
    chosen = os.environ.get("PRUNECTL_CACHE_DIR")
    if not chosen:
        return Path(platformdirs.user_cache_dir("prunectl"))
    # Unlike Path.expanduser, this leaves the ~ of an unknown user as it is.
    return Path(os.path.expanduser(chosen))  # noqa: PTH111


def write_cache_file(name: str, write: Callable[[BinaryIO], object]) -> Path | None:
    """Write a cache file through a temporary name, so that readers see all of it or nothing.

    Returns its path, or None where the cache cannot be written: a cache that does not work costs
    time and must not cost the result.
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
    except OSError:
        return None
    else:
        return target
    finally:
        with contextlib.suppress(OSError):
            Path(temporary).unlink(missing_ok=True)
