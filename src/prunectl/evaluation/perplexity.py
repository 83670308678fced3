"""Perplexity on text: exp of the mean negative log likelihood of a token, given those before it.

The protocol is fixed. Documents are joined by an empty line and tokenized as one text, without
special tokens; windows of ``sequence_length`` tokens begin every ``stride`` tokens. Each is begun
by what the tokenizer begins a text with (nothing, or a token such as ``<s>``), which is not
predicted. Of the first window all tokens but the first are predicted (all, after a token that
begins the text), of a later one those that no window before it held; without overlap that is,
again, all but the first. What is left at the end and fills no window is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from prunectl.data.errors import BadData
from prunectl.data.tokens import JOINER, Ids, load_tokenizer
from prunectl.errors import InvalidOption
from prunectl.evaluation.batches import in_batches
from prunectl.evaluation.errors import EvaluationFailed
from prunectl.evaluation.metric import Head, Request, Score
from prunectl.evaluation.prompts import continues_text
from prunectl.evaluation.sources import digest, read_text, source_of
from prunectl.events import OnEvent, ignore_events

if TYPE_CHECKING:
    from prunectl.evaluation.loaded_model import LoadedModel
    from prunectl.evaluation.metric import Values

LENGTH = 2048
"""Tokens of a window where none are asked for, and the model takes so many."""
BATCH = 4
OUTPUTS = 1 << 30
"""Bytes that the outputs of a batch, float32 of the whole vocabulary, are to take at most."""
LEAST = 16
"""Fewer tokens than this tell nothing."""
_BYTES_PER_TOKEN = 16
_MOST, _SPREAD = 64 << 20, 8 << 20
"""Bytes of a dataset that are read at most; and that a few windows of it are spread over."""
_FINITE = 700.0
"""Mean negative log likelihoods from which exp has no finite value."""


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens that are run together, and how many of the last ones are scored."""

    ids: Ids
    scored: int


@dataclass(frozen=True, slots=True, eq=False)
class Perplexity:
    """See :class:`prunectl.evaluation.metric.Metric`; a sample is a window: (sum of negative log
    likelihoods, tokens predicted)."""

    windows: tuple[Window, ...]
    batch_size: int
    record: dict[str, Any]
    notes: tuple[str, ...] = ()
    name: str = "perplexity"
    unit: str = "windows"
    higher_is_better: bool = False
    trains: bool = False
    head: Head | None = None

    @property
    def samples(self) -> int:
        return len(self.windows)

    def tolerates(self, parameter: str) -> bool:
        return False

    def statistic(self, values: Values) -> float:
        """Exp of the mean over all tokens; Inf where that is too large."""
        total, tokens = values.sum(0)
        return math.exp(total / tokens) if total / tokens < _FINITE else math.inf

    def score(
        self, loaded: LoadedModel, *, seed: int = 0, on_event: OnEvent = ignore_events
    ) -> Score:
        """Run the windows through the model.

        Raises:
            EvaluationFailed: a loss is NaN.
        """
        found = in_batches(
            self.windows,
            self.batch_size,
            partial(_losses, loaded.model),
            phase="perplexity",
            unit=self.unit,
            on_event=on_event,
        )
        values = np.array(found, np.float64)
        if np.isnan(values).any():
            raise EvaluationFailed(
                self.name, f"the loss of {int(np.isnan(values[:, 0]).sum())} windows is NaN"
            )
        mean = float(values[:, 0].sum() / values[:, 1].sum())
        return Score(self.statistic(values), values, {"nats per token": mean})


