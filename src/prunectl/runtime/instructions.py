"""Vector instructions of CPUs: how packed weights are put back where a mask has ones.

A set of instructions emits two operations; everything else in the kernels is portable LLVM code.
*Expand*: given mask bits and a pointer to packed weights, lane i gets the next weight if bit i is
1, else 0; up to ``OVERREAD`` bytes beyond the last weight may be read. *Lookup*: bytes of a
codebook by their ranks.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir

from prunectl.cpu import cpu_features

Bytes = npt.NDArray[np.uint8]

OVERREAD = 64

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
FLOAT = ir.FloatType()
MASK_TYPES = {8: I8, 32: I32}


def vector(kind: Any, lanes: int) -> Any:
    return ir.VectorType(kind, lanes)


def splat(kind: Any, lanes: int, value: float) -> Any:
    return ir.Constant(vector(kind, lanes), [value] * lanes)


def intrinsic(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Call a function of LLVM by its full name."""
    module = builder.module
    function = module.globals.get(name) or ir.Function(
        module, ir.FunctionType(result, [argument.type for argument in arguments]), name
    )
    return builder.call(function, arguments)


def load_vector(builder: Any, pointer: Any, kind: Any, lanes: int, align: int = 1) -> Any:
    loaded = builder.load(builder.bitcast(pointer, vector(kind, lanes).as_pointer()))
    loaded.align = align
    return loaded


