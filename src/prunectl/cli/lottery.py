"""``prunectl lottery``: is a ticket that was trained for better than one-shot pruning?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunectl import numbers
from prunectl.cli import options
from prunectl.cli.command_line import ARGV, recorded_command, visible
from prunectl.cli.errors import FAILED, INTERRUPTED
from prunectl.cli.output import Output
from prunectl.cli.tables import columns, facts, heading, line, sentence
from prunectl.option import OUTPUT, Fields, Option
from prunectl.studies.lottery.settings import LotterySettings

if TYPE_CHECKING:
    from rich.console import RenderableType

    from prunectl.studies.lottery.result import LotteryResult, Round, Scored

EXAMPLES = (
    "prunectl lottery org/name --data mails.csv --sparsity 0.3 --rounds 2 -o ticket/",
    "prunectl lottery org/name --data mails.csv -s 0.5 --rate 0.3 --max-steps 2 -o ticket/",
)


def lottery(
    context: typer.Context,
    output: Annotated[
        Path,
        Option(
            "Masks of all rounds, scores and lottery.json; the same command goes on from it.",
            "DIR",
            OUTPUT,
            short="-o",
        ),
    ],
    settings: LotterySettings,
    saved: Annotated[options.Saved, Fields(only=("html",))],
    source: options.OneModel,
    out: Output,
    jobs: options.Jobs = None,
) -> None:
    """Search a lottery ticket by iterative magnitude pruning, and compare it with one-shot pruning.

    Each round trains, prunes the smallest of the trained weights, and rewinds the others to the
    pre-trained ones. Both masks are scored by the same recipe and seeds.
    """
    from prunectl.report.lottery_page import lottery_page
    from prunectl.studies.lottery.verb import lottery

    saved.check()
    checkpoint = source.open(source.choose(out), out)
    options.keep_source(checkpoint, saved.named)

    def say(found: LotteryResult) -> None:
        if not out.draws_bars:
            out.note(round_line(found))

    with out.progress() as on_event:
        result = lottery(
            checkpoint,
            output,
            settings,
            jobs=jobs,
            command=recorded_command(context.obj[ARGV]),
            on_event=on_event,
            on_result=say,
        )
    document = result.to_json()
    saved.save(out, document, html=lambda: lottery_page(document))
    out.data(document)
    out.show(*lottery_screen(result))
    if result.interrupted:
        out.warn("the measurements are kept: the same command continues from there")
        raise typer.Exit(INTERRUPTED)
    if len(result.rounds) < len(result.planned) or result.rounds[-1].gain is None:
        raise typer.Exit(FAILED)


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
                yield line(f"  {numbers.share(one.sparsity)}, {name}: {visible(scored.failed)}")


def _cell(one: Scored) -> str:
    return "failed" if one.failed else _score(one)


def _score(one: Scored) -> str:
    return one.failed or "" if one.score is None else f"{one.score:.4f}"
