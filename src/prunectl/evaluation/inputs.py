"""Texts and images as a model is fed them, in batches with their labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prunectl.checkpoint.module_tree import quiet_transformers
from prunectl.data.errors import BadData, BadTokenizer
from prunectl.data.images import Process, open_image
from prunectl.data.tokens import Tokenizer, load_tokenizer
from prunectl.errors import InvalidOption
from prunectl.evaluation.batches import in_batches, refusals, shared
from prunectl.evaluation.metric import Request
from prunectl.events import OnEvent

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Tokens = dict[str, NDArray[np.int32]]
"""What a tokenizer made of one text, by the names of inputs; the mask is left to padding."""

AT_ONCE = 1_000
"""Texts that are tokenized in one call."""


@dataclass(frozen=True, slots=True, eq=False)
class TextSamples:
    """Sequences of tokens; a batch is padded to its longest.

    Attributes:
        inner: the tokenizer of transformers.
        rows: tokens of each sample.
        labels: by the names that the model knows them by, one number a sample.
    """

    inner: Any
    rows: Sequence[Tokens]
    labels: dict[str, Ints]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sizes(self) -> list[int]:
        """The length of each, in tokens."""
        return [len(one["input_ids"]) for one in self.rows]

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Inputs [samples, tokens] and labels [samples], int64."""
        import torch
        from transformers import DataCollatorWithPadding

        rows = [{key: one.tolist() for key, one in self.rows[i].items()} for i in indices]
        with quiet_transformers():
            made = DataCollatorWithPadding(self.inner)(rows)
        labels = {key: torch.from_numpy(one[list(indices)]) for key, one in self.labels.items()}
        return {**made, **labels}


