"""The records of a manifest: source, side files, counts, and one for every tensor."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args
from urllib.parse import urlsplit

from prunectl.output.fields import Fields

SourceKind = Literal["hub", "folder", "file", "demo"]


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A side file of the output: its relative name, size in bytes and BLAKE3 digest."""

    name: str
    size: int
    blake3: str

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        return cls(fields.file_name("name"), fields.count("size"), fields.digest("blake3"))


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A weights file of the source: name, size in bytes, SHA-256 where the Hub states it."""

    name: str
    size: int
    sha256: str | None

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        return cls(
            fields.file_name("name"),
            fields.count("size"),
            fields.optional("sha256", fields.text),
        )


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """Where the weights came from.

    Attributes:
        model: as the user gave it.
        kind: ``hub``, ``folder``, ``file``, or ``demo`` (the embedded model).
        repo_id, revision, commit, endpoint: of a Hub source; ``revision`` as asked for, ``commit``
            as resolved. Credentials inside ``endpoint`` are not written.
        files: the weight files that were read.
    """

    model: str
    kind: SourceKind
    repo_id: str | None = None
    revision: str | None = None
    commit: str | None = None
    endpoint: str | None = None
    files: tuple[SourceFile, ...] = ()

    def to_object(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "kind": self.kind,
            "repo_id": self.repo_id,
            "revision": self.revision,
            "commit": self.commit,
            "endpoint": self.endpoint and _without_credentials(self.endpoint),
            "files": [record_object(file) for file in self.files],
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        kind: SourceKind
        match fields.text("kind"):
            case "hub" | "folder" | "file" | "demo" as kind:
                pass
            case other:
                fields.fail("kind", f"'{other[:40]}' is none of {', '.join(get_args(SourceKind))}")
        return cls(
            model=fields.path_text("model"),
            kind=kind,
            repo_id=fields.optional("repo_id", fields.repo_id),
            revision=fields.optional("revision", fields.line),
            commit=fields.optional("commit", fields.line),
            endpoint=fields.optional("endpoint", fields.path_text),
            files=tuple(SourceFile.from_fields(file) for file in fields.objects("files")),
        )


@dataclass(frozen=True, slots=True)
class Count:
    """Zeros among some weights, before and after; ``requested`` is a sparsity, 0..1, or None."""

    weights: int
    zeros_before: int
    zeros: int
    requested: float | None = None

    @property
    def achieved(self) -> float:
        """Sparsity afterwards: zeros / weights, 0..1; 0 where there are no weights."""
        return self.zeros / self.weights if self.weights else 0.0

    def to_object(self) -> dict[str, Any]:
        return {**record_object(self), "achieved": self.achieved}

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        count = cls(
            fields.count("weights"),
            fields.count("zeros_before"),
            fields.count("zeros"),
            fields.optional("requested", fields.number),
        )
        if max(count.zeros, count.zeros_before) > count.weights:
            fields.fail("zeros", "is more than there are weights")
        if fields.number("achieved") != count.achieved:
            fields.fail("achieved", "is not zeros / weights")
        return count


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One tensor of the output.

    Attributes:
        name, dtype, shape: as in the weights file (dtype as safetensors names it).
        file: the weights file that holds it.
        role, layer: what it is in the model; ``layer`` None outside of the blocks.
        pattern: ``unstructured`` or ``N:M`` if it was pruned, else None.
        sparsity: what was asked of this tensor alone (scope tensor or row, or a recipe), else None.
        zeros, zeros_before: exact counts of +0.0 and -0.0 in output and source.
        threshold: largest magnitude that was pruned by comparing magnitudes, else None.
        layout: how it is stored.
        stored_bytes: what it takes in the weights file; None in manifests before schema 1.1, where
            every tensor is dense.
        blake3: digest of its dense bytes, whatever the layout.
        reason: why it was not pruned; None if it was.
        prunable: whether it counts among the prunable weights, pruned or not.
        tied_to: name of the tensor above that it repeats (one tensor in the source, under two
            names); it counts once in the totals.
        input_axis: axis of ``shape`` along which N:M groups lie; None where it has none.
        calibrated: what calibration did to it: ``survivors`` is ``kept`` or ``updated``; None where
            magnitudes or a mask decided, and in manifests before schema 1.2.
        pattern_rows: rows [start, stop) that follow the N:M pattern, numbered through the tensor's
            matrices, sorted and apart; None where all do, and in manifests before schema 1.2.
    """

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    role: str
    layer: int | None
    pattern: str | None
    sparsity: float | None
    zeros: int
    zeros_before: int
    threshold: float | None
    blake3: str
    layout: str
    reason: str | None = None
    prunable: bool = False
    tied_to: str | None = None
    input_axis: int | None = None
    stored_bytes: int | None = None
    calibrated: dict[str, Any] | None = None
    pattern_rows: tuple[tuple[int, int], ...] | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def is_updated(self) -> bool:
        """Whether calibration changed the weights that stay."""
        return self.calibrated is not None and self.calibrated["survivors"] == "updated"

    @property
    def by_magnitude(self) -> int:
        """Matrices of the tensor that calibration did not reach."""
        return 0 if self.calibrated is None else int(self.calibrated["by_magnitude"])

    @property
    def matrices(self) -> int:
        """How many it is: more than one where it is a stack of them."""
        return math.prod(self.shape[:-2])

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        record = cls(
            name=fields.tensor_name("name"),
            file=fields.file_name("file"),
            dtype=fields.dtype("dtype"),
            shape=fields.shape("shape"),
            role=fields.line("role"),
            layer=fields.optional("layer", fields.count),
            pattern=fields.optional("pattern", fields.pattern),
            sparsity=fields.optional("sparsity", fields.number),
            zeros=fields.count("zeros"),
            zeros_before=fields.count("zeros_before"),
            threshold=fields.optional("threshold", fields.number),
            layout=fields.line("layout"),
            blake3=fields.digest("blake3"),
            reason=fields.optional("reason", fields.text),
            prunable=fields.flag("prunable"),
            tied_to=fields.optional("tied_to", fields.tensor_name),
            input_axis=fields.optional("input_axis", fields.count),
            stored_bytes=fields.given("stored_bytes", fields.count),
            calibrated=_calibrated(fields),
            pattern_rows=_row_ranges(fields),
        )
        if record.input_axis is not None and record.input_axis >= len(record.shape):
            fields.fail("input_axis", f"is not an axis of a shape of {len(record.shape)} sizes")
        if max(record.zeros, record.zeros_before) > math.prod(record.shape):
            fields.fail("zeros", "is more than there are weights")
        _check_rows(record, fields)
        return record


