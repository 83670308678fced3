"""The model card of the demo model, made of the numbers that the training script measured."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from demo_text import PACKAGE, SHA256, SHARE_OF_FILES
from demo_training import Shape

PROMPT = "And it came to pass"
"""What the sample in the card goes on from."""

BIBLE = f"""\
The King James Version of the Bible (1611), out of the Debian package `{PACKAGE}`
(SHA-256 `{SHA256}`). It is in the public domain;
the package's copyright file says:

> The copyright for the King James Version text of the Bible is expired since the translation was
> done in 1611 under King James the first of Great Britain.

and of the retrieval program that the package began as (Chip Chapin, 1989):

> This file is provided for unrestricted use provided that this legend is included on all tape media
> and as a part of the software program in whole or part. Users may copy, modify or distribute this
> file at will.

In the United Kingdom the Crown holds the right to print this translation. Verse numbers are left
out; a verse is a line, and a blank line parts chapters.

- Held out, `heldout.txt`: the whole Gospel of John.
- For calibration, `calibration.txt`: the whole Book of Judges.
- Trained on, model and tokenizer: the other 64 books."""

FILES = f"""\
{{names}}. The licence of this text is for whoever ran the script to say.

- Held out, `heldout.txt`: the last 1/{SHARE_OF_FILES} of the lines.
- For calibration, `calibration.txt`: the 1/{SHARE_OF_FILES} before it.
- Trained on, model and tokenizer: what comes before."""

CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags:
- llama
- demo
- tiny
model-index:
- name: prunectl demo
  results:
  - task:
      type: text-generation
    dataset:
      type: text
      name: {dataset}, held-out text
    metrics:
    - type: perplexity
      name: perplexity per token
      value: {perplexity:.2f}
    - type: bits_per_byte
      name: bits per byte
      value: {bits_per_byte:.3f}
---

# The demo model of prunectl

A Llama of {parameters:,} parameters, trained from random weights on {megabytes:.1f} MB of
English text. It is for demonstrations and tests: real trained weights that load and can be measured
without a download. It is not for use: it knows nothing but its text, and nobody checked what it
says.

## Text

{text}

Lines that are also in the held-out or calibration text were taken out of the training text, and
held-out ones out of the calibration text ({removed_lines} in all). The script asserts that no two
of the three share a line.

## Training

```
{command}
```

- shape: {layers} layers, hidden {hidden}, intermediate {intermediate}, {heads} heads,
  {kv_heads} key-value heads, tied head
- tokenizer: byte-level BPE, {vocab} tokens
- training text: {training_bytes:,} bytes, {training_tokens:,} tokens
- steps: {steps:,} of {batch} windows of {context} tokens, so {tokens_seen:,} tokens
  or {epochs:.1f} epochs
- optimizer: AdamW, peak rate {learning_rate:g}, linear warm-up and cosine, weight decay 0.1,
  gradients clipped at norm 1
- numbers: float32, rounded once to bfloat16 at the end
- seed {seed}, {threads} threads, {training_seconds:.0f} s on a CPU
- Python {python}, torch {torch}, transformers {transformers}

The same command is meant to give the same weights byte for byte, on the same kind of processor with
the same versions, seed and number of threads. Only short runs were repeated to see that;
`tests/test_train_demo.py` repeats one. Another torch or another processor may sum in another order,
and then the weights differ.

## Measured

On the held-out text, {heldout_bytes:,} bytes and {heldout_tokens:,} tokens, in windows of
{context} tokens that do not overlap. The first token of each window is given; the other
{heldout_predicted:,} are predicted.

| | perplexity per token | bits per byte |
|---|---|---|
| this model | {perplexity:.2f} | {bits_per_byte:.3f} |
| bigrams | {bigram_perplexity:.2f} | {bigram_bits_per_byte:.3f} |

The weights are the bfloat16 ones of this folder, the arithmetic is float32. Computed in bfloat16,
as `from_pretrained` loads them, the perplexity is {perplexity_bf16_arithmetic:.2f}; how bfloat16
rounds depends on the processor. Bits per byte are the mean loss in bits times tokens per byte. The
bigram model has interpolated Kneser-Ney smoothing, counts the same training tokens and predicts the
same held-out ones; its discount, {bigram_discount:g}, is the best on the calibration text.

From "{prompt}" greedy search goes on:

```
{sample}
```
"""


def command_line(numbers: dict[str, Any]) -> str:
    """The command that trains the same again: what it was given, sizes only if not the default."""
    words = ["python", "scripts/train_demo.py", "--output", "DIR"]
    if numbers["text"] != [PACKAGE]:
        words += ["--text", *numbers["text"]]
    for name in ("steps", "batch", "learning_rate", "seed", "threads"):
        words += [f"--{name.replace('_', '-')}", str(numbers[name])]
    for name, default in vars(Shape()).items():
        if numbers["shape"][name] != default:
            words += [f"--{name.replace('_', '-')}", str(numbers["shape"][name])]
    return shlex.join(words)


def write_card(path: Path, numbers: dict[str, Any]) -> None:
    """Write README.md from what ``train_demo.py`` prints as JSON."""
    bible = numbers["text"] == [PACKAGE]
    values = numbers | numbers["shape"] | numbers["versions"]
    values["vocab"] = numbers["vocab_size"]
    values["dataset"] = "King James Bible" if bible else "text files"
    values["text"] = BIBLE if bible else FILES.format(names=", ".join(numbers["text"]))
    values["prompt"] = PROMPT
    values["command"] = command_line(numbers)
    values["megabytes"] = numbers["training_bytes"] / 1e6
    values["epochs"] = numbers["tokens_seen"] / numbers["training_tokens"]
    path.write_text(CARD.format(**values), encoding="utf-8")
