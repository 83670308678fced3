"""Read, edit, hash and write one tensor, block by block."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import blake3
import numpy as np

from prunectl.checkpoint.reader import TensorReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.errors import BadCheckpoint, BadMaskFile, NaNWeights
from prunectl.geometry import Rows
from prunectl.layouts.layout import entropy
from prunectl.magnitude.codes import CodeFormat, Codes, code_format
from prunectl.magnitude.columns import ColumnCutter
from prunectl.magnitude.masks import (
    AnyCodes,
    count_zeros,
    keep,
    kernels_for,
    nm_violations,
)
from prunectl.parallel.streaming import Bytes, Scratch
from prunectl.pattern import pruned_count
from prunectl.plan.job import OutputTensor
from prunectl.transform.edits import (
    Copy,
    CutRows,
    Edit,
    Editor,
    Keep,
    Replace,
    block_unit,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prunectl.magnitude.on_device import OnDevice

_SAMPLE = 1 << 15
"""Weights sampled to predict the packed size of a tensor."""


@dataclass(frozen=True, slots=True)
class Written:
    """Facts about one written tensor.

    Attributes:
        zeros: as written. zeros_before: in the source.
        infs: Inf values of a prunable tensor.
        blake3: of the bytes.
        exponent_bits: entropy of the exponent of a kept weight, from the beginning of the tensor.
    """

    name: str
    zeros: int
    zeros_before: int
    infs: int
    blake3: str
    exponent_bits: float = 0.0


def write_tensor(
    tensor: OutputTensor,
    edit: Edit,
    axis: int | None,
    reader: TensorReader,
    write: Callable[[int, memoryview], None],
    scratch: Scratch,
    *,
    prunable: bool,
) -> Written:
    """Stream one tensor from the source into the output.

    Args:
        tensor: which, and where its bytes are in the source.
        edit: what happens to its weights.
        axis: the input axis, along which groups and rows lie.
        prunable: whether NaN is refused and Inf counted, also where the tensor is copied.
        reader: of the source.
        write: takes (byte offset in the tensor, bytes).
        scratch: the thread's buffers.

    Raises:
        NaNWeights: a prunable tensor holds NaN.
        BadMaskFile: a mask does not follow the pattern that it claims.
    """
    spec, source = tensor.spec, tensor.source
    format = code_format(spec.dtype) if spec.dtype.is_float else None
    output = _Output(spec.name, format, write, prunable=prunable)
    rows = Rows.of(spec.shape, axis)
    if isinstance(edit, Copy) or format is None:
        for offset, block in scratch.blocks(reader, source):
            output.put(offset, block, None)
    elif isinstance(edit, CutRows) and rows.stride > 1:
        _write_across(tensor, edit, rows, reader, output, scratch)
    elif isinstance(edit, Keep):
        itemsize = spec.dtype.bits // 8
        for offset, block in scratch.blocks(reader, source, block_unit(edit, rows)):
            output.put(offset, block, partial(_keep, edit, offset // itemsize, rows, scratch))
    elif isinstance(edit, Replace):
        for offset, block in scratch.blocks(reader, source):
            output.put(offset, block, partial(_replace, edit, offset))
    else:
        editor, device = Editor(edit, rows), scratch.device_for(source)
        unit, large = block_unit(edit, rows), device is not None
        for offset, block in scratch.blocks(reader, source, unit, large=large):
            output.put(offset, block, editor.apply, device)
    return output.written()


class _Output:
    """Counts, edits, hashes and writes the blocks of one tensor, in order."""

    def __init__(
        self,
        name: str,
        format: CodeFormat | None,
        write: Callable[[int, memoryview], None],
        *,
        prunable: bool,
    ) -> None:
        self._name, self._format, self._write = name, format, write
        self._prunable = prunable
        self._digest = blake3.blake3()
        self._zeros = self._zeros_before = self._infs = 0
        self._exponent_bits = 0.0

    def put(
        self,
        offset: int,
        block: Bytes,
        edit: Callable[[Any], int] | None,
        device: OnDevice | None = None,
    ) -> None:
        """Write a block; ``edit`` changes its codes in place and returns the zeros afterwards.

        With a device, the block is copied there, edited, and copied back.
        """
        if self._format is not None:
            codes = block.view(self._format.uint)
            work = partial(self._counted, self._format, edit)
            found = device.run(codes, work, back=True) if device else work(codes)
            self._zeros_before += found[0]
            self._infs += found[1]
            self._zeros += found[2]
            if not offset:
                self._exponent_bits = _exponent_bits(codes[:_SAMPLE], self._format)
        self._digest.update(block.data)
        self._write(offset, block.data)

    def _counted(
        self, format: CodeFormat, edit: Callable[[Any], int] | None, codes: AnyCodes
    ) -> tuple[int, int, int]:
        """(zeros before, Inf values, zeros after) of a block."""
        kernels = kernels_for(codes)
        present = kernels.count_zeros(codes)
        nans, infs = kernels.odd_codes(codes, format) if self._prunable else (0, 0)
        if nans:  # NaN has no magnitude to compare
            raise NaNWeights(self._name, nans)
        return present, infs, present if edit is None else edit(codes)

    def written(self) -> Written:
        """The facts, after the last block."""
        digest = self._digest.hexdigest()
        return Written(
            self._name, self._zeros, self._zeros_before, self._infs, digest, self._exponent_bits
        )


def _exponent_bits(codes: Codes, format: CodeFormat) -> float:
    """Entropy of the exponents of nonzero weights, in bits."""
    shift = format.uint.type(format.dtype.mantissa_bits)
    exponents = (codes[codes != 0] & format.uint.type(format.mask)) >> shift
    counts = np.bincount(exponents.astype(np.intp)).tolist()
    return entropy(counts) / exponents.size if exponents.size else 0.0


def _write_across(
    tensor: OutputTensor,
    edit: CutRows,
    rows: Rows,
    reader: TensorReader,
    output: _Output,
    scratch: Scratch,
) -> None:
    """Scope ``row`` where rows run across the stored lines (Conv1D, stacked experts).

    Each matrix is read several times, in blocks of whole lines, to find its cuts. One block is in
    memory at a time.
    """
    length, width = rows.length, rows.stride
    uint = np.dtype(f"u{tensor.spec.dtype.bits // 8}")
    k = pruned_count(edit.sparsity, length)
    for first in range(0, tensor.spec.numel, length * width):
        blocks = partial(scratch.blocks, reader, tensor.source, width, part=(first, length * width))
        lines = partial(_lines, blocks, uint, width)
        cutter = ColumnCutter(lines, width, uint, k)

        def apply(codes: Codes, cutter: ColumnCutter = cutter) -> int:
            cutter.apply(codes.reshape(-1, width))
            return count_zeros(codes)

        for offset, block in blocks():
            output.put(offset, block, apply)


def _keep(edit: Keep, first: int, rows: Rows, scratch: Scratch, codes: Codes) -> int:
    """Apply the mask to ``codes`` [n], which begin at weight ``first`` of the tensor; returns
    zeros."""
    mask = edit.mask
    bits = scratch.buffer(-(-codes.size // 8), "mask")
    try:
        edit.reader.read(mask.bits, first // 8, bits)
    except BadCheckpoint as error:
        raise BadMaskFile(error.file, error.why) from None
    zeros = keep(codes, bits)
    if mask.pattern is not None:
        n, m = mask.pattern.n, mask.pattern.m
        if nm_violations(rows.groups(codes, m), n, m):
            why = f"'{mask.name}' keeps more than {n} of {m} weights somewhere, unlike its header"
            raise BadMaskFile(mask.bits.file, why)
    return zeros


def _replace(edit: Replace, offset: int, codes: Codes) -> int:
    """Replace ``codes`` by the new weights from byte ``offset`` on; returns zeros."""
    edit.reader.read(edit.tensor, offset, codes.view(np.uint8))
    return count_zeros(codes)


def _lines(
    blocks: Callable[[], Iterator[tuple[int, Bytes]]], uint: np.dtype[Any], width: int
) -> Iterator[Codes]:
    for _, block in blocks():
        yield block.view(uint).reshape(-1, width)


def edited(
    stored: StoredTensor, edit: Edit, axis: int | None, reader: TensorReader, *, prunable: bool
) -> NDArray[np.uint8]:
    """The bytes that a prune would write.

    Args:
        stored: the tensor in the source, which ``reader`` reads.
        axis: its input axis. prunable: whether NaN is refused.
    """
    out = np.empty(stored.spec.nbytes, np.uint8)

    def write(offset: int, data: memoryview) -> None:
        out[offset : offset + len(data)] = np.frombuffer(data, np.uint8)

    scratch = Scratch(threading.Event())
    output = OutputTensor(stored.spec, stored)
    write_tensor(output, edit, axis, reader, write, scratch, prunable=prunable)
    return out
