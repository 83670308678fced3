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
    """Return the JSON Schema of a field that only a :class:`Check` checks completely."""
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
    """The source of the weights.

    Attributes:
        model: the source as the user gave it.
        kind: ``hub``, ``folder``, ``file``, or ``demo`` (the embedded model).
        repo_id, revision, commit, endpoint: of a Hub source; ``revision`` as requested, ``commit``
            as resolved. Credentials inside ``endpoint`` are not written.
        files: the weight files.
    """

    model: PathText
    kind: Literal["hub", "folder", "file", "demo"]
    repo_id: RepoId | None
    revision: Line | None
    commit: Line | None
    endpoint: Annotated[PathText, Check(_endpoint_fault)] | None
    files: tuple[SourceFile, ...]


class Count(Document, frozen=True):
    """Zeros among a set of weights, before and after.

    Attributes:
        requested: the requested sparsity, 0..1, or None.
        achieved: sparsity afterwards, zeros / weights; 0 if there are no weights.
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
        """Return the count of these numbers, with their sparsity."""
        return cls(weights, zeros_before, zeros, requested, _share(zeros, weights))


def _share(zeros: int, weights: int) -> float:
    return zeros / weights if weights else 0.0


class Calibrated(Document, frozen=True):
    """The results of calibration for a tensor; docs/manifest.md explains each number."""

    survivors: Literal["kept", "updated"]
    tokens: Whole
    skipped: Whole
    error: Positive | None
    error_before_refine: Positive | None
    damping: Positive
    raised: Whole
    dead_inputs: Whole
    by_magnitude: Whole
    steps: Whole = 0
    block_error_before: Positive | None = None
    block_error: Positive | None = None
    scale_steps: Whole = 0
    divergence_before: Positive | None = None
    divergence: Positive | None = None


class TensorRecord(Document, frozen=True):
    """One tensor of the output.

    Attributes:
        name, dtype, shape: as in the weights file (dtype as safetensors names it).
        file: the weights file that holds it.
        role, layer: its role and block in the model; ``layer`` is None outside the blocks.
        pattern: ``unstructured`` or ``N:M`` if it was pruned, else None.
        sparsity: the sparsity requested for this tensor alone (scope tensor or row, or a recipe),
            else None.
        zeros, zeros_before: exact counts of +0.0 and -0.0 in output and source.
        threshold: largest pruned magnitude, if magnitudes were compared, else None.
        blake3: digest of its dense bytes, in any layout.
        layout: how it is stored.
        reason: why it was not pruned; None if it was.
        prunable: whether it counts among the prunable weights, pruned or not.
        tied_to: name of the earlier tensor that it repeats (one tensor in the source, under two
            names); it counts once in the totals.
        input_axis: axis of ``shape`` along which N:M groups lie; None if it has none.
        stored_bytes: its size in the weights file; None in manifests before schema 1.1, where every
            tensor is dense.
        calibrated: the results of calibration; None if magnitudes or a mask decided, and in
            manifests before schema 1.2.
        pattern_rows: rows [start, stop) that follow the N:M pattern, numbered through the tensor's
            matrices, sorted and disjoint; None if all do, and in manifests before schema 1.2.
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
        """Whether calibration changed the kept weights."""
        return self.calibrated is not None and self.calibrated.survivors == "updated"

    @property
    def by_magnitude(self) -> int:
        """Matrices of the tensor that calibration did not reach."""
        return 0 if self.calibrated is None else self.calibrated.by_magnitude

    @property
    def matrices(self) -> int:
        """Number of matrices: more than one for a stack."""
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
    """Return a URL without its user, password and query."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


class AskedRule(Document, frozen=True):
    """A recipe's rule in ``arguments``: the members that are read again."""

    skip: bool | None = None


class AskedCalibration(Document, frozen=True):
    """A calibration in ``arguments``: the members that are read again."""

    kind: Line | None = None
    samples: Whole | None = None


class Asked(Document, frozen=True):
    """``arguments``, the requested settings: the members that cards and checks read again."""

    method: Line | None = None
    pattern: Line | None = None
    scope: Line | None = None
    budget: Line | None = None
    sparsity: Number | None = None
    rules: tuple[AskedRule, ...] | None = None
    calibration: AskedCalibration | None = None
