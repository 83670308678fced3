"""Runs every workload on every side, and keeps what was measured when one of them fails.

A pass of a workload is a sequence of forward calls with marks between its phases.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from prunectl.benchmarking.errors import CannotRun
from prunectl.benchmarking.limits import Rates, Work, bytes_read, cache_bytes, count_flops
from prunectl.benchmarking.models import LoadedSide, skipped
from prunectl.benchmarking.result import INTERRUPTED, MeasuredRun, Skipped
from prunectl.benchmarking.settings import BenchSettings
from prunectl.benchmarking.timing import (
    Clock,
    Pass,
    Span,
    Timed,
    WallClock,
    paired_ratio,
    summarize,
    time_passes,
)
from prunectl.benchmarking.workloads import Workload, random_pixels, random_tokens, windows
from prunectl.checkpoint.model_kind import Kind, ModelKind
from prunectl.device import is_out_of_memory
from prunectl.events import Note, OnEvent

if TYPE_CHECKING:
    import torch


def make_pass(
    model: Any, kind: Kind, workload: Workload, inputs: torch.Tensor, *, graphs: bool = False
) -> Pass:
    """A pass over inputs on the model's device; the caller is in inference mode.

    With ``graphs`` a language model's cache has its full size and its place from the start, as
    CUDA graphs need it.

    Phases: ``prefill`` (the prompt, up to the first new token) and ``decode`` (each further token)
    where tokens are generated, greedily and without stopping at an end token; else ``forward``.
    """
    if kind is Kind.CAUSAL_LM:
        fixed = _fixed_cache(model, workload) if graphs else None
        return lambda clock: _continue(model, inputs, workload.new_tokens, clock, fixed)
    if kind is Kind.SEQ2SEQ:
        return lambda clock: _translate(model, inputs, workload.new_tokens, clock)
    name = "pixel_values" if kind is Kind.VISION else "input_ids"
    return lambda clock: _forward(model, {name: inputs}, clock)


def last_only(model: Any) -> dict[str, int]:
    """The argument that limits the head to the last position, if the model has it."""
    known = inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if "logits_to_keep" in known else {}


def cache_name(model: Any) -> str:
    """The model's name for its cache; custom code of models still uses older names."""
    known = inspect.signature(model.forward).parameters
    names = ("cache", "past_key_values", "cache_params")
    return next((name for name in names if name in known), names[0])


def outputs_of(model: Any, kind: Kind, inputs: torch.Tensor) -> torch.Tensor:
    """The outputs of a model: logits, or hidden states; float32."""
    if kind is Kind.SEQ2SEQ:
        start = inputs.new_full((len(inputs), 1), _start_of(model))
        found = model(input_ids=inputs, decoder_input_ids=start)
    elif kind is Kind.VISION:
        found = model(pixel_values=inputs)
    else:
        found = model(input_ids=inputs, **last_only(model))
    return found[0].float()  # type: ignore[no-any-return]


def cache_after(model: Any, kind: Kind, inputs: torch.Tensor) -> Any:
    """The keys and values of a model after its input; None if it generates nothing."""
    if kind is Kind.CAUSAL_LM:
        return model(input_ids=inputs, use_cache=True, **last_only(model))[cache_name(model)]
    if kind is Kind.SEQ2SEQ:
        start = inputs.new_full((len(inputs), 1), _start_of(model))
        found = model(input_ids=inputs, decoder_input_ids=start, use_cache=True)
        return found[cache_name(model)]
    return None


def _forward(model: Any, inputs: dict[str, torch.Tensor], clock: Clock) -> dict[str, Span]:
    begin = clock.mark()
    model(**inputs)
    return {"forward": (begin, clock.mark(), 1)}


def _fixed_cache(model: Any, workload: Workload) -> Any:
    from transformers import StaticCache

    return StaticCache(model.config, workload.tokens + workload.new_tokens)


def _mark_step(fixed: Any) -> None:
    """With CUDA graphs: outputs of earlier steps may be overwritten from here on."""
    if fixed is not None:
        import torch

        torch.compiler.cudagraph_mark_step_begin()


