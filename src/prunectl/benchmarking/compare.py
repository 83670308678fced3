"""A benchmark compared with an older, saved one; and the rows of a result as CSV."""

from __future__ import annotations

import csv
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from prunectl.benchmarking.errors import BadBenchFile
from prunectl.benchmarking.result import SCHEMA, BenchResult
from prunectl.benchmarking.timing import Ratio, unpaired_ratio
from prunectl.documents import Document, convert, parse_json, read_regular

_SAME = ("device", "name", "threads")
_MOST_SAMPLES = 10_000
_Seconds = Annotated[float, Meta(gt=0, le=sys.float_info.max)]


@dataclass(frozen=True, slots=True)
class Change:
    """One phase of one workload on one side: old seconds over new ones; above 1 is faster now."""

    workload: str
    phase: str
    side: str
    against: Ratio


@dataclass(frozen=True, slots=True)
class Comparison:
    """A result compared with an older one.

    Attributes:
        changes: of the rows that both have. missing: number of rows that only one of them has.
        differences: sentences on other differences: device, threads, versions, inputs.
        same_device: whether both ran on a device of the same kind and name.
    """

    changes: tuple[Change, ...]
    missing: int
    differences: tuple[str, ...]
    same_device: bool = True

    def below(self, ratio: float) -> tuple[Change, ...]:
        """The changes that are slower than ``ratio`` by more than their spread explains.

        A ratio a little below 1 leaves room for differences between runs of one machine.
        """
        return tuple(one for one in self.changes if one.against.high < ratio)


class _OldRun(Document, frozen=True):
    workload: str
    phase: str
    side: str
    samples: Annotated[tuple[_Seconds, ...], Meta(max_length=_MOST_SAMPLES)]


class _Old(Document, frozen=True):
    """What is compared of a saved benchmark."""

    runs: tuple[_OldRun, ...]
    machine: dict[str, Any]
    inputs: str


def read_bench(path: Path) -> dict[str, Any]:
    """Read a saved benchmark: the document of ``BenchResult.to_json()``.

    Raises:
        BadBenchFile: the file cannot be read, or is no benchmark.
    """
    try:
        document = parse_json(read_regular(path))
    except OSError as error:
        raise BadBenchFile(path, error.strerror or type(error).__name__) from None
    except ValueError:
        raise BadBenchFile(path, "is not JSON") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise BadBenchFile(path, f"is no result of schema {SCHEMA}")
    return document


def compare_bench(old: dict[str, Any], path: Path, result: BenchResult) -> Comparison:
    """Compare a result with an older one.

    Args:
        old: from :func:`read_bench` of ``path``.

    Raises:
        BadBenchFile: its rows are damaged.
    """
    try:
        found = convert(old, _Old)
    except ValueError as error:
        raise BadBenchFile(path, f"is damaged: {error}") from None
    before = {(run.workload, run.phase, run.side): run.samples for run in found.runs}
    machine, versions = found.machine, found.machine.get("versions")
    changes = []
    for run in result.runs:
        samples = before.pop((run.workload.name, run.phase, run.side), None)
        if samples:
            against = unpaired_ratio(samples, run.samples, result.seed)
            changes.append(Change(run.workload.name, run.phase, run.side, against))
    differences = [
        f"{key} was {machine.get(key)} and is {getattr(result.machine, key)}"
        for key in _SAME
        if machine.get(key) != getattr(result.machine, key)
    ]
    for package, version in result.machine.versions.items():
        older = versions.get(package) if isinstance(versions, dict) else None
        if older != version:
            differences.append(f"{package} was {older} and is {version}")
    if found.inputs != result.inputs:
        differences.append(f"inputs were {found.inputs} and are {result.inputs}")
    missing = len(before) + len(result.runs) - len(changes)
    same = all(machine.get(key) == getattr(result.machine, key) for key in ("device", "name"))
    return Comparison(tuple(changes), missing, tuple(differences), same)


def bench_csv(result: BenchResult) -> str:
    """All runs as comma-separated values, with a header line."""
    names = (
        "workload", "batch", "tokens", "new_tokens", "phase", "side", "kernels", "median_s",
        "p10_s", "p90_s", "cv", "rounds", "rate", "ratio", "low", "high", "verdict", "of_limit",
        "nbytes", "flops", "weight_bytes", "peak_memory",
    )  # fmt: skip
    sides = {side.label: side for side in result.sides}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(names)
    for run in result.runs:
        side, seconds, against = sides[run.side], run.seconds, run.against
        ratio = (
            (against.ratio, against.low, against.high, against.verdict) if against else ("",) * 4
        )
        peak = "" if run.peak_memory is None else run.peak_memory
        table.writerow(
            (
                run.workload.name, run.workload.batch, run.workload.tokens,
                run.workload.new_tokens, run.phase, run.side, side.kernels, seconds.median,
                seconds.p10, seconds.p90, seconds.cv, seconds.rounds, run.rate, *ratio,
                run.of_limit, run.nbytes, run.flops, side.weight_bytes, peak,
            )
        )  # fmt: skip
    return text.getvalue()