def _row_ranges(fields: Fields) -> tuple[tuple[int, int], ...] | None:
    if fields.members.get("pattern_rows") is None:
        return None
    ranges: list[tuple[int, int]] = []
    for item in fields.items("pattern_rows"):
        if not (
            isinstance(item, list) and len(item) == 2 and all(type(end) is int for end in item)
        ):
            fields.fail("pattern_rows", "is not a list of [start, stop]")
        ranges.append((item[0], item[1]))
    return tuple(ranges)


def _check_rows(record: TensorRecord, fields: Fields) -> None:
    """The rows of a record are rows of its tensor, and it has a pattern that they can follow."""
    if record.pattern_rows is None:
        return
    if record.pattern is None or record.pattern == "unstructured" or not record.shape:
        fields.fail("pattern_rows", "is given for a tensor without an N:M pattern")
    ends = [end for pair in record.pattern_rows for end in pair]
    if not ends or any(a >= b for a, b in itertools.pairwise(ends)):
        fields.fail("pattern_rows", "is not sorted, or is empty")
    length = record.shape[-1 if record.input_axis is None else record.input_axis]
    if ends[0] < 0 or ends[-1] > (record.numel // length if length else 0):
        fields.fail("pattern_rows", "names rows that the tensor does not have")


def _calibrated(fields: Fields) -> dict[str, Any] | None:
    if fields.members.get("calibrated") is None:
        return None
    member = fields.member("calibrated")
    if member.text("survivors") not in ("kept", "updated"):
        member.fail("survivors", "is neither 'kept' nor 'updated'")
    for key in ("tokens", "skipped", "raised", "dead_inputs", "by_magnitude"):
        member.count(key)
    if member.number("damping") < 0:
        member.fail("damping", "is below 0")
    for key in ("error", "error_before_refine"):
        error = member.optional(key, member.number)
        if error is not None and error < 0:
            member.fail(key, "is below 0")
    return fields.written_again("calibrated")


def record_object(record: Any) -> dict[str, Any]:
    """The fields of a record, a dataclass with slots, as JSON has them."""
    return {key: getattr(record, key) for key in record.__slots__}


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
