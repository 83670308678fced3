"""A tiny Llama that has something to lose: the text it is measured on is drawn from itself.

Of text that is not its own, random weights are as good as none, and a curve over sparsity is flat.
"""

from __future__ import annotations

from pathlib import Path

import tiny_models
import tiny_tokenizers
import torch

LENGTH = 20
"""Tokens that it takes, and those of a window."""
_SPREAD = 0.12
"""Of weights; those that transformers draws, 0.02, make every word as likely as any other."""


def build(folder: Path, *, windows: int = 60, seed: int = 0, bos: bool = False) -> Path:
    """Write the model and its tokenizer to ``folder``, and its text beside it; returns the text.

    Args:
        bos: whether the tokenizer begins a text with ``<s>``.
    """
    model = tiny_models.make("llama_untied")
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=_SPREAD)
        words = torch.randint(len(tiny_tokenizers.WORDS), (windows, 1)) + len(
            tiny_tokenizers.SPECIAL
        )
        for _ in range(LENGTH - 1):
            logits = model(input_ids=words).logits[:, -1]
            logits[:, : len(tiny_tokenizers.SPECIAL)] = -torch.inf
            logits[:, len(tiny_tokenizers.SPECIAL) + len(tiny_tokenizers.WORDS) :] = -torch.inf
            words = torch.cat([words, torch.multinomial(logits.softmax(-1), 1)], 1)
    model.save_pretrained(folder)
    tiny_tokenizers.save(folder, bert=False)
    if bos:
        begin_texts(folder)
    text = folder.with_name(f"{folder.name}.txt")
    first = len(tiny_tokenizers.SPECIAL)
    named = [tiny_tokenizers.WORDS[at - first] for at in words.flatten().tolist()]
    text.write_text(" ".join(named), encoding="utf-8")
    return text


def begin_texts(folder: Path) -> None:
    """Let the tokenizer in ``folder`` put ``<s>`` before a text and ``</s>`` behind it."""
    tiny_tokenizers.save(folder, bert=True, model_input_names=["input_ids", "attention_mask"])
