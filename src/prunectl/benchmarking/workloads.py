"""The sizes of inputs, chosen by the kind of model and capped by what it takes; and the inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prunectl.benchmarking.settings import BenchSettings
from prunectl.checkpoint.model_kind import Kind, ModelKind
from prunectl.errors import InvalidOption

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Workload:
    """One size of inputs. ``tokens`` is 0 for images, ``new_tokens`` 0 if nothing is generated."""

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
        """What ``rate`` counts in one run of a phase: tokens, sequences or images."""
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
    """The workloads, and a sentence for each choice that does not fit the model. Pure.

    Args:
        device: ``cpu`` or ``cuda``.

    Raises:
        InvalidOption: a setting has no meaning for the model, or cannot fit it.
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


def random_tokens(model_kind: ModelKind, workload: Workload, seed: int) -> torch.Tensor:
    """Token ids, int64 [batch, tokens] on the CPU; special ids are left out."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    allowed = torch.tensor(
        [one for one in range(model_kind.vocabulary) if one not in model_kind.avoided],
        dtype=torch.int64,
    )
    shape = (workload.batch, workload.tokens)
    return allowed[torch.randint(len(allowed), shape, generator=generator)]


def random_pixels(model_kind: ModelKind, workload: Workload, seed: int) -> torch.Tensor:
    """Normal pixels, float32 [batch, channels, height, width] on the CPU."""
    import torch

    assert model_kind.image is not None
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((workload.batch, *model_kind.image), generator=generator)


def text_tokens(text: str, folder: Path, *, trust_remote_code: bool) -> torch.Tensor:
    """The ids of a text, int64 [n], from the tokenizer in a model's folder.

    Raises:
        InvalidOption: no tokenizer can be loaded, or the text has no tokens.
    """
    import torch
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    except Exception as error:  # transformers may raise anything at all
        first = str(error).strip().split("\n")[0]
        raise InvalidOption(
            f"--text needs a tokenizer, and that of {folder} does not load: {first[:200]}",
            hint="leave --text out: random tokens take as long",
        ) from None
    if not ids:
        raise InvalidOption("--text holds no tokens")
    return torch.tensor(ids, dtype=torch.int64)


def windows(tokens: torch.Tensor, workload: Workload) -> torch.Tensor:
    """Consecutive windows of a text, [batch, tokens]; a short text is repeated."""
    needed = workload.batch * workload.tokens
    repeats = -(-needed // len(tokens))
    return tokens.repeat(repeats)[:needed].reshape(workload.batch, workload.tokens)
