"""Download files of a repository, all from one commit, to a folder in the standard cache.

The revision is resolved to a commit first. The caller chooses the files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunectl.errors import HubUnreachable, NoWeights
from prunectl.events import OnEvent
from prunectl.hub.errors import is_connection_error, is_offline_mode, reading, why_no_answer
from prunectl.hub.files import ask_listing, fetch_files, named

_LONGEST_ID = 256
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

Select = Callable[[Sequence[str], Callable[[str], Path]], Sequence[str]]
"""Choose the files to fetch. The arguments are all names in the repository, and a function that
fetches one file immediately and returns its path: an index, for example, names other files."""


@dataclass(frozen=True, slots=True)
class HubSnapshot:
    """Files of a repository at one commit, in the local cache.

    Attributes:
        repo_id: ``org/name``.
        revision: as the user named it; None is main.
        commit: the commit that the revision resolves to.
        folder: the folder of the commit in the cache.
        notes: sentences for the user: the Hub did not answer and the cache was used.
    """

    repo_id: str
    revision: str | None
    commit: str
    folder: Path
    notes: tuple[str, ...] = ()


def split_revision(model: str) -> tuple[str, str | None]:
    """Split ``org/name@revision`` into its two parts; the revision is None if absent."""
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
    select: Select,
    *,
    token: str | None = None,
    cache_dir: Path | None = None,
    on_event: OnEvent | None = None,
) -> HubSnapshot:
    """Fetch files of a repository: from the cache if they are there, else by download.

    If the Hub does not answer, the cache is used, provided that it holds all selected files.

    Args:
        on_event: receives progress; None leaves it to huggingface_hub's own bars.

    Raises:
        ModelNotFound: no such repository or revision.
        AccessDenied: private or gated, and no token that opens it.
        HubUnreachable: no connection or offline mode, and the cache lacks a file.
        SourceError: the download cannot be stored.

    Errors of ``select`` pass through.
    """
    from huggingface_hub import HfApi

    with reading(named(repo_id, revision)):
        try:
            listing = ask_listing(repo_id, revision, token)
        except Exception as error:  # httpx and the system have many kinds of no connection
            if not is_connection_error(error):
                raise
            return _from_cache(repo_id, revision, select, cache_dir, error)
        # A download by commit does not record the branch in the cache, where an offline run looks
        # for the branch that the user names.
        HfApi().resolve_revision(repo_id, revision=revision, token=token, cache_dir=cache_dir)

        def get(name: str) -> Path:
            return fetch_files(listing, [name], token=token, cache_dir=cache_dir) / name

        wanted = select(list(listing.files), get)
        folder = fetch_files(listing, wanted, token=token, cache_dir=cache_dir, on_event=on_event)
    return HubSnapshot(repo_id, revision, listing.commit, folder)


def is_in_cache(repo_id: str, revision: str | None, cache_dir: Path | None = None) -> bool:
    """Whether the cache holds any file of a revision. No request is made."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot_download(repo_id, revision=revision, cache_dir=cache_dir, local_files_only=True)
    except LocalEntryNotFoundError:
        return False
    return True


def drop_commit(commit: str, cache_dir: Path | None = None) -> None:
    """Delete a commit from the cache, without files that it shares with other commits."""
    from huggingface_hub import scan_cache_dir

    scan_cache_dir(cache_dir).delete_revisions(commit).execute()


def _from_cache(
    repo_id: str, revision: str | None, select: Select, cache_dir: Path | None, error: Exception
) -> HubSnapshot:
    """The snapshot in the cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    model, why = named(repo_id, revision), why_no_answer(error)
    try:
        # Without a pattern, huggingface_hub refuses a snapshot that is incomplete.
        found = snapshot_download(
            repo_id,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=True,
            allow_patterns=["config.json"],
        )
    except LocalEntryNotFoundError:
        raise HubUnreachable(model, f"{why}, and the model is not in the local cache") from None
    folder = Path(found)

    def get(name: str) -> Path:
        if not (folder / name).exists():
            raise HubUnreachable(model, f"{why}, and the cache lacks {name}")
        return folder / name

    try:
        for name in select(_names(repo_id, folder, cache_dir), get):
            get(name)
    except NoWeights:
        raise HubUnreachable(model, f"{why}, and the cache has no weights of it") from None
    # The branch may have newer commits; a user who sets offline mode expects that.
    note = f"{why}; using commit {folder.name[:7]} from the cache"
    return HubSnapshot(
        repo_id, revision, folder.name, folder, () if is_offline_mode(error) else (note,)
    )


def _names(repo_id: str, folder: Path, cache_dir: Path | None) -> list[str]:
    """Names of all files of the commit if the cache has its listing, else those in the snapshot."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError

    try:
        tree = get_cached_repo_tree(repo_id, revision=folder.name, cache_dir=cache_dir)
    except (CachedRepoTreeNotFoundError, LocalEntryNotFoundError):
        files = (path for path in folder.rglob("*") if not path.is_dir())
        return [path.relative_to(folder).as_posix() for path in files]
    return [file.path for file in tree]
