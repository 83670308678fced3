"""``prunectl lottery``: is a ticket that was trained for better than one-shot pruning?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunectl.cli import device_options, evaluate_options, options, training_options
from prunectl.cli.command_line import ARGV, recorded_command
from prunectl.cli.errors import FAILED, INTERRUPTED
from prunectl.cli.html import Html, check_page, save_page
from prunectl.cli.lists import seeds_of
from prunectl.cli.model_argument import choose_model
from prunectl.cli.output import Output
from prunectl.cli.sweep_options import Seeds
from prunectl.evaluation.metrics import DEFAULT_TRAINED
from prunectl.userdirs import expanded

if TYPE_CHECKING:
    from prunectl.studies.lottery.result import LotteryResult

EPILOG = options.examples(
    "prunectl lottery org/name --data mails.csv --sparsity 0.3 --rounds 2 -o ticket/",
    "prunectl lottery org/name --data mails.csv -s 0.5 --rate 0.3 --max-steps 2 -o ticket/",
)


def lottery(
    context: typer.Context,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            parser=expanded,
            help="Masks of all rounds, scores and lottery.json; the same command goes on from it.",
        ),
    ],
    model: options.Model = None,
    metric: evaluate_options.Metric = DEFAULT_TRAINED,
    data: evaluate_options.Data = None,
    sparsity: Annotated[
        float,
        typer.Option("--sparsity", "-s", metavar="SHARE", help="Of the ticket that is looked for."),
    ] = 0.5,
    rounds: Annotated[
        int | None,
        typer.Option(
            "--rounds",
            metavar="N",
            help="How many times to train and prune on the way to the sparsity. The share pruned "
            "in each follows from it, unless --rate is given too.",
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate",
            metavar="SHARE",
            show_default=False,
            help="Share of the weights still left that each round prunes. The number of rounds "
            "follows from it; default: 0.1.",
        ),
    ] = None,
    seeds: Seeds = "0",
    samples: evaluate_options.Samples = None,
    sequence_length: evaluate_options.SequenceLength = None,
    batch_size: evaluate_options.BatchSize = None,
    seed: evaluate_options.Seed = 0,
    task: training_options.Task = None,
    train_data: training_options.TrainData = None,
    text_column: training_options.TextColumn = None,
    label_column: training_options.LabelColumn = None,
    train_samples: training_options.TrainSamples = None,
    epochs: training_options.Epochs = None,
    learning_rate: training_options.LearningRate = None,
    train_batch_size: training_options.TrainBatchSize = None,
    weight_decay: training_options.WeightDecay = None,
    warmup: training_options.Warmup = None,
    gradient_accumulation: training_options.GradientAccumulation = None,
    mixed_precision: training_options.MixedPrecision = None,
    max_grad_norm: training_options.MaxGradNorm = None,
    max_steps: training_options.MaxSteps = None,
    checkpoints: training_options.Checkpoints = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    html: Html = None,
    device: device_options.Device = "auto",
    dtype: evaluate_options.Dtype = "auto",
    jobs: options.Jobs = None,
    revision: options.Revision = None,
    token: options.Token = None,
    cache_dir: options.CacheDir = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Search a lottery ticket by iterative magnitude pruning, and compare it with one-shot pruning.

    Each round trains, prunes the smallest of the trained weights, and rewinds the others to the
    pre-trained ones. Both masks are scored by the same recipe and seeds.
    """
    from prunectl.evaluation.settings import EvalSettings
    from prunectl.studies.lottery.settings import LotterySettings
    from prunectl.studies.lottery.verb import lottery

    out = Output(json=json, quiet=quiet, verbose=verbose)
    check_page(html)
    settings = LotterySettings(
        evaluation=EvalSettings(
            metric=metric,
            data=tuple(data or ()),
            samples=samples,
            sequence_length=sequence_length,
            batch_size=batch_size,
            **training_options.trained(context.params),
            seed=seed,
            device=device,
            dtype=dtype,
        ),
        sparsity=sparsity,
        rounds=rounds,
        rate=rate,
        seeds=seeds_of(seeds),
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
    )
    chosen = choose_model(model, revision, out)
    checkpoint = options.open_source(chosen, token, cache_dir, trust_remote_code, out)
    options.keep_source(checkpoint, [html])
    with out.progress() as on_event:
        result = lottery(
            checkpoint,
            output,
            settings,
            jobs=jobs,
            command=recorded_command(context.obj[ARGV]),
            on_event=on_event,
            on_result=lambda found: _say(out, found),
        )
    if html is not None:
        from prunectl.report.lottery_page import lottery_page

        save_page(html, lottery_page(result.to_json()), out)
    _end(result, out)


def _say(out: Output, found: LotteryResult) -> None:
    """A line a round."""
    from prunectl.cli.lottery_screen import round_line

    if not out.draws_bars:
        out.note(round_line(found))


def _end(result: LotteryResult, out: Output) -> None:
    from prunectl.cli.lottery_screen import lottery_screen

    out.data(result.to_json())
    out.show(*lottery_screen(result))
    if result.interrupted:
        out.warn("what was measured is kept: the same command goes on from there")
        raise typer.Exit(INTERRUPTED)
    if len(result.rounds) < len(result.planned) or result.rounds[-1].gain is None:
        raise typer.Exit(FAILED)
