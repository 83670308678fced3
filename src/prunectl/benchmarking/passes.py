"""One pass of a workload through a model: forward calls, with marks between their phases."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from prunectl.benchmarking.clocks import Clock
from prunectl.benchmarking.rounds import Pass, Span
from prunectl.benchmarking.workloads import Workload
from prunectl.checkpoint.model_kind import Kind

if TYPE_CHECKING:
    import torch


def make_pass(
    model: Any, kind: Kind, workload: Workload, inputs: torch.Tensor, *, graphs: bool = False
) -> Pass:
    """A pass over inputs that are on the model's device; the caller is in inference mode.

    With ``graphs`` a language model's cache has its full size from the start and stays where it
    is, as CUDA graphs need it.

    Phases: ``prefill`` (the prompt, up to the first new token) and ``decode`` (each further one)
    where tokens are generated, greedily and without stopping at an end; else ``forward``.
    """
    if kind is Kind.CAUSAL_LM:
        fixed = _fixed_cache(model, workload) if graphs else None
        return lambda clock: _continue(model, inputs, workload.new_tokens, clock, fixed)
    if kind is Kind.SEQ2SEQ:
        return lambda clock: _translate(model, inputs, workload.new_tokens, clock)
    name = "pixel_values" if kind is Kind.VISION else "input_ids"
    return lambda clock: _forward(model, {name: inputs}, clock)


def last_only(model: Any) -> dict[str, int]:
    """The argument that keeps the head from computing what nobody reads, if the model has it."""
    known = inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if "logits_to_keep" in known else {}


def cache_name(model: Any) -> str:
    """What the model calls its cache; code that comes with a model still has older names."""
    known = inspect.signature(model.forward).parameters
    names = ("cache", "past_key_values", "cache_params")
    return next((name for name in names if name in known), names[0])


def outputs_of(model: Any, kind: Kind, inputs: torch.Tensor) -> torch.Tensor:
    """What the model says of inputs: logits, or hidden states; float32."""
    if kind is Kind.SEQ2SEQ:
        start = inputs.new_full((len(inputs), 1), _start_of(model))
        found = model(input_ids=inputs, decoder_input_ids=start)
    elif kind is Kind.VISION:
        found = model(pixel_values=inputs)
    else:
        found = model(input_ids=inputs, **last_only(model))
    return found[0].float()  # type: ignore[no-any-return]


def cache_after(model: Any, kind: Kind, inputs: torch.Tensor) -> Any:
    """The keys and values that a model keeps of its input; None where it generates nothing."""
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
    """With CUDA graphs: from here on, outputs of the step before may be overwritten."""
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
    """The id that a decoder begins with."""
    config = model.config.get_text_config()
    for key in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
        value = getattr(config, key, None)
        if isinstance(value, int):
            return value
    return 0
