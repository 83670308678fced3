"""A matrix that stays compressed: its product with few or many rows, and its decoded rows."""

from __future__ import annotations

import ctypes
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from prunectl.cpu import multiplies_bf16
from prunectl.lazy import torch
from prunectl.runtime import pool
from prunectl.runtime.instructions import (
    INSTRUCTION_SETS,
    OVERREAD,
    tables_of,
)
from prunectl.runtime.kernels import ARGUMENTS, STEP, Kernel, compiled

MOST_ROWS = 8
"""Input rows that kernels multiply; of more, torch does. See ``_NARROW`` too."""

_NARROW = 1024
"""Columns up to which coded weights are decoded twice for ``MOST_ROWS`` rows faster than once into
a panel: measured with 576 and 1,536."""

_CHUNK_BYTES = 1 << 19
"""Dense bytes of a chunk of rows, at most: between chunks, a thread waits for memory."""

_CHUNKS = 4
"""Chunks for each thread at least, so that none waits long for another."""

_PANEL, _NARROW_PANEL = 1 << 20, 1 << 22
"""Weights of a panel that torch multiplies in fp32, and in bf16: measured best of 2^18 to 2^23."""

Array = npt.NDArray[np.generic]


Function = TypeVar("Function", bound=Callable[..., Any])


