"""Requests for files on the Hub: which files a repository has, and their bytes."""

from __future__ import annotations

import glob
import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from prunectl.errors import AccessDenied, BadCheckpoint, HubUnreachable
from prunectl.events import Advanced, OnEvent, PhaseDone, PhaseStarted
from prunectl.hub.errors import is_sendable, not_the_hub, reading

if TYPE_CHECKING:
    from huggingface_hub.utils.tqdm import tqdm

DOWNLOADING = "downloading"

_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_DIGEST = re.compile(r"[0-9a-f]+")

_ATTEMPTS = 3
"""How often a range is asked for when the connection breaks off."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file as the listing of its repository names it.

    Attributes:
        name: relative to the repository.
        size: in bytes.
        sha256: where the Hub states it (files kept in LFS or Xet); else None.
        blob: what the cache calls its content: the SHA-256, or git's SHA-1 of files that are not
            kept in LFS; '' where the listing does not say.
    """

    name: str
    size: int
    sha256: str | None
    blob: str


@dataclass(frozen=True, slots=True)
class HubListing:
    """The files of a repository at one commit.

    Attributes:
        repo_id: ``org/name``.
        revision: as the user named it; None is the default branch.
        commit: what the revision stands for.
        files: by name.
        private: whether only members see the repository.
    """

    repo_id: str
    revision: str | None
    commit: str
    files: dict[str, HubFile]
    private: bool = False

    @property
    def model(self) -> str:
        """The repository and revision as the user names them, for messages."""
        return named(self.repo_id, self.revision)


def named(repo_id: str, revision: str | None) -> str:
    """``org/name``, or ``org/name@revision``."""
    return f"{repo_id}@{revision}" if revision else repo_id


def list_files(repo_id: str, revision: str | None, token: str | None = None) -> HubListing:
    """Ask the Hub which files a repository has at a revision; nothing is downloaded.

    Raises:
        BadCheckpoint: a name in the listing leads out of the repository.
        ModelNotFound, AccessDenied, HubUnreachable: as :func:`prunectl.hub.errors.reading`.
    """
    with reading(named(repo_id, revision)):
        return ask_listing(repo_id, revision, token)


def ask_listing(repo_id: str, revision: str | None, token: str | None) -> HubListing:
    """As :func:`list_files`, with huggingface_hub's own errors."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    model = named(repo_id, revision)
    if not is_sendable(token):
        raise AccessDenied(model, "the token holds characters that no token has")
    info = HfApi().model_info(repo_id, revision=revision, token=token, files_metadata=True)
    if not _COMMIT.fullmatch(info.sha or ""):
        raise not_the_hub(model)
    found: Iterable[Any] = info.siblings or []
    if any(sibling.size is None for sibling in found):  # a mirror that lists only names there
        entries = HfApi().list_repo_tree(repo_id, recursive=True, revision=info.sha, token=token)
        found = [entry for entry in entries if isinstance(entry, RepoFile)]
    files = {file.rfilename: _listed(file, model) for file in found}
    return HubListing(repo_id, revision, info.sha or "", files, bool(info.private))


def _listed(file: Any, model: str) -> HubFile:
    """An entry of a listing. The server may be anybody's."""
    name, sha256 = file.rfilename, file.lfs.sha256 if file.lfs else None
    if not isinstance(name, str) or type(file.size) is not int or file.size < 0:
        raise not_the_hub(model)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or name != str(path) or not name.isprintable():
        why = f"its listing names {name[:80]!a}, which is no file inside of it"
        raise BadCheckpoint(model, why, hint="whoever serves it is not to be trusted")
    # The cache has a file by the name of the blob.
    blob = sha256 or file.blob_id or ""
    return HubFile(name, file.size, sha256, blob if _DIGEST.fullmatch(str(blob)) else "")


def cache_root(cache_dir: Path | None) -> Path:
    """The folder of the Hub cache: ``cache_dir``, or huggingface_hub's own."""
    from huggingface_hub import constants

    return cache_dir or Path(constants.HF_HUB_CACHE)


