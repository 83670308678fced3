"""Text from a model, token by token: the shortest way to see how fast it runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunectl.benchmarking.errors import CannotRun
from prunectl.benchmarking.limits import weight_bytes
from prunectl.benchmarking.models import source_of
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.module_tree import quiet_transformers
from prunectl.data.tokens import load_tokenizer
from prunectl.device import choose_device
from prunectl.errors import InvalidOption
from prunectl.runtime.executions import AUTO, DENSE, check_execution, check_place
from prunectl.to_json import to_json

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Generation:
    """What a model wrote, and what it took.

    Attributes:
        model: as the user named it.
        text: the new text, without the prompt.
        tokens: new tokens, the end token included.
        first_seconds: from the prompt to the first new token.
        seconds: all of the generation.
        execution: how the weights were held.
        weight_bytes: of the weights in memory.
        compressed: number of weights that were compressed.
    """

    model: str
    text: str
    tokens: int
    first_seconds: float
    seconds: float
    execution: str
    weight_bytes: int
    compressed: int

    @property
    def rate(self) -> float:
        """Tokens per second after the first."""
        rest = self.seconds - self.first_seconds
        return (self.tokens - 1) / rest if self.tokens > 1 and rest > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """The document of ``--json``."""
        return {"schema": "prunectl.generation/1", **to_json(self), "rate": self.rate}


def generate(
    model: Checkpoint | str | os.PathLike[str],
    prompt: str,
    *,
    max_new_tokens: int = 128,
    execution: str = "",
    device: str = "auto",
    dtype: str = "auto",
    on_text: Callable[[str], object] = lambda text: None,
) -> Generation:
    """Continue a text greedily.

    Args:
        model: an open checkpoint, or what :func:`prunectl.open_checkpoint` takes; compressed
            folders too.
        prompt: the text, as the tokenizer's own special tokens begin it.
        max_new_tokens: where it stops if no end token comes first.
        execution: ``dense``, ``compressed`` or ``auto``; '' is ``auto`` on the CPU, else ``dense``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: of the weights; ``auto`` is that of the checkpoint.
        on_text: receives each piece of the new text as soon as it is known.

    Raises:
        InvalidOption: an unknown execution, or one that the device has no kernels for; fewer tokens
            than one; an empty prompt.
        CannotRun: the model generates no text. BadTokenizer: its tokenizer cannot be loaded.
        SourceError: as :func:`prunectl.load_model`.
    """
    import torch

    from prunectl.loading.compressed import open_model
    from prunectl.loading.model import load_model
    from prunectl.runtime.models import weights_of

    place = choose_device(device)
    execution = execution or (AUTO if place.type == "cpu" else DENSE)
    check_execution(execution)
    check_place(execution, place)
    if max_new_tokens < 1:
        raise InvalidOption("--max-new-tokens must be 1 or more")
    checkpoint = model if isinstance(model, Checkpoint) else open_model(model)
    source = source_of(checkpoint)
    assert source.folder is not None
    tokenizer = load_tokenizer(checkpoint)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    if not ids.numel():
        raise InvalidOption("the prompt holds no tokens", hint="give a word or more")
    with quiet_transformers():
        loaded = load_model(
            source.folder,
            device_map=None if place.type == "cpu" else str(place),
            dtype=dtype,
            execution=execution,
            trust_remote_code=source.trust_remote_code,
        )
    if not getattr(loaded, "can_generate", lambda: False)():
        raise CannotRun(source.name, f"{type(loaded).__name__} generates no text")
    streamer = _Streamer(tokenizer.inner, on_text)
    with torch.inference_mode(), quiet_transformers():
        started = time.perf_counter()
        loaded.generate(
            ids.to(place),
            attention_mask=torch.ones_like(ids).to(place),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            streamer=streamer,
        )
        seconds = time.perf_counter() - started
    return Generation(
        model=source.name,
        text=streamer.text,
        tokens=len(streamer.times),
        first_seconds=streamer.times[0] - started if streamer.times else seconds,
        seconds=seconds,
        execution=execution,
        weight_bytes=weight_bytes(loaded),
        compressed=len(weights_of(loaded)),
    )


class _Streamer:
    """Receives tokens from ``generate`` of transformers, the prompt first, and passes on text.

    A token may end in the middle of a character, whose text is held back until it is complete.
    """

    def __init__(self, tokenizer: Any, on_text: Callable[[str], object]) -> None:
        self._tokenizer, self._on_text = tokenizer, on_text
        self._tokens: list[int] = []
        self._has_prompt = False
        self.text = ""
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        if not self._has_prompt:
            self._has_prompt = True
            return
        self.times.append(time.perf_counter())
        self._tokens += value.flatten().tolist()
        text = self._decoded()
        if not text.endswith("\ufffd"):
            self._pass_on(text)

    def end(self) -> None:
        self._pass_on(self._decoded())

    def _decoded(self) -> str:
        return str(self._tokenizer.decode(self._tokens, skip_special_tokens=True))

    def _pass_on(self, text: str) -> None:
        if len(text) > len(self.text):
            self._on_text(text[len(self.text) :])
            self.text = text
