"""A search for a ticket as people read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.text import Text

from prunectl import numbers
from prunectl.cli.command_line import visible
from prunectl.cli.tables import columns, facts, heading, sentence

if TYPE_CHECKING:
    from rich.console import RenderableType

    from prunectl.studies.lottery.result import LotteryResult, Round, Scored


def lottery_screen(result: LotteryResult) -> Iterator[RenderableType]:
    """Parts of the screen, in order."""
    yield heading(result.model)
    better = "higher" if result.higher_is_better else "lower"
    seeds = result.settings["seeds"]
    yield facts(
        [
            ("score", f"{result.metric}, {better} is better"),
            ("measured on", f"{result.samples:,} {result.unit}"),
            ("seeds", ", ".join(map(str, seeds))),
            ("dense", _score(result.dense)),
        ]
    )
    if result.rounds:
        yield heading("Each round's ticket, and one-shot pruning to the same sparsity")
        yield columns(
            ("sparsity", "ticket", "95% interval", "one-shot", "95% interval", "ticket gains",
             "95% interval", "Jaccard", "chance"),
            [_cells(one) for one in result.rounds],
            joined=(2, 4, 6, 8),
        )  # fmt: skip
        yield from _failures(result.rounds)
    if result.verdict:
        yield sentence(visible(result.verdict))


def round_line(result: LotteryResult) -> str:
    """What the last round found, in a line."""
    if not result.rounds:
        return f"dense: {_score(result.dense)}"
    last = result.rounds[-1]
    return (
        f"round {last.number} of {len(result.planned)}, {numbers.share(last.sparsity)}: ticket "
        f"{_score(last.ticket)}, one-shot {_score(last.one_shot)}"
    )


def _cells(one: Round) -> tuple[str, ...]:
    overlaps = list(one.overlaps.values())
    return (
        numbers.share(one.sparsity),
        _cell(one.ticket),
        numbers.span(one.ticket.low, one.ticket.high),
        _cell(one.one_shot),
        numbers.span(one.one_shot.low, one.one_shot.high),
        "" if one.gain is None else f"{one.gain:+.4f}",
        numbers.span(one.gain_low, one.gain_high, "+.4f"),
        numbers.mean([own.jaccard for own in overlaps]),
        numbers.mean([own.jaccard_chance_by_tensor for own in overlaps]),
    )


def _failures(rounds: tuple[Round, ...]) -> Iterator[RenderableType]:
    for one in rounds:
        for name, scored in (("ticket", one.ticket), ("one-shot", one.one_shot)):
            if scored.failed:
                yield Text(f"  {numbers.share(one.sparsity)}, {name}: {visible(scored.failed)}")


def _cell(one: Scored) -> str:
    return "failed" if one.failed else _score(one)


def _score(one: Scored) -> str:
    return one.failed or "" if one.score is None else f"{one.score:.4f}"
