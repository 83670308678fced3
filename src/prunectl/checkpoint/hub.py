"""The Hugging Face Hub: from a repository id to a folder in the standard cache.

Only files that are used are fetched: the weights of one format, and the side files. The revision
is pinned to a commit first, so that all files come from the same one.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prunectl.checkpoint.index import WeightSet, find_weights, read_index
from prunectl.checkpoint.sidefiles import list_folder, side_files
from prunectl.errors import (
    AccessDenied,
    HubUnreachable,
    ModelNotFound,
    PrunectlError,
    SourceError,
)

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class HubSnapshot:
    """A repository's files at one commit, in the local cache.

    Attributes:
        repo_id: ``org/name``.
        revision: as the user named it.
        commit: what the revision stands for.
        folder: the snapshot in the cache.
        notes: sentences for the user; that the cache was used because the Hub did not answer.
    """

    repo_id: str
    revision: str | None
    commit: str
    folder: Path
    notes: tuple[str, ...] = ()


def split_revision(model: str) -> tuple[str, str | None]:
    """``org/name@revision`` -> its two parts; the revision is None where there is none."""
    repo_id, _, revision = model.partition("@")
    return repo_id, revision or None


def is_repo_id(text: str) -> bool:
    """Whether ``text`` has the form of a Hub id: ``name`` or ``org/name``."""
    return _REPO_ID.fullmatch(text) is not None and ".." not in text and "--" not in text


def fetch(
    repo_id: str,
    revision: str | None,
    *,
    token: str | None = None,
    cache_dir: Path | None = None,
) -> HubSnapshot:
    """Download (or find in the cache) the weights and side files of a repository.

    Raises:
        ModelNotFound: no such repository or revision.
        AccessDenied: private or gated, and no token that opens it.
        HubUnreachable: no connection, or offline mode, and not all files are in the cache.
        SourceError: the download cannot be stored.
    """
    from huggingface_hub import HfApi, snapshot_download

    model = f"{repo_id}@{revision}" if revision else repo_id
    if token is not None and not (token.isascii() and token.isprintable()):
        raise AccessDenied(model, "the token holds characters that no token has")
    with _hub_errors(model):
        try:
            info = HfApi().model_info(repo_id, revision=revision, token=token)
        except Exception as error:
            if not _is_connection_error(error):
                raise
            return _from_cache(repo_id, revision, model, cache_dir, error)
        names = [sibling.rfilename for sibling in info.siblings or []]
        commit = info.sha or ""
        # Downloads by commit record no branch; offline, the branch is what the user will name.
        HfApi().resolve_revision(repo_id, revision=revision, token=token, cache_dir=cache_dir)
        weights = find_weights(names, model)

        def download(files: list[str]) -> Path:
            # allow_patterns are globs; names are meant literally.
            return Path(
                snapshot_download(
                    repo_id,
                    revision=commit,
                    allow_patterns=[glob.escape(name) for name in files],
                    token=token,
                    cache_dir=cache_dir,
                )
            )

        shards = list(weights.files)
        if weights.index:
            folder = download([weights.index])
            shards = sorted(set(read_index(folder / weights.index).values()))
        index = [weights.index] if weights.index else []
        papers = [name for name in ("README.md", "prunectl.json") if name in names]
        folder = download([*shards, *index, *side_files(names), *papers])
    return HubSnapshot(repo_id, revision, commit, folder)


def _from_cache(
    repo_id: str, revision: str | None, model: str, cache_dir: Path | None, error: Exception
) -> HubSnapshot:
    """What the cache holds of the repository, if that is a whole checkpoint."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    is_asked_for = type(error).__name__ == "OfflineModeIsEnabled"
    why = "the Hub cannot be reached"
    if is_asked_for:
        why = "offline mode is on (HF_HUB_OFFLINE)"
    elif isinstance(error, HfHubHTTPError):
        why += f" (HTTP {error.response.status_code})"
    try:
        # Incomplete snapshots are fine for hf as long as our own files are there.
        folder = Path(
            snapshot_download(
                repo_id,
                revision=revision,
                cache_dir=cache_dir,
                local_files_only=True,
                allow_patterns=["config.json"],
            )
        )
    except LocalEntryNotFoundError:
        raise HubUnreachable(model, f"{why}, and the model is not in the local cache") from None
    names = list_folder(folder)
    try:
        weights = find_weights(names, model)
    except PrunectlError:
        raise HubUnreachable(model, f"{why}, and the cache has no weights of it") from None
    missing = _missing_shards(folder, weights) or _missing_side_files(repo_id, folder, cache_dir)
    if missing:
        raise HubUnreachable(model, f"{why}, and the cache lacks {', '.join(missing[:3])}")
    # A branch may have moved on; who asked for offline mode knows that.
    note = f"{why}; using commit {folder.name[:7]} from the cache"
    return HubSnapshot(repo_id, revision, folder.name, folder, () if is_asked_for else (note,))


def _missing_shards(folder: Path, weights: WeightSet) -> list[str]:
    files = set(weights.files)
    if weights.index:
        files = set(read_index(folder / weights.index).values())
    return sorted(name for name in files if not (folder / name).exists())


def _missing_side_files(repo_id: str, folder: Path, cache_dir: Path | None) -> list[str]:
    """Those that the repository's listing names, if the cache knows the listing of this commit."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError

    try:
        tree = get_cached_repo_tree(repo_id, revision=folder.name, cache_dir=cache_dir)
    except (CachedRepoTreeNotFoundError, LocalEntryNotFoundError):
        return []
    return [name for name in side_files(f.path for f in tree) if not (folder / name).exists()]


def _is_connection_error(error: Exception) -> bool:
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        return status >= 500 or status == 429
    no_answer = errors.HTTPError  # type: ignore[attr-defined]
    return isinstance(error, (no_answer, ConnectionError, TimeoutError))


@contextmanager
def _hub_errors(model: str) -> Iterator[None]:
    """Turn huggingface_hub's errors into ours; their texts may carry URLs, never tokens."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise AccessDenied(model, "access to this repository is gated") from None
    except errors.RepositoryNotFoundError as error:
        if error.response.status_code in (401, 403):
            raise AccessDenied(
                model, "not on the Hub, or private and no token given opens it"
            ) from None
        raise ModelNotFound(
            model,
            "neither a local path nor a repository on the Hub",
            hint="check the spelling; for a private repository run 'hf auth login' or set HF_TOKEN",
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelNotFound(
            model, "the repository has no such revision", hint="give a branch, tag or commit"
        ) from None
    except errors.HFValidationError:
        raise ModelNotFound(model, "neither a local path nor a Hub id (org/name)") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise AccessDenied(model, f"the Hub refused access (HTTP {status})") from None
        raise HubUnreachable(model, f"the Hub answered HTTP {status}") from None
    except json.JSONDecodeError:
        raise HubUnreachable(model, "what answered is not the Hub (no JSON)") from None
    except (
        errors.LocalEntryNotFoundError,
        errors.RevisionResolutionError,
        errors.FileMetadataError,
        errors.XetDownloadError,
        errors.HTTPError,  # type: ignore[attr-defined]
        ConnectionError,
        TimeoutError,
    ) as error:
        raise HubUnreachable(model, f"the download was cut off ({type(error).__name__})") from None
    except OSError as error:
        raise SourceError(
            f"{model}: the download cannot be stored: {error.strerror or error}",
            hint="free some space, or choose another cache with --cache-dir or HF_HOME",
        ) from None
