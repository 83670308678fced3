"""The first pass of an export: each tensor is counted and hashed, and its layout chosen."""

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
"""Patterns that are looked for where nobody says which one a tensor follows."""


@dataclass(frozen=True, slots=True)
class Expected:
    """The N:M that a tensor should follow, and along which axis."""

    pattern: NM
    axis: int


@dataclass(frozen=True, slots=True)
class Choice:
    """How one tensor will be stored.

    Attributes:
        spec: which tensor.
        layout: its layout.
        extra: the parameters of the layout.
        zeros: weights that are +0.0 or -0.0.
        blake3: of its dense bytes.
        sizes: bytes in each layout that can hold it, header left out, as its ``nbytes`` says.
    """

    spec: TensorSpec
    layout: str
    extra: Extra
    zeros: int
    blake3: str
    sizes: Mapping[str, int]

    @property
    def pattern(self) -> NM | None:
        """The N:M that the layout makes use of."""
        return pattern_of(self.extra)

    @property
    def is_dense(self) -> bool:
        return self.layout == DENSE

    @property
    def nbytes(self) -> int:
        """Bytes in its layout, about."""
        return self.sizes[self.layout]


def choose_layouts(
    checkpoint: Checkpoint,
    tensors: Sequence[StoredTensor],
    layout: str,
    expected: Mapping[str, Expected],
    axes: Mapping[str, int],
    run: Run,
) -> dict[str, Choice]:
    """Read every tensor once and decide how each is stored; by name.

    Args:
        checkpoint: the source.
        tensors: which of its tensors.
        layout: what was asked for; ``auto`` is the smallest. What would grow stays dense.
        expected: N:M patterns by tensor name; tensors without one are looked at for the usual ones.
        axes: along which these are looked for, by name; the last axis where nothing is said.

    Raises:
        BadCheckpoint: a tensor's bytes are not those that its stored hash is of.
        PatternMismatch: a tensor does not follow the pattern that is expected of it.
    """
    found: dict[str, Choice] = {}
    with checkpoint.open() as reader:

        def work(tensor: StoredTensor, scratch: Scratch) -> Choice:
            axis = axes.get(tensor.name, max(0, len(tensor.spec.shape) - 1))
            counted = _count(tensor, reader, scratch, expected.get(tensor.name), axis)
            # In this order: what is damaged follows no pattern either, and that is not the news.
            check_digest(checkpoint, tensor, counted.blake3)
            if counted.broken is not None:
                raise PatternMismatch(tensor.name, str(counted.broken))
            return _choose(tensor.spec, counted, layout)

        for tensor, choice in run.shared_tensors("measuring", tensors, work):
            found[tensor.name] = choice
    return found


def held_to(checkpoint: Checkpoint, manifest: Manifest | None) -> Checkpoint:
    """The checkpoint with the hashes of its manifest, if it has one.

    Bytes that changed since then must not get a new, right hash in what is written from them.
    """
    if manifest is None:
        return checkpoint
    stated = {record.name: record.blake3 for record in manifest.tensors}
    return replace(checkpoint, digests={**checkpoint.digests, **stated})


def check_digest(checkpoint: Checkpoint, tensor: StoredTensor, found: str) -> None:
    """Compare the hash of a tensor's dense bytes with the one that is stored, if any is.

    Raises:
        BadCheckpoint: they differ.
    """
    if checkpoint.digests.get(tensor.name, found) != found:
        raise BadCheckpoint(
            checkpoint.folder / tensor.file,
            f"tensor '{tensor.name}' is damaged: its hash is not the one that was stored",
        )


def _choose(spec: TensorSpec, counted: _Counted, layout: str) -> Choice:
    survey, name, extra, nbytes = counted.survey, DENSE, {}, {DENSE: spec.nbytes}
    # A name may leave no room for those of parts.
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
    """What one pass over a tensor tells.

    ``survey`` is None for types that are always dense; ``broken`` is the pattern that was expected
    and does not hold.
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
        negative += int(np.count_nonzero(codes == _negative_zero(spec)))
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
    """Groups of the patterns that a tensor may follow."""
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
    """The pattern with fewest places left empty, of those that hold; None if none does."""
    return min(grids, key=lambda p: (p.n / p.m, p.m), default=None)


def _negative_zero(spec: TensorSpec) -> int:
    return 1 << (spec.dtype.bits - 1)
