"""A compressed checkpoint presented as a dense one: same names, dtypes, shapes, bits.

The weights files of a compressed folder hold parts; their headers describe how each tensor is
decoded from its parts (docs/format.md). This module turns them into an ordinary :class:`Checkpoint`
whose reader decodes. Every field of a header is checked before use, since the file may be
malicious.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.opening import open_stored
from prunectl.checkpoint.stored import StoredTensor, declared_spec
from prunectl.documents import strict_json
from prunectl.errors import BadCheckpoint, BadManifest
from prunectl.layouts.table import CODINGS, DENSE
from prunectl.loading.reader import Packed, PartsReader
from prunectl.output.manifest import read_manifest
from prunectl.output.parts import FORMAT_VERSION, METADATA_KEY
from prunectl.output.records import TensorRecord
from prunectl.output.target import MANIFEST_NAME
from prunectl.tensorspec import DTYPES


def open_model(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Open a dense or a compressed checkpoint; a compressed one is decoded on reading.

    Args, raises: as :func:`prunectl.open_checkpoint`.
    """
    stored = open_stored(
        model,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        trust_remote_code=trust_remote_code,
    )
    return dense_view(stored) if stored.format == "compressed" else stored


def dense_view(stored: Checkpoint) -> Checkpoint:
    """Return the dense checkpoint that stored parts encode.

    Raises:
        BadCheckpoint: the headers do not describe the parts.
    """
    parts = {tensor.name: tensor for tensor in stored.tensors}
    packed: dict[str, Packed] = {}
    digests: dict[str, str] = {}
    for file in stored.files:
        described, stated = _descriptions(stored, file.name)
        digests |= stated
        for name, fields in described.items():
            one = _packed(stored, file.name, name, fields, parts)
            if name in packed:
                raise BadCheckpoint(stored.folder, f"tensor '{name}' is described twice")
            packed[name] = one
            digest = fields.get("blake3")
            if isinstance(digest, str):
                digests[name] = digest
    owned = {part.name for one in packed.values() for part in one.parts.values()}
    dense = {name: tensor for name, tensor in parts.items() if name not in owned}
    if clash := sorted(dense.keys() & packed.keys()):
        raise BadCheckpoint(stored.folder, f"tensor '{clash[0]}' is stored twice")
    tensors = (
        *(StoredTensor(one.spec, one.file, 0) for one in packed.values()),
        *dense.values(),
    )
    records = _manifest_records(stored)
    _check_records(stored, records, tensors)
    # the manifest's hashes first: a file of another export has valid hashes of its own
    digests |= {record.name: record.blake3 for record in records}
    place = {record.name: number for number, record in enumerate(records)}
    return replace(
        stored,
        format="safetensors",
        # in the order of the source, which the manifest keeps; without a manifest as stored
        tensors=tuple(sorted(tensors, key=lambda tensor: place.get(tensor.name, len(place)))),
        opener=partial(PartsReader, stored, packed, dense),
        digests=digests,
        quantization="",
    )


def stored_layouts(checkpoint: Checkpoint) -> dict[str, tuple[str, int]]:
    """The layout and stored bytes of each tensor, by name.

    Raises:
        SourceError: the headers of a compressed folder cannot be read again.
    """
    is_dense = checkpoint.opener is None
    stored = checkpoint if is_dense else open_stored(checkpoint.folder)
    parts = {tensor.name: tensor.spec.nbytes for tensor in stored.tensors}
    found: dict[str, tuple[str, int]] = {}
    if not is_dense:
        for file in stored.files:
            for name, fields in _descriptions(stored, file.name)[0].items():
                suffixes = fields.get("parts")
                names = [f"{name}.{s}" for s in suffixes] if isinstance(suffixes, list) else []
                found[name] = (str(fields.get("layout")), sum(parts.pop(n, 0) for n in names))
    return found | {name: (DENSE, size) for name, size in parts.items()}


def _descriptions(
    stored: Checkpoint, file: str
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Read how one file's tensors are decoded, from its header, and the hashes of dense ones."""
    text = stored.metadata.get(file, {}).get(METADATA_KEY)
    if text is None:
        raise BadCheckpoint(stored.folder / file, "its header does not describe its compression")
    try:
        document = strict_json(text)
    except ValueError as error:
        raise BadCheckpoint(
            stored.folder / file, f"its header's description of compression is not JSON: {error}"
        ) from None
    version = document.get("format") if isinstance(document, dict) else None
    if version != FORMAT_VERSION:
        raise BadCheckpoint(
            stored.folder / file,
            f"compressed in format {reprlib.repr(version)}; this prunectl reads {FORMAT_VERSION!r}",
            hint="a newer prunectl is needed: pip install -U prunectl",
        )
    tensors = document.get("tensors")
    if not isinstance(tensors, dict) or not all(isinstance(v, dict) for v in tensors.values()):
        raise BadCheckpoint(stored.folder / file, "its header lists no compressed tensors")
    digests = document.get("blake3", {})
    if not isinstance(digests, dict) or not all(isinstance(v, str) for v in digests.values()):
        raise BadCheckpoint(stored.folder / file, "its header lists no hashes")
    return tensors, digests


def _packed(
    stored: Checkpoint,
    file: str,
    name: str,
    fields: Mapping[str, Any],
    parts: Mapping[str, StoredTensor],
) -> Packed:
    """A tensor's description, checked against the parts in the header."""

    def bad(why: str) -> BadCheckpoint:
        return BadCheckpoint(stored.folder / file, f"tensor '{name}': {why}")

    dtype = DTYPES.get(str(fields.get("dtype")))
    layout, suffixes = fields.get("layout"), fields.get("parts")
    if dtype is None:
        raise bad(f"unknown dtype {str(fields.get('dtype'))[:40]!r}")
    spec = declared_spec(stored.folder / file, name, dtype, fields.get("shape"))
    if not isinstance(layout, str) or layout not in CODINGS:
        raise bad(f"unknown layout {str(layout)[:40]!r}")
    if not isinstance(suffixes, list) or not all(isinstance(text, str) for text in suffixes):
        raise bad("its parts are not listed")
    found = {}
    for suffix in suffixes:
        part = parts.get(f"{name}.{suffix}")
        if part is None or part.file != file:
            raise bad(f"its part '{suffix[:40]}' is missing")
        found[suffix] = part
    if spec.nbytes >= 2**62:
        raise bad("its shape is too large")
    extra = fields.get("extra", {})
    return Packed(spec, file, layout, extra if isinstance(extra, dict) else {}, found)


def _manifest_records(stored: Checkpoint) -> tuple[TensorRecord, ...]:
    """The records of the folder's manifest; none if it is missing or cannot be used.

    If only one file was opened, the records of its tensors.
    """
    try:
        records = read_manifest(stored.folder).tensors
    except BadManifest:
        return ()
    names = {file.name for file in stored.files}
    return tuple(one for one in records if stored.kind != "file" or one.file in names)


def _check_records(
    stored: Checkpoint, records: tuple[TensorRecord, ...], tensors: tuple[StoredTensor, ...]
) -> None:
    """Refuse tensors that differ from the manifest: missing, renamed, other dtype or shape."""
    if not records:
        return
    here = {tensor.name: (tensor.spec.dtype.name, tensor.spec.shape) for tensor in tensors}
    listed = {record.name: (record.dtype, record.shape) for record in records}
    for name in sorted(here.keys() | listed.keys()):
        if here.get(name) != listed.get(name):
            raise BadCheckpoint(
                stored.folder / MANIFEST_NAME,
                f"and the weight files disagree about tensor '{name}'",
                hint="the folder was changed: prunectl verify shows how",
            )
