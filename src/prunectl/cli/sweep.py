"""``prunectl sweep``: what sparsity costs a model, and how much of it is free."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from prunectl.cli import (
    calibration_options,
    device_options,
    evaluate_options,
    options,
    sweep_options,
    training_options,
)
from prunectl.cli.command_line import ARGV, recorded_command
from prunectl.cli.errors import FAILED, INTERRUPTED
from prunectl.cli.lists import parts_of, seeds_of
from prunectl.cli.model_argument import choose_model
from prunectl.cli.output import Output, as_json, check_file, save_text
from prunectl.errors import InvalidOption
from prunectl.evaluation.metrics import DEFAULT as DEFAULT_METRIC
from prunectl.methods.table import DEFAULT
from prunectl.output.osfiles import os_errors, real_path
from prunectl.pattern import Pattern, parse_pattern
from prunectl.plan.settings import Budget
from prunectl.studies.sweep.settings import EpsilonMode, Tolerance

if TYPE_CHECKING:
    from rich.text import Text

    from prunectl.checkpoint.checkpoint import Checkpoint
    from prunectl.studies.sweep.result import SweepResult

EPILOG = options.examples(
    "prunectl sweep demo --sparsity 0.2,0.4 --samples 8",
    "prunectl sweep demo -s 0.1,0.3 --samples 8 --pattern unstructured,2:4 --html out.html",
    "prunectl sweep org/name --data text:my-text.txt -s 0:0.4:0.2 -o sweep.json",
    "prunectl sweep org/name my-model --data text:my-text.txt -s 0.3 --png curves.png",
)


def sweep(
    context: typer.Context,
    models: sweep_options.Models = None,
    metric: evaluate_options.Metric = DEFAULT_METRIC,
    data: evaluate_options.Data = None,
    sparsity: sweep_options.Sparsity = "auto",
    step: sweep_options.Step = None,
    pattern: sweep_options.Pattern = None,
    epsilon: sweep_options.Epsilon = 0.01,
    epsilon_mode: sweep_options.Mode = EpsilonMode.RELATIVE,
    seeds: sweep_options.Seeds = "0",
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
    method: calibration_options.MethodOption = DEFAULT,
    scope: options.ScopeOption = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    budget: calibration_options.BudgetOption = Budget.MATRIX,
    refine: calibration_options.Refine = False,
    calibration: calibration_options.Source = None,
    calibration_samples: sweep_options.CalibrationSamples = None,
    calibration_length: sweep_options.CalibrationLength = None,
    device: device_options.SpreadDevice = "auto",
    dtype: evaluate_options.Dtype = "auto",
    jobs: options.Jobs = None,
    output: sweep_options.Output = None,
    csv: sweep_options.Csv = None,
    html: sweep_options.Html = None,
    png: sweep_options.Png = None,
    svg: sweep_options.Svg = None,
    results: sweep_options.Results = None,
    no_cache: sweep_options.NoCache = False,
    revision: options.Revision = None,
    token: options.Token = None,
    cache_dir: options.CacheDir = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Measure a model's score along rising sparsity, and its essential sparsity.

    That is the largest sparsity whose loss is within --epsilon: what is free for this model, on
    these data, by this metric. Each point is kept as it is measured: the same command, given again
    after Ctrl-C, goes on.
    """
    from prunectl.evaluation.settings import EvalSettings
    from prunectl.plan.settings import PruneSettings
    from prunectl.studies.sweep.settings import SweepSettings
    from prunectl.studies.sweep.verb import sweep

    out = Output(json=json, quiet=quiet, verbose=verbose)
    saved = _Saved(output, csv, html, png, svg)
    saved.check(results)
    given: list[str | None] = list(dict.fromkeys(models)) if models else [None]
    needed = {"device": device} if refine or method.spec.is_calibrated else {}
    sources = calibration_options.calibration_of(
        given[0] or "", method, refine, calibration, False, _CALLED,
        samples=calibration_samples, sequence_length=calibration_length, **needed,
    )  # fmt: skip
    settings = SweepSettings(
        evaluation=EvalSettings(
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
        ),
        sparsity=sparsity,
        step=_step(step, sparsity),
        patterns=_patterns(pattern or []),
        pruning=PruneSettings(
            method=method,
            scope=scope,  # type: ignore[arg-type]  # None is the method's own
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            budget=budget,
            refine=refine,
            calibration=sources,
        ),
        tolerance=Tolerance(epsilon, epsilon_mode),
        seeds=seeds_of(seeds),
    )
    opened = _open(given, revision, token, cache_dir, trust_remote_code, out)
    for one in opened:
        options.keep_source(one, saved.named)
    screen = _Live(out, str(epsilon_mode))
    with out.progress(above=screen.chart) as on_event:
        result = sweep(
            opened,
            settings,
            results=results,
            use_cache=not no_cache,
            jobs=jobs,
            command=recorded_command(context.obj[ARGV]),
            on_event=on_event,
            on_result=screen.update,
        )
    _show(result, out)
    saved.write(result, out)
    _end(result, out, kept=results is not None or not no_cache)


