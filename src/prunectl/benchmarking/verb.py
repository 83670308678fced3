"""The ``bench`` verb: load the models that are compared, time them in turns, and summarize."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from prunectl.benchmarking.errors import Interrupted, NotEnoughMemory
from prunectl.benchmarking.limits import measure_rates
from prunectl.benchmarking.machine import (
    busy_warning,
    current_device,
    load_now,
    machine_of,
    torch_threads,
)
from prunectl.benchmarking.models import (
    SPARSE_ENOUGH,
    LoadedSide,
    Source,
    load_side,
    made_sides,
    memory_errors,
    random_source,
    skipped,
    source_of,
)
from prunectl.benchmarking.result import Agreement, BenchResult, KernelRow, MeasuredRun, Skipped
from prunectl.benchmarking.running import Bench, run_workloads
from prunectl.benchmarking.settings import BenchSettings
from prunectl.benchmarking.sparse import Backend, backends
from prunectl.benchmarking.timing import clock_of
from prunectl.benchmarking.workloads import Workload, plan, text_tokens
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.model_kind import Kind, ModelKind, common_model_kind, model_kind_of
from prunectl.device import choose_device, is_out_of_memory
from prunectl.errors import InvalidOption
from prunectl.events import Note, OnEvent, ignore_events
from prunectl.runtime.executions import AUTO, DENSE, check_place

if TYPE_CHECKING:
    import torch

Model = Checkpoint | str | os.PathLike[str]

RESTLESS = 0.15
"""Coefficient of variation from which a note says that the machine was busy."""
DEFAULT_SECONDS = {"cpu": 60.0, "cuda": 120.0}
"""Time for all measurements by default."""


def bench(
    model: Model | None = None,
    against: Sequence[Model] = (),
    settings: BenchSettings | None = None,
    *,
    random_weights: str = "",
    on_event: OnEvent = ignore_events,
) -> BenchResult:
    """Time inference of one or several models, end to end and in turns.

    A single model is compared with itself: compressed in memory with dense if it has another
    execution than dense; else pruned in memory, or with its zeros filled if it is already pruned.
    On CUDA, 2:4 weights are run on dense and on sparse kernels.

    Args:
        model: an open checkpoint, or what :func:`prunectl.open_checkpoint` takes; compressed
            folders too.
        against: others of the same kind. The first is the baseline of all ratios; if empty, the
            model itself is.
        settings: see :class:`BenchSettings`.
        random_weights: instead of ``model``: a preset (``llama-7b``), or a config.json.
        on_event: receives notes on the progress.

    Raises:
        InvalidOption: settings that have no meaning for the model or the device.
        CannotRun: the model's forward pass fails.
        UnknownInputs: it takes neither tokens nor images.
        NotEnoughMemory: nothing could be measured.
        Interrupted: Ctrl-C after something was measured, which the exception holds.
        SourceError: a checkpoint cannot be read.
    """
    started = time.perf_counter()
    if warning := busy_warning(load_now(), os.cpu_count() or 1):
        on_event(Note(warning, warning=True))
    settings = settings or BenchSettings()
    if (model is None) == (not random_weights):
        raise InvalidOption("bench takes a model, or an architecture for random weights")
    device = choose_device(settings.device)
    if settings.kernels == "sparse" and device.type != "cuda":
        raise InvalidOption(
            "--kernels sparse: torch's 2:4 kernels need a CUDA device, and this is the CPU",
            hint="leave it out: on the CPU zeros bring no speed-up, and bench measures that",
        )
    sources = [_source(one) for one in against]
    measured = random_source(random_weights) if model is None else _source(model)
    sources += _executed(measured, device, settings.execution, alone=not sources)
    with torch_threads(settings.threads), current_device(device):
        result = _bench(sources, device, settings, on_event)
    result = replace(result, seconds=time.perf_counter() - started)
    if result.interrupted:
        raise Interrupted(result)
    return result


def _executed(source: Source, device: torch.device, wanted: str, *, alone: bool) -> list[Source]:
    """The model in its execution; if that is not dense and it comes alone, dense before it.

    Raises:
        InvalidOption: an execution that the device has no kernels for.
    """
    on_cpu = AUTO if device.type == "cpu" else DENSE
    execution = wanted or (on_cpu if source.is_compressed else DENSE)
    check_place(execution, device)
    if execution == DENSE:
        return [source]
    executed = replace(source, execution=execution)
    if not alone:
        return [executed]
    return [
        replace(source, short=f"{source.short}, {DENSE}"),
        replace(executed, short=f"{source.short}, {execution}"),
    ]


def _source(model: Model) -> Source:
    from prunectl.loading.compressed import open_model

    return source_of(model if isinstance(model, Checkpoint) else open_model(model))


def _bench(
    sources: Sequence[Source], device: torch.device, settings: BenchSettings, on_event: OnEvent
) -> BenchResult:
    import torch

    sides, left_out = _load(sources, device, settings, on_event)
    folders = {source.name: source.folder for source in sources}
    model_kind = common_model_kind(
        [(one.side.model, model_kind_of(one.model, folders.get(one.side.model))) for one in sides]
    )
    workloads, notes = plan(model_kind, device.type, settings)
    if settings.compile == "reduce-overhead" and model_kind.kind is Kind.SEQ2SEQ:
        raise InvalidOption(
            "--compile reduce-overhead: CUDA graphs need a cache of fixed size, and bench has none "
            "for encoder-decoder models",
            hint="--compile default works",
        )
    clock = clock_of(device)
    first = sides[0]
    on_event(Note("measuring the device's bandwidth and matmul rate"))
    kind = next(first.model.parameters()).dtype
    with memory_errors(first.side.model, device, "measuring the device"):
        rates = measure_rates(device, kind, first.side.weight_bytes, clock)
    machine = machine_of(device)  # now, since a device that fails later cannot answer
    text = None
    if settings.text:
        owner = next((one for one in sources if one.folder is not None), None)
        if owner is None or owner.folder is None or not model_kind.vocabulary:
            raise InvalidOption("--text needs a text model with a tokenizer")
        text = text_tokens(settings.text, owner.folder, trust_remote_code=owner.trust_remote_code)
    bench_ = Bench(tuple(sides), model_kind, device, clock, rates, settings, text)
    with torch.inference_mode():
        rows, agreements = _add_sparse(bench_, sides, workloads, left_out, on_event)
        _compile(sides, settings.compile)
        bench_ = replace(bench_, sides=tuple(sides))
        seconds = settings.seconds or DEFAULT_SECONDS[device.type]
        runs, failed = run_workloads(bench_, workloads, seconds, on_event)
    if not runs:
        what = "; ".join(dict.fromkeys(f"{one.what}: {one.why}" for one in failed))
        raise NotEnoughMemory(first.side.model, str(device), what)
    return BenchResult(
        kind=str(model_kind.kind),
        machine=machine,
        rates=rates,
        sides=tuple(loaded.side for loaded in sides),
        runs=tuple(runs),
        kernels=tuple(rows),
        agreements=tuple(agreements),
        skipped=(*left_out, *failed),
        inputs=_inputs(model_kind, text is not None),
        seed=settings.seed,
        compile=settings.compile,
        seconds=0.0,
        notes=(*notes, *_method_notes(runs, settings)),
    )


def _load(
    sources: Sequence[Source], device: torch.device, settings: BenchSettings, on_event: OnEvent
) -> tuple[list[LoadedSide], list[Skipped]]:
    """Load all sides with dense kernels, the baseline first; sides that do not fit are skipped."""
    sides: list[LoadedSide] = []
    left_out: list[Skipped] = []
    for source in sources:
        label = _free_label(source, [loaded.side.label for loaded in sides])
        on_event(Note(f"loading {source.name}"))
        try:
            sides.append(load_side(source, label, device, settings))
        except NotEnoughMemory as error:
            if not sides:
                raise
            left_out.append(Skipped(label, error.message))
    if len(sources) > 1:
        return sides, left_out
    try:
        sides += made_sides(sides[0], settings)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        left_out.append(skipped("a second copy in memory to compare with", error))
    if sides[0].side.zeros.sparsity >= SPARSE_ENOUGH:
        sides.reverse()  # the side without zeros is the baseline
    return sides, left_out


def _free_label(source: Source, taken: Sequence[str]) -> str:
    """The short name, else the whole name, else the whole name with a number."""
    for name in (source.short, source.name):
        if name not in taken:
            return name
    number = 2
    while f"{source.name} ({number})" in taken:
        number += 1
    return f"{source.name} ({number})"


def _add_sparse(
    bench_: Bench,
    sides: list[LoadedSide],
    workloads: Sequence[Workload],
    left_out: list[Skipped],
    on_event: OnEvent,
    kernels: Sequence[Backend] | None = None,
) -> tuple[list[KernelRow], list[Agreement]]:
    """Add a side with sparse kernels for each side with 2:4 weights; on CUDA only."""
    rows: list[KernelRow] = []
    agreements: list[Agreement] = []
    if bench_.device.type != "cuda" or bench_.settings.kernels == "dense":
        return rows, agreements
    from prunectl.benchmarking.kernels import agreement, sparse_side

    for loaded in list(sides):
        if loaded.side.zeros.sparsity < SPARSE_ENOUGH:
            continue
        on_event(Note(f"timing sparse kernels with the weights of {loaded.side.label}"))
        try:
            made, found = sparse_side(bench_, loaded, workloads, kernels or backends())
            rows += found
            if made is not None:
                agreements.append(agreement(bench_, made, loaded, workloads))
                sides.append(made)
            else:
                why = "no weight shape where they win" if found else "no weight that they take"
                left_out.append(Skipped(f"{loaded.side.label}, sparse kernels", why))
        except RuntimeError as error:
            left_out.append(skipped(f"{loaded.side.label}, sparse kernels", error))
    return rows, agreements


def _compile(sides: Sequence[LoadedSide], mode: str) -> None:
    if mode != "none":
        for loaded in sides:
            loaded.model.compile(mode=mode)


def _inputs(model_kind: ModelKind, is_text: bool) -> str:
    if model_kind.image:
        return f"random pixels, {'x'.join(map(str, model_kind.image))}"
    return "the text's tokens" if is_text else "random tokens"


def _method_notes(runs: Sequence[MeasuredRun], settings: BenchSettings) -> Iterator[str]:
    rounds = [run.seconds.rounds for run in runs]
    if min(rounds) < settings.rounds:
        yield (
            f"{min(rounds)} rounds instead of {settings.rounds} in the slowest workload, "
            "for the time; --seconds gives more"
        )
    spread = max(run.seconds.cv for run in runs)
    if spread > RESTLESS:
        yield (
            f"samples of one workload spread by up to {spread:.0%}: something else kept the "
            "machine busy, and only large differences show"
        )
