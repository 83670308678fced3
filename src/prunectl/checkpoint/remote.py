"""A model on the Hub from its headers, by range requests: no weights are downloaded.

Besides the headers, only the repository's listing, config.json and an index are fetched. Roles,
plans and sizes equal those after a download.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from prunectl import demo
from prunectl.checkpoint.checkpoint import Checkpoint, read_config
from prunectl.checkpoint.headers import Header, check_headers, shard_names
from prunectl.checkpoint.index import WeightSet, find_weights
from prunectl.checkpoint.model_kind import quantization_of
from prunectl.checkpoint.opening import compressed_error, hub_id, local_path
from prunectl.checkpoint.safetensors_file import parse_safetensors
from prunectl.checkpoint.sidefiles import beside_weights, side_files
from prunectl.checkpoint.stored import WeightFile
from prunectl.errors import InvalidOption, UnsupportedCheckpoint
from prunectl.hub.files import (
    HubFile,
    HubListing,
    cache_root,
    fetch_files,
    is_cached,
    list_files,
    read_range,
    snapshot_folder,
)

FIRST_BYTES = 100_000
"""Bytes of the first request for a file: nearly every header is shorter."""

LARGE_HEADER = 1_000_000
"""Longer headers are read one at a time: a hostile repository may hold many, each as long as the
format allows.
"""

REQUESTS = 8
"""Files whose headers are read at the same time."""


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """Facts about a model on the Hub without its weights.

    Attributes:
        model: the user's argument.
        listing: all files of the repository, at the commit of the revision.
        format: ``safetensors`` or ``pickle``.
        weights: the weight files.
        files: the files that opening the model would cache, including weights.
        cached: names of those that are cached already.
        cache: the cache folder.
        checkpoint: as from :func:`open_checkpoint`, but its weights cannot be read and its folder
            lacks most side files; None for pickles, which have no header.
    """

    model: str
    listing: HubListing
    format: str
    weights: tuple[HubFile, ...]
    files: tuple[HubFile, ...]
    cached: frozenset[str]
    cache: Path
    checkpoint: Checkpoint | None

    @property
    def download_bytes(self) -> int:
        """Bytes that remain to be downloaded."""
        return sum(file.size for file in self.files if file.name not in self.cached)

    def headers(self) -> Checkpoint:
        """The checkpoint.

        Raises:
            UnsupportedCheckpoint: pickles.
        """
        if self.checkpoint is None:
            raise UnsupportedCheckpoint(
                self.model,
                "holds pickles; their tensors can be listed only after a download",
                hint="leave --remote out to download it; 'prunectl analyze MODEL --remote' shows "
                "the sizes of its files",
            )
        return self.checkpoint


def open_remote(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
    requests: int = REQUESTS,
) -> RemoteModel:
    """Read the headers of a model on the Hub.

    Args:
        model: ``org/name`` or ``org/name@revision``.
        revision, token, cache_dir, trust_remote_code: as for :func:`open_checkpoint`.
        requests: maximum number of simultaneous requests.

    Raises:
        InvalidOption: a local path, or the embedded model.
        ModelNotFound, AccessDenied, NoWeights, BadCheckpoint, UnsupportedCheckpoint: as
            :func:`open_checkpoint`.
        HubUnreachable: no connection, or offline mode; the cache is not used.
    """
    text = os.fspath(model)
    if text == demo.NAME or local_path(text) is not None:
        raise InvalidOption(
            f"--remote is for models on the Hub; {text} is on this machine",
            hint="leave --remote out",
        )
    repo_id, revision = hub_id(text, revision)
    cache = Path(cache_dir) if cache_dir else None
    listing = list_files(repo_id, revision, token)
    weights = find_weights(listing.files, text)
    if weights.format == "compressed":
        raise compressed_error(text)
    folder = _fetch_metadata(listing, weights, token, cache, with_code=trust_remote_code)
    names, weight_map = shard_names(Path(text), folder, weights, listing.files.__contains__)
    checkpoint = None
    if weights.format == "safetensors":
        headers = _read_headers(listing, names, Path(text), token, requests)
        checkpoint = _checkpoint(text, listing, folder, weights, weight_map, headers)
        checkpoint = replace(checkpoint, trust_remote_code=trust_remote_code)
    wanted = {*names, *beside_weights(listing.files, weights)}
    files = [file for name, file in sorted(listing.files.items()) if name in wanted]
    return RemoteModel(
        model=text,
        listing=listing,
        format=weights.format,
        weights=tuple(listing.files[name] for name in names),
        files=tuple(files),
        cached=frozenset(file.name for file in files if is_cached(listing, file, cache)),
        cache=cache_root(cache),
        checkpoint=checkpoint,
    )


def _checkpoint(
    model: str,
    listing: HubListing,
    folder: Path,
    weights: WeightSet,
    weight_map: dict[str, str] | None,
    headers: dict[str, Header],
) -> Checkpoint:
    """The checkpoint in the headers; its folder is the snapshot, which lacks most files."""
    tensors, aliases = check_headers(Path(model), weights, weight_map, headers)
    files = (listing.files[name] for name in headers)
    return Checkpoint(
        model, "hub", folder, weights.format,
        tuple(WeightFile(file.name, file.size, 0, file.sha256) for file in files),
        tensors, aliases, side_files(listing.files),
        repo_id=listing.repo_id,
        revision=listing.revision,
        commit=listing.commit,
        quantization=quantization_of(read_config(folder), [t.name for t in tensors]),
        metadata={name: metadata for name, (_, metadata) in headers.items()},
        opener=_no_weights(model),
    )  # fmt: skip


def _fetch_metadata(
    listing: HubListing,
    weights: WeightSet,
    token: str | None,
    cache: Path | None,
    *,
    with_code: bool,
) -> Path:
    """Fetch the files that determine roles: config, index, code; return the snapshot."""
    wanted = [name for name in ("config.json", weights.index) if name in listing.files]
    if with_code:
        wanted += [name for name in side_files(listing.files) if name.endswith(".py")]
    if not wanted:
        return snapshot_folder(listing, cache)
    return fetch_files(listing, [name for name in wanted if name], token=token, cache_dir=cache)


def _read_headers(
    listing: HubListing, names: tuple[str, ...], where: Path, token: str | None, requests: int
) -> dict[str, Header]:
    large = threading.Lock()

    def header(name: str) -> Header:
        first = read_range(listing, name, 0, FIRST_BYTES, token=token)
        length = int.from_bytes(first[:8], "little")

        def read(start: int, count: int) -> bytes:
            head = first[start : start + count]
            if len(head) == count or len(first) < FIRST_BYTES:
                return head
            rest = count - len(head)
            return head + read_range(listing, name, start + len(head), rest, token=token)

        with large if length > LARGE_HEADER else nullcontext():
            return parse_safetensors(where / name, name, listing.files[name].size, read)

    with ThreadPoolExecutor(min(requests, len(names))) as pool:
        return dict(zip(names, pool.map(header, names), strict=True))


def _no_weights(model: str) -> Callable[[], NoReturn]:
    def refuse() -> NoReturn:
        raise UnsupportedCheckpoint(
            model, "only its headers were read", hint="open it with prunectl.open_checkpoint"
        )

    return refuse