_CALLED = {"samples": "calibration-samples", "sequence_length": "calibration-length"}
"""Options of a calibration that have other names here, where a metric has samples too."""


def _step(step: float | None, sparsity: str) -> float:
    from prunectl.studies.sweep.settings import DEFAULT_STEP

    if step is not None and sparsity.strip() != "auto":
        raise InvalidOption(
            "--step is how close --sparsity auto comes, and the points are given",
            hint=f"leave one of them out, or write --sparsity 0:0.9:{step:g}",
        )
    return DEFAULT_STEP if step is None else step


def _open(
    models: list[str | None],
    revision: str | None,
    token: str | None,
    cache_dir: Path | None,
    trust_remote_code: bool,
    out: Output,
) -> list[Checkpoint]:
    if revision is not None and len(models) > 1:
        raise InvalidOption("--revision is of one model", hint="write org/name@revision for each")
    access = (token, cache_dir, trust_remote_code, out)
    return [
        options.open_source(choose_model(one, revision, out), *access, compressed=True)
        for one in models
    ]


def _end(result: SweepResult, out: Output, *, kept: bool) -> None:
    """The exit code that a result deserves."""
    from prunectl.studies.sweep.result import Status

    if result.interrupted:
        if kept:
            out.warn("what was measured is kept: the same command goes on from there")
        raise typer.Exit(INTERRUPTED)
    if all(one.essential.status in (Status.FAILED, Status.UNLEARNED) for one in result.curves):
        if out.json or out.quiet:  # a screen has said so
            for one in result.curves:
                out.warn(f"{one.label}: {one.essential.text}")
        raise typer.Exit(FAILED)


class _Live:
    """What is shown while a sweep runs: a chart above the bars, or a line a point."""

    def __init__(self, out: Output, mode: str) -> None:
        self._out, self._mode = out, mode
        self._chart: Text | None = None
        self._told: set[tuple[str, float]] = set()

    def update(self, result: SweepResult) -> None:
        from prunectl.cli.sweep_screen import chart, point_line

        if self._out.draws_bars:
            self._chart = chart(result)  # once for each point, and not ten times a second
            return

        curve = result.curves[-1]
        for point in curve.points:
            if (place := (curve.label, point.requested)) not in self._told:
                self._told.add(place)
                self._out.note(point_line(curve, point, self._mode))

    def chart(self) -> Text:
        from rich.text import Text

        return self._chart or Text("")


class _Saved:
    """The files that a sweep is saved to."""

    def __init__(
        self,
        output: Path | None,
        csv: Path | None,
        html: Path | None,
        png: Path | None,
        svg: Path | None,
    ) -> None:
        self._output, self._csv, self._html, self._png, self._svg = output, csv, html, png, svg

    @property
    def named(self) -> list[Path]:
        paths = (self._output, self._csv, self._html, self._png, self._svg)
        return [path for path in paths if path is not None]

    def check(self, results: Path | None) -> None:
        """Find out before the work whether all can be written, and none over another."""
        for path in self.named:
            check_file(path)
        if results is not None:
            with os_errors(results):
                real_path(results)
        places = [path.resolve() for path in (*self.named, results) if path is not None]
        if twice := next((path for path in places if places.count(path) > 1), None):
            raise InvalidOption(f"{twice} is named for two files", hint="give each its own name")
        if self._html or self._png or self._svg:
            from prunectl.report.charts import check_libraries

            check_libraries("a page or picture of a sweep")

    def write(self, result: SweepResult, out: Output) -> None:
        """Write those that were asked for."""
        from prunectl.studies.sweep.result import sweep_csv

        document = result.to_json()
        files: list[tuple[Path, str | bytes]] = []
        if self._output:
            files.append((self._output, as_json(document)))
        if self._csv:
            files.append((self._csv, sweep_csv(result)))
        if self._html or self._png or self._svg:
            from prunectl.report.sweep_page import sweep_page, sweep_picture

            files += [(self._html, sweep_page(document))] if self._html else []
            files += [(self._png, sweep_picture(document, "png"))] if self._png else []
            files += [(self._svg, sweep_picture(document, "svg"))] if self._svg else []
        for path, content in files:
            save_text(path, content)
            out.note(f"saved: {path}")


def _show(result: SweepResult, out: Output) -> None:
    from prunectl.cli.sweep_screen import sweep_screen

    out.data(result.to_json())
    out.show(*sweep_screen(result, everything=out.verbose))


def _patterns(texts: list[str]) -> tuple[Pattern, ...]:
    return tuple(parse_pattern(one) for one in parts_of(texts) or ["unstructured"])
