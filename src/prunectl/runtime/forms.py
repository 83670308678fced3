"""The forms in which a weight is kept in memory, all lossless.

``bitmask``: a bit for each weight, and the kept weights. With 40% zeros, bf16 takes 0.66 of the
dense bytes.

``nm``: as ``bitmask``, where every step of 32 columns keeps the same number of weights, as N:M
patterns do. No row needs a start, and a kernel does not wait for the counts of the steps before it.
A zero among the N weights of a group is kept.

``coded``: as ``bitmask``, or without a mask where that is smaller, with bf16 weights in 12 bits.
The high byte of a weight is its sign and the upper seven bits of its exponent; the 16 most frequent
high bytes of a matrix, its codebook, are nearly all that occur. A weight is kept as its low byte
and the 4-bit rank of its high byte in the codebook. Weights with other high bytes are listed by
row. With 40% zeros, 0.51 of the dense bytes are left; without zeros, 0.75.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from platform import machine
from typing import Any

import numpy as np
import numpy.typing as npt

from prunectl.cpu import cpu_features
from prunectl.jit import jit
from prunectl.layouts.kernels.masking import compact
from prunectl.lazy import torch
from prunectl.runtime.instructions import OVERREAD, X86
from prunectl.runtime.kernels import STEP
from prunectl.runtime.matrix import DTYPES, Matrix, Values

Codes = npt.NDArray[np.unsignedinteger]

_MOST = (1 << 32) - 1
"""Weights of a matrix that the starts of its rows can count."""

_CODES = {"bf16": np.uint16, "fp16": np.uint16, "fp32": np.uint32}


def reason_against(weight: torch.Tensor) -> str:
    """Why a weight cannot be kept in a form; '' if it can."""
    if weight.device.type != "cpu":
        return f"it is on {weight.device.type}, and kernels run on the CPU"
    return reason_against_kind(weight.shape, weight.dtype)


def reason_against_kind(shape: Sequence[int], dtype: torch.dtype) -> str:
    """Why no weight of a shape and dtype can be kept in a form; '' if they can."""
    if len(shape) != 2 or not math.prod(shape):
        return "it is not a matrix"
    if dtype not in DTYPES:
        return f"{str(dtype).removeprefix('torch.')} has no kernel"
    if dtype == torch.float16 and machine() in X86 and "f16c" not in cpu_features():
        return "this CPU has no instructions for float16"
    columns = -(-shape[1] // STEP) * STEP
    return "it has too many weights" if shape[0] * columns > _MOST else ""


def compress(weight: torch.Tensor, form: str, instructions: str) -> Matrix:
    """Keep a matrix [rows, columns] that no reason is against in a form, for some instructions."""
    codes, masked = _masked(weight, instructions)
    return FORMS[form](codes, masked)


def in_all_forms(weight: torch.Tensor, instructions: str) -> list[Matrix]:
    """The matrix in each form that its dtype has."""
    codes, masked = _masked(weight, instructions)
    made = (form(codes, masked) for form in FORMS.values())
    return list({one.form: one for one in made}.values())


def _masked(weight: torch.Tensor, instructions: str) -> tuple[Codes, Matrix]:
    """The codes of a matrix, padded, and its form ``bitmask``, from which others are made."""
    rows, columns = weight.shape
    gap = -columns % STEP
    padded = torch.nn.functional.pad(weight, (0, gap)) if gap else weight
    dtype = DTYPES[weight.dtype]
    width = torch.int32 if dtype == "fp32" else torch.int16
    codes = padded.contiguous().view(width).numpy().view(_CODES[dtype])
    mask = np.empty((rows, codes.shape[1] // 8), np.uint8)
    spare = OVERREAD // codes.itemsize
    data = np.empty(codes.size + spare, codes.dtype)
    kept = int(compact(codes.reshape(-1), mask.reshape(-1), data[: codes.size]))
    data.resize(kept + spare, refcheck=False)
    return codes, _bitmask(data, mask, dtype, columns, instructions)


def mapped_bitmask(
    values: Codes, mask: npt.NDArray[np.uint8], dtype: str, shape: Sequence[int], instructions: str
) -> Matrix:
    """A matrix [rows, columns], columns a multiple of ``STEP``, from the parts of layout bitmask.

    Args:
        values: the bytes of the kept weights, and ``OVERREAD`` more; not copied.
        mask: u8 [rows x columns / 8], not copied.
        dtype: ``bf16``, ``fp16`` or ``fp32``.
    """
    rows, columns = shape
    data = values.view(_CODES[dtype])
    return _bitmask(data, mask.reshape(rows, columns // 8), dtype, columns, instructions)


def _bitmask(
    data: Codes, mask: npt.NDArray[np.uint8], dtype: str, columns: int, instructions: str
) -> Matrix:
    counts = np.bitwise_count(mask).sum(axis=1, dtype=np.int64)
    values = Values(data, _starts(counts))
    return Matrix("bitmask", instructions, dtype, len(mask), columns, values, mask)


def _coded(codes: Codes, masked: Matrix) -> Matrix:
    if masked.dtype != "bf16":
        return masked
    rows, padded = codes.shape
    starts: Any = masked.values.starts
    kept = int(starts[-1])
    mask, values = masked.mask, masked.values.data[:kept]
    if (codes.size - kept) * 12 <= codes.size:  # the mask would take more than it saves
        mask, values, starts = None, codes.reshape(-1), _starts(np.full(rows, padded))
    codebook, ranks_of, escapes = _codebook(values)
    data = np.zeros(values.size + OVERREAD, np.uint8)
    ranks = np.zeros(values.size // 2 + 8 * rows + OVERREAD, np.uint8)
    places, others = np.empty(escapes, np.uint32), np.empty(escapes, np.uint16)
    escape_starts = np.zeros(rows + 1, np.uint32)
    _code(values, starts, ranks_of, data, ranks, escape_starts, places, others)
    coded = Values(
        data,
        None if mask is None else starts,
        ranks,
        codebook,
        escape_starts,
        places,
        others,
    )
    return replace(masked, form="coded", values=coded, mask=mask, _calls={})


_FILLED = 1.01
"""Values of the form ``nm`` for each weight that is not zero, at most."""


def _nm(codes: Codes, masked: Matrix) -> Matrix:
    masks = masked.mask.view(np.uint32)  # type: ignore[union-attr]
    per_step = int(np.bitwise_count(masks).max())
    size = masks.size * per_step
    if not size or size > _FILLED * (masked.values.data.size - OVERREAD // codes.itemsize):
        return masked
    data = np.zeros(size + OVERREAD // codes.itemsize, codes.dtype)
    filled = masks.copy()
    _fill(codes.reshape(-1), filled.reshape(-1), per_step, data)
    values = Values(data, per_step=per_step)
    return replace(masked, form="nm", values=values, mask=filled.view(np.uint8), _calls={})


@jit
def _fill(codes, masks, per_step, data):  # type: ignore[no-untyped-def]
    """Set the lowest zeros of each mask until it has ``per_step`` ones, and keep those codes."""
    place = 0
    for step in range(masks.size):
        mask, missing = masks[step], per_step
        for bit in range(32):
            missing -= (mask >> np.uint32(bit)) & np.uint32(1)
        for bit in range(32):
            one = np.uint32(1) << np.uint32(bit)
            if mask & one or missing > 0:
                if not mask & one:
                    mask |= one
                    missing -= 1
                data[place] = codes[32 * step + bit]
                place += 1
        masks[step] = mask


FORMS: dict[str, Callable[[Codes, Matrix], Matrix]] = {
    "bitmask": lambda codes, masked: masked,
    "nm": _nm,
    "coded": _coded,
}
"""For each form, how it is made of the padded codes [rows, padded] and their form ``bitmask``."""


def _starts(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32)


def _codebook(
    values: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], int]:
    """The 16 most frequent high bytes, the rank of each byte (16: none), and values without one."""
    counts = np.zeros(256, np.int64)
    for start in range(0, values.size, 1 << 20):
        counts += np.bincount(values[start : start + (1 << 20)] >> 8, minlength=256)
    codebook = np.argsort(-counts, kind="stable")[:16].astype(np.uint8)
    ranks = np.full(256, 16, np.uint8)
    ranks[codebook] = np.arange(16)
    return codebook, ranks, int(counts.sum() - counts[codebook].sum())


@jit
def _code(values, starts, ranks_of, data, ranks, escape_starts, places, others):  # type: ignore[no-untyped-def]
    """Split bf16 values into low bytes, ranks and escapes, row by row."""
    escapes = 0
    for row in range(starts.size - 1):
        first = np.int64(starts[row])
        place = first // 2 + 8 * row
        for k in range(np.int64(starts[row + 1]) - first):
            value = values[first + k]
            data[first + k] = value & 0xFF
            rank = ranks_of[value >> 8]
            if rank == 16:
                places[escapes] = k
                others[escapes] = value
                escapes += 1
            else:
                at = place + k // 32 * 16 + k % 32 // 16 * 8 + k % 8
                ranks[at] |= rank << (4 * (k // 8 % 2))
        escape_starts[row + 1] = escapes
