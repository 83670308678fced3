"""The first pass of an export: count and hash each tensor, and choose its layout."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import blake3
import numpy as np

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.reader import TensorReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.errors import BadCheckpoint, PatternMismatch
from prunectl.layouts.errors import Misfit
from prunectl.layouts.layout import Extra, Survey, pattern_of
from prunectl.layouts.table import AUTO, CODINGS, DENSE, SUFFIXES, by_size, sizes
from prunectl.output.manifest import Manifest
from prunectl.parallel.run import Run
from prunectl.parallel.streaming import Scratch
from prunectl.pattern import NM
from prunectl.tensorspec import TensorSpec, name_fault

if TYPE_CHECKING:
    from prunectl.layouts.groups import Grid

DETECTED = (NM(1, 4), NM(1, 2), NM(2, 4), NM(4, 8))
"""Patterns to look for in a tensor without a stated pattern."""


@dataclass(frozen=True, slots=True)
class Expected:
    """The N:M that a tensor should follow, and its axis."""

    pattern: NM
    axis: int


@dataclass(frozen=True, slots=True)
class Choice:
    """How one tensor will be stored.

    Attributes:
        spec: the tensor.
        layout: its layout.
        extra: the parameters of the layout.
        zeros: weights that are +0.0 or -0.0.
        blake3: hash of its dense bytes.
        sizes: bytes in each layout that can hold it, without the header.
    """

    spec: TensorSpec
    layout: str
    extra: Extra
    zeros: int
    blake3: str
    sizes: Mapping[str, int]

    @property
    def pattern(self) -> NM | None:
        """The N:M that the layout uses."""
        return pattern_of(self.extra)

    @property
    def is_dense(self) -> bool:
        return self.layout == DENSE

    @property
    def nbytes(self) -> int:
        """Approximate bytes in its layout."""
        return self.sizes[self.layout]


def choose_layouts(
    checkpoint: Checkpoint,
    tensors: Sequence[StoredTensor],
    layout: str,
    expected: Mapping[str, Expected],
    axes: Mapping[str, int],
    run: Run,
) -> dict[str, Choice]:
    """Read every tensor once and choose its layout; by name.

    Args:
        layout: the requested one; ``auto`` is the smallest. A tensor that would grow stays dense.
        expected: N:M patterns by tensor name; other tensors are checked for the usual patterns.
        axes: axes of that check by tensor name; by default the last.

    Raises:
        BadCheckpoint: a tensor's bytes do not match its stored hash.
        PatternMismatch: a tensor does not follow its expected pattern.
    """
    found: dict[str, Choice] = {}
    with checkpoint.open() as reader:

        def work(tensor: StoredTensor, scratch: Scratch) -> Choice:
            axis = axes.get(tensor.name, max(0, len(tensor.spec.shape) - 1))
            counted = _count(tensor, reader, scratch, expected.get(tensor.name), axis)
            # hash first: a damaged tensor follows no pattern either, and the damage is the cause
            check_digest(checkpoint, tensor, counted.blake3)
            if counted.broken is not None:
                raise PatternMismatch(tensor.name, str(counted.broken))
            return _choose(tensor.spec, counted, layout)

        for tensor, choice in run.shared_tensors("measuring", tensors, work):
            found[tensor.name] = choice
    return found


def held_to(checkpoint: Checkpoint, manifest: Manifest | None) -> Checkpoint:
    """The checkpoint with the hashes of its manifest, if it has one.

    Bytes that changed since must not get a new, matching hash in the output.
    """
    if manifest is None:
        return checkpoint
    stated = {record.name: record.blake3 for record in manifest.tensors}
    return replace(checkpoint, digests={**checkpoint.digests, **stated})


def check_digest(checkpoint: Checkpoint, tensor: StoredTensor, found: str) -> None:
    """Compare the hash of a tensor's dense bytes with the stored one, if there is one.

    Raises:
        BadCheckpoint: they differ.
    """
    if checkpoint.digests.get(tensor.name, found) != found:
        raise BadCheckpoint(
            checkpoint.folder / tensor.file,
            f"tensor '{tensor.name}' is damaged: it does not match its stored hash",
        )


def _choose(spec: TensorSpec, counted: _Counted, layout: str) -> Choice:
    survey, name, extra, nbytes = counted.survey, DENSE, {}, {DENSE: spec.nbytes}
    # The name may leave no room for suffixes of parts.
    if any(name_fault(f"{spec.name}.{suffix}") for suffix in SUFFIXES):
        survey = None
    if survey is not None:
        nbytes = sizes(survey)
        asked = nbytes if layout == AUTO else {n: nbytes[n] for n in (DENSE, layout) if n in nbytes}
        name = by_size(asked)[0]
    if survey is not None and name in CODINGS:
        extra = CODINGS[name].parameters(survey)
    return Choice(spec, name, extra, counted.zeros, counted.blake3, nbytes)


@dataclass(frozen=True, slots=True)
class _Counted:
    """The facts of one pass over a tensor.

    ``survey`` is None for types that are always dense; ``broken`` is an expected pattern that does
    not hold.
    """

    survey: Survey | None
    zeros: int
    blake3: str
    broken: NM | None


def _count(
    tensor: StoredTensor,
    reader: TensorReader,
    scratch: Scratch,
    expected: Expected | None,
    axis: int,
) -> _Counted:
    from prunectl.layouts.kernels import grouping, symbols
    from prunectl.layouts.parts import fixed

    spec, digest = tensor.spec, blake3.blake3()
    is_counted = spec.dtype.is_float and spec.dtype.bits >= 8 and spec.numel > 0
    grids = dict(_grids(spec, expected, axis)) if is_counted else {}
    unit = math.lcm(1, *(grid.m * grid.inner for grid in grids.values()))
    tables, zeros, negative = np.zeros((4, 256), np.int64), 0, 0
    for _, block in scratch.blocks(reader, tensor, unit):
        digest.update(block.data)
        if not is_counted:
            continue
        codes = fixed(block.view(f"u{spec.dtype.bits // 8}"))
        zeros += int(symbols.tally(codes, tables))
        negative += int(np.count_nonzero(codes == 1 << (spec.dtype.bits - 1)))
        for candidate, grid in list(grids.items()):
            groups = codes.size // grid.m
            if grouping.overfull(grid.read(codes, 0, groups), grid.n) >= 0:
                del grids[candidate]
    counts = tables.sum(0)
    counts[0] -= zeros
    axis = expected.axis if expected else axis
    survey = Survey(spec.dtype, spec.shape, zeros, counts, _tightest(grids), axis)
    broken = expected.pattern if expected and is_counted and not grids else None
    held = survey if is_counted else None
    return _Counted(held, zeros + negative, digest.hexdigest(), broken)


def _grids(spec: TensorSpec, expected: Expected | None, axis: int) -> Iterator[tuple[NM, Grid]]:
    """The groups of each pattern that a tensor may follow."""
    from prunectl.layouts.groups import Grid

    if expected is not None:
        yield expected.pattern, Grid.of(spec.shape, expected.pattern, expected.axis)
        return
    if len(spec.shape) < 2:
        return
    for pattern in DETECTED:
        try:
            yield pattern, Grid.of(spec.shape, pattern, axis)
        except Misfit:
            continue


def _tightest(grids: Mapping[NM, Grid]) -> NM | None:
    """The pattern that keeps the smallest share, of those that hold; None if none does."""
    return min(grids, key=lambda p: (p.n / p.m, p.m), default=None)
