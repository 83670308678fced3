"""An evaluation as people read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prunectl import numbers
from prunectl.cli.tables import columns, facts, heading, sentence

if TYPE_CHECKING:
    from rich.console import RenderableType

    from prunectl.evaluation.result import Evaluation

_LOWER = "lower is better"
_HIGHER = "higher is better"
_UNSAID = {"metric", "blake3", "joiner", "prefix"}
"""Parts of a protocol that only machines compare; --verbose shows all."""


def evaluation_screen(result: Evaluation, *, everything: bool = False) -> Iterator[RenderableType]:
    """Parts of the screen, in order.

    Args:
        everything: the whole protocol.
    """
    yield heading(result.model)
    found = score(result.score)
    if result.interval is not None:
        found += f" ({score(result.interval.low)} to {score(result.interval.high)})"
    way = _HIGHER if result.higher_is_better else _LOWER
    yield sentence(f"  {result.metric}  {found}  {way}")
    rows = [("measured on", f"{result.samples:,} {result.unit}")]
    if result.interval is None:
        rows.append(("interval", "none: these samples do not tell how sure the score is"))
    rows += [
        ("prunable weights", f"{numbers.share(result.sparsity)} zero"),
        ("run on", f"{result.device}, {result.dtype}, {numbers.duration(result.seconds)}"),
        *protocol_rows(result.record, everything=everything),
    ]
    yield facts(rows)
    if result.parts:
        yield columns(("", "score"), [(name, score(one)) for name, one in result.parts.items()])


def protocol_rows(record: dict[str, Any], *, everything: bool = False) -> list[tuple[str, str]]:
    """A metric's record, a line each."""
    shown = ((k, v) for k, v in record.items() if everything or k not in _UNSAID)
    return [(key.replace("_", " "), _words(value)) for key, value in shown]


def score(value: float) -> str:
    """Four significant digits, whole numbers from 1,000 on: ``26.83``, ``0.9123``, ``2,317``."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}".rstrip(".")


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(one)}" for key, one in value.items())
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else repr(value) if value != str(value) else str(value)
