"""Inputs of a workload: random tokens or pixels of a fixed seed, or the tokens of a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prunectl.benchmarking.workloads import Workload
from prunectl.checkpoint.model_kind import ModelKind
from prunectl.errors import InvalidOption

if TYPE_CHECKING:
    import torch


def random_tokens(model_kind: ModelKind, workload: Workload, seed: int) -> torch.Tensor:
    """Token ids of shape (batch, tokens), int64 on the CPU; ids with a meaning are left out."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    allowed = torch.tensor(
        [one for one in range(model_kind.vocabulary) if one not in model_kind.avoided],
        dtype=torch.int64,
    )
    shape = (workload.batch, workload.tokens)
    return allowed[torch.randint(len(allowed), shape, generator=generator)]


def random_pixels(model_kind: ModelKind, workload: Workload, seed: int) -> torch.Tensor:
    """Pixels of shape (batch, channels, height, width), normal, float32 on the CPU."""
    import torch

    assert model_kind.image is not None
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((workload.batch, *model_kind.image), generator=generator)


def text_tokens(text: str, folder: Path, *, trust_remote_code: bool) -> torch.Tensor:
    """The ids of a text, int64 of shape (n,), from the tokenizer in a model's folder.

    Raises:
        InvalidOption: there is no tokenizer that can be loaded, or nothing comes of the text.
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
    """Consecutive windows of a text, of shape (batch, tokens); it is repeated where it is short."""
    needed = workload.batch * workload.tokens
    repeats = -(-needed // len(tokens))
    return tokens.repeat(repeats)[:needed].reshape(workload.batch, workload.tokens)