def snapshot_folder(listing: HubListing, cache_dir: Path | None) -> Path:
    """Where the cache keeps, or would keep, the files of a commit."""
    from huggingface_hub.file_download import repo_folder_name

    home = cache_root(cache_dir) / repo_folder_name(repo_id=listing.repo_id, repo_type="model")
    return home / "snapshots" / listing.commit


def is_cached(listing: HubListing, file: HubFile, cache_dir: Path | None) -> bool:
    """Whether the cache has the file, of this commit or with the same content of another."""
    folder = snapshot_folder(listing, cache_dir)
    blob = folder.parent.parent / "blobs" / file.blob
    return (folder / file.name).is_file() or (bool(file.blob) and blob.is_file())


def fetch_files(
    listing: HubListing,
    names: Sequence[str],
    *,
    token: str | None = None,
    cache_dir: Path | None = None,
    on_event: OnEvent | None = None,
) -> Path:
    """Download files of a commit into the cache, unless they are there; returns the snapshot.

    Finished files stay when the rest fails. A file whose connection breaks off goes on where it
    broke.

    Args:
        on_event: receives progress; None leaves it to huggingface_hub's own bars.
    """
    from huggingface_hub import snapshot_download

    with reading(listing.model):
        missing = [
            listing.files[name].size
            for name in names
            if name in listing.files and not is_cached(listing, listing.files[name], cache_dir)
        ]
        if on_event:
            on_event(PhaseStarted(DOWNLOADING, sum(missing)))
        # allow_patterns are globs; names are meant literally.
        folder = snapshot_download(
            listing.repo_id,
            revision=listing.commit,
            allow_patterns=[glob.escape(name) for name in names],
            token=token,
            cache_dir=cache_dir,
            tqdm_class=_listener(on_event) if on_event else None,
        )
        if on_event:
            on_event(PhaseDone(DOWNLOADING))
    return Path(folder)


def _listener(on_event: OnEvent) -> type[tqdm]:
    """A class of bars that draw nothing and report their bytes as events."""
    from huggingface_hub.utils.tqdm import tqdm

    lock = threading.Lock()

    class Listener(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # Of huggingface_hub's bars, this one counts the bytes that are on the disk.
            self._counts = kwargs.get("name") == "huggingface_hub.snapshot_download"
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            if self._counts:
                with lock:
                    on_event(Advanced(DOWNLOADING, int(n or 0)))
            return None

    return Listener


def read_range(
    listing: HubListing, name: str, start: int, count: int, *, token: str | None = None
) -> bytes:
    """Read a part of a file on the Hub, past the cache.

    Args:
        start: position of the first byte. count: bytes wanted; fewer come at the file's end.
    """
    from huggingface_hub import errors

    with reading(listing.model):
        for _ in range(_ATTEMPTS - 1):
            try:
                return ask_range(listing, name, start, count, token)
            except errors.HfHubHTTPError:
                raise
            except (errors.HTTPError, ConnectionError, TimeoutError):  # type: ignore[attr-defined]
                continue
        return ask_range(listing, name, start, count, token)


def ask_range(listing: HubListing, name: str, start: int, count: int, token: str | None) -> bytes:
    """As :func:`read_range`, once and with huggingface_hub's own errors."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        hf_raise_for_status,
        http_stream_backoff,
    )

    headers = build_hf_headers(token=token) | {
        "Range": f"bytes={start}-{start + count - 1}",
        "Accept-Encoding": "identity",
    }
    # The generator must not repeat the request when the connection breaks inside of the block.
    request = http_stream_backoff(
        "GET",
        hf_hub_url(listing.repo_id, name, revision=listing.commit),
        headers=headers,
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        max_retries=2,
        retry_on_exceptions=(),
    )
    with request as response:
        if response.status_code == 416:  # the file ends before the range begins
            return b""
        hf_raise_for_status(response)
        skip = start if response.status_code == 200 else 0  # a server that knows no ranges
        span = response.headers.get("Content-Range", "")
        if response.status_code != 200 and not span.startswith(f"bytes {start}-"):
            raise HubUnreachable(listing.model, f"{name}: the Hub sent another range")
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            # Hanging up as soon as all bytes are there would cost the connection.
            if len(body) > skip + count:
                break
        return bytes(body[skip : skip + count])
