"""What an evaluation is asked to do; nothing is read."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

from prunectl.errors import InvalidOption
from prunectl.evaluation.metrics import DEFAULT, spec_of, taking

PRECISIONS = ("no", "bf16", "fp16")
PROTOCOLS = ("auto", "letters", "text")


@dataclass(frozen=True, slots=True)
class Training:
    """How metrics that train do so; None where the task's recipe holds.

    Attributes:
        epochs, learning_rate, train_batch_size, weight_decay, warmup, gradient_accumulation,
            mixed_precision, max_grad_norm, max_steps: see
            :class:`prunectl.evaluation.tasks.Recipe`.
        train_samples: rows to train on, at most, drawn by the seed with each class's share kept.
        checkpoints: a folder that takes the state after each epoch, for an interrupted training to
            go on from; a run of other weights, data or settings does not touch it.
    """

    epochs: int | None = None
    learning_rate: float | None = None
    train_batch_size: int | None = None
    weight_decay: float | None = None
    warmup: float | None = None
    gradient_accumulation: int | None = None
    mixed_precision: str | None = None
    max_grad_norm: float | None = None
    max_steps: int | None = None
    train_samples: int | None = None
    checkpoints: Path | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("epochs", 0), ("train_batch_size", 1), ("gradient_accumulation", 1),
            ("max_steps", 1), ("train_samples", 2),
        ):  # fmt: skip
            _at_least(name, getattr(self, name), least)
        for name, most in (
            ("learning_rate", math.inf), ("weight_decay", math.inf), ("warmup", 1.0),
            ("max_grad_norm", math.inf),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not (0 <= value <= most and math.isfinite(value)):
                limit = "at least 0" if most == math.inf else f"0 to {most:g}"
                raise InvalidOption(f"--{_option(name)} {value:g} is not valid: {limit}")
        if self.mixed_precision not in (None, *PRECISIONS):
            raise InvalidOption(
                f"--mixed-precision '{self.mixed_precision}' is not known",
                hint=f"one of {', '.join(PRECISIONS)}",
            )


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """A metric, its data, and how both are used; None where the metric's own default holds.

    Attributes:
        metric: a name in :data:`prunectl.evaluation.metrics.METRICS`, with its argument after a
            colon if it takes one; the entry lists the options that only this metric takes.
        data: sources, as ``--data`` takes them; several texts are one source.
        samples: how many windows, questions or rows at most, drawn evenly or by ``seed``.
        sequence_length: tokens in a window or a row, at most what the model takes.
        stride: tokens from one window to the next; the length if None.
        shots: solved examples before each question.
        protocol: ``letters`` (MMLU) or ``text`` (ARC, HellaSwag); ``auto`` is what the data
            look like.
        max_new_tokens: tokens of an answer at most.
        batch_size: samples at once in scoring; halved where memory is full.
        task: a task that is known by its name, such as ``qqp``.
        train_data: what to train on, where it is not a split of ``data``.
        text_columns: one column of text, or two.
        label_column: the column of classes.
        training: what is other than the task's recipe.
        seed: of all that is drawn.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: of the weights in memory: ``auto`` (fp32 on the CPU, the checkpoint's own elsewhere)
            or a name.

    Raises:
        InvalidOption: a metric that is not known, a value that is not valid, or an option that the
            metric does not take.
    """

    metric: str = DEFAULT
    data: tuple[str, ...] = ()
    samples: int | None = None
    sequence_length: int | None = None
    stride: int | None = None
    shots: int = 0
    protocol: str = "auto"
    max_new_tokens: int | None = None
    batch_size: int | None = None
    task: str | None = None
    train_data: str | None = None
    text_columns: tuple[str, ...] = ()
    label_column: str | None = None
    training: Training | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        given: object = self.data
        object.__setattr__(self, "data", (given,) if isinstance(given, str) else tuple(self.data))
        object.__setattr__(self, "text_columns", tuple(self.text_columns))
        for name, least in (
            ("samples", 2), ("sequence_length", 2), ("stride", 1), ("batch_size", 1),
            ("shots", 0), ("max_new_tokens", 1), ("seed", 0),
        ):  # fmt: skip
            _at_least(name, getattr(self, name), least)
        if self.protocol not in PROTOCOLS:
            raise InvalidOption(
                f"--protocol '{self.protocol}' is not known", hint=f"one of {', '.join(PROTOCOLS)}"
            )
        if len(self.text_columns) > 2:
            raise InvalidOption("--text-column may be given twice at most, for pairs of texts")
        self._check_taken()

    def _check_taken(self) -> None:
        """Refuse options that the metric would ignore."""
        own = spec_of(self.metric).options
        ignored = {
            name: one.name
            for one in fields(self)
            if one.name not in own and taking(one.name) and getattr(self, one.name) != one.default
            for name in self._option_names(one.name)
        }
        if ignored:
            first, field = next(iter(ignored.items()))
            raise InvalidOption(
                f"--metric {self.metric} does not take {', '.join(ignored)}",
                hint=f"--metric {' or '.join(taking(field))} takes {first}",
            )

    def _option_names(self, field: str) -> list[str]:
        """The options that set a field, as the command line spells them."""
        if field == "training":
            given = [
                one.name for one in fields(Training) if getattr(self.training, one.name) is not None
            ]
            return [f"--{_option(name)}" for name in given]
        return [f"--{_option('text_column' if field == 'text_columns' else field)}"]


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and not least <= value < 2**63:
        raise InvalidOption(f"--{_option(name)} {value} is not valid: at least {least}")


def _option(name: str) -> str:
    return name.replace("_", "-")
