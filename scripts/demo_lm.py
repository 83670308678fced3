"""The demo language model: its tokenizer, its training, and its perplexity beside a bigram's."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo_bigram import Bigram
from demo_card import PROMPT
from demo_text import Splits
from demo_training import Run, Shape, say, shuffled, train

END = "<|endoftext|>"


def train_tokenizer(documents: list[str], vocab: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the training documents; any text goes through it and back."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
    )


def token_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> Tensor:
    """The tokens of a text, int64 of shape (tokens,), without special ones."""
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])


def new_model(shape: Shape, vocab: int) -> LlamaForCausalLM:
    """A Llama with random weights, in float32."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def windows(stream: Tensor, run: Run) -> Iterator[Tensor]:
    """Batches of training windows, int64 of shape (batch, context + 1), without end."""
    generator = torch.Generator().manual_seed(run.seed)
    span = run.shape.context
    # The last start from which a whole window and its next token are left.
    starts = torch.arange(0, len(stream) - 2 * span, span)
    offsets = torch.arange(span + 1)
    for indices in shuffled(len(starts), run.batch, generator):
        # A random shift, so that windows do not begin at the same tokens in each epoch.
        shift = torch.randint(span, (run.batch,), generator=generator)
        yield stream[(starts[indices] + shift)[:, None] + offsets]


def scored_windows(tokens: Tensor, context: int) -> list[Tensor]:
    """Non-overlapping windows of a text; in each, all tokens but the first are predicted."""
    return [window for window in tokens.split(context) if len(window) > 1]


@torch.inference_mode()
def mean_loss(model: LlamaForCausalLM, tokens: Tensor) -> float:
    """Mean negative log-likelihood of the predicted tokens in nats, summed in float64."""
    total, count = 0.0, 0
    for window in scored_windows(tokens, model.config.max_position_embeddings):
        logits = model(input_ids=window[None, :-1]).logits[0].float()
        total += cross_entropy(logits, window[1:], reduction="none").double().sum().item()
        count += len(window) - 1
    return total / count


def save(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> LlamaForCausalLM:
    """Write a transformers folder with bf16 weights; returns the bf16 model."""
    rounded = copy.deepcopy(model).to(torch.bfloat16).eval()
    rounded.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return rounded


def measure(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, stream: Tensor, splits: Splits
) -> dict[str, Any]:
    """Perplexities of the bf16 ``model`` and of the bigram model on the same held-out tokens."""
    context = model.config.max_position_embeddings
    heldout = token_ids(tokenizer, splits.heldout)
    tokens_per_byte = len(heldout) / len(splits.heldout.encode())
    in_bf16 = mean_loss(model, heldout)
    in_float32 = mean_loss(copy.deepcopy(model).float(), heldout)
    calibration = scored_windows(token_ids(tokenizer, splits.calibration), context)
    bigram = Bigram.tuned(stream, model.config.vocab_size, calibration)
    of_bigram = bigram.mean_loss(scored_windows(heldout, context))
    return {
        "perplexity": math.exp(in_float32),
        "bits_per_byte": in_float32 / math.log(2) * tokens_per_byte,
        "perplexity_bf16_arithmetic": math.exp(in_bf16),
        "bigram_perplexity": math.exp(of_bigram),
        "bigram_bits_per_byte": of_bigram / math.log(2) * tokens_per_byte,
        "bigram_discount": bigram.discount,
        "heldout_tokens": len(heldout),
        "heldout_bytes": len(splits.heldout.encode()),
        "heldout_predicted": sum(len(w) - 1 for w in scored_windows(heldout, context)),
        "calibration_bytes": len(splits.calibration.encode()),
    }


def sample(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> str:
    """The prompt and 40 tokens that greedy search adds."""
    asked = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
    made = model.generate(**asked, max_new_tokens=40, do_sample=False)
    return str(tokenizer.decode(made[0]))


def train_language_model(splits: Splits, run: Run) -> dict[str, Any]:
    """Train, save into ``run.output``, and measure what was saved; returns the numbers."""
    tokenizer = train_tokenizer(splits.training, run.shape.vocab)
    end = torch.tensor([tokenizer.eos_token_id])
    parts = [part for text in splits.training for part in (token_ids(tokenizer, text), end)]
    stream = torch.cat(parts)
    if len(stream) <= 2 * run.shape.context:
        raise SystemExit(f"{len(stream)} training tokens are too few for --context")
    torch.manual_seed(run.seed)
    model = new_model(run.shape, len(tokenizer))
    parameters = sum(p.numel() for p in model.parameters())
    say(f"{parameters:,} parameters, {len(stream):,} training tokens")
    batches = windows(stream, run)

    def loss_of_next_batch() -> Tensor:
        batch = next(batches)
        logits = model(input_ids=batch[:, :-1]).logits
        return cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    trained = train(model, loss_of_next_batch, run, lambda path: save(model, tokenizer, path))
    rounded = save(model, tokenizer, run.output / "model")
    (run.output / "heldout.txt").write_text(splits.heldout, encoding="utf-8")
    (run.output / "calibration.txt").write_text(splits.calibration, encoding="utf-8")
    return {
        "parameters": parameters,
        "vocab_size": len(tokenizer),
        "training_bytes": sum(len(text.encode()) for text in splits.training),
        "training_tokens": len(stream),
        "tokens_seen": run.steps * run.batch * run.shape.context,
        "removed_lines": splits.removed,
        **trained,
        **measure(rounded, tokenizer, stream, splits),
        "sample": sample(rounded, tokenizer),
    }
