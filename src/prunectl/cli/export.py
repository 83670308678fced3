"""``prunectl export``: store a checkpoint smaller, or make it dense again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunectl import numbers
from prunectl.cli import options
from prunectl.cli.output import Output
from prunectl.cli.push import PushAfter
from prunectl.cli.tables import columns, facts, heading, sentence
from prunectl.errors import InvalidOption
from prunectl.layouts.table import AUTO, CODINGS, DENSE, LAYOUTS
from prunectl.numbers import listed
from prunectl.option import OUTPUT, Option
from prunectl.pattern import COMMON_NMS, NM, parse_nm

if TYPE_CHECKING:
    from rich.console import RenderableType

    from prunectl.checkpoint.checkpoint import Checkpoint
    from prunectl.exporting.result import ExportResult, MasksResult

_OTHERS = list(CODINGS)

EXAMPLES = (
    "prunectl export out/ -o small/",
    f"prunectl export out/ -o small/ --layout {_OTHERS[-1]}",
    f"prunectl export small/ -o dense/ --layout {DENSE}",
    "prunectl export out/ --masks-only -o masks.safetensors",
    "prunectl export out/ -o small/ --push org/name-small",
)


def export(
    context: typer.Context,
    source: options.OneModel,
    after: PushAfter,
    out: Output,
    output: Annotated[
        Path | None,
        Option("Folder to write; with --masks-only, the file.", "DIR", OUTPUT, short="-o"),
    ] = None,
    layout: Annotated[
        str,
        Option(
            f"How weights are stored: {AUTO} (the smallest for each tensor), {DENSE} (what "
            f"everything loads), {listed(_OTHERS)}.",
            "LAYOUT",
            OUTPUT,
            short="-l",
            values={
                AUTO: "whichever is smallest for each tensor",
                **{name: one.summary for name, one in LAYOUTS.items()},
            },
        ),
    ] = AUTO,
    pattern: Annotated[
        NM | None,
        Option(
            "The N:M that tensors follow; default: what the manifest says.",
            "N:M",
            OUTPUT,
            short="-p",
            values=COMMON_NMS,
            read=parse_nm,
        ),
    ] = None,
    masks_only: Annotated[
        bool,
        Option("Write only which weights are kept, for prunectl prune --mask.", heading=OUTPUT),
    ] = False,
    max_shard_size: options.MaxShardSize = options.SHARD_SIZE,
    force: options.Force = False,
    jobs: options.Jobs = None,
) -> None:
    """Store a checkpoint in fewer bytes, without losing a bit; or make a stored one dense again.

    Compressed folders are read by prunectl.load_model and prunectl.load_state_dict, and by
    transformers after 'import prunectl'. Nothing else loads them: --layout dense is the way back.
    """
    from prunectl.output.shards import parse_size

    if masks_only and (layout != AUTO or pattern or max_shard_size != options.SHARD_SIZE):
        raise InvalidOption(
            "--masks-only writes one file of bits: --layout, --pattern and --max-shard-size have "
            "no meaning with it",
            hint="leave them out",
        )
    shard_size = parse_size(max_shard_size)
    if output is None:
        raise InvalidOption("no output given", hint="add -o FILE" if masks_only else "add -o DIR")
    after.check()
    if after.repo_id and masks_only:
        raise InvalidOption("masks alone cannot be pushed", hint="leave --masks-only or --push out")
    choice = source.choose(out)
    checkpoint = source.open(choice, out, compressed=True)
    ranks = options.ranks_of(context)
    if masks_only:
        if ranks.is_first:  # one file, of bits that are there already
            _masks(checkpoint, output, force, jobs, out)
        return
    from prunectl.exporting.verb import export

    with out.progress() as on_event:
        result = export(
            checkpoint,
            output,
            layout,
            pattern=pattern,
            max_shard_size=shard_size,
            force=force,
            jobs=jobs,
            ranks=ranks,
            command=source.command(context, choice, checkpoint),
            on_event=on_event,
        )
    if not ranks.is_first:
        return
    out.show(*export_screen(result, everything=out.verbose))
    out.data(result.to_json() | after.push(result.output, source, jobs, out))


def _masks(
    checkpoint: Checkpoint, output: Path, force: bool, jobs: int | None, out: Output
) -> None:
    from prunectl.exporting.masks import export_masks

    with out.progress() as on_event:
        result = export_masks(checkpoint, output, force=force, jobs=jobs, on_event=on_event)
    out.data(result.to_json())
    out.show(*masks_screen(result))


MOST_TENSORS = 5


def export_screen(result: ExportResult, *, everything: bool = False) -> Iterator[RenderableType]:
    """Parts of the screen, in order."""
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
