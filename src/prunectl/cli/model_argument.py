"""Which model is meant: the argument, or what stands in for it when it is left out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from prunectl.documents import read_object
from prunectl.errors import InvalidOption, NoModelGiven, PrunectlError
from prunectl.userdirs import cache_dir, expanded, write_cache_file

if TYPE_CHECKING:
    from prunectl.checkpoint.checkpoint import Checkpoint
    from prunectl.cli.output import Output

VARIABLE = "PRUNECTL_MODEL"
_LAST = "last-model.json"


class ModelChoice(NamedTuple):
    """A model as open_checkpoint takes it."""

    model: str
    revision: str | None


def choose_model(given: str | None, revision: str | None, out: Output) -> ModelChoice:
    """The given model; else ``$PRUNECTL_MODEL``, the current folder, the model analyzed last.

    Says on stderr what was taken where it was not given.
    """
    if given is not None:
        if not given.strip():
            raise InvalidOption("MODEL is empty", hint="give a Hub id, a folder or a weights file")
        return ModelChoice(given, revision)
    if chosen := os.environ.get(VARIABLE, "").strip():
        out.note(f"MODEL: {chosen} (from ${VARIABLE})")
        return ModelChoice(chosen, revision)
    if _holds_checkpoint(Path.cwd()):
        out.note(f"MODEL: {Path.cwd()} (the current folder)")
        return ModelChoice(".", revision)
    last = _last_model(out)
    if last is None:
        raise NoModelGiven
    last = last if revision is None else ModelChoice(last.model, revision)
    at = f" at {last.revision}" if last.revision else ""
    out.note(f"MODEL: {last.model}{at} (the one analyzed last)")
    return last


def remember_model(checkpoint: Checkpoint) -> None:
    """Keep in the user's cache that this model was analyzed; a cache that fails costs nothing."""
    if checkpoint.kind == "hub":
        model, revision = checkpoint.repo_id, checkpoint.revision
    elif checkpoint.kind == "demo":
        model, revision = checkpoint.model, None
    else:
        model, revision = str(expanded(checkpoint.model).resolve()), None
    document = {"model": model, "revision": revision}
    write_cache_file(_LAST, lambda file: file.write(json.dumps(document).encode()))


def _holds_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a checkpoint; a lone pickle without a config.json may be anything."""
    from prunectl.checkpoint.index import find_weights

    try:
        names = [entry.name for entry in folder.iterdir() if entry.is_file()]
        found = find_weights(names, str(folder))
    except (PrunectlError, OSError):
        return False
    if "config.json" in names:
        return True
    from prunectl.checkpoint.mask_file import is_mask_file

    return found.format != "pickle" and not any(is_mask_file(folder / name) for name in found.files)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value


def _last_model(out: Output) -> ModelChoice | None:
    file = cache_dir() / _LAST
    if not file.exists():
        return None
    document = read_object(file)
    model, revision = document.get("model", ""), document.get("revision", "")
    if not _is_name(model) or not (revision is None or _is_name(revision)):
        out.note(f"ignored: {file} is damaged")
        return None
    if Path(model).is_absolute() and not Path(model).exists():
        out.note(f"ignored: {model}, analyzed last, no longer exists")
        return None
    return ModelChoice(model, revision)
