"""Samples of models that read tokens: windows, paragraphs, pairs, or random ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunectl import demo
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.model_kind import Kind, ModelKind, accepted_inputs
from prunectl.data import datasets, table_files, text
from prunectl.data.errors import BadData
from prunectl.data.source import DataSource, SourceKind
from prunectl.data.tokens import Ids, Tokenizer, load_tokenizer, windows
from prunectl.documents import read_object
from prunectl.errors import InvalidOption
from prunectl.events import OnEvent

Arrays = dict[str, NDArray[Any]]
"""One sample: arrays by the name of the input that they are."""


@dataclass(slots=True)
class Request:
    """What is asked for, and what is noted on the way."""

    source: DataSource
    checkpoint: Checkpoint
    model_kind: ModelKind
    samples: int
    length: int
    seed: int
    on_event: OnEvent
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def rng(self) -> np.random.Generator:
        """A new generator of the same seed, so that no draw depends on another."""
        return np.random.default_rng(self.seed)


MIN_TOKENS = 16
"""Fewest tokens of a window, unless fewer were requested."""
BYTES_PER_TOKEN = 8
"""Text to read for each token, about twice the usual length of a token."""
MIN_BYTES = 1 << 20
MOST_GROWTH = 64
"""Text with long tokens is read again, up to this multiple of the first amount."""
_START_KEYS = ("decoder_start_token_id", "pad_token_id", "bos_token_id", "eos_token_id")


def make_sequences(request: Request) -> list[Arrays]:
    """Samples of a model that reads tokens."""
    if request.source.kind is SourceKind.RANDOM:
        _cap(request, request.model_kind.context)
        return _random_tokens(request)
    tokenizer = load_tokenizer(request.checkpoint)
    _cap(request, tokenizer.limit(request.model_kind.context))
    if request.length <= len(tokenizer.prefix) + len(tokenizer.suffix):
        raise InvalidOption(
            f"--sequence-length {request.length} leaves no room for text between the tokens "
            "that begin and end it"
        )
    if request.source.kind is SourceKind.PAIRS:
        made = _of_pairs(request, tokenizer)
    elif request.model_kind.kind is Kind.ENCODER:
        made = _of_paragraphs(request, tokenizer)
    else:
        made = _of_windows(request, tokenizer)
    if made:
        tokenizer.check(
            [ids for one in made for ids in one.values()], request.model_kind.vocabulary
        )
    return made


def _cap(request: Request, context: int | None) -> None:
    if context is not None and context < request.length:
        request.notes.append(
            f"samples of {context:,} tokens instead of {request.length:,}: the model takes no more"
        )
        request.length = context


def _of_windows(request: Request, tokenizer: Tokenizer) -> list[Arrays]:
    is_causal = request.model_kind.kind is Kind.CAUSAL_LM
    prefix, suffix = tokenizer.prefix, () if is_causal else tokenizer.suffix
    length = request.length - len(prefix) - len(suffix)
    documents, ids = _enough(request, tokenizer, request.samples * length)
    _note_read(request, documents)
    least = min(MIN_TOKENS, length)
    if len(ids) < least:
        raise BadData(
            request.source.name,
            f"its text has {len(ids)} tokens, and a sample has at least {least}"
            if len(ids)
            else "it holds no text",
        )
    if len(ids) < length:
        request.notes.append(
            f"{request.source.name} has {len(ids):,} tokens, less than one full sample"
        )
    parts = [ids[one] for one in windows(request.samples, length, len(ids), request.rng)]
    made = [
        np.concatenate([np.array(prefix, np.int64), part, np.array(suffix, np.int64)])
        for part in parts
        if len(part) >= least
    ]
    return [{"input_ids": one} if is_causal else _both(request, one, one) for one in made]


def _enough(request: Request, tokenizer: Tokenizer, needed: int) -> tuple[text.Documents, Ids]:
    """Documents with ``needed`` tokens in all, or every document; and their ids."""
    read = _reader(request)
    budget = first = max(MIN_BYTES, BYTES_PER_TOKEN * needed)
    while True:
        documents = read(budget)
        ids = tokenizer.ids(documents.texts)
        if len(ids) >= needed or documents.is_all or budget >= MOST_GROWTH * first:
            return documents, ids
        budget *= 4


def _reader(request: Request) -> Callable[[int], text.Documents]:
    source = request.source
    if source.kind is SourceKind.HF:
        rows = datasets.open_rows(source, request.seed, datasets.TEXT_COLUMNS)
        request.facts |= rows.facts()
        return lambda budget: datasets.read_rows(rows, source, budget, request.on_event)
    files = (demo.calibration_text(),) if source.kind is SourceKind.DEMO else source.files
    return lambda budget: text.read_files(files, budget, request.seed, request.on_event)


def _note_read(request: Request, documents: text.Documents) -> None:
    request.facts["bytes_read"] = documents.read
    if documents.total is not None:
        request.facts["bytes_total"] = documents.total


def _of_paragraphs(request: Request, tokenizer: Tokenizer) -> list[Arrays]:
    documents = _reader(request)(max(MIN_BYTES, BYTES_PER_TOKEN * request.samples * request.length))
    _note_read(request, documents)
    if request.source.kind is SourceKind.HF:
        name, units = "rows", list(documents.texts)
    else:
        name, units = "paragraphs", text.paragraphs(documents.texts)
        if len(units) < request.samples:  # whole chapters, or a sentence a line
            name, units = "lines", text.lines(documents.texts)
    request.facts["units"] = name
    if not units:
        raise BadData(request.source.name, "it holds no text")
    order = request.rng.permutation(len(units)).tolist()
    return _encoded(request, tokenizer, ((units[index], None) for index in order))


def _of_pairs(request: Request, tokenizer: Tokenizer) -> list[Arrays]:
    pairs, total = table_files.read_pairs(request.source.files[0], request.samples, request.seed)
    request.facts["pairs"] = total
    if request.model_kind.kind is Kind.SEQ2SEQ:
        ids = [[tokenizer.encode(one, length=request.length)["input_ids"] for one in pair]
               for pair in pairs]  # fmt: skip
        return [_both(request, first, second) for first, second in ids]
    together = _is_classifier(request.checkpoint)
    request.facts["sequences_per_pair"] = 1 if together else 2
    texts: Iterator[tuple[str, str | None]] = (
        iter(pairs) if together else ((one, None) for pair in pairs for one in pair)
    )
    return _encoded(request, tokenizer, texts)


def _is_classifier(checkpoint: Checkpoint) -> bool:
    names = checkpoint.config.get("architectures")
    return any(str(name).endswith("ForSequenceClassification") for name in names or ())


def _encoded(
    request: Request, tokenizer: Tokenizer, texts: Iterator[tuple[str, str | None]]
) -> list[Arrays]:
    """Texts as the inputs that the model accepts; empty texts are skipped."""
    trust = request.checkpoint.trust_remote_code
    accepted = accepted_inputs(request.checkpoint.folder, trust_remote_code=trust) | {"input_ids"}
    empty = len(tokenizer.prefix) + len(tokenizer.suffix)
    made: list[Arrays] = []
    for first, second in texts:
        encoded = tokenizer.encode(first, second, length=request.length)
        if len(encoded["input_ids"]) > empty:
            made.append({name: one for name, one in encoded.items() if name in accepted})
        if len(made) == request.samples:
            break
    return made


def _both(request: Request, source: Ids, target: Ids) -> Arrays:
    """Inputs of both halves: the decoder's are the target, shifted by one (teacher forcing)."""
    shifted = np.concatenate(
        [np.array([_decoder_start(request.checkpoint)], np.int64), target[:-1]]
    )
    return {"input_ids": source, "decoder_input_ids": shifted}


def _decoder_start(checkpoint: Checkpoint) -> int:
    """The id that a decoder starts with; T5's config names none, and it starts with padding."""
    settings = [checkpoint.config, read_object(checkpoint.folder / "generation_config.json")]
    found = (one.get(key) for key in _START_KEYS for one in settings)
    return next((value for value in found if type(value) is int and value >= 0), 0)


def _random_tokens(request: Request) -> list[Arrays]:
    ids = np.setdiff1d(
        np.arange(request.model_kind.vocabulary), np.array([*request.model_kind.avoided], np.int64)
    )
    drawn = ids[request.rng.integers(0, len(ids), (request.samples, request.length))]
    if request.model_kind.kind is Kind.SEQ2SEQ:
        return [_both(request, one, one) for one in drawn]
    return [{"input_ids": one} for one in drawn]
