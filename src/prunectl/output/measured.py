"""Results of prunectl's own measurements next to an output, formatted for its card.

Such a file may come from anywhere: every value is checked, and its text is shown as code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3

from prunectl.documents import Number, Whole, convert, parse_json
from prunectl.output.card import cell
from prunectl.output.manifest import Manifest
from prunectl.output.records import FileRecord

_NAME = re.compile(r"(bench|evaluate|sweep)([._-][\w.-]*)?\.json", re.ASCII)
_LINK = re.compile(r"\[`([\w.-]+)`\]\(", re.ASCII)
_LARGEST = 16 << 20
_MOST_ROWS = 24
_LEAST_SHARE = 0.01
"""Zeros that may differ, as a share of the weights: another dtype rounds small weights to zero."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Identifies weights: bytes of their files, and zeros in their blocks."""

    stored_bytes: int
    zeros: int


@dataclass(frozen=True, slots=True)
class ResultFile:
    """A result that could be read.

    Attributes:
        name: the name of the file. lines: the findings, in Markdown.
        of: the measured weights; None if a result is not about one set of weights.
    """

    name: str
    lines: tuple[str, ...]
    of: tuple[tuple[Weights, int], ...] | None

    def is_about(self, weights: Weights) -> bool:
        """Return whether these weights are among the measured ones."""
        return self.of is None or any(
            one.stored_bytes == weights.stored_bytes
            and abs(one.zeros - weights.zeros) <= _LEAST_SHARE * total
            for one, total in self.of
        )


def results_in(folder: Path, listed: Iterable[FileRecord]) -> dict[str, ResultFile | str]:
    """Return the results in a folder by file name; for an unreadable one, the reason.

    A file that is listed in the manifest and unchanged came with the source, and so is about other
    weights: it is left out.
    """
    digests = {file.name: file.blake3 for file in listed}
    found: dict[str, ResultFile | str] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not _NAME.fullmatch(path.name) or path.is_symlink() or not path.is_file():
            continue
        try:
            if path.stat().st_size > _LARGEST:
                found[path.name] = f"it has more than {_LARGEST:,} bytes"
                continue
            data = path.read_bytes()
        except OSError as error:
            found[path.name] = error.strerror or str(error)
            continue
        if blake3.blake3(data).hexdigest() != digests.get(path.name):
            found[path.name] = _read(path, data)
    return found


def weights_of(folder: Path, manifest: Manifest) -> Weights:
    """Return the identity of the weights of an output."""
    files = {tensor.file for tensor in manifest.tensors}
    in_blocks = (t for t in manifest.tensors if t.layer is not None and len(t.shape) > 1)
    return Weights(
        sum((folder / name).stat().st_size for name in files),
        sum(tensor.zeros for tensor in in_blocks if tensor.tied_to is None),
    )


def named_results(section: str) -> set[str]:
    """Return the results that a section of a card shows, by file name."""
    return {name for name in _LINK.findall(section) if _NAME.fullmatch(name)}


def _read(path: Path, data: bytes) -> ResultFile | str:
    try:
        document = parse_json(data)
    except ValueError:
        return "it is not JSON"
    try:
        result = _Part(document)
        schema = result("schema")
        if schema not in _READERS:
            return f"its schema {schema[:40]!a} is not known"
        (head, *rest), of = _READERS[schema](result)
    except ValueError as error:
        return str(error)
    return ResultFile(path.name, (f"[`{path.name}`]({path.name}): {head}", *rest), of)


@dataclass(frozen=True, slots=True)
class _Part:
    """An object of a document, of which few members are read: ``part("seconds.median", Number)``.

    Raises:
        ValueError: a member is missing or of another type.
    """

    value: object
    where: str = ""

    def __call__(self, place: str, kind: Any = str) -> Any:
        value, where = self.value, self.where
        for key in place.split("."):
            members = convert(value, dict[str, Any], where)
            where = f"{where}.{key}".removeprefix(".")
            if key not in members:
                raise ValueError(f"{where} is missing")
            value = members[key]
        return convert(value, kind, where)

    def has(self, key: str) -> bool:
        """Return whether a member exists and is not null."""
        return convert(self.value, dict[str, Any], self.where).get(key) is not None

    def parts(self, key: str) -> list[_Part]:
        """Return the items of a list."""
        where = f"{self.where}.{key}".removeprefix(".")
        return [_Part(item, f"{where}[{n}]") for n, item in enumerate(self(key, list[Any]))]


