"""A verification as people read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prunectl import numbers
from prunectl.cli.tables import columns, heading, sentence

if TYPE_CHECKING:
    from rich.console import RenderableType

    from prunectl.verification.result import VerifyReport

MOST_DIFFERENCES = 20
_WORDS = {True: "ok", False: "FAILED", None: "not possible"}


def verify_screen(report: VerifyReport, *, everything: bool = False) -> Iterator[RenderableType]:
    """Parts of the screen, in order.

    Args:
        everything: all differences instead of the first 20.
    """
    yield heading(str(report.output))
    yield columns(
        ("check", "result", "detail"),
        [(check.name, _WORDS[check.passed], check.detail) for check in report.checks],
        left=(0, 1, 2),
    )
    shown = report.differences if everything else report.differences[:MOST_DIFFERENCES]
    if shown:
        yield heading("Differences")
        yield columns(
            ("kind", "where", "detail"),
            [(item.kind, item.where, item.detail) for item in shown],
            left=(0, 1, 2),
        )
    if hidden := len(report.differences) - len(shown):
        yield sentence(f"... and {numbers.count(hidden)} more; -v shows them.")
    yield sentence(_verdict(report))


def _verdict(report: VerifyReport) -> str:
    checked = (
        f"{numbers.plural(report.tensors, 'tensor')} with {report.zeros:,} zeros checked "
        f"in {numbers.duration(report.seconds)}"
    )
    if not report.ok:
        found = numbers.plural(len(report.differences), "difference")
        return f"FAILED: {found}; {checked}."
    skipped = sum(check.passed is None for check in report.checks)
    left = f" {numbers.plural(skipped, 'check')} could not be made." if skipped else ""
    return f"All that could be checked is as it should be: {checked}.{left}" if left else (
        f"All is as it should be: {checked}."
    )  # fmt: skip
