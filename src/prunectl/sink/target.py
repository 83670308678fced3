"""Whether an output path may be written at all: the checks that protect what is already there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from prunectl.errors import NoSpace, OutputConflict
from prunectl.sink.osfiles import free_bytes, os_errors

MANIFEST_NAME = "prunectl.json"


def work_folder(target: Path) -> Path:
    """Where the output grows until it is complete: a hidden sibling of the (resolved) target."""
    return target.with_name(f".{target.name}.prunectl-partial")


def journal_file(target: Path) -> Path:
    """The list of finished shards, which is also the lock; beside the work folder."""
    return target.with_name(f".{target.name}.prunectl-journal")


def replaced_folder(target: Path) -> Path:
    """Where an old output waits, for a moment, on systems that cannot exchange two folders."""
    return target.with_name(f".{target.name}.prunectl-replaced")


def check_target(target: Path, *, force: bool, protected: Sequence[Path]) -> Path:
    """Check that an output folder may come to be at ``target``. Reads only; changes nothing.

    Args:
        target: the folder asked for; symbolic links and ``..`` are followed.
        force: whether an existing checkpoint there may be replaced.
        protected: paths that must survive (the source); those that do not exist are ignored.

    Returns:
        The real path of the target.

    Raises:
        OutputConflict: it is a file, the root, the home or the current folder, a mount point; it
            is, holds or lies in a protected path; it is not empty and ``force`` is false; or it is
            not empty and not a checkpoint.
        CannotWrite: the path cannot be looked at.
    """
    with os_errors(target):
        real = target.resolve()
        _check_place(target, real)
        for path in protected:
            _check_apart(target, real, path)
        if real.exists() and any(real.iterdir()):
            _check_replaceable(target, real, force=force)
    return real


def _check_place(target: Path, real: Path) -> None:
    if real.exists() and not real.is_dir():
        raise OutputConflict(target, "is a file; the output is a folder")
    for taken, what in ((Path.cwd(), "current"), (_home(), "home")):
        if taken is not None and _holds(real, taken.resolve()):
            raise OutputConflict(target, f"is or holds the {what} folder", hint="name a new folder")
    if os.path.ismount(real):
        why = "is a mount point, which cannot be replaced in one step"
        raise OutputConflict(target, why, hint=f"name a folder inside it: {target / 'model'}")


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:  # a container's user without HOME and without an entry in passwd
        return None


def _check_apart(target: Path, real: Path, protected: Path) -> None:
    if not protected.exists():
        return
    source = protected.resolve()
    if _holds(source, real):
        where = "is the source" if _holds(real, source) else "lies inside the source"
        raise OutputConflict(target, f"{where} {protected}; the source is never changed")
    if _holds(real, source):
        raise OutputConflict(target, f"holds the source {protected}; the source is never changed")
    for ours in (work_folder(real), journal_file(real), replaced_folder(real)):
        if _holds(ours, source):
            why = f"needs {ours.name} beside it, which is or holds the source {protected}"
            raise OutputConflict(target, why)


def _holds(outer: Path, inner: Path) -> bool:
    """Whether ``inner`` is ``outer`` or lies in it; by identity too, for mounts seen twice."""
    chain = (inner, *inner.parents)
    return outer in chain or (
        outer.exists() and any(p.exists() and outer.samefile(p) for p in chain)
    )


def _check_replaceable(target: Path, real: Path, *, force: bool) -> None:
    if not force:
        raise OutputConflict(
            target, "exists and is not empty", hint="choose another -o, or replace it with --force"
        )
    if (real / ".git").exists():
        raise OutputConflict(target, "holds a git repository; --force would delete its history")
    if not _looks_like_checkpoint(real):
        raise OutputConflict(target, "is not a checkpoint folder; --force replaces only those")


def _looks_like_checkpoint(folder: Path) -> bool:
    if (folder / MANIFEST_NAME).is_file():
        return True
    if any(entry.suffix in {".safetensors", ".bin"} for entry in folder.iterdir()):
        return True
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    # Other programs keep a config.json too; these keys are those of a model.
    return isinstance(config, dict) and bool(config.keys() & {"model_type", "architectures"})


def check_space(target: Path, needed: int) -> None:
    """Check that ``needed`` bytes fit, counting what an unfinished output there already takes.

    Raises:
        NoSpace: they do not.
        CannotWrite: the file system cannot be asked.
    """
    with os_errors(target):
        real = target.resolve()
        available = free_bytes(real) + _allocated(work_folder(real).rglob("*"))
    if available < needed:
        raise NoSpace(target, needed, available)


def _allocated(paths: Iterable[Path]) -> int:
    # st_blocks is in units of 512 bytes whatever the file system's block size.
    return sum(path.lstat().st_blocks * 512 for path in paths)


def is_safe_relative(name: str) -> bool:
    """Whether a file name from outside stays inside the folder it is joined to."""
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and name == str(path)
        and not path.is_absolute()
        and not any(part in {"..", "."} for part in path.parts)
        and "\\" not in name
        and "\0" not in name
    )
