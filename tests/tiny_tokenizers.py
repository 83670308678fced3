"""Tokenizers of whole words for tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
WORDS = [f"word{number}" for number in range(50)]
"""Ids 5 to 54."""


def save(folder: Path, *, bert: bool = True, padding: bool = True, **options: Any) -> Any:
    """Write a tokenizer to a model's folder, and return it.

    Args:
        bert: whether texts are put between ``<s>`` and ``</s>``, two of them with types.
        padding: whether it has a token to pad with.
    """
    vocabulary = {word: at for at, word in enumerate([*SPECIAL, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bert:
        inner.post_processor = processors.BertProcessing(("</s>", 3), ("<s>", 2))
    names = {"unk_token": "<unk>", "eos_token": "</s>"} | (
        {"pad_token": "<pad>"} if padding else {}
    )
    inputs = ["input_ids", *(["token_type_ids"] if bert else []), "attention_mask"]
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, **(names | {"model_input_names": inputs} | options)
    )
    made.save_pretrained(folder)
    return made
