"""Check whether an output path may be written: protect the files that are already there."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from prunectl.documents import Document, convert, parse_json, read_object, read_regular
from prunectl.errors import NoSpace, OutputConflict
from prunectl.output.journal import Journal, check_free, clean_up_finished
from prunectl.output.osfiles import (
    free_bytes,
    is_mount_point,
    name_room,
    os_errors,
    real_path,
)
from prunectl.output.osfiles import is_safe_relative as is_safe_relative

MANIFEST_NAME = "prunectl.json"
CARD_NAME = "README.md"

_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|pytorch_model[\w.-]*\.bin")
"""Names that only weights of a model have; ``firmware.bin`` is not one."""

# Files that --force may delete without a manifest. Anything else may be somebody's work.
_MODEL_FILE = re.compile(
    r"[\w.+-]+\.(safetensors|bin|pt|pth|h5|msgpack|ot|onnx|onnx_data|gguf|tflite"
    r"|json|txt|model|vocab|spm|tiktoken|md|jinja|py)"
    r"|(LICENSE|NOTICE|USE_POLICY|README)[\w.-]*|\.gitattributes|\.gitignore|\.DS_Store"
)
_MODEL_FOLDER = re.compile(
    r"\d+_[A-Z]\w*|onnx|openvino|coreml|original|gguf|metal|additional_chat_templates"
)
_HUB_NOTES = (".cache", "huggingface")
"""``hf download --local-dir`` keeps its metadata there, in the folder of any model."""


def work_folder(target: Path) -> Path:
    """Return the folder of the unfinished output: a hidden sibling of the (resolved) target."""
    return target.with_name(f".{target.name}.prunectl-partial")


def journal_file(target: Path) -> Path:
    """Return the list of finished shards, which is also the lock; next to the work folder."""
    return target.with_name(f".{target.name}.prunectl-journal")


def replaced_folder(target: Path) -> Path:
    """Return the temporary place of an old output, on systems that cannot exchange two folders."""
    return target.with_name(f".{target.name}.prunectl-replaced")


def calibrated_folder(target: Path) -> Path:
    """Return the folder of a calibration's new weights, kept until the output is complete."""
    return target.with_name(f".{target.name}.prunectl-calibrated")


def calibrated_journal(target: Path) -> Path:
    """Return the list of the calibration's finished blocks, which is also the lock."""
    return target.with_name(f".{target.name}.prunectl-calibrated-journal")


def clean_up_calibration(real: Path) -> None:
    """Remove what an interrupted calibration left next to an output that is whole by now.

    Best effort. One that goes on meanwhile, in another process, is left alone.

    Args:
        real: the output's real path.
    """
    folder, path = calibrated_folder(real), calibrated_journal(real)
    if not (folder.exists() or path.exists()):
        return
    with suppress(OutputConflict, OSError):
        journal = Journal(path, real)
        shutil.rmtree(folder, ignore_errors=True)
        journal.remove()


def _outdates_calibration(real: Path) -> bool:
    """Whether an output was finished after the last block of a calibration for it.

    If not, the calibration is of a later run, which --force may continue.
    """
    try:
        finished = (real / MANIFEST_NAME).stat().st_mtime_ns
        return finished > calibrated_journal(real).stat().st_mtime_ns
    except OSError:
        return False


def check_nobody_writes(target: Path) -> None:
    """Check that no other process writes an output, or calibrates for it, before this one begins.

    Raises:
        OutputConflict: another process does. CannotWrite: the path cannot be read.
    """
    with os_errors(target):
        real = real_path(target)
        for journal in (journal_file(real), calibrated_journal(real)):
            check_free(journal, target)


def check_target(target: Path, *, force: bool, protected: Sequence[Path]) -> Path:
    """Check that an output folder may be created at ``target``; the target is only read.

    The leftovers of a run that was killed after its output was in place are removed.

    Args:
        target: the requested folder; symbolic links and ``..`` are followed.
        force: whether an existing checkpoint there may be replaced.
        protected: paths that must survive (the source); those that do not exist are ignored.

    Returns:
        The real path of the target.

    Raises:
        OutputConflict: it is a file, the root, the home or the current folder, a mount point; its
            name is too long; a hidden name that prunectl needs next to it is taken; it is, holds or
            lies in a protected path; it is not empty and ``force`` is false; it is not empty and
            not a checkpoint; or it holds a file that is not part of one.
        CannotWrite: the path cannot be looked at.
    """
    with os_errors(target):
        real = real_path(target)
        _check_place(target, real)
        _check_beside(target, real)
        for path in protected:
            _check_apart(target, real, path)
        clean_up_finished(journal_file(real), real, (work_folder(real), replaced_folder(real)))
        if _outdates_calibration(real):
            clean_up_calibration(real)
        if real.exists() and any(real.iterdir()):
            _check_replaceable(target, real, force=force)
    return real


