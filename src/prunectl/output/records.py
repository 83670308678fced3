"""The records of a manifest: source, side files, counts, and one for every tensor."""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from msgspec import Meta

from prunectl.documents import (
    Check,
    Digest,
    Document,
    Line,
    Number,
    PathText,
    PatternText,
    Positive,
    Share,
    Sizes,
    TensorName,
    Whole,
    fault_in,
)
from prunectl.output.osfiles import is_safe_relative
from prunectl.tensorspec import DTYPES

_SAFE_NAME = r"^(?!/)(?!.*\\)(?!(.*/)?\.{1,2}(/|$))(?!.*//).*[^/]$"


def _schema(**members: Any) -> Meta:
    """What the JSON Schema says of a field, where only a :class:`Check` can say all of it."""
    return Meta(extra_json_schema=members)


def _file_fault(name: str) -> str:
    return "" if is_safe_relative(name) else f"'{name[:80]}' leaves the folder"


def _dtype_fault(name: str) -> str:
    return "" if name in DTYPES else f"'{name[:40]}' is not a dtype of safetensors"


def _endpoint_fault(url: str) -> str:
    try:
        without_credentials(url)
    except ValueError:
        return "is not a URL"
    return ""


FileName = Annotated[str, Check(_file_fault), _schema(minLength=1, pattern=_SAFE_NAME)]
"""A relative path that stays inside the folder."""
RepoId = Annotated[Line, Meta(pattern=r"^[\w.-]+(/[\w.-]+)?$")]
"""A repository on the Hub: ``org/name`` or ``name``."""


class FileRecord(Document, frozen=True):
    """A side file of the output: its relative name, size in bytes and BLAKE3 digest."""

    name: FileName
    size: Whole
    blake3: Digest


class SourceFile(Document, frozen=True):
    """A weights file of the source: name, size in bytes, SHA-256 where the Hub states it."""

    name: FileName
    size: Whole
    sha256: Digest | None


class SourceRecord(Document, frozen=True):
    """Where the weights came from.

    Attributes:
        model: as the user gave it.
        kind: ``hub``, ``folder``, ``file``, or ``demo`` (the embedded model).
        repo_id, revision, commit, endpoint: of a Hub source; ``revision`` as asked for, ``commit``
            as resolved. Credentials inside ``endpoint`` are not written.
        files: the weight files that were read.
    """

    model: PathText
    kind: Literal["hub", "folder", "file", "demo"]
    repo_id: RepoId | None
    revision: Line | None
    commit: Line | None
    endpoint: Annotated[PathText, Check(_endpoint_fault)] | None
    files: tuple[SourceFile, ...]


class Count(Document, frozen=True):
    """Zeros among some weights, before and after.

    Attributes:
        requested: a sparsity, 0..1, or None.
        achieved: sparsity afterwards, zeros / weights; 0 where there are no weights.
    """

    weights: Whole
    zeros_before: Whole
    zeros: Whole
    requested: Share | None
    achieved: Share

    def __post_init__(self) -> None:
        if max(self.zeros, self.zeros_before) > self.weights:
            raise fault_in("zeros", "is more than there are weights")
        if self.achieved != _share(self.zeros, self.weights):
            raise fault_in("achieved", "is not zeros / weights")

    @classmethod
    def of(
        cls, weights: int, zeros_before: int, zeros: int, requested: float | None = None
    ) -> Count:
        """The count of these numbers, with the sparsity that they make."""
        return cls(weights, zeros_before, zeros, requested, _share(zeros, weights))


def _share(zeros: int, weights: int) -> float:
    return zeros / weights if weights else 0.0


class Calibrated(Document, frozen=True):
    """What calibration did to a tensor; docs/manifest.md says what each number is."""

    survivors: Literal["kept", "updated"]
    tokens: Whole
    skipped: Whole
    error: Positive | None
    error_before_refine: Positive | None
    damping: Positive
    raised: Whole
    dead_inputs: Whole
    by_magnitude: Whole


