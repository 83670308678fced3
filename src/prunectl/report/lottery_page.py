"""The report of a lottery: tickets and one-shot pruning, round by round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prunectl import numbers
from prunectl.report.charts import Line, lines_chart
from prunectl.report.page import (
    Card,
    Facts,
    Figure,
    Page,
    Section,
    Table,
    as_shown,
    flat,
    render,
    run_facts,
)

_HEIGHT = 320
_MASKS = {"lottery ticket": "ticket", "one-shot": "one_shot"}


def lottery_page(document: dict[str, Any]) -> str:
    """A search for a ticket as one self-contained HTML page.

    Args:
        document: the search's JSON, schema ``prunectl.lottery/1``.

    Raises:
        MissingLibrary: a library that draws is not installed.
    """
    document = as_shown(document)
    verdict = str(document["verdict"])
    return render(
        Page(
            title=f"A lottery ticket of {document['model']}",
            subtitle=f"{str(document['metric']).capitalize()} of masks that were trained for, and "
            f"of one-shot pruning, measured on {document['samples']:,} {document['unit']}",
            cards=(Card(title="Is the ticket better?", value="", text=verdict),) if verdict else (),
            warnings=("The search was interrupted before its last round.",)
            if document["interrupted"]
            else (),
            sections=(
                Section("Rounds", figures=tuple(_figures(document)), tables=(_table(document),)),
                Section("How it was measured", facts=tuple(_facts(document))),
            ),
        )
    )


def _figures(document: dict[str, Any]) -> Iterator[Figure]:
    rounds = document["rounds"]
    if not rounds:
        return
    dense = document["dense"]
    scores = [
        Line(
            label,
            ((0.0, dense["score"]), *((one["sparsity"], one[mask]["score"]) for one in rounds)),
            (_score(dense), *(_score(one[mask]) for one in rounds)),
            (dense["low"], *(one[mask]["low"] for one in rounds)),
            (dense["high"], *(one[mask]["high"] for one in rounds)),
        )
        for label, mask in _MASKS.items()
    ]
    gains = [
        Line(
            "ticket over one-shot",
            tuple((one["sparsity"], one["gain"]) for one in rounds),
            tuple("" if one["gain"] is None else f"{one['gain']:+.4f}" for one in rounds),
            tuple(one["gain_low"] for one in rounds),
            tuple(one["gain_high"] for one in rounds),
        ),
        Line("no difference", tuple((one["sparsity"], 0.0) for one in rounds), is_chance=True),
    ]
    kinds = {"scores": (scores, str(document["metric"])), "gain": (gains, "Ticket gains")}
    yield Figure(
        title="Scores against sparsity",
        text="Bands are 95% intervals; the gain has narrower ones, since samples and seeds are "
        "drawn in pairs.",
        label="Scores of tickets and of one-shot pruning against sparsity.",
        choices=("Show",),
        charts={
            (kind,): lines_chart(
                lines, x_title="Sparsity", y_title=title if title.isidentifier() else kind,
                x_format="~%", y_format="~g", height=_HEIGHT,
            )
            for kind, (lines, title) in kinds.items()
        },
    )  # fmt: skip


def _table(document: dict[str, Any]) -> Table:
    head = ("round", "sparsity", "ticket", "95% interval", "one-shot", "95% interval",
            "ticket gains", "95% interval", "Jaccard of the masks", "chance", "masks")  # fmt: skip
    return Table(
        caption="Each round",
        head=head,
        rows=tuple(
            (
                str(one["number"]),
                numbers.share(one["sparsity"]),
                _score(one["ticket"]),
                numbers.span(one["ticket"]["low"], one["ticket"]["high"]),
                _score(one["one_shot"]),
                numbers.span(one["one_shot"]["low"], one["one_shot"]["high"]),
                "" if one["gain"] is None else f"{one['gain']:+.4f}",
                numbers.span(one["gain_low"], one["gain_high"], "+.4f"),
                numbers.mean([own["jaccard"] for own in one["overlaps"].values()]),
                numbers.mean([own["jaccard_chance_by_tensor"] for own in one["overlaps"].values()]),
                ", ".join(map(str, one["masks"].values())),
            )
            for one in document["rounds"]
        ),
        left=(len(head) - 1,),
    )


def _facts(document: dict[str, Any]) -> Iterator[Facts]:
    yield run_facts(
        document,
        ("model", str(document["model"])),
        ("trainings of a ticket", str(document["trainings"])),
        ("dense", _score(document["dense"])),
    )
    yield Facts("Metric", tuple(flat(document["record"])))
    yield Facts("Settings", tuple(flat(document["settings"])))
    yield Facts("Machine", tuple(flat(document["machine"])))


def _score(one: dict[str, Any]) -> str:
    return str(one["failed"] or "") if one["score"] is None else f"{one['score']:.4f}"