def _continue(
    model: Any, prompt: torch.Tensor, new: int, clock: Clock, fixed: Any
) -> dict[str, Span]:
    keep, cache = last_only(model), cache_name(model)
    if fixed is not None:
        fixed.reset()
    begin = clock.mark()
    _mark_step(fixed)
    found = model(input_ids=prompt, use_cache=True, **{cache: fixed}, **keep)
    token = found.logits[:, -1:].argmax(-1)
    first = clock.mark()
    for _ in range(new - 1):
        _mark_step(fixed)
        found = model(input_ids=token, use_cache=True, **{cache: found[cache]}, **keep)
        token = found.logits[:, -1:].argmax(-1)
    return _spans(begin, first, clock.mark(), new)


def _translate(model: Any, source: torch.Tensor, new: int, clock: Clock) -> dict[str, Span]:
    token = source.new_full((len(source), 1), _start_of(model))
    begin = clock.mark()
    encoded = model.get_encoder()(input_ids=source)
    cache = cache_name(model)
    past, first = None, begin
    for step in range(new):
        found = model(
            encoder_outputs=encoded, decoder_input_ids=token, use_cache=True, **{cache: past}
        )
        past = found[cache]
        if hasattr(found, "logits"):
            token = found.logits[:, -1:].argmax(-1)
        if step == 0:
            first = clock.mark()
    return _spans(begin, first, clock.mark(), new)


def _spans(begin: Any, first: Any, end: Any, new: int) -> dict[str, Span]:
    spans: dict[str, Span] = {"prefill": (begin, first, 1)}
    if new > 1:
        spans["decode"] = (first, end, new - 1)
    return spans


def _start_of(model: Any) -> int:
    """The first id of a decoder."""
    config = model.config.get_text_config()
    for key in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
        value = getattr(config, key, None)
        if isinstance(value, int):
            return value
    return 0


@dataclass(frozen=True, slots=True)
class Bench:
    """What all workloads share."""

    sides: tuple[LoadedSide, ...]
    model_kind: ModelKind
    device: torch.device
    clock: Clock
    rates: Rates
    settings: BenchSettings
    text: torch.Tensor | None

    def inputs(self, workload: Workload) -> torch.Tensor:
        """The inputs of a workload on the device; pixels in the dtype of the baseline."""
        if self.model_kind.kind is Kind.VISION:
            dtype = next(self.sides[0].model.parameters()).dtype
            pixels = random_pixels(self.model_kind, workload, self.settings.seed)
            return pixels.to(self.device, dtype)
        if self.text is not None:
            return windows(self.text, workload).to(self.device)
        return random_tokens(self.model_kind, workload, self.settings.seed).to(self.device)


def run_workloads(
    bench: Bench, workloads: Sequence[Workload], seconds: float, on_event: OnEvent
) -> tuple[list[MeasuredRun], list[Skipped]]:
    """Time all workloads; one that does not fit the memory is skipped, and so are larger ones.

    Ctrl-C ends the timing; what was measured before is kept.

    Args:
        seconds: for all workloads together.

    Raises:
        CannotRun: the first workload fails for another reason than memory.
    """
    runs: list[MeasuredRun] = []
    left_out: list[Skipped] = []
    too_large: list[Workload] = []
    for number, workload in enumerate(workloads):
        if any(_at_least(workload, other) for other in too_large):
            left_out.append(Skipped(workload.name, "a smaller one was out of memory"))
            continue
        try:
            on_event(Note(f"timing {workload.name}"))
            found, failed = _run(bench, workload, seconds / len(workloads))
        except KeyboardInterrupt:
            if not runs:
                raise
            left_out += [Skipped(one.name, INTERRUPTED) for one in workloads[number:]]
            break
        except (
            RuntimeError,
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            MemoryError,
        ) as error:
            if is_out_of_memory(error):
                too_large.append(workload)
            elif not runs:
                raise CannotRun(
                    bench.sides[0].side.model, f"{workload.name}: {skipped('', error).why}"
                ) from error
            left_out.append(skipped(workload.name, error))
            _free(bench.device)
            continue
        runs += found
        left_out += failed
    return runs, left_out


