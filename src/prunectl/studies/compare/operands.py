"""The operands of a comparison, and the masks of their tensors, counted block by block."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.mask_file import MaskFile
from prunectl.checkpoint.reader import TensorReader
from prunectl.events import OnEvent
from prunectl.geometry import Rows
from prunectl.magnitude.codes import code_format
from prunectl.measure.measured import Measured
from prunectl.parallel.streaming import BLOCK_BYTES, Scratch
from prunectl.plan.job import plan_prune
from prunectl.plan.prunable import input_axis, prunable_tensors, require_prunable
from prunectl.plan.selectors import matches
from prunectl.plan.settings import PruneSettings
from prunectl.pruning.resolve import resolve_plan
from prunectl.studies.compare.matching import Candidate
from prunectl.studies.compare.result import Overlap
from prunectl.transform.edits import Copy, Edit, Editor, block_unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bits = NDArray[np.uint8]


Edits = Mapping[str, Edit]
"""What happens to tensors, by name; those that are not in it are copied."""


@dataclass(eq=False)
class WeightSide:
    """A checkpoint: its masks are what ``prune`` would make of it, or its zeros.

    Attributes:
        include, exclude: selectors that add to, and take from, its prunable tensors.
        recorded: the tensors that decide what is prunable in the place of roles, if any: those of
            its own manifest, of the other side's, or of the other side's masks.
        measured: what is known of its weights.
        by_zeros: whether its zeros are its mask.
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
        """What the user called it."""
        return self.checkpoint.model

    def candidates(self) -> dict[str, Candidate]:
        """Its prunable tensors.

        Raises:
            UnsupportedCheckpoint, NothingPrunable, InvalidOption: as :func:`require_prunable`.
        """
        roles = self.checkpoint.roles.roles
        found = require_prunable(
            self.checkpoint, self.include, self.exclude, recorded=self.recorded
        )
        return {name: Candidate(spec.shape, roles[name]) for name, spec in found.items()}

    def edits(
        self,
        target: PruneSettings | None,
        names: Sequence[str],
        *,
        jobs: int | None,
        on_event: OnEvent,
    ) -> Edits:
        """What ``prune`` would do to ``names``, which are compared with one another only."""
        if target is None or self.by_zeros:
            return {}
        usual = prunable_tensors(self.checkpoint).keys()
        added, left = set(names) - usual, usual - set(names)
        settings = replace(target, include=exactly(added), exclude=exactly(left))
        plan = plan_prune(self.checkpoint, settings)
        found = resolve_plan(self.checkpoint, plan, self.measured, jobs=jobs, on_event=on_event)
        return found.edits

    def open(self) -> TensorReader:
        """A reader of the weights."""
        return self.checkpoint.open()

    def masks(self, name: str, edits: Sequence[Edits], reader: TensorReader) -> WeightMasks:
        """The masks of one tensor, one for each of ``edits``."""
        return WeightMasks(self.checkpoint, name, [one.get(name, Copy()) for one in edits], reader)


@dataclass(eq=False)
class MaskSide:
    """A file of masks: the same at every target.

    Attributes:
        exclude: selectors of masks that are left out.
    """

    file: MaskFile
    exclude: tuple[str, ...] = ()
    kind: str = "masks"

    @property
    def name(self) -> str:
        """What the user called it."""
        return str(self.file.path)

    def candidates(self) -> dict[str, Candidate]:
        """The tensors that it has masks for."""
        return {
            name: Candidate(mask.shape)
            for name, mask in self.file.masks.items()
            if not any(matches(one, name) for one in self.exclude)
        }

    def open(self) -> TensorReader:
        """A reader of the bits."""
        return self.file.open()

    def masks(self, name: str, edits: Sequence[Edits], reader: TensorReader) -> FileMasks:
        """The mask of one tensor, as often as there are ``edits``."""
        return FileMasks(self.file, name, len(edits), reader)


Side = WeightSide | MaskSide


def exactly(names: Iterable[str]) -> tuple[str, ...]:
    """Selectors of these tensors and no others."""
    return tuple(f"re:^{re.escape(name)}$" for name in names)


class WeightMasks:
    """Masks of one tensor, block by block and in order."""

    def __init__(
        self, checkpoint: Checkpoint, name: str, edits: Sequence[Edit], reader: TensorReader
    ) -> None:
        self._tensor = checkpoint.by_name[name]
        spec, self._reader = self._tensor.spec, reader
        rows = Rows.of(spec.shape, input_axis(spec, checkpoint.roles.roles[name]))
        self._editors = [None if isinstance(edit, Copy) else Editor(edit, rows) for edit in edits]
        self._format = code_format(spec.dtype)
        self.targets = len(edits)
        self.itemsize = spec.dtype.bits // 8
        self.unit = math.lcm(8, *(block_unit(edit, rows) for edit in edits))

    def kept(self, first: int, count: int, scratch: Scratch) -> list[Bits]:
        """Of weights ``first`` to ``first + count``: u8 [ceil(count / 8)] for each edit, 1 = kept.

        A weight that is zero, of either sign, is not kept.
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
    """The mask of one tensor, block by block."""

    unit = 8
    itemsize = 1

    def __init__(self, file: MaskFile, name: str, targets: int, reader: TensorReader) -> None:
        self._bits, self._reader, self.targets = file.masks[name].bits, reader, targets

    def kept(self, first: int, count: int, scratch: Scratch) -> list[Bits]:
        """As of :class:`WeightMasks`; ``first`` is a multiple of 8."""
        bits = np.empty(-(-count // 8), np.uint8)
        self._reader.read(self._bits, first // 8, bits)
        return [bits] * self.targets


Masks = WeightMasks | FileMasks


class Sums:
    """Overlaps of tensors added up: over all of them, by component, by layer."""

    def __init__(self) -> None:
        self.whole = Overlap()
        self.components: dict[str, Overlap] = {}
        self.layers: dict[str, Overlap] = {}

    def add(self, component: str, layer: str, overlap: Overlap) -> None:
        """Add a tensor; a label of '' belongs to no group."""
        self.whole += overlap
        for group, label in ((self.components, component), (self.layers, layer)):
            if label:
                group[label] = group.get(label, Overlap()) + overlap


def overlaps(first: Masks, second: Masks, numel: int, scratch: Scratch) -> list[Overlap]:
    """The overlap at each target of two tensors of ``numel`` > 0 weights."""
    unit = math.lcm(first.unit, second.unit)
    size = max(BLOCK_BYTES // max(first.itemsize, second.itemsize) // unit, 1) * unit
    counts = np.zeros((first.targets, 3), np.int64)
    for start in range(0, numel, size):
        count = min(size, numel - start)
        pairs = zip(
            first.kept(start, count, scratch), second.kept(start, count, scratch), strict=True
        )
        counts += [_pruned(one, other, count) for one, other in pairs]
    return [Overlap.of_tensor(numel, *row) for row in counts.tolist()]


def _pruned(first: Bits, second: Bits, count: int) -> tuple[int, int, int]:
    """Of ``count`` weights: pruned in the first, in the second, in both."""
    kept, other, either = (
        int(np.bitwise_count(bits).sum(dtype=np.int64)) for bits in (first, second, first | second)
    )
    return count - kept, count - other, count - either
