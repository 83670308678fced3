"""Numbers and lists for people to read."""

from __future__ import annotations

from collections.abc import Iterable

_COUNTS = ((10**12, " T"), (10**9, " B"), (10**6, " M"), (10**3, " k"))
_BYTES = ((10**12, " TB"), (10**9, " GB"), (10**6, " MB"), (10**3, " kB"))


def count(value: int) -> str:
    """``25.3 M``; below 10,000 the number itself."""
    return f"{value:,}" if value < 10_000 else _scaled(value, _COUNTS)


def size(nbytes: int) -> str:
    """``1.2 GB``, decimal units as on the Hub."""
    return f"{nbytes} B" if nbytes < 1000 else _scaled(nbytes, _BYTES)


def share(part: float, digits: int = 1) -> str:
    """``41.3%``. A share other than 0 and 1 is never shown as 0% or 100%."""
    percent = 100 * part
    text = f"{percent:.{digits}f}"
    step = 10.0**-digits
    if percent > 0 and float(text) == 0:
        return f"<{step:.{digits}f}%"
    if percent < 100 and float(text) == 100:
        return f">{100 - step:.{digits}f}%"
    return f"{text}%"


def real(value: float) -> str:
    """Three significant digits: ``0.0310``, ``1.20e-06``."""
    return f"{value:#.3g}".rstrip(".") if value else "0"


def duration(seconds: float) -> str:
    """``0.8 s``, ``42 s``, ``3 min 05 s``, ``1 h 02 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def rate(nbytes: int, seconds: float) -> str:
    """``1.2 GB/s``; empty if no time has passed."""
    return f"{size(round(nbytes / seconds))}/s" if seconds > 0 else ""


def plural(value: int, noun: str) -> str:
    """``1 tensor``, ``72 tensors``, ``25.3 M weights``."""
    if value == 1:
        return f"1 {noun}"
    ending = noun.removesuffix("x") + "ces" if noun.endswith("rix") else noun + "s"
    return f"{count(value)} {ending}"


def listed(names: Iterable[str], last: str = "or") -> str:
    """``one, two or three``."""
    *first, end = names
    return f" {last} ".join([", ".join(first), end] if first else [end])


def span(low: float | None, high: float | None, form: str = ".4f") -> str:
    """``0.9534 to 0.9585``; '' if an end is unknown."""
    return "" if low is None or high is None else f"{low:{form}} to {high:{form}}"


def mean(values: Iterable[float | None]) -> str:
    """The mean of the known values, with three decimals; '' if there are none."""
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3f}" if known else ""


def _scaled(value: int, units: tuple[tuple[int, str], ...]) -> str:
    for factor, unit in units:
        # 999,960 is 1.00 M, not 1,000 k.
        if value >= 0.9995 * factor:
            scaled = value / factor
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:.{digits}f}{unit}"
    raise AssertionError(value)
