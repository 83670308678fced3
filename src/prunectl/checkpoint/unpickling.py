"""Read a pickle of tensors without calling any function that it names.

``torch.save`` writes pickles: instructions that build values, and that call functions by name. This
reader builds containers; a call is replaced by its result in :mod:`prunectl.checkpoint.pickled`,
which never takes more memory than the instruction. (torch's own safe unpickler calls ``bytearray``,
for example, with any size.) Unknown names are refused. The remaining cost is bounded by a limit on
instructions.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from prunectl.checkpoint.pickled import (
    KNOWN,
    ORDERED,
    OTHER,
    REBUILD,
    TENSOR_TYPES,
    Named,
    PickledTensor,
)
from prunectl.checkpoint.safetensors_file import MAX_HEADER_BYTES
from prunectl.errors import BadCheckpoint, UnsafePickle, UnsupportedCheckpoint

MAX_PICKLE_BYTES = MAX_HEADER_BYTES
"""A pickle lists tensors, not weights, like the header of a safetensors file."""

MAX_COST = 12_000_000
"""Cost of all instructions: 1 for a literal, 3 for others. A tensor costs about 90; a list of
numbers, which some training scripts store next to the weights, up to 12 million.
"""

_LONGEST_NAME = 1000
_MOST_ARGUMENTS = 16

_LITERALS = {
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1",
    "BINUNICODE", "SHORT_BINSTRING",
}  # fmt: skip
_TRUTHS = {"NEWTRUE": True, "NEWFALSE": False}


def unpickle(path: Path, source: BinaryIO, size: int, load: Callable[[Any], Any]) -> Any:
    """The value of a pickle.

    Args:
        source: at the pickle's beginning; left at its end.
        size: of the remaining file, in bytes.
        load: converts ``torch.save``'s tuple of a storage to the value that tensors refer to.

    Raises:
        UnsafePickle: it has names or instructions that tensors do not need.
        BadCheckpoint: truncated, or larger than a pickle of tensors can be.
        UnsupportedCheckpoint: tensors as torch pickled them before 0.4.
        Exception: of almost any other type, for a damaged pickle.
    """
    machine = _Machine(path, load)
    left = MAX_COST
    bounded = cast("BinaryIO", _Bounded(path, source, size))  # the only methods that genops calls
    for operation, argument, _ in pickletools.genops(bounded):
        name = operation.name
        left -= 1 if name in _LITERALS else 3
        if left < 0:
            raise BadCheckpoint(path, "its pickle has more instructions than tensors need")
        if name in _LITERALS:
            machine.stack.append(_TRUTHS.get(name, argument))
        elif name == "STOP":
            return machine.stack.pop()
        elif (act := machine.acts.get(name)) is None:
            raise UnsafePickle(
                path, "it uses a pickle instruction that is not on torch's safe list"
            )
        else:
            left -= act(argument) or 0
    raise AssertionError("pickletools ends at STOP or raises")


class _Bounded:
    """Reads a pickle, never past its size limit, whatever length a value claims."""

    def __init__(self, path: Path, source: BinaryIO, size: int) -> None:
        self._path, self._source = path, source
        self._size, self._left = size, min(size, MAX_PICKLE_BYTES)

    def read(self, count: int) -> bytes:
        self._left -= count
        if self._left < 0:
            raise self._too_long()
        return self._source.read(count)

    def readline(self) -> bytes:
        line = self._source.readline(min(_LONGEST_NAME, self._left))
        self._left -= len(line)
        return line

    def _too_long(self) -> BadCheckpoint:
        if self._size <= MAX_PICKLE_BYTES:
            return BadCheckpoint(self._path, "truncated inside its pickle")
        return BadCheckpoint(self._path, f"its pickle is over {MAX_PICKLE_BYTES:,} bytes")


class _Machine:
    """The state of the instructions so far.

    Attributes:
        acts: actions by name of an instruction, except literals. An action returns its additional
            cost, if it copies a container.
    """

    def __init__(self, path: Path, load: Callable[[Any], Any]) -> None:
        self._path, self._load = path, load
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self.acts: dict[str, Callable[[Any], int | None]] = {
            "PROTO": lambda _: None,
            "MARK": lambda _: self._marks.append(len(self.stack)),
            "EMPTY_TUPLE": lambda _: self.stack.append(()),
            "EMPTY_LIST": lambda _: self.stack.append([]),
            "EMPTY_DICT": lambda _: self.stack.append({}),
            "EMPTY_SET": lambda _: self.stack.append(OTHER),
            "TUPLE": lambda _: self.stack.append(tuple(self._since_mark())),
            "TUPLE1": lambda _: self._tuple(1),
            "TUPLE2": lambda _: self._tuple(2),
            "TUPLE3": lambda _: self._tuple(3),
            "APPEND": lambda _: self._extend([self.stack.pop()]),
            "APPENDS": lambda _: self._extend(self._since_mark()),
            "SETITEM": lambda _: self._set([self.stack.pop(-2), self.stack.pop()]),
            "SETITEMS": lambda _: self._set(self._since_mark()),
            "BINPUT": self._put,
            "LONG_BINPUT": self._put,
            "BINGET": self._get,
            "LONG_BINGET": self._get,
            "GLOBAL": self._name,
            "REDUCE": lambda _: self._call(),
            "NEWOBJ": lambda _: self._call(),
            "BUILD": lambda _: self._build(),
            "BINPERSID": lambda _: self.stack.append(self._load(self.stack.pop())),
        }

    def _since_mark(self) -> list[Any]:
        mark = self._marks.pop()
        found = self.stack[mark:]
        del self.stack[mark:]
        return found

    def _tuple(self, length: int) -> None:
        self.stack[-length:] = [tuple(self.stack[-length:])]

    def _extend(self, items: list[Any]) -> None:
        self._top(list).extend(items)

    def _set(self, items: list[Any]) -> None:
        if self.stack[-1] is OTHER:  # a Counter
            return
        into = self._top(dict)
        into.update(_entries(zip(items[::2], items[1::2], strict=True)))

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise TypeError(f"items for a value that is not a {kind.__name__}")
        return self.stack[-1]

    def _put(self, number: int) -> None:
        self._memo[number] = self.stack[-1]

    def _get(self, number: int) -> None:
        self.stack.append(self._memo[number])

    def _name(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        found = KNOWN.get(full)
        if found is None:
            raise UnsafePickle(self._path, full.removeprefix("builtins.")[:200])
        self.stack.append(found)

    def _call(self) -> int:
        """Replace a call of a function or type by its result here."""
        arguments, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, Named) or not isinstance(arguments, tuple):
            raise TypeError("a call of a value that is not a function")
        if len(arguments) > _MOST_ARGUMENTS:
            raise TypeError(f"a call with {len(arguments)} arguments")
        if called.name in TENSOR_TYPES:
            raise self._too_old()
        if called.name == ORDERED:  # Python 2 passed a list of items
            pairs = arguments[0] if arguments else ()
            self.stack.append(dict(_entries(iter(pairs))))
            return 3 * len(pairs)
        rebuild = REBUILD.get(called.name)
        self.stack.append(rebuild(*arguments) if rebuild else OTHER)
        return 0

    def _build(self) -> None:
        """Drop attributes of an object, for example a state dict's versions."""
        self.stack.pop()
        if isinstance(self.stack[-1], PickledTensor):
            raise self._too_old()

    def _too_old(self) -> UnsupportedCheckpoint:
        return UnsupportedCheckpoint(
            self._path,
            "holds tensors in a form that torch has not written since 0.4",
            hint="load it with torch and save its state_dict() again",
        )


class _Key:
    """A key of a dict that is not a string.

    It equals no other key: hashing a value of a pickle could take any time and any depth of the
    stack.
    """

    def __init__(self, key: object) -> None:
        self._key = key

    def __str__(self) -> str:
        is_plain = self._key is None or isinstance(self._key, int | float)
        return repr(self._key) if is_plain else "a value of another type"


def _entries(pairs: Iterator[Any]) -> Iterator[tuple[str | _Key, Any]]:
    """Items of a dict; only strings stay ordinary keys."""
    for key, value in pairs:
        yield key if isinstance(key, str) else _Key(key), value
