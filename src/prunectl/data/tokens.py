"""A checkpoint's tokenizer: loaded, called, and checked against the model's vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.module_tree import quiet_transformers
from prunectl.data.errors import BadTokenizer, WrongTokenizer, first_line

Ids = NDArray[np.int64]

JOINER = "\n\n"
"""Text between two documents."""
MOST_UNKNOWN = 0.5
"""Share of unknown tokens above which a text is in a language that the tokenizer does not know."""

_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "tekken.json")
_VOCABULARY_SUFFIXES = (".model", ".spm", ".bpe", ".tiktoken", ".vocab")
_SENTENCEPIECE = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}
"""Modules by which transformers reads a ``.model``, and the packages that hold them."""
_PROBE = "a"
_SANE = 1 << 24
"""Lengths below this are limits; a tokenizer without one says 10^30."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A model's tokenizer.

    Attributes:
        inner: the tokenizer of transformers.
        model: what messages call the model.
        prefix, suffix: ids of the special tokens before and after each text.
    """

    inner: Any
    model: str
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    def limit(self, stated: int | None) -> int | None:
        """The longest sequence in tokens: as the model states, else as the tokenizer does.

        The tokenizer's own limit is often wrong.
        """
        own = self.inner.model_max_length
        return own if stated is None and isinstance(own, int) and 0 < own < _SANE else stated

    def ids(self, documents: Sequence[str]) -> Ids:
        """Ids of documents joined by an empty line, without special tokens; shape (n,)."""
        texts = [text + JOINER for text in documents[:-1]] + list(documents[-1:])
        if not texts:
            return np.zeros(0, np.int64)
        found = self(texts, add_special_tokens=False)["input_ids"]
        return np.concatenate([np.asarray(one, np.int64) for one in found])

    def each(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, with special tokens."""
        found: list[list[int]] = self(list(texts))["input_ids"]
        return found

    def encode(self, first: str, second: str | None = None, *, length: int) -> dict[str, Ids]:
        """The model's inputs for a text, or two in one sequence: arrays of shape (tokens,).

        The sequence is cut to ``length`` tokens. There is no mask, as nothing is padded.
        """
        made = self(first, second, truncation=True, max_length=length)
        return {
            name: np.asarray(values, np.int64)
            for name, values in made.items()
            if name != "attention_mask"
        }

    def __call__(self, *texts: Any, **options: Any) -> Any:
        """What transformers' tokenizer makes of texts.

        Raises:
            BadTokenizer: it fails.
        """
        try:
            with quiet_transformers():
                return self.inner(*texts, verbose=False, **options)
        except Exception as error:  # transformers may raise anything at all
            raise BadTokenizer(self.model, f"which fails: {first_line(error)}") from None

    def check(self, samples: Iterable[Ids], vocabulary: int) -> None:
        """Refuse ids that the model does not have, and text in another language or script.

        Raises:
            WrongTokenizer: an id is too large, or over half of the text's tokens are unknown.
        """
        joined = np.concatenate([one.reshape(-1) for one in samples])
        unknown_id = self.inner.unk_token_id
        special = set(self.inner.all_special_ids) - {unknown_id}
        ordinary = joined[~np.isin(joined, list(special))]
        is_known = unknown_id is None or not len(ordinary)
        unknown = 0.0 if is_known else float(np.mean(ordinary == unknown_id))
        largest = int(joined.max(initial=-1))
        if largest >= vocabulary or unknown > MOST_UNKNOWN:
            raise WrongTokenizer(
                self.model, largest=largest, vocabulary=vocabulary, unknown=unknown
            )


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Load the tokenizer in a checkpoint's folder.

    Raises:
        BadTokenizer: there is none, or it does not load.
    """
    if not _has_vocabulary(checkpoint):
        # transformers would make an empty one of the model's type.
        raise BadTokenizer(checkpoint.model, f"and {checkpoint.folder} has none")
    try:
        with quiet_transformers():
            from transformers import AutoTokenizer

            inner = AutoTokenizer.from_pretrained(
                checkpoint.folder,
                local_files_only=True,
                trust_remote_code=checkpoint.trust_remote_code,
            )
            dressed = list(inner(_PROBE)["input_ids"])
            bare = list(inner(_PROBE, add_special_tokens=False)["input_ids"])
    except Exception as error:  # transformers may raise anything at all
        if missing := _missing(checkpoint):
            raise BadTokenizer(
                checkpoint.model,
                f"and what reads it is not installed: {' and '.join(missing)}",
                hint=f"pip install {' '.join(missing)}",
            ) from None
        raise BadTokenizer(
            checkpoint.model, f"and that in {checkpoint.folder} does not load: {first_line(error)}"
        ) from None
    return Tokenizer(inner, checkpoint.model, *_around(bare, dressed))


def _has_vocabulary(checkpoint: Checkpoint) -> bool:
    names = [path.name for path in checkpoint.folder.iterdir()]
    own_code = checkpoint.trust_remote_code and "tokenizer_config.json" in names
    return own_code or any(
        name in _VOCABULARIES or name.endswith(_VOCABULARY_SUFFIXES) for name in names
    )


def _missing(checkpoint: Checkpoint) -> list[str]:
    """Packages that are not installed and that a folder's only tokenizer, a ``.model``, needs.

    Without them transformers takes the file for one of tiktoken, and asks for that.
    """
    names = [path.name for path in checkpoint.folder.iterdir()]
    if "tokenizer.json" in names or not any(name.endswith((".model", ".spm")) for name in names):
        return []
    return [package for module, package in _SENTENCEPIECE.items() if not _is_there(module)]


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _around(bare: list[int], dressed: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The parts of ``dressed`` before and after ``bare``."""
    for at in range(len(dressed) - len(bare) + 1):
        if bare and dressed[at : at + len(bare)] == bare:
            return tuple(dressed[:at]), tuple(dressed[at + len(bare) :])
    return (), ()


def windows(count: int, length: int, tokens: int, rng: np.random.Generator) -> list[slice]:
    """Windows of ``length`` tokens of a text of ``tokens`` tokens, in order; no two overlap.

    If the text is long enough, there are ``count`` windows, and each way to place them is equally
    likely. If not, windows cover all of the text, and the last one is as long as what is left.
    """
    slack = tokens - count * length
    if slack <= 0:
        return [slice(at, min(at + length, tokens)) for at in range(0, tokens, length)]
    # With each window shrunk to one token, the text has slack + count tokens, and each choice of
    # count of them is one way to place the windows.
    places = np.sort(rng.choice(slack + count, count, replace=False))
    starts = places - np.arange(count) + np.arange(count) * length
    return [slice(int(at), int(at) + length) for at in starts]
