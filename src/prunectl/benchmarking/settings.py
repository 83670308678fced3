"""What ``bench`` is asked to do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from prunectl.errors import InvalidOption
from prunectl.option import COMPUTING, DTYPES, MEASURING, Option, device_option, dtype_option
from prunectl.pattern import COMMON_NMS, NM, parse_nm
from prunectl.runtime.executions import check_execution, execution_option
from prunectl.userdirs import expanded

LEAST_ROUNDS = 7
"""Fewer rounds give intervals that are too narrow."""
KERNELS = {
    "auto": "dense ones, and sparse ones where they win",
    "dense": "ordinary kernels only",
    "sparse": "sparse ones wherever they can run",
}
COMPILE = {
    "none": "no torch.compile",
    "default": "torch.compile",
    "reduce-overhead": "torch.compile with CUDA graphs",
}
PATTERN = NM(2, 4)
_MOST = 2**63 - 1


_LLAMA: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256,
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "max_position_embeddings": 8192, "dtype": "bfloat16",
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "llama-7b": _LLAMA | {
        "vocab_size": 32000, "intermediate_size": 11008, "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
    },
    "llama-8b": _LLAMA | {"intermediate_size": 14336},
    "llama-1b": _LLAMA | {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "bert-base": {
        "model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": 30522,
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "max_position_embeddings": 512, "dtype": "float32",
    },
    "vit-base": {
        "model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 768,
        "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 224, "patch_size": 16, "num_labels": 1000, "dtype": "float32",
    },
    "t5-base": {
        "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": 32128,
        "d_model": 768, "d_ff": 3072, "d_kv": 64, "num_heads": 12, "num_layers": 12,
        "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1, "dtype": "float32",
    },
}  # fmt: skip
"""Configs as transformers writes them; missing values are the defaults of the architecture."""


def _whole_numbers(option: str) -> Callable[[str], tuple[int, ...]]:
    """Reads ``1,8,32``; raises InvalidOption for anything else."""

    def read(text: str) -> tuple[int, ...]:
        try:
            return tuple(int(part) for part in text.split(",") if text)
        except ValueError:
            raise InvalidOption(
                f"{option} '{text}' is no list of whole numbers", hint=f"such as {option} 1,8,32"
            ) from None

    return read


def _pattern_or_none(text: str) -> NM | None:
    """``2:4``, or None for ``none``."""
    return None if text.strip().lower() == "none" else parse_nm(text)


def _words_in(name: str) -> str:
    """The text of a file."""
    path = expanded(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InvalidOption(f"--text {path}: {why}") from None
    if not text.strip():
        raise InvalidOption(f"--text {path}: it holds no words")
    return text


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """The settings of a benchmark; empty or None where the device or the model decides.

    Attributes:
        batch_sizes: sequences or images at once.
        prompt_tokens: lengths of the input in tokens.
        new_tokens: tokens that are generated after the prompt.
        rounds: samples of each model and workload, at least 7; fewer if ``seconds`` is short.
        seconds: time for all measurements together, from which the rounds are planned.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``auto`` (that of the checkpoint), ``float32``, ``bfloat16`` or ``float16``.
        threads: of torch on the CPU; None leaves the choice to torch.
        kernels: for 2:4 weights on CUDA: ``dense``, ``sparse`` (wherever a kernel takes them), or
            ``auto`` (dense and sparse side by side, sparse only where it was measured to win).
        execution: of the model, not of those it is compared with: a name in EXECUTIONS; ''
            is ``auto`` for a compressed folder on the CPU, else ``dense``.
        pattern: prunes a dense model in memory, to measure what zeros bring; None leaves it dense.
        compile: mode of torch.compile, the same for all sides.
        text: tokenized as the input; '' takes random tokens.
        seed: of random tokens, random weights and the bootstrap.
        measure_loading: load each model in a process of its own first.
    """

    batch_sizes: Annotated[
        tuple[int, ...],
        Option(
            "Sequences or images at once.",
            "N,N...",
            MEASURING,
            "--batch-size",
            read=_whole_numbers("--batch-size"),
        ),
    ] = ()
    prompt_tokens: Annotated[
        tuple[int, ...],
        Option(
            "Lengths of the input.", "N,N...", MEASURING, read=_whole_numbers("--prompt-tokens")
        ),
    ] = ()
    new_tokens: Annotated[int | None, Option("Tokens to generate after it.", "N", MEASURING)] = None
    rounds: Annotated[int, Option("Samples of each model and workload.", "N", MEASURING)] = 15
    seconds: Annotated[
        float | None,
        Option(
            f"How long timing may take, about: fewer rounds are planned, at least {LEAST_ROUNDS}. "
            "Default: 60, on CUDA 120.",
            "S",
            MEASURING,
        ),
    ] = None
    device: Annotated[str, device_option("CUDA if there is any")] = "auto"
    dtype: Annotated[str, dtype_option("the checkpoint's")] = "auto"
    threads: Annotated[int | None, Option("Threads of torch on the CPU.", "N", COMPUTING)] = None
    kernels: Annotated[
        str,
        Option(
            "For 2:4 weights on CUDA: dense, sparse, or auto (also sparse, where it wins).",
            "KERNELS",
            COMPUTING,
            values=KERNELS,
        ),
    ] = "auto"
    execution: Annotated[
        str, execution_option("auto for a compressed folder on the CPU.", "the model's weights")
    ] = ""
    pattern: Annotated[
        NM | None,
        Option(
            "How a dense model that comes alone is pruned in memory, to compare it with; 'none' "
            "times it alone.",
            "N:M",
            MEASURING,
            short="-p",
            values={**COMMON_NMS, "none": "times the model alone"},
            read=_pattern_or_none,
        ),
    ] = PATTERN
    compile: Annotated[
        str,
        Option(
            "torch.compile for all models alike: none, default, or reduce-overhead (CUDA graphs).",
            "MODE",
            COMPUTING,
            values=COMPILE,
        ),
    ] = "none"
    text: Annotated[
        str,
        Option(
            "Take the input from this text; default: random tokens.",
            "FILE",
            MEASURING,
            suffix=".txt",
            read=_words_in,
        ),
    ] = ""
    seed: Annotated[
        int, Option("Seed of random tokens and weights, and of the intervals.", "N", MEASURING)
    ] = 0
    measure_loading: bool = True

    def __post_init__(self) -> None:
        for name, value, known in (
            ("--kernels", self.kernels, KERNELS),
            ("--compile", self.compile, COMPILE),
            ("--dtype", self.dtype, DTYPES),
        ):
            if value not in known:
                raise InvalidOption(
                    f"{name} '{value}' is not known", hint=f"one of {', '.join(known)}"
                )
        if self.execution:
            check_execution(self.execution)
        for name, values in (
            ("--batch-size", self.batch_sizes),
            ("--prompt-tokens", self.prompt_tokens),
            ("--new-tokens", () if self.new_tokens is None else (self.new_tokens,)),
            ("--threads", () if self.threads is None else (self.threads,)),
        ):
            if any(value < 1 for value in values):
                raise InvalidOption(f"{name} must be 1 or more")
            if any(value > _MOST for value in values):
                raise InvalidOption(f"{name} is larger than any computer can count")
        if not 0 <= self.seed <= _MOST:
            raise InvalidOption(f"--seed must be 0 to {_MOST}")
        if self.rounds < LEAST_ROUNDS:
            raise InvalidOption(
                f"--rounds {self.rounds} is too few",
                hint=f"an interval needs {LEAST_ROUNDS} or more",
            )
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise InvalidOption("--seconds must be more than 0, and a number")