_Read = tuple[list[str], tuple[tuple[Weights, int], ...] | None]


def _bench(result: _Part) -> _Read:
    """Format a result of ``prunectl bench``: time and speed of each model in each workload."""
    sides, device = result.parts("sides"), result("machine.device")
    used = [
        f"{name} {cell(result(f'machine.versions.{name}'))}"
        for name in ("prunectl", "torch", "transformers")
    ]
    dtypes = dict.fromkeys(side("dtype") for side in sides)
    threads = f", {result('machine.threads', Whole)} threads" if device == "cpu" else ""
    rows = [_bench_row(run) for run in result.parts("runs")]
    trusted = "" if result("ok", bool) else (
        " **The outputs of sparse and dense kernels differ: these speeds are not to be trusted.**"
    )  # fmt: skip
    lines = [
        f"measured on {cell(device)} ({cell(result('machine.name'))}{threads}), "
        f"dtype {', '.join(map(cell, dtypes))}, with {', '.join(used)}.{trusted}",
        "",
        "| model | workload | phase | time of a step | speed | 95% interval | verdict |",
        "|---|---|---|---:|---:|---:|---|",
        *rows[:_MOST_ROWS],
    ]
    if len(rows) > _MOST_ROWS:
        lines += ["", f"{len(rows) - _MOST_ROWS:,} more rows are in the file."]
    return lines, tuple(_weights(side, "zeros.") for side in sides if side.has("disk_bytes"))


def _bench_row(run: _Part) -> str:
    speed, interval, verdict = "baseline", "", ""
    if run.has("against"):
        ratio, low, high = (
            _times(run(f"against.{key}", Number)) for key in ("ratio", "low", "high")
        )
        speed, interval, verdict = ratio, f"{low} to {high}", cell(run("verdict"))
    seconds = run("seconds.median", Number)
    time = f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
    texts = " | ".join(cell(run(key)) for key in ("side", "workload", "phase"))
    return f"| {texts} | {time} | {speed} | {interval} | {verdict} |"


def _weights(of: _Part, counts: str = "") -> tuple[Weights, int]:
    """Return the identity of the measured weights, and the number of weights in the blocks."""
    zeros, weights = of(f"{counts}zeros", Whole), of(f"{counts}weights", Whole)
    return Weights(of("disk_bytes", Whole), zeros), weights


def _times(ratio: float) -> str:
    return f"{ratio:.2f}x" if abs(ratio) < 1000 else f"{ratio:.3g}x"


def _evaluation(result: _Part) -> _Read:
    """Format a result of ``prunectl evaluate``: one score, and the data it was measured on."""
    way = "higher" if result("higher_is_better", bool) else "lower"
    score = f"**{result('score', Number):.4g}**"
    if result.has("interval"):
        low, high = (result(f"interval.{end}", Number) for end in ("low", "high"))
        score += f" (95% interval {low:.4g} to {high:.4g})"
    line = (
        f"{cell(result('metric'))} {score}, {way} is better, on {result('samples', Whole):,} "
        f"{cell(result('unit'))}, run on {cell(result('device'))} in {cell(result('dtype'))}."
    )
    return [line], (_weights(result),)


def _sweep(result: _Part) -> _Read:
    """Format a result of ``prunectl sweep``: the essential sparsity of each curve."""
    rows = []
    for curve in result.parts("curves"):
        sparsity = curve("essential.sparsity", Number | None)
        found = "none" if sparsity is None else f"{sparsity:.1%}"
        status, text = cell(curve("essential.status")), cell(curve("essential.text"), 160)
        rows.append(f"| {cell(curve('label'))} | {found} | {status} | {text} |")
    lines = [
        f"{cell(result('metric.name'))} measured along rising sparsity, "
        f"{result('metric.samples', Whole):,} samples, tolerance "
        f"{result('settings.epsilon', Number):.3g} {cell(result('settings.epsilon_mode'))}.",
        "",
        "| curve | essential sparsity | | what was found |",
        "|---|---:|---|---|",
        *rows[:_MOST_ROWS],
    ]
    return lines, None


_READERS: dict[str, Callable[[_Part], _Read]] = {
    "prunectl.bench/1": _bench,
    "prunectl.evaluate/1": _evaluation,
    "prunectl.sweep/1": _sweep,
}
"""By schema: a function from the document to Markdown, whose first line continues after the file's
name, and one to the measured weights and their number in the blocks."""