@dataclass(frozen=True, slots=True, eq=False)
class ImageSamples:
    """Images that are opened and processed when they are needed, by several threads.

    Attributes:
        name: of the data, for messages.
        rows: paths, or the bytes of image files.
        process: makes the model's inputs of an image, as a batch of 1.
        channels: how many the model takes.
        labels: by the names that the model knows them by, one number a sample.
    """

    name: str
    rows: Sequence[Path | bytes]
    process: Process
    channels: int
    labels: dict[str, Ints]
    _pool: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(min(8, os.cpu_count() or 1), "prunectl-image")
    )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sizes(self) -> list[int]:
        """All the same."""
        return [1] * len(self.rows)

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Inputs of images and labels [samples].

        Raises:
            BadData: an image is broken.
        """
        import torch

        made = list(self._pool.map(lambda at: self.process(self._opened(at)), indices))
        inputs = {key: np.concatenate([one[key] for one in made]) for key in made[0]}
        labels = {key: one[list(indices)] for key, one in self.labels.items()}
        return {key: torch.from_numpy(one) for key, one in (inputs | labels).items()}

    def check(self) -> None:
        """Open each image, so that a broken one is found before training and not after.

        Raises:
            BadData: an image is broken.
        """
        for _ in self._pool.map(lambda at: bool(self._opened(at)), range(len(self.rows))):
            pass

    def _opened(self, index: int) -> Image:
        source = self.rows[index]
        image = open_image(source, self.channels)
        if image is None:
            # As many images have the same name as there are classes.
            what = (
                "/".join(source.parts[-2:]) if isinstance(source, Path) else f"of row {index + 1:,}"
            )
            raise BadData(self.name, f"the image {what} cannot be read", hint="leave it out")
        return image


Samples = TextSamples | ImageSamples


def outputs(
    model: Any,
    samples: Samples,
    read: Callable[[Any], tuple[Floats, ...]],
    *,
    batch_size: int,
    phase: str,
    unit: str,
    on_event: OnEvent,
) -> list[tuple[Floats, ...]]:
    """What the model puts out for each sample, in order; long samples are run first, and together.

    Args:
        read: takes the model's outputs, and returns arrays with a row for each sample of the batch.
    """
    sizes = samples.sizes
    inputs = sorted(range(len(samples)), key=lambda index: -sizes[index])
    run = partial(_run, model, samples, read, phase)
    in_order = shared(
        inputs,
        lambda some: in_batches(some, batch_size, run, phase=phase, unit=unit, on_event=on_event),
    )
    found: list[tuple[Floats, ...]] = [()] * len(inputs)
    for index, one in zip(inputs, in_order, strict=True):
        found[index] = one
    return found


def _run(
    model: Any,
    samples: Samples,
    read: Callable[[Any], tuple[Floats, ...]],
    phase: str,
    indices: Sequence[int],
) -> list[tuple[Floats, ...]]:
    import torch

    device = next(model.parameters()).device
    dtype = model.dtype
    batch = {k: one for k, one in samples.batch(indices).items() if k not in samples.labels}
    inputs = {
        key: one.to(device, dtype if one.is_floating_point() else None)
        for key, one in batch.items()
    }
    with refusals(phase), torch.inference_mode():
        columns = read(model(**inputs))
    return [tuple(column[row] for column in columns) for row in range(len(indices))]


# --- tokenizers -----------------------------------------------------------------------------------


def padding_tokenizer(request: Request) -> Tokenizer:
    """The model's tokenizer; without a padding token, it pads by the token that ends a text.

    Raises:
        BadTokenizer: there is none, it does not load, or it has neither of the two tokens.
    """
    tokenizer = load_tokenizer(request.checkpoint)
    inner = tokenizer.inner
    inner.padding_side = "right"  # on the left it would move positions
    if inner.pad_token_id is None:
        if inner.eos_token is None:
            raise BadTokenizer(
                request.checkpoint.model, "which has no token to pad with, nor one that ends a text"
            )
        inner.pad_token = inner.eos_token
        request.notes.append(
            f"the tokenizer has no padding token: '{inner.eos_token}', which ends a text, pads"
        )
    return tokenizer


def length_of(request: Request, tokenizer: Tokenizer, usual: int) -> int:
    """Tokens of a row at most: as asked for, or ``usual``, and no more than the model takes.

    Raises:
        InvalidOption: special tokens leave no room.
    """
    context = tokenizer.limit(request.model_kind.context)
    wanted = request.settings.sequence_length
    length = min(wanted or usual, context or wanted or usual)
    if wanted is not None and length < wanted:
        request.notes.append(
            f"rows of {length:,} tokens instead of {wanted:,}: the model takes no more"
        )
    if length <= len(tokenizer.prefix) + len(tokenizer.suffix) + 1:
        raise InvalidOption(
            f"--sequence-length {length} leaves no room for text between the tokens that begin and "
            "end it"
        )
    return length


def tokens_of(
    request: Request,
    tokenizer: Tokenizer,
    texts: Sequence[tuple[str, ...]],
    length: int,
    accepted: frozenset[str],
) -> list[Tokens]:
    """Tokens of texts, or of pairs of them in one sequence, cut to ``length``.

    Args:
        accepted: inputs that the model takes.

    Raises:
        BadTokenizer, WrongTokenizer: the tokenizer fails, or is another model's.
    """
    found: list[Tokens] = []
    for start in range(0, len(texts), AT_ONCE):
        columns = [list(one) for one in zip(*texts[start : start + AT_ONCE], strict=True)]
        made = tokenizer(*columns, truncation=True, max_length=length)
        found += rows_of(made, accepted)
    check(request, tokenizer, found)
    return found


def rows_of(made: Any, accepted: frozenset[str]) -> list[Tokens]:
    """Rows of what a tokenizer made: the inputs that the model takes. Padding makes the mask."""
    names = [one for one in made if one in accepted | {"input_ids"} and one != "attention_mask"]
    return [
        {name: np.asarray(made[name][row], np.int32) for name in names}
        for row in range(len(made["input_ids"]))
    ]


def check(request: Request, tokenizer: Tokenizer, rows: Sequence[Tokens]) -> None:
    """Refuse a tokenizer of another model.

    Raises:
        WrongTokenizer: with the numbers.
    """
    tokenizer.check(
        [one["input_ids"].astype(np.int64) for one in rows], request.model_kind.vocabulary
    )
