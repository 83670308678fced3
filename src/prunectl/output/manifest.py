"""``prunectl.json``: what was done to every tensor, from what source, and how each is stored.

docs/manifest.md explains every field; docs/manifest.schema.json is its JSON Schema, which
scripts/make_schemas.py writes from the records. The manifest contains no times or machine names:
the same source and arguments give the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from msgspec import Meta, structs

from prunectl.documents import Check, Document, convert, fault_in, parse_json, read_regular
from prunectl.errors import BadManifest
from prunectl.output.records import (
    Asked,
    Count,
    FileRecord,
    SourceRecord,
    TensorRecord,
    without_credentials,
)
from prunectl.output.target import MANIFEST_NAME

SCHEMA_VERSION = "1.2"

_LINE = 600
"""Approximate bytes for each tensor."""


def _json_fault(value: object) -> str:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError as error:
        return f"cannot be written again ({error})"
    return ""


def _version_fault(value: str) -> str:
    is_version = re.fullmatch("[0-9]{1,9}[.][0-9]{1,9}", value)
    return "" if is_version else f"'{value[:40]}' is not a version"


Plain = Annotated[dict[str, Any], Check(_json_fault)]
"""A JSON object that is written unchanged."""


class Totals(Document, frozen=True):
    """Counts over the prunable weights and over all of them."""

    prunable: Count
    overall: Count


class _Versioned(Document, frozen=True):
    schema: Annotated[str, Check(_version_fault)]


class Manifest(Document, frozen=True, kw_only=True):
    """The whole document, its members in their order.

    Attributes:
        version: the version of the prunectl that wrote it.
        arguments: the requested settings, JSON-ready; the caller leaves tokens out.
        export: the settings of the export that wrote the folder; None if it was not an export.
        files: side files and the index, but not the model card, which people edit, or this
            manifest.
        tensors: in the order of the weight files.
    """

    schema: Annotated[str, Meta(extra_json_schema={"const": SCHEMA_VERSION})] = SCHEMA_VERSION
    tool: Annotated[str, Meta(extra_json_schema={"const": "prunectl"})]
    version: Annotated[str, Meta(extra_json_schema={"minLength": 1})]
    source: SourceRecord
    arguments: Plain
    export: Plain | None = None
    totals: Totals
    files: tuple[FileRecord, ...]
    tensors: tuple[TensorRecord, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        records: tuple[Sequence[FileRecord | TensorRecord], ...] = (self.files, self.tensors)
        for key, listed in zip(("files", "tensors"), records, strict=True):
            seen: set[str] = set()
            for record in listed:
                if record.name in seen:
                    raise fault_in(key, f"has the name '{record.name}' twice")
                seen.add(record.name)

    @property
    def prunable(self) -> Count:
        """Return the totals over the prunable weights."""
        return self.totals.prunable

    @property
    def overall(self) -> Count:
        """Return the totals over all weights."""
        return self.totals.overall

    def to_json(self) -> bytes:
        """Return the bytes of the file, see :meth:`parts`."""
        return b"".join(self.parts())

    @property
    def about(self) -> int:
        """Return the approximate number of bytes of the file."""
        return _LINE * (1 + len(self.tensors) + len(self.files))

    def parts(self) -> Iterator[bytes]:
        """Yield the bytes of the file in parts: for 100,000 tensors, the whole would be large.

        ASCII JSON, one line a tensor; floats are written so that they read back exactly.

        Raises:
            ValueError: a number is NaN or infinite, which JSON cannot hold.
        """
        members = structs.asdict(self)
        if endpoint := self.source.endpoint:
            public = without_credentials(endpoint)
            members["source"] = structs.replace(self.source, endpoint=public)
        yield b"{"
        for number, (key, value) in enumerate(members.items()):
            yield f'{"," if number else ""}\n "{key}": '.encode()
            if isinstance(value, tuple):
                for position, record in enumerate(value):
                    yield f"{',' if position else '['}\n  {_line(record)}".encode()
                yield b"\n ]" if value else b"[]"
            else:
                yield _line(value).encode()
        yield b"\n}\n"

    @classmethod
    def from_json(cls, data: bytes | str, path: Path | str = MANIFEST_NAME) -> Self:
        """Read a manifest that may be damaged or hostile.

        Raises:
            BadManifest: not JSON, a member missing or of a wrong type, a file name that leaves the
                folder, a tensor named twice, or written by a newer prunectl.
        """
        try:
            document = parse_json(data)
        except ValueError as error:
            raise BadManifest(path, f"is not JSON ({error})") from error
        try:
            version = convert(document, _Versioned).schema
            if version.partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
                raise BadManifest(
                    path,
                    f"has schema version {version}; this prunectl reads {SCHEMA_VERSION}",
                    hint="a newer prunectl is needed: pip install -U prunectl",
                )
            manifest = convert(document, cls)
            convert(manifest.arguments, Asked, "arguments")
        except ValueError as error:
            hint = "the file was changed or damaged"
            raise BadManifest(path, str(error), hint=hint) from None
        return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read ``prunectl.json`` of an output folder.

    Raises:
        BadManifest: it is missing or cannot be used.
    """
    path = folder / MANIFEST_NAME
    try:
        data = read_regular(path)
    except OSError as error:
        raise BadManifest(path, error.strerror or str(error)) from error
    return Manifest.from_json(data, path)


def _line(value: object) -> str:
    return json.dumps(value, allow_nan=False, default=structs.asdict)
