"""``prunectl bench``: what a model costs to run, on the device at hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from prunectl.cli import bench_options, device_options, options
from prunectl.cli.errors import DIFFERENCE, INTERRUPTED
from prunectl.cli.model_argument import ModelChoice, choose_model
from prunectl.cli.output import Output, as_json, save_text
from prunectl.errors import InvalidOption

if TYPE_CHECKING:
    from prunectl.benchmarking.result import BenchResult
    from prunectl.checkpoint.checkpoint import Checkpoint

EPILOG = options.examples(
    "prunectl bench demo --batch-size 1 --new-tokens 4 --seconds 2",
    "prunectl bench out/ --against org/name --prompt-tokens 8 --new-tokens 4 -o bench.json",
    "prunectl bench out/ --prompt-tokens 8 --new-tokens 4 --no-load --compare bench.json "
    "--fail-below 0.1",
)


def bench(
    model: options.Model = None,
    against: bench_options.Against = None,
    random_weights: bench_options.RandomWeights = "",
    batch_size: bench_options.BatchSize = "",
    prompt_tokens: bench_options.PromptTokens = "",
    new_tokens: bench_options.NewTokens = None,
    pattern: bench_options.Pattern = "2:4",
    kernels: bench_options.Kernels = "auto",
    device: device_options.Device = "auto",
    dtype: bench_options.Dtype = "auto",
    threads: bench_options.Threads = None,
    compile_: bench_options.Compile = "none",
    text: bench_options.Text = None,
    rounds: bench_options.Rounds = 15,
    seconds: bench_options.Seconds = None,
    seed: bench_options.Seed = 0,
    no_load: bench_options.NoLoad = False,
    output: bench_options.Output = None,
    csv: bench_options.Csv = None,
    compare: bench_options.Compare = None,
    fail_below: bench_options.FailBelow = None,
    revision: options.Revision = None,
    token: options.Token = None,
    cache_dir: options.CacheDir = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Time a model on this device: prompt, further tokens, memory, loading.

    Alone, a model is compared with itself, pruned or filled in memory; with --against, with others.
    Rounds are interleaved, and a difference is only called one where its interval excludes 1, it
    is at least 3%, and it shows in most rounds.
    """
    from prunectl.benchmarking.compare import bench_csv, read_bench
    from prunectl.benchmarking.errors import Interrupted
    from prunectl.benchmarking.settings import BenchSettings
    from prunectl.benchmarking.verb import bench

    out = Output(json=json, quiet=quiet, verbose=verbose)
    bench_options.check_files(output, csv, compare, fail_below)
    old = read_bench(compare) if compare else None
    settings = BenchSettings(
        batch_sizes=bench_options.numbers("--batch-size", batch_size),
        prompt_tokens=bench_options.numbers("--prompt-tokens", prompt_tokens),
        new_tokens=new_tokens,
        rounds=rounds,
        seconds=seconds,
        device=device,
        dtype=dtype,
        threads=threads,
        kernels=kernels,
        pattern=bench_options.block_pattern(pattern),
        compile=compile_,
        text=bench_options.text_of(text) if text else "",
        seed=seed,
        measure_loading=not no_load,
    )

    def opened(choice: ModelChoice) -> Checkpoint:
        return options.open_source(
            choice, token, cache_dir, trust_remote_code, out, compressed=True
        )

    if random_weights and model is not None:
        raise InvalidOption("MODEL and --random-weights are two models", hint="leave one out")
    others = [opened(ModelChoice(one, None)) for one in against or []]
    chosen = None if random_weights else opened(choose_model(model, revision, out))
    for one in (*others, *([chosen] if chosen else [])):
        options.keep_source(one, (output, csv))
    try:
        with out.progress() as on_event:
            result = bench(
                chosen, others, settings, random_weights=random_weights, on_event=on_event
            )
    except Interrupted as stopped:
        result = stopped.result
    if output:
        save_text(output, as_json(result.to_json()))
        out.note(f"saved: {output}")
    if csv:
        save_text(csv, bench_csv(result))
    _show(result, out, old, compare, fail_below)


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
            why = "has no row in common with this run, or is of another device"
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
