"""What an export has done, as people read it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prunectl import numbers
from prunectl.cli.tables import columns, facts, heading, sentence
from prunectl.layouts.table import DENSE

if TYPE_CHECKING:
    from rich.console import RenderableType

    from prunectl.exporting.result import ExportResult, MasksResult

MOST_TENSORS = 5


def export_screen(result: ExportResult, *, everything: bool = False) -> Iterator[RenderableType]:
    """Parts of the screen, in order.

    Args:
        everything: all tensors instead of the five largest.
    """
    yield heading(f"{result.model} -> {result.output}")
    rows = [
        (
            total.layout,
            numbers.count(total.tensors),
            numbers.size(total.dense_bytes),
            numbers.size(total.stored_bytes),
            _ratio(total.stored_bytes, total.dense_bytes),
        )
        for total in result.layouts
    ]
    all_tensors = numbers.count(len(result.tensors))
    sizes = (numbers.size(result.dense_bytes), numbers.size(result.nbytes))
    total_row = ("files", all_tensors, *sizes, numbers.share(result.ratio))
    yield columns(("layout", "tensors", "dense", "stored", "of dense"), [*rows, total_row])
    yield from _tensors(result, everything=everything)
    resumed = f", {result.resumed_shards} of them kept from before" if result.resumed_shards else ""
    rate = numbers.rate(result.dense_bytes, result.seconds)
    yield facts(
        [
            ("", " "),
            ("files", f"{numbers.plural(result.shards, 'weights file')}{resumed}"),
            ("time", f"{numbers.duration(result.seconds)}, {rate}" if rate else ""),
        ]
    )
    for warning in result.warnings:
        yield sentence(warning)
    folder = shlex.quote(str(result.output))
    if result.layout == DENSE:
        yield sentence("Dense again: it loads wherever the original did.")
    else:
        yield sentence(
            "Load it with prunectl.load_model, or with transformers after 'import prunectl'. "
            f"Back: prunectl export {folder} --layout {DENSE} -o DIR"
        )
    yield sentence(f"Next: prunectl verify {folder}")


def masks_screen(result: MasksResult) -> Iterator[RenderableType]:
    """Parts of the screen of ``--masks-only``, in order."""
    yield heading(f"{result.model} -> {result.output}")
    yield facts(
        [
            ("masks", f"of {numbers.plural(result.tensors, 'tensor')}"),
            ("weights", f"{result.weights:,}, {result.zeros:,} of them zero"),
            ("size", numbers.size(result.nbytes)),
        ]
    )
    name = shlex.quote(str(result.output))
    yield sentence(f"Apply it with: prunectl prune MODEL --mask {name} -o DIR")


def _ratio(part: int, whole: int) -> str:
    return numbers.share(part / whole) if whole else ""


def _tensors(result: ExportResult, *, everything: bool) -> Iterator[RenderableType]:
    largest = sorted(result.tensors, key=lambda tensor: -tensor.dense_bytes)
    shown = result.tensors if everything else largest[:MOST_TENSORS]
    if not shown:
        return
    yield heading("Tensors" if everything else "Largest tensors")
    yield columns(
        ("tensor", "layout", "sparsity", "dense", "stored", "of dense"),
        [
            (
                tensor.name,
                f"{tensor.layout} {tensor.pattern}" if tensor.pattern else tensor.layout,
                _ratio(tensor.zeros, tensor.numel),
                numbers.size(tensor.dense_bytes),
                numbers.size(tensor.stored_bytes),
                _ratio(tensor.stored_bytes, tensor.dense_bytes),
            )
            for tensor in shown
        ],
        left=(0, 1),
    )
    if len(shown) < len(result.tensors):
        yield sentence("-v lists all of them.")
