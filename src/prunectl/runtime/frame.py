"""What every kernel is written with: its arguments, loops, and arithmetic on vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from prunectl.runtime.instructions import FLOAT, I32, I64, intrinsic, splat, vector


class Frame:
    """A function ``void work(i64 *arguments)`` that is being written.

    Args:
        names: of the arguments, in their order.

    Attributes:
        arguments: their values, by name.
    """

    def __init__(self, module: Any, names: Sequence[str]) -> None:
        kind = ir.FunctionType(ir.VoidType(), [I64.as_pointer()])
        self.function = ir.Function(module, kind, "work")
        self.builder = ir.IRBuilder(self.function.append_basic_block())
        self._places = {name: number for number, name in enumerate(names)}
        self.arguments = {
            name: self.builder.load(self.builder.gep(self.function.args[0], [ir.Constant(I64, k)]))
            for name, k in self._places.items()
        }

    def argument(self, name: str, pointed: Any = None) -> Any:
        value = self.arguments[name]
        return self.builder.inttoptr(value, pointed.as_pointer()) if pointed else value

    def next_of(self, name: str) -> Any:
        """Add 1 to an argument that all threads share; what it was."""
        pointer = self.builder.gep(self.function.args[0], [ir.Constant(I64, self._places[name])])
        return self.builder.atomic_rmw("add", pointer, ir.Constant(I64, 1), "monotonic")

    def at(self, pointer: Any, index: Any) -> Any:
        return self.builder.gep(pointer, [index])

    def ask_for(self, pointer: Any, ahead: Any) -> None:
        """Have memory fetched that will be read soon; it need not exist."""
        to_read = [ir.Constant(I32, value) for value in (0, 3, 1)]
        address = self.at(pointer, ahead)
        intrinsic(self.builder, "llvm.prefetch.p0", ir.VoidType(), address, *to_read)

    @contextmanager
    def loop(
        self, start: Any, end: Any, carried: list[Any], by: int = 1
    ) -> Iterator[tuple[Any, list[Any]]]:
        """Run the body for start <= i < end, with values carried from pass to pass.

        Yields the index and the carried values; the body replaces the elements of that list, and
        afterwards they are what the last pass left.
        """
        builder = self.builder
        before = builder.block
        head, body, after = (self.function.append_basic_block() for _ in range(3))
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.phi(I64)
        index.add_incoming(start, before)
        merged = [builder.phi(value.type) for value in carried]
        for phi, value in zip(merged, carried, strict=True):
            phi.add_incoming(value, before)
        builder.cbranch(builder.icmp_unsigned("<", index, end), body, after)
        builder.position_at_end(body)
        values = list(merged)
        yield index, values
        following = builder.add(index, ir.Constant(I64, by))
        index.add_incoming(following, builder.block)
        for phi, value in zip(merged, values, strict=True):
            phi.add_incoming(value, builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        values[:] = merged


def floats(builder: Any, dtype: str, codes: Any) -> Any:
    """Codes of a dtype of weights, one or a vector, as fp32."""

    def like(kind: Any) -> Any:
        return vector(kind, codes.type.count) if hasattr(codes.type, "count") else kind

    if dtype == "bf16":
        wide = builder.zext(codes, like(I32))
        sixteen = ir.Constant(I32, 16)
        if wide.type != I32:
            sixteen = splat(I32, codes.type.count, 16)
        return builder.bitcast(builder.shl(wide, sixteen), like(FLOAT))
    if dtype == "fp16":
        return builder.fpext(builder.bitcast(codes, like(ir.HalfType())), like(FLOAT))
    return builder.bitcast(codes, like(FLOAT))


def lanes_of(builder: Any, whole: Any, first: int, count: int) -> Any:
    """Some of the lanes of a vector."""
    chosen = list(range(first, first + count))
    return builder.shuffle_vector(whole, whole, ir.Constant(vector(I32, len(chosen)), chosen))


def total_of(builder: Any, parts: list[Any]) -> Any:
    """The sum of vectors and of their lanes, halves first."""
    whole = parts[0]
    for part in parts[1:]:
        whole = builder.fadd(whole, part)
    while (lanes := whole.type.count // 2) > 0:
        nothing = ir.Constant(whole.type, ir.Undefined)
        halves = [
            builder.shuffle_vector(
                whole, nothing, ir.Constant(vector(I32, lanes), list(range(k, k + lanes)))
            )
            for k in (0, lanes)
        ]
        whole = builder.fadd(*halves)
    return builder.extract_element(whole, ir.Constant(I32, 0))
