"""``prunectl evaluate``: how good a model is, by one metric."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from prunectl import numbers
from prunectl.cli import options
from prunectl.cli.output import Output
from prunectl.cli.tables import columns, facts, heading, sentence
from prunectl.evaluation.settings import EvalSettings
from prunectl.option import Fields
from prunectl.runtime.executions import DENSE, execution_option

if TYPE_CHECKING:
    from rich.console import RenderableType

    from prunectl.evaluation.result import Evaluation

EXAMPLES = (
    "prunectl evaluate demo --samples 8",
    "prunectl evaluate org/name --data text:my-text.txt --sequence-length 128",
    "prunectl evaluate demo --samples 8 -o evaluate.json --json",
)


def evaluate(
    settings: EvalSettings,
    saved: Annotated[options.Saved, Fields(only=("output",))],
    source: options.OneModel,
    out: Output,
    execution: Annotated[str, execution_option()] = DENSE,
) -> None:
    """Score a dense, pruned or compressed model by one metric.

    The protocol is fixed, stated, and recorded with a hash of the data: scores with the same record
    can be compared. The interval is a bootstrap over samples.
    """
    from prunectl.evaluation.verb import evaluate

    saved.check()
    checkpoint = source.open(source.choose(out), out, compressed=True)
    options.keep_source(checkpoint, saved.named)
    with out.progress() as on_event:
        result = evaluate(checkpoint, settings, execution=execution, on_event=on_event)
    out.data(result.to_json())
    out.show(*evaluation_screen(result, everything=out.verbose))
    saved.save(out, result.to_json())


_LOWER = "lower is better"
_HIGHER = "higher is better"
_UNSAID = {"metric", "blake3", "joiner", "prefix"}
"""Parts of a protocol that only machines compare; --verbose shows all."""


def evaluation_screen(result: Evaluation, *, everything: bool = False) -> Iterator[RenderableType]:
    """Parts of the screen, in order."""
    yield heading(result.model)
    found = score(result.score)
    if result.interval is not None:
        found += f" ({score(result.interval.low)} to {score(result.interval.high)})"
    way = _HIGHER if result.higher_is_better else _LOWER
    yield sentence(f"  {result.metric}  {found}  {way}")
    rows = [("measured on", f"{result.samples:,} {result.unit}")]
    if result.interval is None:
        rows.append(("interval", "none: these samples do not show how certain the score is"))
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
