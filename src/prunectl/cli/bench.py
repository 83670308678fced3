"""``prunectl bench``: what a model costs to run, on the device at hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunectl.benchmarking.settings import PRESETS, BenchSettings
from prunectl.cli import options
from prunectl.cli.errors import DIFFERENCE, INTERRUPTED
from prunectl.cli.output import Output
from prunectl.cli.signatures import Given
from prunectl.errors import InvalidOption
from prunectl.option import MEASURING, OUTPUT, Fields, Option

if TYPE_CHECKING:
    from prunectl.benchmarking.result import BenchResult

EXAMPLES = (
    "prunectl bench demo --batch-size 1 --new-tokens 4 --seconds 2",
    "prunectl bench out/ --against org/name --prompt-tokens 8 --new-tokens 4 -o bench.json",
    "prunectl bench out/ --prompt-tokens 8 --new-tokens 4 --no-load --compare bench.json "
    "--fail-below 0.1",
)


def bench(
    source: options.OneModel,
    choices: Given[BenchSettings],
    saved: Annotated[options.Saved, Fields(only=("output", "csv"))],
    out: Output,
    against: Annotated[
        tuple[str, ...],
        Option(
            "Time this model too (repeatable); the first one is the baseline.", "MODEL", MEASURING
        ),
    ] = (),
    random_weights: Annotated[
        str,
        Option(
            "Instead of MODEL: an architecture without its weights, by a preset "
            f"({', '.join(PRESETS)}) or a config.json.",
            "PRESET|CONFIG",
            MEASURING,
            values={name: config["architectures"][0] for name, config in PRESETS.items()},
        ),
    ] = "",
    no_load: Annotated[
        bool, Option("Do not measure what loading takes.", heading=MEASURING)
    ] = False,
    compare: Annotated[
        Path | None,
        Option("Show what changed since a result that -o saved.", "FILE", OUTPUT, suffix=".json"),
    ] = None,
    fail_below: Annotated[
        float | None,
        Option(
            "With --compare: exit with 1 if the whole interval of the speed is below this share "
            "of before.",
            "RATIO",
            OUTPUT,
        ),
    ] = None,
) -> None:
    """Time a model on this device: prompt, further tokens, memory, loading.

    Alone, a model is compared with itself, pruned or filled in memory; with --against, with others.
    Rounds are interleaved, and a difference is only called one where its interval excludes 1, it
    is at least 3%, and it shows in most rounds.
    """
    from prunectl.benchmarking.compare import bench_csv, read_bench
    from prunectl.benchmarking.errors import Interrupted
    from prunectl.benchmarking.verb import bench

    _check_limit(compare, fail_below)
    saved.check()
    old = read_bench(compare) if compare else None
    settings = choices.make(measure_loading=not no_load)
    if random_weights and source.model is not None:
        raise InvalidOption("MODEL and --random-weights exclude each other", hint="leave one out")
    others = [source.open(one, out, compressed=True) for one in against]
    chosen = None if random_weights else source.open(source.choose(out), out, compressed=True)
    for one in (*others, *([chosen] if chosen else [])):
        options.keep_source(one, saved.named)
    try:
        with out.progress() as on_event:
            result = bench(
                chosen, others, settings, random_weights=random_weights, on_event=on_event
            )
    except Interrupted as stopped:
        result = stopped.result
    saved.save(out, result.to_json(), csv=lambda: bench_csv(result))
    _show(result, out, old, compare, fail_below)


def _check_limit(compare: Path | None, fail_below: float | None) -> None:
    if fail_below is not None and compare is None:
        raise InvalidOption(
            "--fail-below needs a result to compare with", hint="add --compare FILE"
        )
    if fail_below is not None and not 0 < fail_below < math.inf:
        raise InvalidOption("--fail-below must be a number above 0", hint="such as 0.9")


def _show(
    result: BenchResult,
    out: Output,
    old: dict[str, object] | None,
    path: Path | None,
    fail_below: float | None,
) -> None:
    """Print the result, and end with the code that it deserves."""
    from prunectl.benchmarking.compare import compare_bench
    from prunectl.benchmarking.errors import BadBenchFile, Slower
    from prunectl.cli.bench_screen import bench_screen, comparison_screen
    from prunectl.to_json import to_json

    comparison = compare_bench(old, path, result) if old is not None and path else None
    document = result.to_json()
    if comparison is not None:
        document["comparison"] = to_json(comparison)
    out.data(document)
    out.show(*bench_screen(result, everything=out.verbose))
    if comparison is not None:
        out.show(*comparison_screen(comparison, str(path)))
        if fail_below is not None and not (comparison.changes and comparison.same_device):
            why = "has no row in common with this run, or comes from another device"
            raise BadBenchFile(path or "", f"{why}: --fail-below cannot decide")
        if fail_below is not None and (slow := comparison.below(fail_below)):
            raise Slower(
                fail_below,
                [f"{one.side}, {one.workload}, {one.phase}: {one.against.ratio:.2f}x"
                 for one in slow],
            )  # fmt: skip
    if not result.ok:
        out.warn("sparse and dense kernels give different outputs: do not trust these speeds")
        raise typer.Exit(DIFFERENCE)
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)
