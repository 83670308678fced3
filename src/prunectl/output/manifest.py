"""``prunectl.json``: what was done to every tensor, from what source, and how each is stored.

docs/manifest.md explains every field; docs/manifest.schema.json is its JSON Schema. There is no
time and no machine in it: the same source and arguments give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from prunectl.errors import BadManifest
from prunectl.output.fields import Fields
from prunectl.output.osfiles import read_regular
from prunectl.output.records import Count, FileRecord, SourceRecord, TensorRecord, record_object
from prunectl.output.target import MANIFEST_NAME

SCHEMA_VERSION = "1.2"

_LINE = 600
"""Bytes that a tensor takes, about."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The whole document.

    Attributes:
        version: of the prunectl that wrote it.
        arguments: what was asked for, JSON-ready; the caller keeps tokens out of it.
        prunable, overall: totals over the prunable weights and over all of them.
        tensors: in the order of the weight files.
        files: side files and the index; not the model card, which people edit, nor this manifest.
        export: what was asked of the export that wrote the folder; None if none did.
    """

    version: str
    source: SourceRecord
    arguments: dict[str, Any]
    prunable: Count
    overall: Count
    tensors: tuple[TensorRecord, ...]
    files: tuple[FileRecord, ...]
    export: dict[str, Any] | None = None
    tool: str = "prunectl"
    schema: str = field(default=SCHEMA_VERSION)

    def to_json(self) -> bytes:
        """The file's bytes, see :meth:`parts`."""
        return b"".join(self.parts())

    @property
    def about(self) -> int:
        """About how many bytes the file has."""
        return _LINE * (1 + len(self.tensors) + len(self.files))

    def parts(self) -> Iterator[bytes]:
        """The file's bytes one after another: of 100,000 tensors they would be much at once.

        ASCII JSON, one line a tensor; floats are written so that they read back exactly.

        Raises:
            ValueError: a number is NaN or infinite, which JSON cannot hold.
        """
        members: dict[str, Any] = {
            "schema": self.schema,
            "tool": self.tool,
            "version": self.version,
            "source": self.source.to_object(),
            "arguments": self.arguments,
            "export": self.export,
            "totals": {
                "prunable": self.prunable.to_object(),
                "overall": self.overall.to_object(),
            },
        }
        yield b"{\n"
        for key, value in members.items():
            yield f' "{key}": {_line(value)},\n'.encode()
        yield from _list("files", self.files)
        yield b",\n"
        yield from _list("tensors", self.tensors)
        yield b"\n}\n"

    @classmethod
    def from_json(cls, data: bytes | str, path: Path | str = MANIFEST_NAME) -> Self:
        """Read a manifest that may be damaged or hostile.

        Raises:
            BadManifest: not JSON, a member missing or of a wrong type, a file name that leaves the
                folder, a tensor named twice, or written by a newer prunectl.
        """
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise BadManifest(path, f"is not JSON ({error})") from error
        fields = Fields(document, path)
        _check_schema(fields)
        totals = fields.member("totals")
        manifest = cls(
            schema=fields.text("schema"),
            tool=fields.text("tool"),
            version=fields.text("version"),
            source=SourceRecord.from_fields(fields.member("source")),
            arguments=_arguments(fields),
            export=fields.given("export", fields.written_again),
            prunable=Count.from_fields(totals.member("prunable")),
            overall=Count.from_fields(totals.member("overall")),
            tensors=tuple(TensorRecord.from_fields(item) for item in fields.objects("tensors")),
            files=tuple(FileRecord.from_fields(item) for item in fields.objects("files")),
        )
        _check_unique(fields, "tensors", [tensor.name for tensor in manifest.tensors])
        _check_unique(fields, "files", [file.name for file in manifest.files])
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


def _list(key: str, records: Sequence[FileRecord | TensorRecord]) -> Iterator[bytes]:
    """A member that is a list, one line a record."""
    yield f' "{key}": ['.encode()
    for number, record in enumerate(records):
        yield f"{',' if number else ''}\n  {_line(record_object(record))}".encode()
    yield b"\n ]" if records else b"]"


def _line(value: object) -> str:
    return json.dumps(value, allow_nan=False)


def _check_schema(fields: Fields) -> None:
    schema = fields.text("schema")
    major, _, minor = schema.partition(".")
    if not (major.isdecimal() and minor.isdecimal()):
        fields.fail("schema", f"'{schema[:40]}' is not a version")
    if major != SCHEMA_VERSION.partition(".")[0]:
        raise BadManifest(
            fields.path,
            f"has schema version {schema[:40]}; this prunectl reads {SCHEMA_VERSION}",
            hint="a newer prunectl is needed: pip install -U prunectl",
        )


def _arguments(fields: Fields) -> dict[str, Any]:
    """What was asked for. Cards and checks read some of it; what they read is checked here."""
    asked = fields.member("arguments")
    for key in ("method", "pattern", "scope", "budget"):
        asked.given(key, asked.line)
    asked.given("sparsity", asked.number)
    for rule in asked.given("rules", asked.objects) or ():
        rule.given("skip", rule.flag)
    if (calibration := asked.given("calibration", asked.member)) is not None:
        calibration.given("kind", calibration.line)
        calibration.given("samples", calibration.count)
    return fields.written_again("arguments")


def _check_unique(fields: Fields, key: str, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            fields.fail(key, f"name '{name}' twice")
        seen.add(name)
