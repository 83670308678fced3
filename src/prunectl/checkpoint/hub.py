"""The Hugging Face Hub: from a repository id to a folder in the standard cache.

Only files that are used are fetched: the weights of one format, and the side files. The revision
is pinned to a commit first, so that all files come from the same one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunectl.checkpoint.hub_errors import (
    hub_errors,
    is_connection_error,
    is_offline_mode,
    why_no_answer,
)
from prunectl.checkpoint.hub_files import HubFile, HubListing, ask_listing, fetch_files
from prunectl.checkpoint.index import WeightSet, find_weights, read_index
from prunectl.checkpoint.sidefiles import list_folder, side_files
from prunectl.errors import HubUnreachable, PrunectlError
from prunectl.events import OnEvent

_LONGEST_ID = 256
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
    if len(text) > _LONGEST_ID or ".." in text or "--" in text:
        return False
    return _REPO_ID.fullmatch(text) is not None


def fetch(
    repo_id: str,
    revision: str | None,
    *,
    token: str | None = None,
    cache_dir: Path | None = None,
    on_event: OnEvent | None = None,
) -> HubSnapshot:
    """Download (or find in the cache) the weights and side files of a repository.

    Args:
        on_event: receives progress; None leaves it to huggingface_hub's own bars.

    Raises:
        ModelNotFound: no such repository or revision.
        AccessDenied: private or gated, and no token that opens it.
        HubUnreachable: no connection, or offline mode, and not all files are in the cache.
        SourceError: the download cannot be stored.
    """
    from huggingface_hub import HfApi

    model = f"{repo_id}@{revision}" if revision else repo_id
    with hub_errors(model):
        try:
            listing = ask_listing(repo_id, revision, token)
        except Exception as error:
            if not is_connection_error(error):
                raise
            return _from_cache(repo_id, revision, model, cache_dir, error)
        names = list(listing.files)
        # Downloads by commit record no branch; offline, the branch is what the user will name.
        HfApi().resolve_revision(repo_id, revision=revision, token=token, cache_dir=cache_dir)
        weights = find_weights(names, model)
        shards = list(weights.files)
        if weights.index:
            folder = fetch_files(listing, [weights.index], token=token, cache_dir=cache_dir)
            shards = sorted(set(read_index(folder / weights.index).values()))
        wanted = [*shards, *_beside_weights(names, weights)]
        folder = fetch_files(listing, wanted, token=token, cache_dir=cache_dir, on_event=on_event)
    return HubSnapshot(repo_id, revision, listing.commit, folder)


def is_in_cache(repo_id: str, revision: str | None, cache_dir: Path | None = None) -> bool:
    """Whether the cache holds anything of a revision. Asks nobody."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot_download(repo_id, revision=revision, cache_dir=cache_dir, local_files_only=True)
    except LocalEntryNotFoundError:
        return False
    return True


def drop_commit(commit: str, cache_dir: Path | None = None) -> None:
    """Delete a commit from the cache; files that other commits share stay, as do all others."""
    from huggingface_hub import scan_cache_dir

    scan_cache_dir(cache_dir).delete_revisions(commit).execute()


def _beside_weights(names: Sequence[str], weights: WeightSet) -> list[str]:
    """What is fetched besides the weight files themselves."""
    index = [weights.index] if weights.index else []
    metadata = [name for name in ("README.md", "prunectl.json") if name in names]
    return [*index, *side_files(names), *metadata]


def files_to_fetch(listing: HubListing, weights: WeightSet, shards: Sequence[str]) -> list[HubFile]:
    """What :func:`fetch` would have in the cache in the end, by name."""
    wanted = {*shards, *_beside_weights(list(listing.files), weights)}
    return [file for name, file in sorted(listing.files.items()) if name in wanted]


def _from_cache(
    repo_id: str, revision: str | None, model: str, cache_dir: Path | None, error: Exception
) -> HubSnapshot:
    """What the cache holds of the repository, if that is a whole checkpoint."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    is_asked_for = is_offline_mode(error)
    why = why_no_answer(error)
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
