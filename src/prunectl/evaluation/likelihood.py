"""How likely a model finds continuations of a text: sums of log probabilities of their tokens."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prunectl.checkpoint.module_tree import quiet_transformers
from prunectl.data.errors import BadTokenizer, first_line
from prunectl.data.tokens import Ids, Tokenizer
from prunectl.evaluation.batches import in_batches, padded
from prunectl.events import OnEvent

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]

_AT_ONCE = 1_000
"""Questions that are tokenized in one call."""


@dataclass(frozen=True, slots=True)
class Continued:
    """A context and what may follow it.

    Attributes:
        context: ids (tokens,), those that begin a text included.
        ends: ids of each continuation.
    """

    context: Ids
    ends: tuple[Ids, ...]

    @property
    def longest(self) -> int:
        """Tokens that the model is fed for the longest continuation, whose last is not fed."""
        return len(self.context) + max(map(len, self.ends)) - 1


@dataclass(frozen=True, slots=True)
class _Pass:
    """An input, and the continuations that are read off it: (text, its place there, ids)."""

    ids: Ids
    ends: tuple[tuple[int, int, Ids], ...]

    @property
    def first(self) -> int:
        """The first position whose output is needed."""
        return len(self.ids) - max(len(end) for _, _, end in self.ends)


def encode(tokenizer: Tokenizer, texts: Sequence[tuple[str, Sequence[str]]]) -> list[Continued]:
    """Tokens of contexts and of their continuations, as they are where both are one text.

    The boundary is where the context alone would end; a token that spans it is scored as a part of
    the continuation.

    Raises:
        BadTokenizer: the tokenizer fails.
    """
    found = []
    for start in range(0, len(texts), _AT_ONCE):
        some = texts[start : start + _AT_ONCE]
        flat = [text for context, ends in some for text in (context, *(context + e for e in ends))]
        try:
            with quiet_transformers():
                encoded = tokenizer.inner(flat, add_special_tokens=False, verbose=False)
        except Exception as error:  # transformers may raise anything at all
            first = first_line(error)
            raise BadTokenizer(tokenizer.model, f"which fails: {first}") from None
        made = iter(encoded["input_ids"])
        for _, ends in some:
            alone = next(made)
            found.append(_split(tokenizer.prefix, alone, [next(made) for _ in ends]))
    return found


def _split(prefix: Sequence[int], alone: list[int], joined: list[list[int]]) -> Continued:
    at = min(len(alone), *(len(one) - 1 for one in joined))
    while at and any(one[:at] != alone[:at] for one in joined):
        at -= 1
    context = np.array([*prefix, *alone[:at]], np.int64)
    return Continued(context, tuple(np.array(one[at:], np.int64) for one in joined))


def shortened(one: Continued, room: int | None) -> Continued:
    """Without as many of the context's first tokens as do not fit."""
    over = 0 if room is None else one.longest - room
    return Continued(one.context[over:], one.ends) if over > 0 else one


def log_likelihoods(
    model: Any, texts: Sequence[Continued], *, batch_size: int, phase: str, on_event: OnEvent
) -> list[Floats]:
    """Of each text, the log probabilities of its continuations: float64 [continuations].

    Continuations that differ in their last token only share one run of the model; the longest
    inputs come first, so that memory is full at once or not at all.

    Raises:
        RuntimeError, MemoryError: there is no memory for a single input.
    """
    passes = [one for index, text in enumerate(texts) for one in _passes(index, text)]
    passes.sort(key=lambda one: -len(one.ids))
    found = [np.full(len(one.ends), np.nan) for one in texts]
    outputs = in_batches(
        passes, batch_size, partial(_run, model), phase=phase, unit="inputs", on_event=on_event
    )
    for one, values in zip(passes, outputs, strict=True):
        for (text_index, place, _), value in zip(one.ends, values, strict=True):
            found[text_index][place] = value
    return found


def _passes(index: int, text: Continued) -> list[_Pass]:
    grouped: dict[bytes, list[tuple[int, int, Ids]]] = {}
    for place, end in enumerate(text.ends):
        grouped.setdefault(end[:-1].tobytes(), []).append((index, place, end))
    return [
        _Pass(np.concatenate([text.context, ends[0][2][:-1]]), tuple(ends))
        for ends in grouped.values()
    ]


def _run(model: Any, passes: Sequence[_Pass]) -> list[list[float]]:
    """Log probabilities of the continuations of each input, which are padded on the right."""
    import torch

    ids, mask = padded(model, [one.ids for one in passes])
    needed = sorted({at for one in passes for at in range(one.first, len(one.ids))})
    options: dict[str, Any] = {}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        # The outputs of a large vocabulary take most of the memory.
        options["logits_to_keep"] = torch.tensor(needed, device=ids.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **options).logits
        where = {at: place for place, at in enumerate(needed)} if options else None
        return [_read(rows, one, where) for rows, one in zip(logits, passes, strict=True)]


def _read(rows: torch.Tensor, one: _Pass, where: dict[int, int] | None) -> list[float]:
    import torch

    end = len(one.ids)
    places = [at if where is None else where[at] for at in range(one.first, end)]
    known = rows[places].float().log_softmax(-1)
    values = []
    for _, _, tokens in one.ends:
        ids = torch.from_numpy(tokens).to(known.device)
        picked = known[len(known) - len(tokens) :].gather(1, ids[:, None])
        values.append(float(picked.sum(dtype=torch.float64)))
    return values
