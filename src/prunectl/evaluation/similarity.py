"""Similarity of sentences: whether an encoder ranks pairs as people do.

The score is Spearman's rank correlation of people's scores with the cosines of the sentences'
vectors, as in the STS tasks (Cer et al., arXiv 1708.00055; Reimers and Gurevych, arXiv 1908.10084).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from prunectl.checkpoint.model_kind import Kind, accepted_inputs
from prunectl.checkpoint.module_tree import model_class
from prunectl.data.errors import BadData
from prunectl.data.tables import Table, column, digest_rows, pick
from prunectl.data.tokens import Ids, load_tokenizer
from prunectl.evaluation import prompts
from prunectl.evaluation.batches import in_batches, padded
from prunectl.evaluation.errors import EvaluationFailed, MetricMismatch
from prunectl.evaluation.metric import Head, Request, Score
from prunectl.evaluation.metrics import suggested
from prunectl.evaluation.pooling import Pooling, pooling_of
from prunectl.evaluation.sources import splits_of, the_data
from prunectl.events import OnEvent, ignore_events

if TYPE_CHECKING:
    from prunectl.evaluation.loaded_model import LoadedModel
    from prunectl.evaluation.metric import Values

BATCH = 32
LENGTH = 512
"""Tokens of a sentence at most, where neither the folder nor the user says."""
FIRST = ("sentence1", "text1", "sentence_a", "premise", "question1", "anchor", "first")
SECOND = ("sentence2", "text2", "sentence_b", "hypothesis", "question2", "positive", "second")
GOLD = ("score", "similarity_score", "similarity", "relatedness_score", "label", "labels")


@dataclass(frozen=True, slots=True, eq=False)
class Similarity:
    """See :class:`prunectl.evaluation.metric.Metric`; a sample is a pair: (its score in the data,
    cosine of its vectors)."""

    texts: tuple[Ids, ...]
    pairs: tuple[tuple[int, int], ...]
    gold: tuple[float, ...]
    pooling: Pooling
    own: str
    batch_size: int
    record: dict[str, Any]
    notes: tuple[str, ...] = ()
    name: str = "similarity"
    unit: str = "pairs"
    higher_is_better: bool = True
    trains: bool = False
    head: Head | None = None

    @property
    def samples(self) -> int:
        return len(self.pairs)

    def tolerates(self, parameter: str) -> bool:
        """Heads are not used, nor is BERT's pooler."""
        is_head = bool(self.own) and not parameter.startswith(f"{self.own}.")
        return is_head or "pooler" in parameter.split(".")

    def statistic(self, values: Values) -> float:
        """Spearman's rank correlation, -1..1; NaN where one side does not vary."""
        with np.errstate(invalid="ignore", divide="ignore"):  # a side that does not vary
            return float(np.corrcoef(_ranks(values[:, 0]), _ranks(values[:, 1]))[0, 1])

    def score(
        self, loaded: LoadedModel, *, seed: int = 0, on_event: OnEvent = ignore_events
    ) -> Score:
        """Make vectors of the sentences, and compare them.

        Raises:
            MetricMismatch: the model gives no vectors of tokens.
            EvaluationFailed: a vector is NaN or zero, or all pairs are equally similar.
        """
        order = sorted(range(len(self.texts)), key=lambda one: -len(self.texts[one]))
        found = in_batches(
            [self.texts[one] for one in order],
            self.batch_size,
            partial(_vectors, loaded.model, self.pooling),
            phase=self.name,
            unit="sentences",
            on_event=on_event,
        )
        if any(one is None for one in found):
            raise MetricMismatch(
                self.name, self.record["model_class"], "it gives no hidden states of tokens"
            )
        vectors = np.empty((len(order), len(found[0])))  # type: ignore[arg-type]
        vectors[order] = np.stack(found)  # type: ignore[arg-type]
        with np.errstate(invalid="ignore", divide="ignore"):
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        cosines = np.array([vectors[a] @ vectors[b] for a, b in self.pairs])
        if bad := int(np.isnan(cosines).sum()):
            raise EvaluationFailed(self.name, f"the vectors of {bad} pairs are NaN or zero")
        values = np.column_stack([np.array(self.gold), cosines])
        value = self.statistic(values)
        if math.isnan(value):
            raise EvaluationFailed(self.name, "all pairs are equally similar to this model")
        return Score(value, values)