def _at_least(one: Workload, other: Workload) -> bool:
    return one.batch >= other.batch and one.tokens >= other.tokens


def _run(
    bench: Bench, workload: Workload, seconds: float
) -> tuple[list[MeasuredRun], list[Skipped]]:
    """Time one workload on the sides that have the memory for it.

    Raises whatever torch raises where the first side fails.
    """
    kind = bench.model_kind.kind
    inputs = bench.inputs(workload)
    passes: dict[str, Any] = {}
    peaks: dict[str, int | None] = {}
    failed: list[Skipped] = []
    for loaded in bench.sides:
        graphs = bench.settings.compile == "reduce-overhead"
        one = make_pass(loaded.model, kind, workload, inputs, graphs=graphs)
        try:
            peaks[loaded.side.label] = _first_pass(one, loaded, bench.device)
        except RuntimeError as error:
            if loaded is bench.sides[0] or not is_out_of_memory(error):
                raise
            failed.append(skipped(f"{workload.name} on {loaded.side.label}", error))
            _free(bench.device)
            continue
        passes[loaded.side.label] = one
    flops = _flops(bench, workload, inputs)
    cached = cache_bytes(cache_after(bench.sides[0].model, kind, inputs))
    timed = time_passes(passes, bench.clock, rounds=bench.settings.rounds, seconds=seconds)
    runs: list[MeasuredRun] = []
    for loaded in bench.sides:
        label = loaded.side.label
        for phase in timed.samples.get(label, {}):
            work = Work(
                bytes_read(loaded.model, _rows(workload, phase)) + cached, flops.get(phase, 0)
            )
            runs.append(_result(bench, workload, phase, loaded, timed, work, peaks[label]))
    order = {phase: number for number, phase in enumerate(("prefill", "decode", "forward"))}
    return sorted(runs, key=lambda run: order[run.phase]), failed


def _result(
    bench: Bench,
    workload: Workload,
    phase: str,
    loaded: LoadedSide,
    timed: Timed,
    work: Work,
    peak: int | None,
) -> MeasuredRun:
    samples = timed.samples[loaded.side.label][phase]
    first = bench.sides[0]
    is_first = loaded is first
    base = timed.samples[first.side.label][phase]
    return MeasuredRun(
        workload=workload,
        phase=phase,
        side=loaded.side.label,
        seconds=summarize(samples),
        samples=samples,
        repeats=timed.repeats,
        units=workload.units(phase),
        nbytes=work.nbytes,
        flops=work.flops,
        limit=work.limit(bench.rates),
        peak_memory=peak,
        against=None if is_first else paired_ratio(base, samples, bench.settings.seed),
    )


def _rows(workload: Workload, phase: str) -> int:
    """Roughly the number of input rows of the linear layers."""
    return workload.batch if phase == "decode" else workload.batch * max(1, workload.tokens)


def _first_pass(one: Any, loaded: LoadedSide, device: torch.device) -> int | None:
    """Run once; on a CUDA device, return the bytes of the side's weights and of the pass."""
    if device.type != "cuda":
        one(WallClock())
        return None
    import torch

    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    one(WallClock())
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device)) - before + loaded.side.weight_bytes


def _flops(bench: Bench, workload: Workload, inputs: torch.Tensor) -> Mapping[str, int]:
    """The operations of one step in each phase, counted on the first side; {} if that fails."""
    kind = bench.model_kind.kind

    def count(new: int) -> int:
        one = make_pass(bench.sides[0].model, kind, replace(workload, new_tokens=new), inputs)
        return count_flops(lambda: one(WallClock()), bench.device)

    try:
        if not kind.generates:
            return {"forward": count(0)}
        prefill = count(1)
        return {"prefill": prefill, "decode": count(2) - prefill if workload.new_tokens > 1 else 0}
    except RuntimeError as error:
        # Plain attention needs more memory than fused attention; the bytes still are a limit.
        if not is_out_of_memory(error):
            raise
        return {}


def _free(device: torch.device) -> None:
    import gc

    import torch

    gc.collect()
    if device.type == "cuda":
        with contextlib.suppress(RuntimeError):  # the device has failed
            torch.cuda.empty_cache()
