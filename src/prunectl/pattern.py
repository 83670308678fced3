"""Sparsity patterns: which weights may be zero together.

``unstructured`` lets any weight be pruned. ``N:M`` keeps at most N of every M consecutive weights
along the input dimension (the last axis of a Linear); N counts the *kept* weights, as in NVIDIA's
2:4.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from prunectl.errors import InvalidPattern
from prunectl.option import Explained

COMMON_NMS = {
    "2:4": "keeps 2 of every 4 weights: half are zero, as sparse tensor cores need it",
    "4:8": "keeps 4 of every 8 weights: half are zero",
    "1:2": "keeps 1 of every 2 weights: half are zero",
    "1:4": "keeps 1 of every 4 weights: three quarters are zero",
}
"""The common N:M patterns, and their meanings."""
COMMON_PATTERNS = {"unstructured": "any weight may be zero", **COMMON_NMS}
"""The common patterns for options that take any pattern."""
COMMON_NMS_OR_NONE = {**COMMON_NMS, "none": "leaves out 2:4, which is measured otherwise"}
"""The common patterns for :func:`parse_added_nms`."""
MAX_GROUP = 64
"""Largest M accepted: hardware and papers stop at 32, and group ranks are counted in O(M^2)."""

_NM = re.compile(r"([0-9]{1,4}):([0-9]{1,4})")


class Scope(Explained):
    """Which weights unstructured pruning compares with each other."""

    GLOBAL = "global", "one threshold for all prunable weights"
    TENSOR = "tensor", "a threshold for each tensor"
    ROW = "row", "a threshold for each row of each tensor"


@dataclass(frozen=True, slots=True)
class Unstructured:
    """Any weight may be zero."""

    def __str__(self) -> str:
        return "unstructured"


@dataclass(frozen=True, slots=True)
class NM:
    """At most ``n`` kept of every ``m`` consecutive weights along the input dimension.

    Raises:
        InvalidPattern: not ``0 < n < m <= MAX_GROUP``.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if why := _no_pattern(self.n, self.m):
            raise InvalidPattern(f"{self.n}:{self.m}", why)

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def sparsity(self) -> float:
        """The sparsity of a matrix that follows the pattern everywhere, ``1 - n/m``."""
        return (self.m - self.n) / self.m


Pattern = Unstructured | NM


def parse_pattern(text: str) -> Pattern:
    """Read ``unstructured`` or ``N:M``.

    Raises:
        InvalidPattern: not one of the two forms, or not ``0 < N < M <= MAX_GROUP``.
    """
    cleaned = text.strip().lower()
    if cleaned == "unstructured":
        return Unstructured()
    match = _NM.fullmatch(cleaned)
    if match is None:
        raise InvalidPattern(text, "it is neither 'unstructured' nor N:M such as 2:4")
    n, m = int(match[1]), int(match[2])
    if why := _no_pattern(n, m):
        raise InvalidPattern(text, why)
    return NM(n, m)


def _no_pattern(n: int, m: int) -> str:
    """Why at most ``n`` of every ``m`` is not a pattern; '' if it is one."""
    if not all(isinstance(one, int) for one in (n, m)):
        return "N and M are whole numbers"
    if n <= 0:
        return "N is how many weights are kept of every M, so it is at least 1"
    if n == m:
        return "keeping M of every M prunes nothing"
    if n > m > 0:
        return f"N is how many are kept of every M; did you mean {m}:{n}?"
    return "" if 0 < m <= MAX_GROUP else f"M is 2 to {MAX_GROUP}"


def parse_nm(text: str) -> NM:
    """Read ``N:M`` only.

    Raises:
        InvalidPattern: as :func:`parse_pattern`, or ``unstructured``.
    """
    pattern = parse_pattern(text)
    if isinstance(pattern, Unstructured):
        raise InvalidPattern(text, "an N:M pattern such as 2:4 is needed here")
    return pattern


def distinct_patterns(given: Iterable[Pattern | str]) -> tuple[Pattern, ...]:
    """Parse patterns or texts with :func:`parse_pattern`: distinct ones, in their order."""
    return tuple(dict.fromkeys(parse_pattern(p) if isinstance(p, str) else p for p in given))


def distinct_nms(given: Iterable[NM | str]) -> tuple[NM, ...]:
    """Parse N:M patterns or texts with :func:`parse_nm`: distinct ones, in their order."""
    return tuple(dict.fromkeys(parse_nm(p) if isinstance(p, str) else p for p in given))


def parse_added_nms(texts: Iterable[str]) -> tuple[NM, ...]:
    """2:4, unless ``none`` is among the texts, then the other texts: distinct ones, in their order.

    Raises:
        InvalidPattern: neither N:M nor ``none``.
    """
    named = [text for text in texts if text.strip().lower() != "none"]
    first = [NM(2, 4)] if named == list(texts) else []
    return distinct_nms([*first, *named])


def nearest_prefix(steps: Iterable[int], wanted: int) -> int:
    """The number of first steps whose sum is nearest to ``wanted``; of equals, the smallest."""
    distances = [abs(total - wanted) for total in itertools.accumulate(steps, initial=0)]
    return distances.index(min(distances))


def pruned_count(sparsity: float, weights: int) -> int:
    """The exact number of zeros of a sparsity: ``k = floor(s*P + 0.5)``.

    ``s`` is taken as the decimal that it prints as, so that 0.3 of 5 weights is exactly 1.5, and
    the arithmetic is exact for any number of weights.
    """
    share = Fraction(repr(float(sparsity)))
    return (2 * share.numerator * weights + share.denominator) // (2 * share.denominator)
