"""Which sparsities are measured: a list, a range, or a search around the turning point."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from prunectl.errors import InvalidOption
from prunectl.pattern import NM, Pattern

AUTO = "auto"
COARSE = Fraction(1, 10)
"""Step of the first look; the grid of the paper's curves."""
FINEST = Fraction(1, 100_000)
"""A smaller step moves no weight in most models."""
_MOST = 1000
_HINT = "auto, START:STOP:STEP such as 0:0.9:0.1, or a list such as 0.1,0.2,0.5"


@dataclass(frozen=True, slots=True)
class Grid:
    """What ``--sparsity`` of a sweep means.

    Attributes:
        text: as it was given.
        points: the sparsities, ascending; of a search, those of the first look.
        step: how close the search comes to the turning point; None where nothing is searched.
    """

    text: str
    points: tuple[Fraction, ...]
    step: Fraction | None

    def within(self, pattern: Pattern) -> tuple[Fraction, ...]:
        """The points that a pattern can reach; the largest that it can is one of a search's."""
        most = most_of(pattern)
        found = [one for one in self.points if one < most]
        if isinstance(pattern, NM) and (self.step is not None or most in self.points):
            found.append(most)
        return tuple(found)


def most_of(pattern: Pattern) -> Fraction:
    """The sparsity that a pattern ends at."""
    return 1 - Fraction(pattern.n, pattern.m) if isinstance(pattern, NM) else Fraction(1)


def parse_grid(text: str, step: float = 0.01) -> Grid:
    """Read ``auto``, ``0:0.9:0.1`` or ``0.1,0.2``.

    Raises:
        InvalidOption: it is none of them, or holds what is no sparsity.
    """
    cleaned = text.strip().lower()
    if cleaned == AUTO:
        fine = Fraction(str(step)) if math.isfinite(step) else Fraction(0)
        if not FINEST <= fine <= COARSE:
            raise InvalidOption(
                f"--step {step:g} is not valid: {float(FINEST):g} to {float(COARSE):g}"
            )
        return Grid(AUTO, tuple(COARSE * i for i in range(1, 10)), fine)
    if ":" in cleaned:
        parts = [_fraction(part, text) for part in cleaned.split(":")]
        if len(parts) != 3 or parts[2] <= 0 or parts[1] < parts[0]:
            raise InvalidOption(f"--sparsity {text} is no range", hint=_HINT)
        start, stop, gap = parts
        count = (stop - start) // gap + 1
        if count > _MOST:
            raise InvalidOption(f"--sparsity {text} has more than {_MOST:,} points")
        points = [start + gap * i for i in range(int(count))]
    else:
        points = [_fraction(part, text) for part in cleaned.split(",") if part.strip()]
    if any(not 0 <= one < 1 for one in points):
        raise InvalidOption(f"--sparsity {text}: each is 0 or more, and below 1", hint=_HINT)
    points = sorted({one for one in points if one})  # 0 is the dense model, which always is there
    if not points:
        raise InvalidOption(f"--sparsity {text} names no sparsity above 0", hint=_HINT)
    return Grid(text.strip(), tuple(points), None)


def next_point(free: Mapping[Fraction, bool], step: Fraction) -> Fraction | None:
    """Where a search measures next; None when the turning point is known to ``step``.

    Args:
        free: by sparsity, 0 included, whether the score was within the tolerance.
    """
    inside = max((one for one, ok in free.items() if ok), default=Fraction(0))
    beyond = min((one for one, ok in free.items() if not ok and one > inside), default=None)
    if beyond is None or beyond - inside <= step:
        return None
    middle = inside + max(step, (beyond - inside) / 2 // step * step)
    return middle if inside < middle < beyond else None


def _fraction(text: str, whole: str) -> Fraction:
    try:
        # By way of a float: a fraction of 1e-999999999 takes all memory there is.
        return Fraction(str(float(text)))
    except (ValueError, OverflowError):
        raise InvalidOption(f"--sparsity {whole}: '{text}' is no number", hint=_HINT) from None
