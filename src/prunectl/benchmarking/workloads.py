"""What is run: workloads by what the model is, capped by what it takes. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prunectl.benchmarking.settings import BenchSettings
from prunectl.checkpoint.model_kind import Kind, ModelKind
from prunectl.errors import InvalidOption


@dataclass(frozen=True, slots=True)
class Workload:
    """One input size. ``tokens`` is 0 for images, ``new_tokens`` 0 where nothing is generated."""

    batch: int
    tokens: int
    new_tokens: int

    @property
    def name(self) -> str:
        """``batch 1, 128 + 16 tokens``."""
        if not self.tokens:
            return f"batch {self.batch}"
        new = f" + {self.new_tokens}" if self.new_tokens else ""
        return f"batch {self.batch}, {self.tokens}{new} tokens"

    def units(self, phase: str) -> int:
        """What ``rate`` counts in one run of a phase: tokens, or sequences, or images."""
        return self.batch * self.tokens if phase == "prefill" else self.batch


_DEFAULTS: dict[tuple[Kind, str], tuple[tuple[int, ...], tuple[int, ...], int]] = {
    (Kind.CAUSAL_LM, "cpu"): ((1, 8), (128,), 16),
    (Kind.CAUSAL_LM, "cuda"): ((1, 8, 32), (128, 2048), 128),
    (Kind.SEQ2SEQ, "cpu"): ((1, 8), (128,), 16),
    (Kind.SEQ2SEQ, "cuda"): ((1, 8, 32), (128, 512), 64),
    (Kind.ENCODER, "cpu"): ((1, 8), (128,), 0),
    (Kind.ENCODER, "cuda"): ((1, 8, 32, 128), (128, 512), 0),
    (Kind.VISION, "cpu"): ((1, 8), (0,), 0),
    (Kind.VISION, "cuda"): ((1, 8, 32, 128), (0,), 0),
}
"""Batch sizes, prompt tokens and new tokens, by kind and device."""


def plan(
    model_kind: ModelKind, device: str, settings: BenchSettings
) -> tuple[tuple[Workload, ...], tuple[str, ...]]:
    """The workloads, and a sentence for each choice that had to be changed.

    Args:
        device: ``cpu`` or ``cuda``.

    Raises:
        InvalidOption: what was asked for does not fit the model at all.
    """
    kind = model_kind.kind
    batches, lengths, new = _DEFAULTS[kind, device]
    batches = settings.batch_sizes or batches
    if kind is Kind.VISION and settings.prompt_tokens:
        raise InvalidOption("--prompt-tokens has no meaning for a vision model")
    if settings.new_tokens is not None:
        if not kind.generates:
            raise InvalidOption(f"--new-tokens has no meaning for a model of kind '{kind}'")
        new = settings.new_tokens
    notes: list[str] = []
    if kind is not Kind.VISION:
        # The decoder of an encoder-decoder model has a context of its own.
        reserved = new if kind is Kind.CAUSAL_LM else 0
        if model_kind.context is not None and new >= model_kind.context:
            if settings.new_tokens is not None:
                raise InvalidOption(
                    f"--new-tokens {new} does not fit the model's context of {model_kind.context}"
                )
            new = max(1, model_kind.context // 4)
            reserved = min(reserved, new)
            notes.append(f"{new} new tokens instead of the usual number: the context is short")
        asked = settings.prompt_tokens or lengths
        lengths = tuple(_capped(asked, model_kind.context, reserved, notes))
    return tuple(
        Workload(batch, length, new)
        for batch in dict.fromkeys(batches)
        for length in dict.fromkeys(lengths)
    ), tuple(notes)


def _capped(
    lengths: Sequence[int], context: int | None, reserved: int, notes: list[str]
) -> Iterator[int]:
    most = None if context is None else context - reserved
    for length in lengths:
        if most is None or length <= most:
            yield length
        else:
            notes.append(
                f"{length} tokens do not fit the model's context of {context}"
                + (f" with {reserved} new ones" if reserved else "")
                + f": {most} are taken"
            )
            yield most
