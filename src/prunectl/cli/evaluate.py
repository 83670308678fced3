"""``prunectl evaluate``: how good a model is, by one metric."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunectl.cli import device_options, evaluate_options, options, training_options
from prunectl.cli.model_argument import choose_model
from prunectl.cli.output import Output, as_json, check_file, save_text
from prunectl.evaluation.metrics import DEFAULT
from prunectl.userdirs import expanded

EPILOG = options.examples(
    "prunectl evaluate demo --samples 8",
    "prunectl evaluate org/name --data text:my-text.txt --sequence-length 128",
    "prunectl evaluate demo --samples 8 -o evaluate.json --json",
)


def evaluate(
    context: typer.Context,
    model: options.Model = None,
    metric: evaluate_options.Metric = DEFAULT,
    data: evaluate_options.Data = None,
    samples: evaluate_options.Samples = None,
    sequence_length: evaluate_options.SequenceLength = None,
    stride: evaluate_options.Stride = None,
    shots: evaluate_options.Shots = 0,
    protocol: evaluate_options.Protocol = "auto",
    max_new_tokens: evaluate_options.MaxNewTokens = None,
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
    device: device_options.SpreadDevice = "auto",
    dtype: evaluate_options.Dtype = "auto",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", parser=expanded, help="Save all as JSON."),
    ] = None,
    revision: options.Revision = None,
    token: options.Token = None,
    cache_dir: options.CacheDir = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Score a dense, pruned or compressed model by one metric.

    The protocol is fixed, stated, and recorded with a hash of the data: scores with the same record
    can be compared. The interval is a bootstrap over samples.
    """
    from prunectl.cli.evaluate_screen import evaluation_screen
    from prunectl.evaluation.settings import EvalSettings
    from prunectl.evaluation.verb import evaluate

    out = Output(json=json, quiet=quiet, verbose=verbose)
    if output:
        check_file(output)
    settings = EvalSettings(
        metric=metric,
        data=tuple(data or ()),
        samples=samples,
        sequence_length=sequence_length,
        stride=stride,
        shots=shots,
        protocol=protocol,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        **training_options.trained(context.params),
        seed=seed,
        device=device,
        dtype=dtype,
    )
    choice = choose_model(model, revision, out)
    checkpoint = options.open_source(
        choice, token, cache_dir, trust_remote_code, out, compressed=True
    )
    options.keep_source(checkpoint, [output])
    with out.progress() as on_event:
        result = evaluate(checkpoint, settings, on_event=on_event)
    out.data(result.to_json())
    out.show(*evaluation_screen(result, everything=verbose))
    if output:
        save_text(output, as_json(result.to_json()))
        out.note(f"saved: {output}")