def _check_place(target: Path, real: Path) -> None:
    if real.exists() and not real.is_dir():
        raise OutputConflict(target, "is a file; the output is a folder")
    for taken, what in ((Path.cwd(), "current"), (_home(), "home")):
        if taken is not None and _holds(real, taken.resolve()):
            raise OutputConflict(target, f"is or holds the {what} folder", hint="name a new folder")
    if is_mount_point(real):
        why = "is a mount point, which cannot be replaced in one step"
        raise OutputConflict(target, why, hint=f"name a folder inside it: {target / 'model'}")


def _check_beside(target: Path, real: Path) -> None:
    """Check that the hidden names next to the output are short enough and free."""
    room = name_room(calibrated_journal(real))
    if room < 0:
        taken = len(os.fsencode(real.name))
        why = f"the name '{real.name[:20]}...' is too long: {taken:,} bytes, {taken + room} fit"
        raise OutputConflict(target, f"{why}, with room for the names of hidden files")
    for folder in (work_folder(real), replaced_folder(real), calibrated_folder(real)):
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise OutputConflict(target, f"needs {folder.name} next to it, which is not a folder")
    for file in (journal_file(real), calibrated_journal(real)):
        if file.is_symlink() or (file.exists() and not file.is_file()):
            raise OutputConflict(target, f"needs {file.name} next to it, which is not a file")


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
    for place in (work_folder, journal_file, replaced_folder, calibrated_folder):
        ours = place(real)
        if _holds(ours, source):
            why = f"needs {ours.name} next to it, which is or holds the source {protected}"
            raise OutputConflict(target, why)


def _holds(outer: Path, inner: Path) -> bool:
    """Return whether ``inner`` is ``outer`` or in it; by identity too, for mounts seen twice."""
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
    _check_only_ours(target, real)


def _looks_like_checkpoint(folder: Path) -> bool:
    if (folder / MANIFEST_NAME).is_file():
        return True
    if any(_WEIGHTS.fullmatch(entry.name) for entry in folder.iterdir()):
        return True
    # Other programs have a config.json too; only models have these keys.
    return bool(read_object(folder / "config.json").keys() & {"model_type", "architectures"})


def _check_only_ours(target: Path, real: Path) -> None:
    """Refuse to replace a folder that holds a file of another kind."""
    listed = _listed(real)
    for path in _files(real):
        if path.parts[:2] == _HUB_NOTES:
            continue
        if listed is None:
            known = _is_model_file(path)
        else:
            in_hidden = any(part.startswith(".") for part in path.parts[:-1])
            hidden = path.name.startswith(".") and not in_hidden
            known = hidden or path.as_posix() in listed
        if not known:
            what = "a model" if listed is None else "what prunectl wrote"
            raise OutputConflict(
                target,
                f"holds {path.as_posix()}, which is not part of {what}; --force would delete it",
                hint="move that file away, or choose another -o",
            )


def _listed(folder: Path) -> set[str] | None:
    """Return the files of the output by its own manifest; None if there is no readable manifest."""
    try:
        names = listed_names(read_regular(folder / MANIFEST_NAME))
    except OSError:
        return None
    return None if names is None else names | {MANIFEST_NAME, CARD_NAME}


class _Name(Document, frozen=True):
    name: str


class _InFile(Document, frozen=True):
    file: str


class _Names(Document, frozen=True):
    files: tuple[_Name, ...]
    tensors: tuple[_InFile, ...]


def listed_names(manifest: bytes) -> set[str] | None:
    """Return the files that a manifest lists; None if it cannot be read.

    Only the names are read, since another version of prunectl may have written the manifest.
    """
    try:
        found = convert(parse_json(manifest), _Names)
    except ValueError:
        return None
    return {one.name for one in found.files} | {one.file for one in found.tensors}


def _files(folder: Path) -> Iterator[Path]:
    """Yield all relative paths but folders, in a fixed order; links to folders count as files.

    Raises ``OSError`` if a folder cannot be listed: its files may not be ours.
    """

    def fail(error: OSError) -> None:
        raise error

    for base, folders, files in os.walk(folder, onerror=fail):
        folders.sort()
        links = [name for name in folders if (Path(base) / name).is_symlink()]
        for name in sorted([*files, *links]):
            yield (Path(base) / name).relative_to(folder)


def _is_model_file(path: Path) -> bool:
    return bool(_MODEL_FILE.fullmatch(path.name)) and all(
        _MODEL_FOLDER.fullmatch(part) for part in path.parts[:-1]
    )


def check_space(target: Path, needed: int) -> None:
    """Check that ``needed`` bytes fit, including the space of an unfinished output there.

    Raises:
        NoSpace: they do not.
        CannotWrite: the file system cannot be asked.
    """
    with os_errors(target):
        real = real_path(target)
        # st_blocks is in units of 512 bytes whatever the file system's block size.
        own = sum(path.lstat().st_blocks * 512 for path in work_folder(real).rglob("*"))
        available = free_bytes(real) + own
    if available < needed:
        raise NoSpace(target, needed, available)
