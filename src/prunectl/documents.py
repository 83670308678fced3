"""Documents from untrusted sources: msgspec Structs that declare the valid values of their fields.

A reader checks a document against the types of the fields, and scripts/make_schemas.py writes the
JSON Schemas from the same types. A :class:`Check` is a rule that msgspec's constraints cannot
state. All JSON from outside is parsed by :func:`parse_json`. docs/security.md says what is defended
against.
"""

from __future__ import annotations

import errno
import functools
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import msgspec
from msgspec import Meta

from prunectl.errors import InvalidPattern, shortened
from prunectl.pattern import parse_pattern
from prunectl.tensorspec import name_fault

T = TypeVar("T")

LARGEST = 1 << 29
"""Bytes of a document: a manifest of 100,000 tensors has an eighth of them."""
DEEPEST = 200
"""Levels of lists and objects. What compares, converts or writes a value calls itself by level."""
_LONGEST_INT = len(str(2**64))

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
}


def read_regular(path: Path) -> bytes:
    """Read a document that somebody else may have written.

    Raises:
        OSError: the system refuses; the file has more than :data:`LARGEST` bytes; or it is a pipe
            or a device, which may have no end.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        # memory for a file's size only, which may grow meanwhile
        data = file.read(size + 1) if size <= LARGEST else b""
    if max(size, len(data)) > LARGEST:
        raise OSError(errno.EFBIG, f"more than {LARGEST:,} bytes", str(path))
    return data


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} where the file is missing or holds anything else."""
    try:
        found = parse_json(read_regular(path))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def parse_json(text: str | bytes, **options: Any) -> Any:
    """Parse JSON from outside.

    Raises:
        ValueError: not JSON, or nested more than :data:`DEEPEST` levels deep.
    """
    try:
        value = json.loads(text, **options)
        level = [value]
        for _ in range(DEEPEST + 1):
            level = _inside(level)
            if not level:
                return value
    except RecursionError:
        pass
    raise ValueError(f"its lists and objects are nested more than {DEEPEST} levels deep")


def _inside(level: list[Any]) -> list[Any]:
    """The lists and objects directly inside the given ones."""
    items = (one.values() if type(one) is dict else one for one in level if type(one) in _NESTED)
    return [item for inner in items for item in inner if type(item) in _NESTED]


_NESTED = (dict, list)


def strict_json(text: str) -> Any:
    """:func:`parse_json` for formats that are stricter than Python.

    Refuses NaN, Infinity, numbers too large for a float, and duplicate names in an object; ``-0``
    is not an integer.

    Raises:
        ValueError: not valid JSON.
    """
    return parse_json(
        text,
        object_pairs_hook=_reject_duplicates,
        parse_int=_whole,
        parse_float=_finite,
        parse_constant=_finite,
    )


def _whole(digits: str) -> int | float:
    """Parse as the library does: an integer that 64 bits cannot hold, and -0, is a float."""
    return _finite(digits) if digits == "-0" or len(digits) > _LONGEST_INT else int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is not a number")
    return number


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


@dataclass(frozen=True, slots=True)
class Check:
    """A rule of a field. ``fault`` returns why a value that is not None is invalid, or ''."""

    fault: Callable[[Any], str]


class Document(msgspec.Struct, frozen=True):
    """A JSON object, or a table of TOML. Unknown members are ignored.

    Raises:
        ValueError: a field breaks its :class:`Check`.
    """

    def __post_init__(self) -> None:
        for key, fault_of in _checks(type(self)):
            value = getattr(self, key)
            if value is not None and (fault := fault_of(value)):
                raise fault_in(key, fault)


@functools.cache
def _checks(kind: type[Document]) -> tuple[tuple[str, Callable[[Any], str]], ...]:
    hints = get_type_hints(kind, include_extras=True)
    return tuple((key, check.fault) for key, hint in hints.items() for check in _checks_in(hint))


def _checks_in(hint: Any) -> Iterator[Check]:
    """The checks in ``Annotated[...]``, also in ``... | None``, but not those of a list's items."""
    for part in (hint, *get_args(hint)):
        yield from (note for note in getattr(part, "__metadata__", ()) if isinstance(note, Check))


def fault_in(key: str, fault: str) -> ValueError:
    """The error of a member for ``__post_init__``; :func:`convert` adds the object's place."""
    return ValueError(f".{key} {fault}")


def convert(value: object, kind: type[T], place: str = "") -> T:
    """Convert a value that json or tomllib has read to the Struct ``kind``.

    Args:
        place: of the value in its document, for the message.

    Raises:
        ValueError: the value does not fit. The message names the place: ``files[3].name is
            missing``.
    """
    try:
        return msgspec.convert(value, kind)
    except UnicodeEncodeError as error:  # msgspec holds text against an expression or an enum
        half = f"\\u{ord(error.object[error.start]):04x}"
        where = place or "the document"
        raise ValueError(f"{where} holds {half}, which is not valid Unicode") from None
    except msgspec.ValidationError as error:
        why, inner = str(error), ""
        if match := re.fullmatch(r"(.*) - at `\$\.?(.*)`", why, re.DOTALL):
            why, inner = match.groups()
        where = ".".join(part for part in (place, inner) if part)
    raise ValueError(_in_words(why, where))


def _in_words(why: str, where: str) -> str:
    """The text of a msgspec error or of a :class:`Check` for the value at ``where``."""
    if why.startswith("."):
        return (where + why).removeprefix(".")
    if match := re.fullmatch(r"Object missing required field `(.*)`", why):
        return f"{where}.{match[1]} is missing".removeprefix(".")
    where = where or "the document"
    if match := re.fullmatch(r"Expected `([^`]*)`(?:, got `[^`]*`)?(.*)", why):
        kinds = " or ".join(_KINDS.get(kind, kind) for kind in match[1].split(" | "))
        return f"{where} is not {kinds}{match[2]}"
    return f"{where}: {why[0].lower()}{why[1:]}"


def _line_fault(value: str) -> str:
    return "" if value.isprintable() else "holds characters that cannot be printed"


def _path_fault(value: str) -> str:
    if "\0" in value:
        return "holds a zero byte"
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return "holds characters that cannot be written"
    return ""


def _name_fault(value: str) -> str:
    return (fault := name_fault(value)) and f"{shortened(value, 80)!r} {fault}"


def _pattern_fault(text: str) -> str:
    try:
        parse_pattern(text)
    except InvalidPattern as error:
        return f"'{text[:40]}' is not valid: {error.why}"
    return ""


Whole = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Number = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
Positive = Annotated[float, Meta(ge=0, le=sys.float_info.max)]
Share = Annotated[float, Meta(ge=0, le=1)]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", max_length=64)]
"""BLAKE3 or SHA-256, in lower-case hexadecimal digits."""
Line = Annotated[str, Meta(max_length=300), Check(_line_fault)]
"""Printable text: one line, of limited length."""
PathText = Annotated[str, Meta(max_length=4096), Check(_path_fault)]
"""Text that a system may use as a path. Bytes that are not UTF-8 are escaped as in Python
(``surrogateescape``).
"""
TensorName = Annotated[str, Check(_name_fault)]
"""A name that a tensor of a safetensors file can have."""
Sizes = Annotated[tuple[Whole, ...], Meta(max_length=64)]
"""The shape of a tensor."""
PatternText = Annotated[
    str,
    Check(_pattern_fault),
    Meta(extra_json_schema={"pattern": "^(unstructured|[1-9][0-9]*:[1-9][0-9]*)$"}),
]
"""``unstructured``, or N:M."""
