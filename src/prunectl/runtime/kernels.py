"""Kernels over compressed matrices: products with a few input rows, and decoding of rows.

A kernel is one function, ``void work(i64 *arguments)``, which any number of threads run at once:
each takes the next chunk of rows from a counter until none is left. A row is computed by one thread
in one order, so results do not depend on the number of threads. Sums are fp32.

The function is written as LLVM code for this CPU; no compiler is needed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from prunectl.runtime.frame import Frame, floats, lanes_of, total_of
from prunectl.runtime.instructions import (
    FLOAT,
    I8,
    I16,
    I32,
    I64,
    INSTRUCTION_SETS,
    MASK_TYPES,
    OVERREAD,
    Emitted,
    intrinsic,
    load_vector,
    splat,
    vector,
)

STEP = 32
"""Columns of an inner step; the columns of a compressed matrix are padded to a multiple of it."""

BLOCK = 32
"""Coded values that are decoded at a time."""

ARGUMENTS = (
    "counter", "slot", "rows", "chunk", "columns", "width", "inputs", "outputs", "mask", "values",
    "starts", "tables", "bias", "bias_step", "scratch", "scratch_bytes", "ranks", "codebook",
    "escape_starts", "escape_places", "escape_values", "order", "per_step",
)  # fmt: skip
"""The i64 arguments of a kernel, in their order; pointers are addresses, 0 if there is none."""


_AHEAD, _CODED_AHEAD = 8192, 4096
"""Bytes to fetch ahead: of packed values, best of 512 to 16,384; of low bytes and of ranks."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a kernel computes; each combination is compiled when it is first needed.

    Attributes:
        instructions: a name in INSTRUCTION_SETS.
        dtype: of the weights: ``bf16``, ``fp16``, ``fp32``.
        is_masked: whether zeros are left out.
        is_regular: whether every step of a masked row keeps ``per_step`` weights. Then a step need
            not wait for the counts of those before it.
        is_coded: whether bf16 values are stored in 12 bits.
        batch: input rows of a product, whose inputs and outputs have the dtype of the weights; 0
            decodes rows instead.
        to_fp32: whether decoded rows are converted to fp32; else they keep their dtype.
    """

    instructions: str
    dtype: str
    is_masked: bool
    is_coded: bool
    batch: int = 0
    to_fp32: bool = False
    is_regular: bool = False

    @property
    def bits(self) -> int:
        return 32 if self.dtype == "fp32" else 16

    @property
    def lanes(self) -> int:
        """Sums in a vector of the CPU."""
        return min(16, INSTRUCTION_SETS[self.instructions].lanes)

    @property
    def tile(self) -> int:
        """Rows of weights that are multiplied side by side: they share what is loaded of inputs."""
        instructions = INSTRUCTION_SETS[self.instructions]
        return instructions.tile if self.batch > instructions.alone else 1

    @property
    def sums(self) -> int:
        """Vectors of sums for a row of weights and one of inputs: an addition takes 4 cycles."""
        return 4 if self.tile == 1 else 1


Function = Callable[[int], None]


@cache
def compiled(kernel: Kernel) -> tuple[Function, int]:
    """The kernel as a function of the address of its arguments, and its own address."""
    module = ir.Module("prunectl")
    _Writer(kernel, module).write()
    machine = _target_machine()
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    tuning = llvm.create_pipeline_tuning_options(speed_level=2)
    tuning.loop_vectorization = True
    passes = llvm.create_pass_builder(machine, tuning)
    passes.getModulePassManager().run(parsed, passes)
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    _engines.append(engine)  # its machine code lives as long as the engine
    address = engine.get_function_address("work")
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address), address


_engines: list[Any] = []


@cache
def _target_machine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        jit=True,
    )


def rank_place(value: int, block: int) -> int:
    """Where a value's rank is when the low halves of ``block // 2`` bytes precede the high."""
    part, within = divmod(value, BLOCK)
    eight, low = divmod(within, 8)
    return eight % 2 * (block // 2) + BLOCK // 2 * part + 8 * (eight // 2) + low


class _Writer(Frame):
    """Writes one kernel."""

    def __init__(self, kernel: Kernel, module: Any) -> None:
        super().__init__(module, ARGUMENTS)
        self.kernel = kernel
        self.set = INSTRUCTION_SETS[kernel.instructions]
        self.columns = self.arguments["columns"]

    def write(self) -> None:
        """Take chunks of rows until none is left."""
        builder, function = self.builder, self.function
        rows, chunk = self.argument("rows"), self.argument("chunk")
        own = builder.mul(self.next_of("slot"), self.argument("scratch_bytes"))
        self.scratch = self.at(self.argument("scratch", I8), own)
        if self.kernel.batch:
            self.inputs = builder.bitcast(self.scratch, FLOAT.as_pointer())
            size = builder.mul(self.columns, ir.Constant(I64, 4 * self.kernel.batch))
            self.scratch = self.at(self.scratch, size)
            self.convert_inputs()
        take, work, done = (function.append_basic_block() for _ in range(3))
        builder.branch(take)
        builder.position_at_end(take)
        first = builder.mul(self.next_of("counter"), chunk)
        builder.cbranch(builder.icmp_unsigned("<", first, rows), work, done)
        builder.position_at_end(work)
        last = builder.add(first, chunk)
        last = builder.select(builder.icmp_unsigned("<", last, rows), last, rows)
        with self.loop(first, last, [], self.kernel.tile) as (row, _):
            if self.kernel.batch:
                self.product(row, rows)
            else:
                self.decoding(row)
        builder.branch(take)
        builder.position_at_end(done)
        builder.ret_void()

    def convert_inputs(self) -> None:
        """Each thread's own copy of the input rows, in fp32, with zeros in the padded columns."""
        builder, width = self.builder, self.argument("width")
        kind = ir.IntType(self.kernel.bits)
        for j in range(self.kernel.batch):
            row = ir.Constant(I64, j)
            given = self.at(self.argument("inputs", kind), builder.mul(width, row))
            exact = self.at(self.inputs, builder.mul(self.columns, row))
            with self.loop(ir.Constant(I64, 0), width, []) as (column, _):
                value = floats(builder, self.kernel.dtype, builder.load(self.at(given, column)))
                builder.store(value, self.at(exact, self.place_of(column)))
            with self.loop(width, self.columns, []) as (column, _):
                builder.store(ir.Constant(FLOAT, 0.0), self.at(exact, self.place_of(column)))

    def place_of(self, column: Any) -> Any:
        """Where the input of a column is kept."""
        if not self.splits:
            return column
        builder = self.builder
        first = builder.and_(column, ir.Constant(I64, -STEP))
        odd = builder.mul(builder.and_(column, ir.Constant(I64, 1)), ir.Constant(I64, STEP // 2))
        within = builder.lshr(builder.and_(column, ir.Constant(I64, STEP - 1)), ir.Constant(I64, 1))
        return builder.add(builder.add(first, odd), within)

    def start_of(self, row: Any) -> Any:
        """Index of the first value of a row."""
        if not self.kernel.is_masked:
            return self.builder.mul(row, self.columns)
        if self.kernel.is_regular:
            steps = self.builder.udiv(self.columns, ir.Constant(I64, STEP))
            return self.builder.mul(self.builder.mul(row, steps), self.argument("per_step"))
        start = self.builder.load(self.at(self.argument("starts", I32), row))
        return self.builder.zext(start, I64)

    def packed_row(self, row: Any, part: int = 0) -> Any:
        """Pointer to the packed values of a row, decoded first if they are coded."""
        builder = self.builder
        start = self.start_of(row)
        if not self.kernel.is_coded:
            size = ir.Constant(I64, self.kernel.bits // 8)
            return self.at(self.argument("values", I8), builder.mul(start, size))
        end = self.start_of(builder.add(row, ir.Constant(I64, 1)))
        size = builder.mul(self.columns, ir.Constant(I64, 2 * part))
        target = self.at(self.scratch, builder.add(size, ir.Constant(I64, 4 * OVERREAD * part)))
        self.decode_values(row, start, end, target)
        self.put_escapes(row, target)
        return target

    def decode_values(self, row: Any, start: Any, end: Any, scratch: Any) -> None:
        """A row's low bytes, and the ranks of its high bytes -> bf16 in the scratch.

        The ranks of 32 values are 16 bytes: byte i < 8 holds those of values i (low) and i + 8, and
        byte i + 8 those of values i + 16 and i + 24.
        """
        builder = self.builder
        lows, codebook = self.argument("values", I8), self.argument("codebook", I8)
        book = load_vector(builder, codebook, I8, 16)
        skipped = builder.add(
            builder.lshr(start, ir.Constant(I64, 1)), builder.mul(row, ir.Constant(I64, 8))
        )
        ranks, lows = self.at(self.argument("ranks", I8), skipped), self.at(lows, start)
        block = self.set.block
        count = builder.add(builder.sub(end, start), ir.Constant(I64, block - 1))
        blocks = builder.udiv(count, ir.Constant(I64, block))
        where = [rank_place(value, block) for value in range(block)]
        with self.loop(ir.Constant(I64, 0), blocks, []) as (number, _):
            first = builder.mul(number, ir.Constant(I64, block))
            place = builder.lshr(first, ir.Constant(I64, 1))
            pairs = load_vector(builder, self.at(ranks, place), I8, block // 2)
            ahead = ir.Constant(I64, _CODED_AHEAD)
            self.ask_for(self.at(ranks, place), ahead)
            self.ask_for(self.at(lows, first), ahead)
            both = builder.shuffle_vector(
                builder.and_(pairs, splat(I8, block // 2, 15)),
                builder.lshr(pairs, splat(I8, block // 2, 4)),
                ir.Constant(vector(I32, block), list(range(block))),
            )
            high = self.set.lookup(builder, book, both)
            low = load_vector(builder, self.at(lows, first), I8, block)
            for half in range(0, block, 32):
                mixed = [lane for v in range(half, half + 32) for lane in (v, block + where[v])]
                codes = builder.shuffle_vector(low, high, ir.Constant(vector(I32, 64), mixed))
                into = builder.shl(builder.add(first, ir.Constant(I64, half)), ir.Constant(I64, 1))
                target = builder.bitcast(self.at(scratch, into), codes.type.as_pointer())
                builder.store(codes, target).align = 1

    def put_escapes(self, row: Any, scratch: Any) -> None:
        """Write the values of a row whose exponents have no rank to their places."""
        builder = self.builder
        starts = self.argument("escape_starts", I32)
        places = self.argument("escape_places", I32)
        values = self.argument("escape_values", I16)
        following = builder.add(row, ir.Constant(I64, 1))
        first, last = (
            builder.zext(builder.load(self.at(starts, at)), I64) for at in (row, following)
        )
        target = builder.bitcast(scratch, I16.as_pointer())
        with self.loop(first, last, []) as (number, _):
            place = builder.zext(builder.load(self.at(places, number)), I64)
            value = builder.load(self.at(values, number))
            builder.store(value, self.at(target, place)).align = 2

    def expand(self, mask: Any, pointer: Any, *, as_floats: bool) -> tuple[Any, Any]:
        """The next ``lanes`` weights of a row, as fp32 or as they are; and the advanced pointer."""
        builder, lanes, bits = self.builder, self.set.lanes, self.kernel.bits
        emitted = Emitted(builder, self.argument("tables", I8))
        if not self.kernel.is_masked:
            codes = load_vector(builder, pointer, ir.IntType(bits), lanes)
            following = self.at(pointer, ir.Constant(I64, lanes * bits // 8))
        else:
            count = intrinsic(builder, "llvm.ctpop.i32", I32, builder.zext(mask, I32))
            size = builder.mul(builder.zext(count, I64), ir.Constant(I64, bits // 8))
            following = self.at(pointer, size)
            if self.kernel.dtype == "bf16" and as_floats and self.set.expand16_high:
                placed = self.set.expand16_high(emitted, mask, pointer)
                return builder.bitcast(placed, vector(FLOAT, lanes)), following
            expand = self.set.expand16 if bits == 16 else self.set.expand32
            codes = expand(emitted, mask, pointer)
        return (floats(builder, self.kernel.dtype, codes) if as_floats else codes), following

    @property
    def splits(self) -> bool:
        """Whether products take each step's even columns before the odd ones."""
        return self.kernel.dtype == "bf16" and self.set.lanes == STEP

    def split(self, codes: Any) -> Any:
        """bf16 codes of a step -> fp32, even columns first: half the work of widening in order."""
        builder = self.builder
        pairs = builder.bitcast(codes, vector(I32, STEP // 2))
        halves = [
            builder.shl(pairs, splat(I32, STEP // 2, 16)),
            builder.and_(pairs, splat(I32, STEP // 2, 0xFFFF0000)),
        ]
        both = builder.shuffle_vector(*halves, ir.Constant(vector(I32, STEP), list(range(STEP))))
        return builder.bitcast(both, vector(FLOAT, STEP))

    def mask_of(self, row: Any) -> Any:
        """Pointer to the mask of a row."""
        if not self.kernel.is_masked:
            return None
        size = self.builder.mul(row, self.builder.udiv(self.columns, ir.Constant(I64, 8)))
        return self.at(self.argument("mask", I8), size)

    def masks_of(self, masks: Any, step: Any) -> list[Any]:
        """The masks of the groups of a step."""
        lanes = self.set.lanes
        if masks is None:
            return [None] * (STEP // lanes)
        builder, kind = self.builder, MASK_TYPES[lanes]
        place = builder.mul(step, ir.Constant(I64, STEP // 8))
        whole = builder.load(builder.bitcast(self.at(masks, place), I32.as_pointer()))
        whole.align = 1
        if lanes == STEP:
            return [whole]
        shifts = (ir.Constant(I32, first) for first in range(0, STEP, lanes))
        return [builder.trunc(builder.lshr(whole, shift), kind) for shift in shifts]

    def product(self, first: Any, rows: Any) -> None:
        """outputs[j, row] = sum over columns of inputs[j] * the row, + bias[row], for each j.

        Computes a tile of rows from ``first`` on. A tile that ends beyond the last row repeats the
        last row.
        """
        builder, kernel = self.builder, self.kernel
        batch, tile, sums = kernel.batch, kernel.tile, kernel.sums
        numbers = [first]
        for i in range(1, tile):
            row = builder.add(first, ir.Constant(I64, i))
            is_there = builder.icmp_unsigned("<", row, rows)
            numbers.append(builder.select(is_there, row, numbers[-1]))
        masks = [self.mask_of(row) for row in numbers]
        now = [self.packed_row(row, i) for i, row in enumerate(numbers)]
        begun = now[0]
        now += [splat(FLOAT, kernel.lanes, 0.0)] * (tile * batch * sums)
        ahead = builder.sub(builder.ptrtoint(now[tile - 1], I64), builder.ptrtoint(begun, I64))
        ahead = builder.add(ahead, ir.Constant(I64, _AHEAD))
        steps = builder.udiv(self.columns, ir.Constant(I64, STEP))
        together = max(1, sums * kernel.lanes // STEP)
        several = ir.Constant(I64, together)
        whole = builder.udiv(steps, several)
        with self.loop(ir.Constant(I64, 0), whole, now) as (number, now):
            for turn in range(together):
                step = builder.add(builder.mul(number, several), ir.Constant(I64, turn))
                self.step(step, masks, now, ahead, turn)
        if together > 1:
            with self.loop(builder.mul(whole, several), steps, now) as (step, now):
                self.step(step, masks, now, ahead, 0)
        for i, row in enumerate(numbers):
            for j in range(batch):
                base = tile + (i * batch + j) * sums
                total = total_of(builder, now[base : base + sums])
                place = builder.add(builder.mul(rows, ir.Constant(I64, j)), row)
                self.put(total, row, place)

    def step(self, step: Any, masks: list[Any], now: list[Any], ahead: Any, turn: int) -> None:
        """Multiply the ``STEP`` columns of a step.

        ``now`` holds the pointers to the packed rows of the tile, then the vectors of sums: those
        of its first row with the first input row, and so on.
        """
        builder, kernel, lanes = self.builder, self.kernel, self.set.lanes
        batch, tile, sums, width = kernel.batch, kernel.tile, kernel.sums, kernel.lanes
        begun = now[:tile]
        if not kernel.is_coded:
            for pointer in begun:
                self.ask_for(pointer, ahead)
        step_masks = [self.masks_of(mask, step) for mask in masks]
        for group in range(STEP // lanes):
            weights = []
            for i in range(tile):
                codes, now[i] = self.expand(step_masks[i][group], now[i], as_floats=not self.splits)
                weights.append(self.split(codes) if self.splits else codes)
            first = builder.mul(step, ir.Constant(I64, STEP))
            column = builder.add(first, ir.Constant(I64, group * lanes))
            for j in range(batch):
                place = builder.add(builder.mul(self.columns, ir.Constant(I64, j)), column)
                value = load_vector(builder, self.at(self.inputs, place), FLOAT, lanes, 4)
                for i in range(tile):
                    base = tile + (i * batch + j) * sums
                    for k in range(0, lanes, width):
                        part = turn * STEP + group * lanes + k
                        into = base + part // width % sums
                        both = (lanes_of(builder, one, k, width) for one in (weights[i], value))
                        name = f"llvm.fma.v{width}f32"
                        now[into] = intrinsic(builder, name, now[into].type, *both, now[into])
        if kernel.is_regular:
            stride = builder.mul(self.argument("per_step"), ir.Constant(I64, kernel.bits // 8))
            now[:tile] = [self.at(pointer, stride) for pointer in begun]

    def put(self, total: Any, row: Any, place: Any) -> None:
        """Add the bias and store one element of the product."""
        builder = self.builder
        bias = self.at(self.argument("bias", FLOAT), builder.mul(row, self.argument("bias_step")))
        total = builder.fadd(total, builder.load(bias))
        if self.kernel.dtype == "bf16":
            bits = builder.bitcast(total, I32)  # ties to even; NaN stays NaN
            odd = builder.and_(builder.lshr(bits, ir.Constant(I32, 16)), ir.Constant(I32, 1))
            rounded = builder.add(builder.add(bits, ir.Constant(I32, 0x7FFF)), odd)
            is_nan = builder.fcmp_unordered("uno", total, total)
            quiet = builder.or_(bits, ir.Constant(I32, 0x400000))
            half = builder.lshr(builder.select(is_nan, quiet, rounded), ir.Constant(I32, 16))
            total = builder.trunc(half, I16)
        elif self.kernel.dtype == "fp16":
            total = builder.fptrunc(total, ir.HalfType())
        builder.store(total, self.at(self.argument("outputs", total.type), place))

    def decoding(self, number: Any) -> None:
        """outputs[number] = the row order[number]."""
        builder, lanes = self.builder, self.set.lanes
        row = builder.load(self.at(self.argument("order", I64), number))
        masks, packed = self.mask_of(row), self.packed_row(row)
        steps = builder.udiv(self.columns, ir.Constant(I64, STEP))
        as_floats = self.kernel.to_fp32
        kind = FLOAT if as_floats else ir.IntType(self.kernel.bits)
        outputs = self.at(self.argument("outputs", kind), builder.mul(number, self.columns))
        with self.loop(ir.Constant(I64, 0), steps, [packed]) as (step, now):
            if not self.kernel.is_coded:
                self.ask_for(now[0], ir.Constant(I64, _AHEAD))
            for group, mask in enumerate(self.masks_of(masks, step)):
                weights, now[0] = self.expand(mask, now[0], as_floats=as_floats)
                column = builder.add(
                    builder.mul(step, ir.Constant(I64, STEP)), ir.Constant(I64, group * lanes)
                )
                target = self.at(outputs, column)
                pointer = builder.bitcast(target, weights.type.as_pointer())
                builder.store(weights, pointer).align = 4 if as_floats else self.kernel.bits // 8
