"""Selectors of tensors, as users write them."""

from __future__ import annotations

import math
import re
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING

from prunectl.errors import InvalidOption

if TYPE_CHECKING:
    import regex

_EXPRESSION = "re:"

_SECONDS = 0.2
"""Seconds of processor time for one match; without nested repeats it takes microseconds."""

_LARGEST = 1_000_000
"""Limit of an expression's length times its counts: ``regex`` unrolls ``x{1000}``, 250 bytes a
step."""


def matches(selector: str, name: str) -> bool:
    """Whether a selector matches a tensor: by its name, its module, a glob, or ``re:``.

    ``re:EXPRESSION`` is searched for anywhere in the name.

    Raises:
        InvalidOption: not a regular expression, or one that takes too long on this name.
    """
    if not selector.startswith(_EXPRESSION):
        return name == selector or name.startswith(selector + ".") or fnmatchcase(name, selector)
    expression = _compiled(selector)
    try:
        return expression.search(name, timeout=_SECONDS) is not None
    except (TimeoutError, MemoryError):
        raise InvalidOption(
            f"'{selector}' takes more than {_SECONDS:g} s on the tensor name '{name}'",
            hint="write it without repeats inside repeats, such as (a+)+",
        ) from None


def check_selector(selector: str) -> None:
    """Raise InvalidOption for a selector that is empty or not a regular expression."""
    if selector in ("", _EXPRESSION):
        raise InvalidOption("an empty selector", hint="give a name, a glob or re:EXPRESSION")
    if selector.startswith(_EXPRESSION):
        _compiled(selector)


@lru_cache(maxsize=4096)
def _compiled(selector: str) -> regex.Pattern[str]:
    """The expression of a selector: the syntax is that of ``re``, the matcher is ``regex``'s.

    Only ``regex`` has a time limit. Syntax that ``re`` does not know is refused, so that selectors
    follow Python's documentation.
    """
    import regex

    expression = selector.removeprefix(_EXPRESSION)
    try:
        re.compile(expression)
        unescaped = re.sub(r"\\.|\s", "", expression)
        repeats = re.findall(r"\{([\d,]*\d[\d,]*)\}", unescaped)
        most = [max(map(int, filter(None, repeat.split(",")))) for repeat in repeats]
        if len(expression) * math.prod(max(1, count) for count in most) > _LARGEST:
            raise OverflowError("its repeats are too many")
        return regex.compile(expression)
    # the last two: groups inside groups, by the thousand
    except (re.error, regex.error, ValueError, OverflowError, RecursionError, MemoryError) as error:
        why = str(error) or "it is too large"
        raise InvalidOption(
            f"'{selector}' is not a regular expression: {why}", hint="see Python's re module"
        ) from None
