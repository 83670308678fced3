"""Read, edit, hash and write one tensor, block by block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import blake3

from prunectl.checkpoint.reader import WeightReader
from prunectl.checkpoint.roles import TensorRole
from prunectl.errors import NaNWeights
from prunectl.magnitude.codes import CodeFormat, Codes, code_format
from prunectl.magnitude.masks import count_zeros, odd_codes
from prunectl.plan import input_axis
from prunectl.pruning.edits import Copy, Edit, Editor, block_unit
from prunectl.pruning.outputs import OutputTensor
from prunectl.streaming import Scratch


@dataclass(frozen=True, slots=True)
class Written:
    """What was written for one tensor: zeros before and after, Inf values, digest of the bytes."""

    name: str
    zeros: int
    zeros_before: int
    infs: int
    blake3: str


def write_tensor(
    tensor: OutputTensor,
    role: TensorRole,
    edit: Edit,
    reader: WeightReader,
    write: Callable[[int, memoryview], None],
    scratch: Scratch,
) -> Written:
    """Stream one tensor from the source into the output.

    Args:
        tensor: which, and where its bytes are.
        role: for the input axis.
        edit: what to do.
        reader: of the source.
        write: takes (byte offset in the tensor, bytes).
        scratch: the thread's buffers.

    Raises:
        NaNWeights: an edited tensor holds NaN.
    """
    spec = tensor.spec
    digest = blake3.blake3()
    zeros_before = zeros = infs = 0
    format = code_format(spec.dtype) if spec.dtype.is_float else None
    editor = None if isinstance(edit, Copy) else Editor(edit, spec, role)
    unit = block_unit(edit, spec, input_axis(spec, role))
    for offset, block in scratch.blocks(reader, tensor.source, unit):
        if format is not None:
            codes = block.view(format.uint)
            present = count_zeros(codes)
            zeros_before += present
            if editor is None:
                zeros += present
            else:
                infs += _check_block(codes, format, spec.name)
                editor.apply(codes)
        digest.update(block.data)
        write(offset, block.data)
    if editor is not None:
        zeros = editor.zeros
    return Written(spec.name, zeros, zeros_before, infs, digest.hexdigest())


def _check_block(codes: Codes, format: CodeFormat, name: str) -> int:
    """Inf values of a block; NaN stops, since it has no place in an order of magnitudes."""
    nans, infs = odd_codes(codes, format)
    if nans:
        raise NaNWeights(name, nans)
    return infs
