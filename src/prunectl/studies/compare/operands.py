"""The operands of a comparison, and the overlap of their masks, counted block by block."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from prunectl.analysis.distribution import kind_of
from prunectl.analysis.result import layer_label
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.mask_file import MaskFile
from prunectl.checkpoint.reader import TensorReader
from prunectl.geometry import Rows
from prunectl.magnitude.codes import code_format
from prunectl.measure.measured import Measured
from prunectl.parallel.run import Run
from prunectl.parallel.streaming import BLOCK_BYTES, Scratch
from prunectl.plan.job import plan_prune
from prunectl.plan.prunable import input_axis, prunable_tensors, require_prunable
from prunectl.plan.selectors import matches
from prunectl.plan.settings import PruneSettings
from prunectl.pruning.resolve import resolve_plan
from prunectl.studies.compare.matching import Candidate
from prunectl.studies.compare.result import Overlap
from prunectl.transform.edits import Copy, Edit, Editor, block_unit

Bits = NDArray[np.uint8]

Edits = Mapping[str, Edit]
"""Edits by name of a tensor; a tensor without an entry is copied."""


@dataclass(eq=False)
class WeightOperand:
    """A checkpoint, whose masks are those that ``prune`` would make, or its zeros.

    Attributes:
        measured: measurements of the weights.
        include, exclude: selectors of tensors to add to, and to remove from, the prunable tensors.
        recorded: prunable tensors from the manifest of this or the other operand; if not empty,
            they are used in place of roles.
        by_zeros: whether the zeros are the mask.
    """

    checkpoint: Checkpoint
    measured: Measured
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    recorded: frozenset[str] = frozenset()
    by_zeros: bool = False

    @property
    def kind(self) -> str:
        """``weights`` or ``zeros``."""
        return "zeros" if self.by_zeros else "weights"

    @property
    def name(self) -> str:
        """The model as the user named it."""
        return self.checkpoint.model

    @property
    def tensors(self) -> Collection[str]:
        """The names that a selector may match."""
        return self.checkpoint.by_name

    def candidates(self) -> dict[str, Candidate]:
        """The prunable tensors."""
        roles = self.checkpoint.roles.roles
        found = require_prunable(
            self.checkpoint, self.include, self.exclude, recorded=self.recorded
        )
        return {name: Candidate(spec.shape, roles[name]) for name, spec in found.items()}

    def place(self, name: str) -> tuple[str, str]:
        """The component and the layer of a tensor; the layer is '' outside of layers."""
        role = self.checkpoint.roles.roles[name]
        layer = "" if role.layer is None else layer_label(role)
        return kind_of(role.component or name), layer

    def edits(self, settings: PruneSettings | None, names: Sequence[str], run: Run) -> Edits:
        """The edits that ``prune`` would make if exactly the tensors ``names`` were prunable."""
        if settings is None or self.by_zeros:
            return {}
        usual = prunable_tensors(self.checkpoint).keys()
        added, removed = set(names) - usual, usual - set(names)
        settings = replace(settings, include=exactly(added), exclude=exactly(removed))
        plan = plan_prune(self.checkpoint, settings)
        return resolve_plan(self.checkpoint, plan, self.measured, run).edits

    def open(self) -> TensorReader:
        """A reader of the weights."""
        return self.checkpoint.open()

    def masks(self, name: str, edits: Sequence[Edits], reader: TensorReader) -> WeightMasks:
        """The masks of one tensor, one for each of ``edits``."""
        return WeightMasks(self.checkpoint, name, [one.get(name, Copy()) for one in edits], reader)


@dataclass(eq=False)
class MaskOperand:
    """A file of masks: the same masks at every sparsity and pattern.

    Attributes:
        include: not used, as the file cannot gain masks.
        exclude: selectors of masks to leave out.
    """

    file: MaskFile
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    kind: str = "masks"

    @property
    def name(self) -> str:
        """The path as the user named it."""
        return str(self.file.path)

    @property
    def tensors(self) -> Collection[str]:
        """The names that a selector may match."""
        return self.file.masks

    def candidates(self) -> dict[str, Candidate]:
        """The tensors with a mask in the file."""
        return {
            name: Candidate(mask.shape)
            for name, mask in self.file.masks.items()
            if not any(matches(one, name) for one in self.exclude)
        }

    def edits(self, settings: PruneSettings | None, names: Sequence[str], run: Run) -> Edits:
        """No edits: the masks exist already."""
        return {}

    def open(self) -> TensorReader:
        """A reader of the bits."""
        return self.file.open()

    def masks(self, name: str, edits: Sequence[Edits], reader: TensorReader) -> FileMasks:
        """The mask of one tensor, once for each of ``edits``."""
        return FileMasks(self.file, name, len(edits), reader)


Operand = WeightOperand | MaskOperand


def exactly(names: Iterable[str]) -> tuple[str, ...]:
    """Selectors that match exactly these tensors."""
    return tuple(f"re:^{re.escape(name)}$" for name in names)


class WeightMasks:
    """The masks of one tensor of a checkpoint, one for each edit, read block by block in order.

    Attributes:
        count: number of masks.
        itemsize: bytes of a stored weight.
        unit: blocks begin at multiples of this number of weights.
    """

    def __init__(
        self, checkpoint: Checkpoint, name: str, edits: Sequence[Edit], reader: TensorReader
    ) -> None:
        self._tensor = checkpoint.by_name[name]
        spec, self._reader = self._tensor.spec, reader
        rows = Rows.of(spec.shape, input_axis(spec, checkpoint.roles.roles[name]))
        self._editors = [None if isinstance(edit, Copy) else Editor(edit, rows) for edit in edits]
        self._format = code_format(spec.dtype)
        self.count = len(edits)
        self.itemsize = spec.dtype.bits // 8
        self.unit = math.lcm(8, *(block_unit(edit, rows) for edit in edits))

    def kept(self, first: int, count: int, scratch: Scratch) -> list[Bits]:
        """The masks of the weights from ``first`` to ``first + count``, exclusive.

        Returns:
            u8 [ceil(count / 8)] for each edit, 1 = kept. A zero of either sign is not kept.
        """
        block = scratch.buffer(count * self.itemsize)
        self._reader.read(self._tensor, first * self.itemsize, block)
        codes = block.view(self._format.uint)
        magnitude = self._format.uint.type(self._format.mask)
        edited = scratch.buffer(block.size, "edited").view(self._format.uint)
        found = []
        for editor in self._editors:
            edited[...] = codes
            if editor is not None:
                editor.apply(edited)
            found.append(np.packbits(edited & magnitude != 0, bitorder="little"))
        return found


class FileMasks:
    """The mask of one tensor in a file, as ``count`` equal masks; see :class:`WeightMasks`."""

    unit = 8
    itemsize = 1

    def __init__(self, file: MaskFile, name: str, count: int, reader: TensorReader) -> None:
        self._bits, self._reader, self.count = file.masks[name].bits, reader, count

    def kept(self, first: int, count: int, scratch: Scratch) -> list[Bits]:
        """As :meth:`WeightMasks.kept`; ``first`` is a multiple of 8."""
        bits = np.empty(-(-count // 8), np.uint8)
        self._reader.read(self._bits, first // 8, bits)
        return [bits] * self.count


def overlaps(
    first: WeightMasks | FileMasks,
    second: WeightMasks | FileMasks,
    numel: int,
    scratch: Scratch,
) -> list[Overlap]:
    """The overlaps of two tensors of ``numel`` > 0 weights, one for each pair of masks."""
    unit = math.lcm(first.unit, second.unit)
    size = max(BLOCK_BYTES // max(first.itemsize, second.itemsize) // unit, 1) * unit
    counts = np.zeros((first.count, 3), np.int64)
    for start in range(0, numel, size):
        count = min(size, numel - start)
        pairs = zip(
            first.kept(start, count, scratch), second.kept(start, count, scratch), strict=True
        )
        counts += [_pruned_counts(one, other, count) for one, other in pairs]
    return [Overlap.of_tensor(numel, *row) for row in counts.tolist()]


def _pruned_counts(first: Bits, second: Bits, count: int) -> tuple[int, int, int]:
    """How many of ``count`` weights are pruned in the first mask, in the second, and in both."""
    kept, other, either = (
        int(np.bitwise_count(bits).sum(dtype=np.int64)) for bits in (first, second, first | second)
    )
    return count - kept, count - other, count - either