class TensorRecord(Document, frozen=True):
    """One tensor of the output.

    Attributes:
        name, dtype, shape: as in the weights file (dtype as safetensors names it).
        file: the weights file that holds it.
        role, layer: what it is in the model; ``layer`` None outside of the blocks.
        pattern: ``unstructured`` or ``N:M`` if it was pruned, else None.
        sparsity: what was asked of this tensor alone (scope tensor or row, or a recipe), else None.
        zeros, zeros_before: exact counts of +0.0 and -0.0 in output and source.
        threshold: largest magnitude that was pruned by comparing magnitudes, else None.
        blake3: digest of its dense bytes, whatever the layout.
        layout: how it is stored.
        reason: why it was not pruned; None if it was.
        prunable: whether it counts among the prunable weights, pruned or not.
        tied_to: name of the tensor above that it repeats (one tensor in the source, under two
            names); it counts once in the totals.
        input_axis: axis of ``shape`` along which N:M groups lie; None where it has none.
        stored_bytes: what it takes in the weights file; None in manifests before schema 1.1, where
            every tensor is dense.
        calibrated: what calibration did to it; None where magnitudes or a mask decided, and in
            manifests before schema 1.2.
        pattern_rows: rows [start, stop) that follow the N:M pattern, numbered through the tensor's
            matrices, sorted and apart; None where all do, and in manifests before schema 1.2.
    """

    name: TensorName
    file: FileName
    dtype: Annotated[str, Check(_dtype_fault), _schema(pattern="^[A-Z0-9_]+$")]
    shape: Sizes
    role: Line
    layer: Whole | None
    pattern: PatternText | None
    sparsity: Share | None
    zeros: Whole
    zeros_before: Whole
    threshold: Positive | None
    blake3: Digest
    layout: Line
    reason: str | None
    prunable: bool
    tied_to: TensorName | None
    input_axis: Whole | None
    stored_bytes: Whole | None = None
    calibrated: Calibrated | None = None
    pattern_rows: Annotated[tuple[tuple[Whole, Whole], ...], Meta(min_length=1)] | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def is_updated(self) -> bool:
        """Whether calibration changed the weights that stay."""
        return self.calibrated is not None and self.calibrated.survivors == "updated"

    @property
    def by_magnitude(self) -> int:
        """Matrices of the tensor that calibration did not reach."""
        return 0 if self.calibrated is None else self.calibrated.by_magnitude

    @property
    def matrices(self) -> int:
        """How many it is: more than one where it is a stack of them."""
        return math.prod(self.shape[:-2])

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.input_axis is not None and self.input_axis >= len(self.shape):
            raise fault_in("input_axis", f"is not an axis of a shape of {len(self.shape)} sizes")
        if max(self.zeros, self.zeros_before) > self.numel:
            raise fault_in("zeros", "is more than there are weights")
        if self.pattern_rows is not None and (fault := self._rows_fault(self.pattern_rows)):
            raise fault_in("pattern_rows", fault)

    def _rows_fault(self, rows: tuple[tuple[int, int], ...]) -> str:
        if self.pattern in (None, "unstructured") or not self.shape:
            return "is given for a tensor without an N:M pattern"
        ends = [end for pair in rows for end in pair]
        if any(a >= b for a, b in itertools.pairwise(ends)):
            return "is not sorted"
        length = self.shape[-1 if self.input_axis is None else self.input_axis]
        if ends[-1] > (self.numel // length if length else 0):
            return "names rows that the tensor does not have"
        return ""


def without_credentials(url: str) -> str:
    """A URL without the user, password and query that it may hold."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


class AskedRule(Document, frozen=True):
    """A recipe's rule in ``arguments``, as far as it is read again."""

    skip: bool | None = None


class AskedCalibration(Document, frozen=True):
    """A calibration in ``arguments``, as far as it is read again."""

    kind: Line | None = None
    samples: Whole | None = None


class Asked(Document, frozen=True):
    """``arguments``: what was asked for, as far as cards and checks read it again."""

    method: Line | None = None
    pattern: Line | None = None
    scope: Line | None = None
    budget: Line | None = None
    sparsity: Number | None = None
    rules: tuple[AskedRule, ...] | None = None
    calibration: AskedCalibration | None = None