def untraced(function: Function) -> Function:
    """Keep torch.compile out of a function: traced, addresses of memory would be wrong."""
    disabled: Function = torch.compiler.disable(function)
    return disabled


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """Packed weights, row after row.

    Attributes:
        data: the bits of the weights, or their low bytes if coded, and ``OVERREAD`` bytes more.
        starts: u32 [rows + 1], the index of each row's first value; None: every column has one, or
            every step has ``per_step``.
        per_step: values of each step of ``STEP`` columns, if all have as many; else 0.
        ranks: u8, 4 bits for each coded value: the rank of its high byte in the codebook. Those of
            row r begin at byte starts[r] // 2 + 8 r. None if not coded.
        codebook: u8 [16], high bytes.
        escape_starts, escape_places, escape_values: u32 [rows + 1], u32 and u16 [escapes]: values
            whose high byte is not in the codebook, by row, and their places among the row's values.
    """

    data: Array
    starts: Array | None = None
    ranks: Array | None = None
    codebook: Array | None = None
    escape_starts: Array | None = None
    escape_places: Array | None = None
    escape_values: Array | None = None
    per_step: int = 0


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Matrix:
    """Weights in a form.

    Attributes:
        form: its name.
        instructions: the instruction set of its kernels.
        dtype: ``bf16``, ``fp16`` or ``fp32``.
        rows, columns: outputs and inputs of the product.
        values: the weights that are kept.
        mask: u8 [rows, padded / 8], bits of kept weights, the lowest first; None: all are.
        number: by which graphs name it: no other matrix has it, in this process or another.
    """

    form: str
    instructions: str
    dtype: str
    rows: int
    columns: int
    values: Values
    mask: Array | None
    number: int = field(default_factory=partial(secrets.randbits, 48))
    _calls: dict[tuple[int, bool], _Call] = field(default_factory=dict, repr=False)

    @property
    def padded(self) -> int:
        """Columns with those of zeros at the end of a row."""
        return -(-self.columns // STEP) * STEP

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        parts = [getattr(self.values, name) for name in ("data", "starts", "ranks", "codebook")]
        parts += [getattr(self.values, f"escape_{name}") for name in ("starts", "places", "values")]
        return sum(part.nbytes for part in [*parts, self.mask] if part is not None)

    @property
    def torch_dtype(self) -> torch.dtype:
        return TORCH_TYPES[self.dtype]

    def copy(self) -> Matrix:
        """The same in other memory."""
        parts: dict[str, Any] = {
            one.name: part.copy()
            for one in fields(Values)
            if isinstance(part := getattr(self.values, one.name), np.ndarray)
        }
        mask = None if self.mask is None else self.mask.copy()
        return replace(self, values=replace(self.values, **parts), mask=mask, _calls={})

    @untraced
    def product(self, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """``inputs`` [..., columns] times the transposed matrix, plus ``bias`` [rows].

        Sums are fp32; inputs, bias and the result [..., rows] have the dtype of the weights.
        """
        count = inputs.numel() // self.columns
        most = INSTRUCTION_SETS[self.instructions].most
        is_slow = self.values.ranks is not None and self.padded > _NARROW
        if count > (most if is_slow else MOST_ROWS):
            return self._many(inputs, bias)
        inputs = inputs.contiguous()
        result = inputs.new_empty((*inputs.shape[:-1], self.rows))
        added = _nothing() if bias is None else bias.float().contiguous()
        parts = -(-count // most)
        size = inputs.element_size()
        for part in range(parts):
            first, last = count * part // parts, count * (part + 1) // parts
            self._call(last - first, to_fp32=False).run(
                self.rows,
                inputs=inputs.data_ptr() + first * self.columns * size,
                outputs=result.data_ptr() + first * self.rows * size,
                bias=added.data_ptr(),
                bias_step=bias is not None,
            )
        return result

    def _many(self, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Panels of rows are decoded into the cache, and multiplied by torch."""
        is_narrow = self.dtype == "bf16" and multiplies_bf16()
        kind = inputs.dtype if is_narrow else torch.float32
        flat = inputs.reshape(-1, self.columns).to(kind)
        sums = flat.new_empty(len(flat), self.rows)
        size = _NARROW_PANEL if is_narrow else _PANEL
        step = min(self.rows, max(64, size // self.padded))
        panel = _panel(step * self.padded, kind)
        order = np.arange(self.rows)
        for first in range(0, self.rows, step):
            last = min(first + step, self.rows)
            self._decode(order[first:last], panel, to_fp32=not is_narrow)
            weights = panel[: (last - first) * self.padded].view(-1, self.padded)
            weights, into = weights[:, : self.columns].T, sums[:, first:last]
            if bias is None:
                torch.mm(flat, weights, out=into)
            else:
                torch.addmm(bias[first:last].to(kind), flat, weights, out=into)
        return sums.to(inputs.dtype).reshape(*inputs.shape[:-1], self.rows)

    @untraced
    def decoded(self, order: npt.NDArray[np.int64], *, to_fp32: bool = False) -> torch.Tensor:
        """Decode rows by their numbers: [len(order), columns], in their dtype or fp32."""
        kind = torch.float32 if to_fp32 else TORCH_TYPES[self.dtype]
        rows = torch.empty(len(order), self.padded, dtype=kind, device="cpu")
        self._decode(np.ascontiguousarray(order), rows, to_fp32=to_fp32)
        return rows[:, : self.columns]

    def _decode(self, order: npt.NDArray[np.int64], into: torch.Tensor, *, to_fp32: bool) -> None:
        call = self._call(0, to_fp32=to_fp32)
        call.run(len(order), outputs=into.data_ptr(), order=order.ctypes.data)

    def dense(self) -> torch.Tensor:
        """The whole matrix, bit for bit."""
        return self.decoded(np.arange(self.rows)).contiguous()

    def _call(self, batch: int, *, to_fp32: bool) -> _Call:
        """The kernel for ``batch`` input rows with the arguments that stay the same."""
        known = self._calls.get((batch, to_fp32))
        if known is None:
            known = self._calls[batch, to_fp32] = _Call(self, batch, to_fp32)
        return known


class _Call:
    """A kernel and its arguments for one matrix; threads may run it side by side."""

    def __init__(self, matrix: Matrix, batch: int, to_fp32: bool) -> None:
        values = matrix.values
        kernel = Kernel(
            instructions=matrix.instructions,
            dtype=matrix.dtype,
            is_masked=matrix.mask is not None,
            is_coded=values.ranks is not None,
            batch=batch,
            to_fp32=to_fp32,
            is_regular=values.per_step > 0,
        )
        self._function, self._address = compiled(kernel)
        self._tile = kernel.tile
        self._most = _CHUNK_BYTES // (matrix.padded * kernel.bits // 8)
        scratch = 2 * matrix.padded + 4 * OVERREAD
        self._scratch_bytes = 4 * batch * matrix.padded + kernel.tile * scratch
        fixed = {
            "columns": matrix.padded,
            "width": matrix.columns,
            "mask": _address(matrix.mask),
            "values": _address(values.data),
            "starts": _address(values.starts),
            "per_step": values.per_step,
            "tables": tables_of(kernel.instructions).ctypes.data,
            "scratch_bytes": self._scratch_bytes,
            "ranks": _address(values.ranks),
            "codebook": _address(values.codebook),
            "escape_starts": _address(values.escape_starts),
            "escape_places": _address(values.escape_places),
            "escape_values": _address(values.escape_values),
        }
        self._arguments = _Arguments(**fixed)

    def run(self, rows: int, **given: int) -> None:
        """Compute ``rows`` rows on torch's threads."""
        arguments = _Arguments.from_buffer_copy(self._arguments)
        arguments.rows = rows
        for name, value in given.items():
            setattr(arguments, name, value)
        threads = torch.get_num_threads()
        chunk = min(rows // (_CHUNKS * threads), self._most) if threads > 1 else self._most
        chunk = arguments.chunk = max(1, chunk // self._tile) * self._tile
        threads = min(threads, -(-rows // chunk))
        arguments.scratch = _scratch(threads * self._scratch_bytes)
        pool.run(self._function, self._address, arguments, threads)


class _Arguments(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ARGUMENTS]


TORCH_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""The dtypes of weights that kernels take."""

DTYPES = {dtype: name for name, dtype in TORCH_TYPES.items()}


def _address(part: Array | None) -> int:
    return 0 if part is None else part.ctypes.data


@cache
def _nothing() -> torch.Tensor:
    """A bias that changes no sum, not even that of -0.0."""
    return torch.full((1,), -0.0, dtype=torch.float32, device="cpu")


_own = threading.local()


def _scratch(size: int) -> int:
    """The address of memory that only this thread uses, until it asks again."""
    if getattr(_own, "size", 0) < size:
        _own.memory, _own.size = np.empty(size + OVERREAD, np.uint8), size
        _own.address = -(-_own.memory.ctypes.data // OVERREAD) * OVERREAD
    return int(_own.address)


def _panel(size: int, dtype: torch.dtype) -> torch.Tensor:
    """Room for weights that only this thread uses, until it asks again.

    New memory would be filled with zeros by the system first, which takes as long as decoding.
    """
    room: torch.Tensor | None = getattr(_own, "panel", None)
    nbytes = size * dtype.itemsize
    if room is None or len(room) < nbytes:
        room = _own.panel = torch.empty(nbytes, dtype=torch.uint8, device="cpu")
    return room[:nbytes].view(dtype)