@dataclass(frozen=True, slots=True)
class Emitted:
    """What an expansion can use.

    Attributes:
        builder: of the kernel.
        tables: pointer to the bytes of the instruction set's tables, in its order.
    """

    builder: Any
    tables: Any

    def table(self, offset: int, row: Any, width: int, kind: Any) -> Any:
        """Row ``row`` (i32) of a table at ``offset`` whose rows have ``width`` bytes."""
        builder = self.builder
        place = builder.add(builder.mul(row, ir.Constant(I32, width)), ir.Constant(I32, offset))
        pointer = builder.gep(self.tables, [builder.zext(place, I64)])
        return load_vector(builder, pointer, kind, 8 * width // kind.width, width)


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """How one kind of CPU expands.

    Attributes:
        lanes: weights that are expanded at a time, 8 or 32: the bits of a mask.
        needs: features of the CPU in LLVM's names; all are required.
        expand16: mask (i8 or i32), pointer to bytes -> <lanes x i16>.
        expand16_high: the same in the upper halves of <lanes x i32>; None: by widening.
        expand32: mask, pointer -> <lanes x i32>.
        lookup: builder, <16 x i8> codebook, <block x i8> ranks -> <block x i8>.
        block: coded weights that are decoded at a time, 32 or 64.
        tile: rows of weights that a product takes at a time, if it has more input rows than
            ``alone``; else 1. Both are measured; the vectors of sums must fit in registers.
        most: input rows that a kernel takes at a time.
        tables: the bytes of the tables that the expansions read.
        machines: values of ``platform.machine()``; empty for any.
        is_tested: whether the tests have run with it. One that is not is checked before its use.
    """

    lanes: int
    needs: tuple[str, ...]
    expand16: Callable[[Emitted, Any, Any], Any]
    expand32: Callable[[Emitted, Any, Any], Any]
    lookup: Callable[[Any, Any, Any], Any]
    expand16_high: Callable[[Emitted, Any, Any], Any] | None = None
    tables: Callable[[], Bytes] = lambda: np.zeros(64, np.uint8)
    machines: tuple[str, ...] = ()
    is_tested: bool = False
    block: int = 32
    tile: int = 2
    alone: int = 1
    most: int = 8


def _bits_before() -> npt.NDArray[np.int64]:
    """[256, 8]: for each mask byte and bit, how many lower bits are 1; -1 where the bit is 0."""
    bits = np.arange(256)[:, None] >> np.arange(8) & 1
    return np.where(bits == 1, np.cumsum(bits, axis=1) - 1, -1)


def _byte_table(size: int, stride: int, shift: int) -> Bytes:
    """Rows of byte indices for a shuffle: weight of ``size`` bytes to ``shift`` of each ``stride``.

    0x80 gives zero in the shuffles of x86 and Arm alike.
    """
    before = _bits_before()
    table = np.full((256, 8, stride), 0x80, np.uint8)
    for byte in range(size):
        table[:, :, shift + byte] = np.where(before < 0, 0x80, before * size + byte)
    return table.reshape(-1)


def _avx2_tables() -> Bytes:
    before = _bits_before()
    lanes = np.where(before < 0, 0x80000000, before).astype(np.uint32).view(np.uint8).reshape(-1)
    return np.concatenate([_byte_table(2, 4, 2), _byte_table(2, 2, 0), lanes])


def _avx2_16_high(emitted: Emitted, mask: Any, pointer: Any) -> Any:
    """Both halves of a register get the same 16 bytes, and one shuffle puts 8 weights in place."""
    builder = emitted.builder
    twice = _twice(builder, load_vector(builder, pointer, I8, 16))
    row = emitted.table(0, builder.zext(mask, I32), 32, I8)
    placed = intrinsic(builder, "llvm.x86.avx2.pshuf.b", twice.type, twice, row)
    return builder.bitcast(placed, vector(I32, 8))


def _twice(builder: Any, packed: Any) -> Any:
    """16 bytes in both halves of a register."""
    return builder.shuffle_vector(
        packed, packed, ir.Constant(vector(I32, 32), [i % 16 for i in range(32)])
    )


def _shuffle_16(name: str, offset: int) -> Callable[[Emitted, Any, Any], Any]:
    """The expansion by a shuffle of 16 bytes, ``name``, with the table at ``offset``."""

    def expand(emitted: Emitted, mask: Any, pointer: Any) -> Any:
        builder = emitted.builder
        packed = load_vector(builder, pointer, I8, 16)
        row = emitted.table(offset, builder.zext(mask, I32), 16, I8)
        placed = intrinsic(builder, name, packed.type, packed, row)
        return builder.bitcast(placed, vector(I16, 8))

    return expand


def _avx2_32(emitted: Emitted, mask: Any, pointer: Any) -> Any:
    builder = emitted.builder
    packed = load_vector(builder, pointer, FLOAT, 8)
    row = emitted.table(12288, builder.zext(mask, I32), 32, I32)
    placed = intrinsic(builder, "llvm.x86.avx2.permps", packed.type, packed, row)
    absent = builder.icmp_signed("<", row, splat(I32, 8, 0))
    return builder.select(absent, splat(I32, 8, 0), builder.bitcast(placed, vector(I32, 8)))


def _neon_32(emitted: Emitted, mask: Any, pointer: Any) -> Any:
    builder = emitted.builder
    halves = []
    for half in range(2):
        packed = [
            load_vector(builder, builder.gep(pointer, [ir.Constant(I64, 16 * i)]), I8, 16)
            for i in range(2)
        ]
        number = builder.add(
            builder.mul(builder.zext(mask, I32), ir.Constant(I32, 2)), ir.Constant(I32, half)
        )
        row = emitted.table(4096, number, 16, I8)
        placed = intrinsic(builder, "llvm.aarch64.neon.tbl2.v16i8", packed[0].type, *packed, row)
        halves.append(builder.bitcast(placed, vector(I32, 4)))
    return builder.shuffle_vector(*halves, ir.Constant(vector(I32, 8), list(range(8))))


def _compressed_load(lanes: int, bits: int) -> Callable[[Emitted, Any, Any], Any]:
    """LLVM's own expansion, which it turns into a branch for each weight without instructions."""

    def expand(emitted: Emitted, mask: Any, pointer: Any) -> Any:
        builder, kind = emitted.builder, ir.IntType(bits)
        flags = builder.bitcast(mask, vector(I1, lanes))
        none = splat(kind, lanes, 0)
        name = f"llvm.masked.expandload.v{lanes}i{bits}"
        return intrinsic(builder, name, none.type, pointer, flags, none)

    return expand


def _avx512_16(emitted: Emitted, mask: Any, pointer: Any) -> Any:
    """The form that expands a register: the one that expands from memory is microcode.

    LLVM would merge its own intrinsic with the load into that one.
    """
    builder = emitted.builder
    packed = load_vector(builder, pointer, I16, 32)
    kind = ir.FunctionType(packed.type, [packed.type, mask.type])
    return builder.asm(kind, "vpexpandw $1, $0 {$2} {z}", "=v,v,^Yk", [packed, mask], False)


def _avx512_32(emitted: Emitted, mask: Any, pointer: Any) -> Any:
    builder = emitted.builder
    halves = []
    for half in range(2):
        part = builder.trunc(builder.lshr(mask, ir.Constant(I32, 16 * half)), I16)
        packed = load_vector(builder, pointer, I32, 16)
        flags = builder.bitcast(part, vector(I1, 16))
        name = "llvm.x86.avx512.mask.expand.v16i32"
        halves.append(intrinsic(builder, name, packed.type, packed, splat(I32, 16, 0), flags))
        kept = intrinsic(builder, "llvm.ctpop.i32", I32, builder.zext(part, I32))
        pointer = builder.gep(pointer, [builder.zext(builder.shl(kept, ir.Constant(I32, 2)), I64)])
    return builder.shuffle_vector(*halves, ir.Constant(vector(I32, 32), list(range(32))))


def _x86_lookup(builder: Any, book: Any, ranks: Any) -> Any:
    twice = _twice(builder, book)
    return intrinsic(builder, "llvm.x86.avx2.pshuf.b", twice.type, twice, ranks)


def _avx512_lookup(builder: Any, book: Any, ranks: Any) -> Any:
    lanes = ir.Constant(vector(I32, 64), [i % 16 for i in range(64)])
    whole = builder.shuffle_vector(book, book, lanes)
    return intrinsic(builder, "llvm.x86.avx512.pshuf.b.512", whole.type, whole, ranks)


def _neon_lookup(builder: Any, book: Any, ranks: Any) -> Any:
    halves = []
    for half in range(2):
        chosen = ir.Constant(vector(I32, 16), list(range(16 * half, 16 * half + 16)))
        part = builder.shuffle_vector(ranks, ranks, chosen)
        halves.append(intrinsic(builder, "llvm.aarch64.neon.tbl1.v16i8", book.type, book, part))
    return builder.shuffle_vector(*halves, ir.Constant(vector(I32, 32), list(range(32))))


def _plain_lookup(builder: Any, book: Any, ranks: Any) -> Any:
    found = ir.Constant(ranks.type, ir.Undefined)
    for lane in range(32):
        place = ir.Constant(I32, lane)
        rank = builder.zext(builder.extract_element(ranks, place), I32)
        found = builder.insert_element(found, builder.extract_element(book, rank), place)
    return found


X86, ARM = ("x86_64", "AMD64"), ("aarch64", "arm64")

INSTRUCTION_SETS: dict[str, InstructionSet] = {
    "avx512": InstructionSet(
        lanes=32,
        needs=("avx512f", "avx512bw", "avx512vl", "avx512vbmi2", "fma", "f16c"),
        expand16=_avx512_16,
        expand32=_avx512_32,
        lookup=_avx512_lookup,
        machines=X86,
        is_tested=True,
        block=64,
        tile=4,
        alone=2,
        most=6,
    ),
    "avx2": InstructionSet(
        lanes=8,
        needs=("avx2", "fma", "f16c", "popcnt"),
        expand16=_shuffle_16("llvm.x86.ssse3.pshuf.b.128", 8192),
        expand16_high=_avx2_16_high,
        expand32=_avx2_32,
        lookup=_x86_lookup,
        tables=_avx2_tables,
        machines=X86,
        is_tested=True,
    ),
    "neon": InstructionSet(
        lanes=8,
        needs=("neon",),
        expand16=_shuffle_16("llvm.aarch64.neon.tbl1.v16i8", 0),
        expand32=_neon_32,
        lookup=_neon_lookup,
        tables=lambda: np.concatenate([_byte_table(2, 2, 0), _byte_table(4, 4, 0)]),
        machines=ARM,
    ),
    "plain": InstructionSet(
        lanes=8,
        needs=(),
        expand16=_compressed_load(8, 16),
        expand32=_compressed_load(8, 32),
        lookup=_plain_lookup,
        is_tested=True,
    ),
}
"""The fastest first."""


def usable() -> list[str]:
    """Names of the instruction sets that this CPU has, the fastest first."""
    return [
        name
        for name, one in INSTRUCTION_SETS.items()
        if (not one.machines or platform.machine() in one.machines)
        and cpu_features().issuperset(one.needs)
    ]


@cache
def tables_of(name: str) -> Bytes:
    """The tables of an instruction set, on a boundary of 64 bytes."""
    data = INSTRUCTION_SETS[name].tables()
    room = np.empty(data.size + 64, np.uint8)
    start = -room.ctypes.data % 64
    placed = room[start : start + data.size]
    placed[:] = data
    return placed
