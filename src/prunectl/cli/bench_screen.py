"""A benchmark as people read it: the verdict first, then one table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prunectl import numbers
from prunectl.benchmarking.timing import UNDECIDED
from prunectl.cli.command_line import visible
from prunectl.cli.tables import columns, facts, heading, sentence

if TYPE_CHECKING:
    from rich.console import RenderableType

    from prunectl.benchmarking.compare import Comparison
    from prunectl.benchmarking.result import BenchResult, KernelRow, Side
    from prunectl.benchmarking.timing import Ratio
    from prunectl.benchmarking.workloads import Workload

_UNITS = {"prefill": "tok/s", "decode": "tok/s"}


def bench_screen(result: BenchResult, *, everything: bool = False) -> Iterator[RenderableType]:
    """Parts of the screen, in order."""
    yield heading(" and ".join(dict.fromkeys(side.model for side in result.sides)))
    for verdict in result.verdicts:
        yield sentence(verdict)
    letters = {side.label: chr(ord("A") + number) for number, side in enumerate(result.sides)}
    yield _models(result, letters)
    yield sentence("  zeros: share of the prunable weights")
    if everything:
        for side in result.sides:
            yield from _forms(side, letters[side.label])
    yield _speed(result, letters, everything)
    if result.kernels:
        yield from _kernels(result)
    for one in result.agreements:
        word = "agree" if one.ok else "DIFFER"
        yield sentence(
            f"Outputs of {letters[one.side]} and {letters[one.baseline]} {word}: relative error "
            f"{numbers.real(one.relative_error)} (allowed {numbers.real(one.tolerance)}), largest "
            f"{numbers.real(one.max_error)}."
        )
    yield from _conditions(result, everything=everything)


def _models(result: BenchResult, letters: dict[str, str]) -> RenderableType:
    return columns(
        ("", "model", "kernels", "zeros", "dtype", "on disk", "in memory", "load", "load peak"),
        [_model_row(letters[side.label], side) for side in result.sides],
        left=(0, 1, 2),
        joined=(8,),
    )


def _model_row(letter: str, side: Side) -> tuple[str, ...]:
    cost = side.loading
    return (
        letter,
        side.label,
        side.kernels,
        numbers.share(side.zeros.sparsity),
        side.dtype,
        "" if side.disk_bytes is None else numbers.size(side.disk_bytes),
        numbers.size(side.weight_bytes),
        "" if cost is None else numbers.duration(cost.seconds),
        "" if cost is None else f"+{numbers.size(max(0, cost.peak_bytes - cost.before_bytes))}",
    )


def _forms(side: Side, letter: str) -> Iterator[RenderableType]:
    """The forms of a side's weights, and what stayed dense with the reason."""
    if side.forms:
        counted = ", ".join(f"{numbers.count(n)} {form}" for form, n in side.forms.items())
        yield sentence(f"  {letter} in memory: {counted}")
    for name, why in side.kept_dense.items():
        yield sentence(f"  {letter} dense: {visible(name)}: {why}")


def _speed(result: BenchResult, letters: dict[str, str], everything: bool) -> RenderableType:
    unit = {"vision": "images/s"}.get(result.kind, "seq/s")
    baseline = letters[result.baseline.label]
    rows: list[tuple[str, ...]] = []
    last: tuple[str, str] = ("", "")
    for run in result.runs:
        place = (_short(run.workload), run.phase)
        unit = _UNITS.get(run.phase, unit)
        row = (
            place[0] if place[0] != last[0] else "",
            run.phase if place != last else "",
            letters[run.side],
            _time(run.seconds.median),
            numbers.share(run.seconds.cv, 0),
            f"{run.rate:,.1f}" if run.rate < 1000 else f"{run.rate:,.0f}",
            *_ratio(run.against),
            numbers.share(run.of_limit, 0),
        )
        spread = f"{_time(run.seconds.p10)} to {_time(run.seconds.p90)}"
        rows.append((*row, spread) if everything else row)
        last = place
    names = ("batch", "phase", "", "median", "cv", unit, f"speed to {baseline}", "", "limit")
    shown = (*names, "p10 to p90") if everything else names
    return columns(shown, rows, left=(0, 1, 2, 7), keys=(0, 1, 2), joined=(7,))


def _short(workload: Workload) -> str:
    """``8 x 128+16``: sequences, tokens, new tokens."""
    if not workload.tokens:
        return str(workload.batch)
    new = f"+{workload.new_tokens}" if workload.new_tokens else ""
    return f"{workload.batch} x {workload.tokens}{new}"


