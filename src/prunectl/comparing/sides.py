"""The two things that are compared: weights that masks are made of, zeros, or a file of masks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from prunectl.analysis.measured import Measured
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.mask_file import MaskFile
from prunectl.checkpoint.reader import TensorReader
from prunectl.comparing.matching import Candidate
from prunectl.events import OnEvent
from prunectl.magnitude.codes import code_format
from prunectl.plan import input_axis
from prunectl.pruning.edits import Copy, Edit, Editor, block_unit
from prunectl.pruning.job import plan_prune
from prunectl.pruning.resolve import resolve_plan
from prunectl.selectors import matches
from prunectl.settings import PruneSettings
from prunectl.streaming import Scratch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bits = NDArray[np.uint8]

Edits = Mapping[str, Edit]
"""What happens to tensors, by name; those that are not in it are copied."""

_ANY = 0.5
"""Which tensors are prunable does not depend on how much goes."""


@dataclass(eq=False)
class WeightSide:
    """A checkpoint: its masks are what ``prune`` would make of it, or its zeros.

    Attributes:
        settings: what else counts as prunable; their sparsity and pattern are not looked at.
        measured: what is known of its weights.
        by_zeros: whether its zeros are its mask.
    """

    checkpoint: Checkpoint
    settings: PruneSettings
    measured: Measured
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
            UnsupportedCheckpoint, NothingPrunable, UsageError: as :func:`plan_prune`.
        """
        plan = plan_prune(self.checkpoint, replace(self.settings, sparsity=_ANY))
        return {
            entry.spec.name: Candidate(entry.spec.shape, entry.role)
            for entry in plan.tensors
            if entry.prunable
        }

    def edits(
        self,
        target: PruneSettings,
        names: Sequence[str],
        *,
        jobs: int | None,
        on_event: OnEvent,
    ) -> Edits:
        """What ``prune`` would do to ``names``, which are compared with one another only."""
        if self.by_zeros:
            return {}
        others = self.candidates().keys() - set(names)
        settings = replace(
            target,
            include=self.settings.include,
            exclude=(*self.settings.exclude, *(f"re:^{re.escape(name)}$" for name in others)),
        )
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


class WeightMasks:
    """Masks of one tensor, block by block and in order."""

    def __init__(
        self, checkpoint: Checkpoint, name: str, edits: Sequence[Edit], reader: TensorReader
    ) -> None:
        self._tensor = checkpoint.by_name[name]
        spec, self._reader = self._tensor.spec, reader
        axis = input_axis(spec, checkpoint.roles.roles[name])
        self._editors = [
            None if isinstance(edit, Copy) else Editor(edit, spec, axis) for edit in edits
        ]
        self._format = code_format(spec.dtype)
        self.targets = len(edits)
        self.itemsize = spec.dtype.bits // 8
        self.unit = math.lcm(8, *(block_unit(edit, spec, axis) for edit in edits))

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
