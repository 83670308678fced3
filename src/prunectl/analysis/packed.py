"""Dataclass fields that look like small dicts and tuples and are held as packed numbers.

100,000 tensors with five such fields each would take some 300 MB as dicts of Python numbers.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Mapping, Sequence
from typing import Any


def packed_dict(typecode: str) -> Any:
    """A field that is read and set as a dict; empty by default.

    Args:
        typecode: of the values, as in :mod:`array`: ``q`` for ints, ``d`` for floats; '' to hold
            them as they are.
    """
    return _PackedDict(typecode)


def packed_floats() -> Any:
    """A field that is read and set as a tuple of floats; empty by default."""
    return _PackedFloats()


@functools.lru_cache(4096)
def _shared(keys: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same tuple for equal keys."""
    return keys


class _PackedDict:
    def __init__(self, typecode: str) -> None:
        self._typecode = typecode

    def __set_name__(self, owner: type, name: str) -> None:
        self._place = f"_{name}"

    def __get__(self, owner: Any, kind: type | None = None) -> dict[Any, Any] | None:
        if owner is None:  # dataclasses ask for the default
            return None
        keys, values = getattr(owner, self._place)
        return dict(zip(keys, values, strict=True))

    def __set__(self, owner: Any, value: Mapping[Any, Any] | None) -> None:
        held: tuple[Any, Sequence[Any]] = _EMPTY
        if value:
            numbers = value.values()
            values = array(self._typecode, numbers) if self._typecode else tuple(numbers)
            held = _shared(tuple(value)), values
        object.__setattr__(owner, self._place, held)


_EMPTY: tuple[tuple[Any, ...], tuple[Any, ...]] = ((), ())


class _PackedFloats:
    def __set_name__(self, owner: type, name: str) -> None:
        self._place = f"_{name}"

    def __get__(self, owner: Any, kind: type | None = None) -> tuple[float, ...]:
        return () if owner is None else tuple(getattr(owner, self._place))

    def __set__(self, owner: Any, value: Sequence[float]) -> None:
        object.__setattr__(owner, self._place, array("d", value) if value else ())