def _ratio(interval: Ratio | None) -> tuple[str, str]:
    """``1.31x (1.28-1.35)`` and ``faster``; a dash where the interval includes 1."""
    if interval is None:
        return "", ""
    verdict = interval.verdict if interval.verdict != UNDECIDED else "-"
    return f"{interval.ratio:.2f}x ({interval.low:.2f}-{interval.high:.2f})", verdict


def _time(seconds: float) -> str:
    """``1.23 ms``: three digits, in the unit that fits."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= factor:
            return f"{numbers.real(seconds / factor)} {unit}"
    return f"{numbers.real(seconds * 1e6)} us"


def _kernels(result: BenchResult) -> Iterator[RenderableType]:
    yield heading("Sparse kernels by weight shape and input rows")
    yield columns(
        ("weight", "matrices", "2:4 rows", "input rows", "kernel", "dense", "sparse",
         "speed", "", "used"),
        [_kernel_row(row) for row in result.kernels],
        left=(0, 4),
        keys=(0, 3, 4),
        joined=(8,),
    )  # fmt: skip
    for shape, text in _crossovers(result.kernels):
        yield sentence(f"{shape}: {text}")


def _kernel_row(row: KernelRow) -> tuple[str, ...]:
    out, width = row.shape
    start = (f"{out} x {width}", numbers.count(row.matrices), numbers.share(row.split, 0))
    if row.error:
        return (*start, "", row.error, "", "", "", "", "no")
    return (
        *start,
        numbers.count(row.batch),
        row.backend,
        _time(row.dense_seconds),
        _time(row.sparse_seconds),
        *_ratio(row.against),
        "yes" if row.chosen else "no",
    )


def _crossovers(rows: tuple[KernelRow, ...]) -> Iterator[tuple[str, str]]:
    """From how many input rows on the sparse kernel wins, for each shape."""
    for shape in dict.fromkeys(row.shape for row in rows):
        mine = sorted((row for row in rows if row.shape == shape and row.against),
                      key=lambda row: row.batch)  # fmt: skip
        wins = [row.against is not None and row.against.verdict == "faster" for row in mine]
        if not any(wins):
            text = "the sparse kernel wins at none of these"
        else:
            start = len(wins) - next((i for i, won in enumerate(wins[::-1]) if not won), len(wins))
            text = (
                f"the sparse kernel wins from {mine[start].batch} input rows on"
                if start < len(wins)
                else "the sparse kernel wins at some, and not at the largest"
            )
        yield f"{shape[0]} x {shape[1]}", text


def _conditions(result: BenchResult, *, everything: bool) -> Iterator[RenderableType]:
    machine, rates = result.machine, result.rates
    versions = ", ".join(f"{name} {text}" for name, text in machine.versions.items() if text)
    threads = f", {numbers.plural(machine.threads, 'thread')}" if machine.device == "cpu" else ""
    rounds = sorted({run.seconds.rounds for run in result.runs})
    span = str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
    yield facts(
        [
            ("", " "),
            ("device", f"{machine.name} ({machine.device}{threads})"),
            ("measured", f"{rates.bandwidth / 1e9:,.1f} GB/s, {rates.flops / 1e9:,.0f} GFLOP/s"),
            ("inputs", f"{result.inputs}, seed {result.seed}"),
            (
                "method",
                f"{span} interleaved rounds, 95% bootstrap intervals; - is no difference found",
            ),
            ("compile", "" if result.compile == "none" else result.compile),
            ("driver", machine.driver if everything else ""),
            ("clock", machine.clock if everything else ""),
            ("versions", versions if everything else ""),
            ("time", numbers.duration(result.seconds)),
        ]
    )
    for one in result.skipped:
        yield sentence(f"Left out: {one.what}: {one.why}.")
    for note in result.notes:
        yield sentence(f"Note: {note}.")


def comparison_screen(comparison: Comparison, name: str) -> Iterator[RenderableType]:
    """Parts of the screen of ``--compare``, in order."""
    yield heading(f"Against {name}")
    rows = [(one.workload, one.phase, one.side, *_ratio(one.against)) for one in comparison.changes]
    if rows:
        names = ("workload", "phase", "model", "speed to before", "")
        yield columns(names, rows, left=(0, 1, 2, 4), keys=(0, 1, 2), joined=(4,))
    if comparison.missing:
        yield sentence(f"{numbers.plural(comparison.missing, 'row')} without a counterpart.")
    for text in comparison.differences:
        yield sentence(f"Not the same: {visible(text)}.")
