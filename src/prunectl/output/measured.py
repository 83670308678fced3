"""Results of prunectl's own measurements that stand beside an output, put into words for its card.

Such a file may come from anywhere: every value is checked, and text out of it is shown as code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import blake3

from prunectl.errors import BadManifest
from prunectl.output.card import cell
from prunectl.output.fields import Fields
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
    """By what weights are told from others: bytes of their files, and zeros in their blocks."""

    stored_bytes: int
    zeros: int


@dataclass(frozen=True, slots=True)
class ResultFile:
    """A result that was understood.

    Attributes:
        name: of the file. lines: Markdown that says what was found.
        of: the weights that were measured; None where a result is not about one set of weights.
    """

    name: str
    lines: tuple[str, ...]
    of: tuple[tuple[Weights, int], ...] | None

    def is_about(self, weights: Weights) -> bool:
        """Whether these weights are among those that were measured."""
        return self.of is None or any(
            one.stored_bytes == weights.stored_bytes
            and abs(one.zeros - weights.zeros) <= _LEAST_SHARE * total
            for one, total in self.of
        )


def results_in(folder: Path, listed: Iterable[FileRecord]) -> dict[str, ResultFile | str]:
    """The results in a folder by file name; where one cannot be read, why.

    A file that the manifest lists and that still is what it was has come with the source, and so is
    about other weights: it is left out.
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
    """What tells the weights of an output from others."""
    files = {tensor.file for tensor in manifest.tensors}
    in_blocks = (t for t in manifest.tensors if t.layer is not None and len(t.shape) > 1)
    return Weights(
        sum((folder / name).stat().st_size for name in files),
        sum(tensor.zeros for tensor in in_blocks if tensor.tied_to is None),
    )


def named_results(section: str) -> set[str]:
    """Results that a section of a card is about, by file name."""
    return {name for name in _LINK.findall(section) if _NAME.fullmatch(name)}


def _read(path: Path, data: bytes) -> ResultFile | str:
    try:
        fields = Fields(json.loads(data), path)
        schema = fields.text("schema")
        if schema not in _READERS:
            return f"its schema {schema[:40]!a} is not known"
        lines, of = _READERS[schema](fields)
    except BadManifest as error:
        return error.why
    except (ValueError, RecursionError):
        return "it is not JSON"
    head, *rest = lines
    return ResultFile(path.name, (f"[`{path.name}`]({path.name}): {head}", *rest), of)


_Read = tuple[list[str], tuple[tuple[Weights, int], ...] | None]


def _bench(fields: Fields) -> _Read:
    """A result of ``prunectl bench``: time and speed of each model in each workload."""
    machine, sides = fields.member("machine"), fields.objects("sides")
    versions = machine.member("versions")
    used = [f"{name} {cell(versions.text(name))}" for name in ("prunectl", "torch", "transformers")]
    dtypes = dict.fromkeys(side.text("dtype") for side in sides)
    threads = f", {machine.count('threads')} threads" if machine.text("device") == "cpu" else ""
    rows = [_bench_row(run) for run in fields.objects("runs")]
    trusted = "" if fields.flag("ok") else (
        " **The outputs of sparse and dense kernels differ: these speeds are not to be trusted.**"
    )  # fmt: skip
    lines = [
        f"measured on {cell(machine.text('device'))} ({cell(machine.text('name'))}{threads}), "
        f"dtype {', '.join(map(cell, dtypes))}, with {', '.join(used)}.{trusted}",
        "",
        "| model | workload | phase | time of a step | speed | 95% interval | verdict |",
        "|---|---|---|---:|---:|---:|---|",
        *rows[:_MOST_ROWS],
    ]
    if len(rows) > _MOST_ROWS:
        lines += ["", f"{len(rows) - _MOST_ROWS:,} more rows are in the file."]
    return lines, tuple(_bench_weights(side) for side in sides if side.members.get("disk_bytes"))


def _bench_row(run: Fields) -> str:
    speed, interval, verdict = "baseline", "", ""
    if run.members.get("against") is not None:
        ratio = run.member("against")
        speed = _times(ratio.number("ratio"))
        verdict = cell(run.text("verdict"))
        interval = f"{_times(ratio.number('low'))} to {_times(ratio.number('high'))}"
    seconds = run.member("seconds").number("median")
    time = f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
    texts = " | ".join(cell(run.text(key)) for key in ("side", "workload", "phase"))
    return f"| {texts} | {time} | {speed} | {interval} | {verdict} |"


def _bench_weights(side: Fields) -> tuple[Weights, int]:
    zeros = side.member("zeros")
    return Weights(side.count("disk_bytes"), zeros.count("zeros")), zeros.count("weights")


def _times(ratio: float) -> str:
    return f"{ratio:.2f}x" if abs(ratio) < 1000 else f"{ratio:.3g}x"


def _evaluation(fields: Fields) -> _Read:
    """A result of ``prunectl evaluate``: one score, with what it was measured on."""
    way = "higher" if fields.flag("higher_is_better") else "lower"
    score = f"**{fields.number('score'):.4g}**"
    if fields.members.get("interval") is not None:
        around = fields.member("interval")
        score += f" (95% interval {around.number('low'):.4g} to {around.number('high'):.4g})"
    line = (
        f"{cell(fields.text('metric'))} {score}, {way} is better, on {fields.count('samples'):,} "
        f"{cell(fields.text('unit'))}, run on {cell(fields.text('device'))} in "
        f"{cell(fields.text('dtype'))}."
    )
    weights = Weights(fields.count("disk_bytes"), fields.count("zeros"))
    return [line], ((weights, fields.count("weights")),)


def _sweep(fields: Fields) -> _Read:
    """A result of ``prunectl sweep``: what was free, of each curve; not of one set of weights."""
    metric = fields.member("metric")
    rows = []
    for curve in fields.objects("curves"):
        found = curve.member("essential")
        sparsity = found.optional("sparsity", found.number)
        rows.append(
            f"| {cell(curve.text('label'))} | {'none' if sparsity is None else f'{sparsity:.1%}'} "
            f"| {cell(found.text('status'))} | {cell(found.text('text'), 160)} |"
        )
    settings = fields.member("settings")
    lines = [
        f"{cell(metric.text('name'))} measured along rising sparsity, {metric.count('samples'):,} "
        f"samples, tolerance {settings.number('epsilon'):.3g} "
        f"{cell(settings.text('epsilon_mode'))}.",
        "",
        "| curve | essential sparsity | | what was found |",
        "|---|---:|---|---|",
        *rows[:_MOST_ROWS],
    ]
    return lines, None


_READERS: dict[str, Callable[[Fields], _Read]] = {
    "prunectl.bench/1": _bench,
    "prunectl.evaluate/1": _evaluation,
    "prunectl.sweep/1": _sweep,
}
"""By schema: from the document to Markdown, the first line of which goes on after the file's name,
and to the weights that were measured, with how many there are in the blocks."""
