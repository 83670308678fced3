"""Text that a model writes, greedily: of each next token the likeliest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prunectl.checkpoint.module_tree import quiet_transformers
from prunectl.data.tokens import Ids, Tokenizer
from prunectl.evaluation.batches import padded, refusals

if TYPE_CHECKING:
    import torch


class _Watch:
    """Sees the outputs of each step, and which rows ever held NaN."""

    def __init__(self) -> None:
        self.bad: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        now = scores.isnan().any(-1)
        self.bad = now if self.bad is None else self.bad | now
        return scores


def continue_greedily(
    model: Any, tokenizer: Tokenizer, texts: Sequence[Ids], *, new_tokens: int, stop: str
) -> list[str | None]:
    """What a model writes behind prompts (tokens,), which are padded on the left.

    It ends with a token that ends a text, with the string ``stop``, or after ``new_tokens`` tokens.
    Whatever the model's folder says of sampling and penalties does not hold. None is a row of which
    outputs were NaN.
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessorList

    ids, mask = padded(model, texts, left=True)
    ends = end_tokens(model, tokenizer)
    pad = getattr(model.config, "pad_token_id", None)
    watch = _Watch()
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=new_tokens,
        eos_token_id=ends or None,
        pad_token_id=pad if isinstance(pad, int) else (ends or [0])[0],
        stop_strings=[stop],
    )
    with refusals("generation"), quiet_transformers(), torch.inference_mode(), _no_defaults(model):
        made = model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            tokenizer=tokenizer.inner,
            logits_processor=LogitsProcessorList([watch]),
        )
    bad = [False] * len(texts) if watch.bad is None else watch.bad.tolist()
    new = tokenizer.inner.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True)
    return [None if is_bad else text for is_bad, text in zip(bad, new, strict=True)]


@contextmanager
def _no_defaults(model: Any) -> Iterator[None]:
    """Without the model's own settings, which transformers takes where none are given."""
    from transformers import GenerationConfig

    before = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before


def end_tokens(model: Any, tokenizer: Tokenizer) -> list[int]:
    """Tokens that end a text: the tokenizer's, the config's, and those of generation."""
    found: list[Any] = [tokenizer.inner.eos_token_id]
    for config in (model.config, getattr(model, "generation_config", None)):
        value = getattr(config, "eos_token_id", None)
        found += value if isinstance(value, list) else [value]
    return sorted({one for one in found if isinstance(one, int)})