def prepare(request: Request) -> Perplexity:
    """Read the text and cut its windows.

    Raises:
        MetricMismatch: the model does not continue text.
        NoData, BadData, BadTokenizer, WrongTokenizer, InvalidOption: see there.
    """
    continues_text(request)
    settings = request.settings
    source = source_of(request, own=True)
    tokenizer = load_tokenizer(request.checkpoint)
    length = _length(request, tokenizer.limit(request.model_kind.context))
    body = length - len(tokenizer.prefix)
    stride = settings.stride or body
    _check(length, body, stride)
    needed = _MOST
    if settings.samples is not None:
        needed = max(_SPREAD, (settings.samples * stride + body) * _BYTES_PER_TOKEN)
    texts = read_text(request, source, needed)
    ids = tokenizer.ids([JOINER.join(texts)])
    if len(ids) < LEAST:
        raise BadData(source.name, f"its text has {len(ids)} tokens, and {LEAST} are needed")
    tokenizer.check([ids], request.model_kind.vocabulary)
    windows = cut(ids, np.array(tokenizer.prefix, np.int64), body, stride)
    available = len(windows)
    if settings.samples is not None and settings.samples < available:
        # Spread evenly: a text's beginning is no sample of it.
        count = settings.samples
        windows = [windows[index * available // count] for index in range(count)]
    record = {
        "metric": "perplexity",
        **source.to_json(),
        **request.facts,
        "blake3": digest(texts),
        "joiner": JOINER,
        "prefix": list(tokenizer.prefix),
        "sequence_length": len(windows[0].ids),
        "stride": stride,
        "windows": len(windows),
        "windows_available": available,
        "tokens": sum(one.scored for one in windows),
    }
    batch = settings.batch_size or batch_of(length, request.model_kind.vocabulary)
    return Perplexity(tuple(windows), batch, record, tuple(request.notes))


def batch_of(length: int, vocabulary: int) -> int:
    """Windows of ``length`` tokens at once: fewer where a large vocabulary would fill the memory,
    which a CPU does not tell before it is too late."""
    return max(1, min(BATCH, OUTPUTS // (4 * length * max(1, vocabulary))))


def _check(length: int, body: int, stride: int) -> None:
    """Refuse windows in which nothing is predicted, or between which tokens are passed over."""
    if body < 2:
        raise InvalidOption(
            f"--sequence-length {length} leaves room for {max(body, 0)} tokens of the text",
            hint="the tokenizer begins each window with tokens of its own; give a larger one",
        )
    if stride > body:
        raise InvalidOption(
            f"--stride {stride} is not valid for windows of {length} tokens",
            hint=f"1 to {body}; left out, windows do not overlap",
        )


def _length(request: Request, context: int | None) -> int:
    wanted = request.settings.sequence_length
    if wanted is None:
        return min(LENGTH, context or LENGTH)
    if context is not None and wanted > context:
        request.notes.append(
            f"windows of {context:,} tokens instead of {wanted:,}: the model takes no more"
        )
        return context
    return wanted


def cut(ids: Ids, prefix: Ids, body: int, stride: int) -> list[Window]:
    """Windows of a text of tokens (n,), each with ``prefix`` before ``body`` tokens of it.

    A text that is shorter than a window is one.
    """
    found = []
    for start in range(0, max(len(ids) - body, 0) + 1, stride):
        part = ids[start : start + body]
        new = len(part) if not start or stride == body else stride
        # Without anything before it, a window's first token has nothing to be predicted from.
        scored = min(new, len(prefix) + len(part) - 1)
        found.append(Window(np.concatenate([prefix, part]), scored))
    return found


def _losses(model: Any, windows: Sequence[Window]) -> list[tuple[float, float]]:
    """Sum of negative log likelihoods of each window's scored tokens, and their number."""
    import torch

    device = next(model.parameters()).device
    found = []
    ids = torch.from_numpy(np.stack([one.ids for one in windows])).to(device)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits
        precision = torch.promote_types(logits.dtype, torch.float32)
        for one, row, target in zip(windows, logits, ids, strict=True):
            loss = torch.nn.functional.cross_entropy(
                row[-one.scored - 1 : -1].to(precision), target[-one.scored :], reduction="none"
            )
            found.append((float(loss.sum(dtype=torch.float64)), float(one.scored)))
    return found
