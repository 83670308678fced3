"""What ``bench`` is asked to do."""

from __future__ import annotations

import math
from dataclasses import dataclass

from prunectl.benchmarking.timing import LEAST_ROUNDS
from prunectl.errors import InvalidOption
from prunectl.pattern import NM

KERNELS = ("auto", "dense", "sparse")
COMPILE = ("none", "default", "reduce-overhead")
PATTERN = NM(2, 4)
_MOST = 2**63 - 1
DTYPES = ("auto", "float32", "bfloat16", "float16")


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
        pattern: prunes a dense model in memory, to measure what zeros bring; None leaves it dense.
        compile: mode of torch.compile, the same for all sides.
        text: tokenized as the input; '' takes random tokens.
        seed: of random tokens, random weights and the bootstrap.
        measure_loading: load each model in a process of its own first.
    """

    batch_sizes: tuple[int, ...] = ()
    prompt_tokens: tuple[int, ...] = ()
    new_tokens: int | None = None
    rounds: int = 15
    seconds: float | None = None
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    kernels: str = "auto"
    pattern: NM | None = PATTERN
    compile: str = "none"
    text: str = ""
    seed: int = 0
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
