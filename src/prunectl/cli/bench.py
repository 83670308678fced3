"""``prunectl bench``: what a model costs to run, on the device at hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunectl.cli import options
from prunectl.cli.errors import DIFFERENCE
from prunectl.cli.model_argument import ModelChoice, choose_model
from prunectl.cli.output import Output, as_json, check_file, save_text
from prunectl.errors import InvalidOption
from prunectl.pattern import NM, parse_nm

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
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            metavar="MODEL",
            help="Time this model too (repeatable); the first one is the baseline.",
        ),
    ] = None,
    random_weights: Annotated[
        str,
        typer.Option(
            "--random-weights",
            metavar="PRESET|CONFIG",
            help="Instead of MODEL: an architecture without its weights, by a preset (llama-7b, "
            "llama-8b, llama-1b, bert-base, vit-base, t5-base) or a config.json.",
        ),
    ] = "",
    batch_size: Annotated[
        str, typer.Option("--batch-size", metavar="N,N...", help="Sequences or images at once.")
    ] = "",
    prompt_tokens: Annotated[
        str, typer.Option("--prompt-tokens", metavar="N,N...", help="Lengths of the input.")
    ] = "",
    new_tokens: Annotated[
        int | None,
        typer.Option("--new-tokens", metavar="N", help="Tokens to generate after it."),
    ] = None,
    pattern: Annotated[
        str,
        typer.Option(
            "--pattern",
            "-p",
            metavar="N:M",
            help="How a dense model that comes alone is pruned in memory, to compare it with; "
            "'none' times it alone.",
        ),
    ] = "2:4",
    kernels: Annotated[
        str,
        typer.Option(
            "--kernels",
            metavar="KERNELS",
            help="For 2:4 weights on CUDA: dense, sparse, or auto (also sparse, where it wins).",
        ),
    ] = "auto",
    device: options.Device = "auto",
    dtype: Annotated[
        str,
        typer.Option("--dtype", metavar="DTYPE", help="auto: that of the checkpoint."),
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", help="Of torch, on the CPU.")
    ] = None,
    compile_: Annotated[
        str,
        typer.Option(
            "--compile",
            metavar="MODE",
            help="torch.compile for all models alike: none, default, or reduce-overhead (CUDA "
            "graphs).",
        ),
    ] = "none",
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            metavar="FILE",
            callback=options.expand,
            help="Take the input from this text; default: random tokens.",
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option("--rounds", metavar="N", help="Samples of each model and workload.")
    ] = 15,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds",
            metavar="S",
            help="What timing may take, about: it plans fewer rounds, at least 7. Default: 60, on "
            "CUDA 120.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of all that is random.")] = 0,
    no_load: Annotated[
        bool, typer.Option("--no-load", help="Do not measure what loading takes.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", callback=options.expand, help="Save all as JSON."
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE", callback=options.expand, help="Save rows as CSV."),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            "--compare",
            metavar="FILE",
            callback=options.expand,
            help="Show what changed since a result that -o saved.",
        ),
    ] = None,
    fail_below: Annotated[
        float | None,
        typer.Option(
            "--fail-below",
            metavar="RATIO",
            help="With --compare: exit with 1 if speed is below this share of before.",
        ),
    ] = None,
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
    Rounds are interleaved, and a difference is only called one where its interval excludes 1 and
    it is at least 3%.
    """
    from prunectl.benchmarking.compare import as_csv, read_result
    from prunectl.benchmarking.settings import BenchSettings
    from prunectl.benchmarking.verb import bench

    out = Output(json=json, quiet=quiet, verbose=verbose)
    if fail_below is not None and compare is None:
        raise InvalidOption(
            "--fail-below needs a result to compare with", hint="add --compare FILE"
        )
    for file in (output, csv):
        if file:
            check_file(file)
    old = read_result(compare) if compare else None
    settings = BenchSettings(
        batch_sizes=_numbers("--batch-size", batch_size),
        prompt_tokens=_numbers("--prompt-tokens", prompt_tokens),
        new_tokens=new_tokens,
        rounds=rounds,
        seconds=seconds,
        device=device,
        dtype=dtype,
        threads=threads,
        kernels=kernels,
        pattern=_pattern(pattern),
        compile=compile_,
        text=_text(text) if text else "",
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
    with out.progress() as on_event:
        result = bench(chosen, others, settings, random_weights=random_weights, on_event=on_event)
    if output:
        save_text(output, as_json(result.to_json()))
        out.note(f"saved: {output}")
    if csv:
        save_text(csv, as_csv(result))
    _show(result, out, old, compare, fail_below)


def _show(
    result: BenchResult,
    out: Output,
    old: dict[str, object] | None,
    path: Path | None,
    fail_below: float | None,
) -> None:
    """Print the result, and end with the code that it deserves."""
    from prunectl.benchmarking.compare import compare
    from prunectl.benchmarking.errors import Slower
    from prunectl.cli.bench_screen import bench_screen, comparison_screen
    from prunectl.plain import plain

    comparison = compare(old, path, result) if old is not None and path else None
    document = result.to_json()
    if comparison is not None:
        document["comparison"] = plain(comparison)
    out.data(document)
    out.show(*bench_screen(result, everything=out.verbose))
    if comparison is not None:
        out.show(*comparison_screen(comparison, str(path)))
        if fail_below is not None and (slow := comparison.below(fail_below)):
            raise Slower(
                fail_below,
                [f"{one.side}, {one.workload}, {one.phase}: {one.against.ratio:.2f}x"
                 for one in slow],
            )  # fmt: skip
    if not result.ok:
        out.warn("sparse and dense kernels give different outputs: do not trust these speeds")
        raise typer.Exit(DIFFERENCE)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    """``1,8,32``.

    Raises:
        InvalidOption: something else.
    """
    try:
        return tuple(int(part) for part in text.split(",") if text)
    except ValueError:
        raise InvalidOption(
            f"{option} '{text}' is no list of whole numbers", hint=f"such as {option} 1,8,32"
        ) from None


def _pattern(text: str) -> NM | None:
    return None if text.strip().lower() == "none" else parse_nm(text)


def _text(path: Path) -> str:
    """Raises InvalidOption where the file is no text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InvalidOption(f"--text {path}: {why}") from None