def _ranks(values: Values) -> Values:
    """Ranks, float64 [samples]; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Values = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks


def prepare(request: Request) -> Similarity:
    """Read the pairs and tokenize their sentences.

    Raises:
        MetricMismatch: the model is no encoder of text.
        NoData, BadData, MissingColumn, BadTokenizer, WrongTokenizer: see there.
    """
    _encodes_text(request)
    settings, name = request.settings, the_data(request)
    splits = splits_of(request, name, skip=("train",))
    table = pick(splits, prompts.SCORED, name)
    first, second = column(table, None, FIRST), column(table, None, SECOND)
    score = column(table, None, GOLD)
    every = _pairs(table, first, second, score)
    prompts.enough(len(every), "pairs", table.name)
    pairs, counts = prompts.taken(request, every, "pairs")
    if len({gold for _, _, gold in pairs}) < 2:
        raise BadData(table.name, f"all its pairs have the same '{score}': nothing can be ranked")
    pooling = pooling_of(request)
    places = {text: at for at, text in enumerate(dict.fromkeys(_texts(pairs)))}
    tokenizer = load_tokenizer(request.checkpoint)
    length = min(
        settings.sequence_length or pooling.longest or LENGTH,
        prompts.room(request, tokenizer) or LENGTH,
    )
    encoded = [tokenizer.encode(text, length=length)["input_ids"] for text in places]
    tokenizer.check(encoded, request.model_kind.vocabulary)
    cls, own = _class_of(request)
    record = {
        "metric": "similarity",
        **{key: value for key, value in table.facts.items() if key not in ("rows", "classes")},
        "blake3": digest_rows(table.rows, [first, second, score]),
        "columns": [first, second, score],
        "model_class": cls,
        "pooling": pooling.mode,
        "pooling_from": "1_Pooling/config.json" if pooling.declared else "default",
        "correlation": "Spearman",
        "sequence_length": length,
        "sentences_cut": sum(len(one) == length for one in encoded),
        **counts,
    }
    return Similarity(
        tuple(encoded),
        tuple((places[a], places[b]) for a, b, _ in pairs),
        tuple(gold for _, _, gold in pairs),
        pooling,
        own,
        settings.batch_size or BATCH,
        record,
        tuple(request.notes),
    )


def _encodes_text(request: Request) -> None:
    """Refuse models that read something else."""
    checkpoint, kind = request.checkpoint, request.model_kind.kind
    inputs = accepted_inputs(checkpoint.folder, trust_remote_code=checkpoint.trust_remote_code)
    what = f"is of kind {kind}" if kind is not Kind.ENCODER else ""
    if not what and "pixel_values" in inputs:
        what = "reads images too"
    if what:
        raise request.mismatch(
            f"it is for encoders of text, and this one {what}",
            hint=suggested(kind) if kind is not Kind.ENCODER else "",
        )


def _pairs(table: Table, first: str, second: str, score: str) -> list[tuple[str, str, float]]:
    """Both texts of each row, and its score."""
    found = []
    for number, row in enumerate(table.rows, 1):
        a, b = str(row.get(first) or "").strip(), str(row.get(second) or "").strip()
        if not a or not b:
            raise BadData(table.name, f"row {number:,} lacks '{second if a else first}'")
        try:
            gold = float(row.get(score))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            gold = math.nan
        if not math.isfinite(gold):
            raise BadData(
                table.name, f"row {number:,}: '{str(row.get(score))[:40]}' in '{score}' is no score"
            )
        found.append((a, b, gold))
    return found


def _texts(pairs: Sequence[tuple[str, str, float]]) -> list[str]:
    return [text for a, b, _ in pairs for text in (a, b)]


def _class_of(request: Request) -> tuple[str, str]:
    """The name of the model's class, and what its encoder is called in it, '' for all of it."""
    from transformers import AutoModel

    checkpoint = request.checkpoint
    cls, config = model_class(checkpoint.folder, trust_remote_code=checkpoint.trust_remote_code)
    known: Any = AutoModel._model_mapping
    is_bare = type(config) in known and known[type(config)] is cls
    return cls.__name__, "" if is_bare else str(getattr(cls, "base_model_prefix", ""))


def _vectors(model: Any, pooling: Pooling, texts: Sequence[Ids]) -> list[Values | None]:
    """Vectors of sentences of tokens; None where the model gives none."""
    import torch

    encoder = model.base_model
    ids, mask = padded(model, texts)
    with torch.inference_mode():
        made = encoder(input_ids=ids, attention_mask=mask)
        states = getattr(made, "last_hidden_state", None)
        if states is None or states.dim() != 3:
            return [None] * len(texts)
        mask = mask.to(states.device)  # the encoder alone may end on another device
        return list(pooling(states, mask).double().cpu().numpy())
