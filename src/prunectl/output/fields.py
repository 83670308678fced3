"""Reading JSON that somebody else may have written: every value is checked before it is used."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from prunectl.errors import BadManifest, InvalidPattern, shortened
from prunectl.output.osfiles import is_safe_relative
from prunectl.pattern import parse_pattern
from prunectl.tensorspec import DTYPES, name_fault

T = TypeVar("T")

_BLAKE3 = re.compile(r"[0-9a-f]{64}")
_REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LONGEST_LINE = 300
_LONGEST_PATH = 4096
_MAX_COUNT = 2**63 - 1
_MAX_RANK = 64


class Fields:
    """A JSON object whose members are taken by name and type.

    Args:
        value: what should be a JSON object.
        path: the file, for messages.
        where: place in the document, for messages.

    Raises:
        BadManifest: from every method, if the member is missing or of another type.
    """

    def __init__(self, value: object, path: Path | str, where: str = "") -> None:
        self.path, self.where = path, where
        if not isinstance(value, dict):
            self.fail("", "is not a JSON object")
        self.members: dict[str, Any] = value

    def fail(self, key: str, why: str) -> NoReturn:
        """Raise for one member."""
        place = ".".join(part for part in (self.where, key) if part) or "the document"
        raise BadManifest(self.path, f"{place} {why}", hint="the file was changed or damaged")

    def text(self, key: str) -> str:
        value = self._get(key)
        if not isinstance(value, str):
            self.fail(key, "is not a string")
        return value

    def line(self, key: str) -> str:
        """Text that can be shown: printable, on one line, and not long."""
        value = self.text(key)
        if len(value) > _LONGEST_LINE:
            self.fail(key, f"has more than {_LONGEST_LINE} characters")
        if not value.isprintable():
            self.fail(key, "holds characters that cannot be printed")
        return value

    def path_text(self, key: str) -> str:
        """Text that a system may take for a path: bytes that are no UTF-8 stand in it as Python has
        them (``surrogateescape``)."""
        value = self.text(key)
        if len(value) > _LONGEST_PATH:
            self.fail(key, f"has more than {_LONGEST_PATH:,} characters")
        try:
            value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            self.fail(key, "holds characters that cannot be written")
        if "\0" in value:
            self.fail(key, "holds a zero byte")
        return value

    def tensor_name(self, key: str) -> str:
        """A name that a tensor of a safetensors file can have."""
        name = self.text(key)
        if fault := name_fault(name):
            self.fail(key, f"{shortened(name, 80)!r} {fault}")
        return name

    def repo_id(self, key: str) -> str:
        """The name of a repository on the Hub: ``org/name`` or ``name``."""
        value = self.line(key)
        if not _REPO_ID.fullmatch(value):
            self.fail(key, f"'{value}' is no name of a repository")
        return value

    def flag(self, key: str) -> bool:
        """A boolean."""
        value = self._get(key)
        if not isinstance(value, bool):
            self.fail(key, "is not true or false")
        return value

    def count(self, key: str) -> int:
        """A whole number from 0 to 2^63 - 1."""
        value = self._get(key)
        if type(value) is not int or not 0 <= value <= _MAX_COUNT:
            self.fail(key, "is not a whole number from 0 up")
        return value

    def number(self, key: str) -> float:
        """A finite number."""
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(key, "is not a number")
        try:
            result = float(value)
        except OverflowError:
            self.fail(key, "is too large")
        if not math.isfinite(result):
            self.fail(key, "is not a finite number")
        return result

    def digest(self, key: str) -> str:
        """A BLAKE3 digest: 64 lower-case hexadecimal digits."""
        value = self.text(key)
        if not _BLAKE3.fullmatch(value):
            self.fail(key, "is not a BLAKE3 digest")
        return value

    def file_name(self, key: str) -> str:
        """A relative path that stays inside the folder."""
        name = self.text(key)
        if not is_safe_relative(name):
            self.fail(key, f"'{name[:80]}' leaves the folder")
        return name

    def dtype(self, key: str) -> str:
        name = self.text(key)
        if name not in DTYPES:
            self.fail(key, f"'{name[:40]}' is not a dtype of safetensors")
        return name

    def shape(self, key: str) -> tuple[int, ...]:
        sizes: list[int] = []
        for size in self.items(key):
            if type(size) is not int or not 0 <= size <= _MAX_COUNT:
                self.fail(key, "is not a list of whole numbers from 0 up")
            sizes.append(size)
        if len(sizes) > _MAX_RANK:
            self.fail(key, f"has more than {_MAX_RANK} dimensions")
        return tuple(sizes)

    def pattern(self, key: str) -> str:
        text = self.text(key)
        try:
            parse_pattern(text)
        except InvalidPattern as error:
            self.fail(key, f"is not valid: {error.why}")
        return text

    def given(self, key: str, read: Callable[[str], T]) -> T | None:
        """As :meth:`optional`; a member that is missing counts as null."""
        return None if self.members.get(key) is None else read(key)

    def optional(self, key: str, read: Callable[[str], T]) -> T | None:
        """None for null, otherwise what ``read`` (a method of this object) gives."""
        return None if self._get(key) is None else read(key)

    def items(self, key: str) -> list[object]:
        value = self._get(key)
        if not isinstance(value, list):
            self.fail(key, "is not a list")
        return value

    def objects(self, key: str) -> list[Fields]:
        return [
            Fields(item, self.path, f"{self.where}{'.' if self.where else ''}{key}[{number}]")
            for number, item in enumerate(self.items(key))
        ]

    def member(self, key: str) -> Fields:
        return Fields(self._get(key), self.path, f"{self.where}{'.' if self.where else ''}{key}")

    def written_again(self, key: str) -> dict[str, Any]:
        """A JSON object that goes into another document as it is."""
        value = self.member(key).members
        try:
            json.dumps(value, allow_nan=False)
        except (ValueError, RecursionError) as error:
            self.fail(key, f"cannot be written again ({error})")
        return value

    def _get(self, key: str) -> object:
        if key not in self.members:
            self.fail(key, "is missing")
        return self.members[key]
