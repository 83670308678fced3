"""What an evaluation is asked to do; nothing is read."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from prunectl.errors import InvalidOption
from prunectl.evaluation.metrics import DEFAULT, METRICS, spec_of, taking
from prunectl.numbers import listed
from prunectl.option import MEASURING, TRAINING, Fields, Option, device_option, dtype_option

PRECISIONS = {
    "no": "that of the weights",
    "bf16": "faster on most GPUs",
    "fp16": "on GPUs without bf16",
}
PROTOCOLS = {
    "auto": "what the data look like",
    "letters": "A, B, C, D, as MMLU",
    "text": "the options' own text, as ARC and HellaSwag",
}


def _for(field: str, text: str) -> str:
    """The help of an option that only some metrics take."""
    return f"{listed(taking(field))}: {text}"


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

    epochs: Annotated[
        int | None,
        Option("Passes over the data; 0 scores a trained model as it is.", "N", TRAINING),
    ] = None
    learning_rate: Annotated[
        float | None, Option("Peak learning rate; it decays linearly to 0.", "X", TRAINING)
    ] = None
    train_batch_size: Annotated[
        int | None, Option("Samples in a step, on all devices together.", "N", TRAINING)
    ] = None
    weight_decay: Annotated[
        float | None, Option("AdamW's weight decay, for matrices.", "X", TRAINING)
    ] = None
    warmup: Annotated[
        float | None,
        Option("Share of the steps over which the learning rate rises.", "SHARE", TRAINING),
    ] = None
    gradient_accumulation: Annotated[
        int | None,
        Option("Forward passes in an optimizer step, to need less memory.", "N", TRAINING),
    ] = None
    mixed_precision: Annotated[
        str | None,
        Option(
            "Precision of the training: no, bf16, or fp16 on a GPU.",
            "PRECISION",
            TRAINING,
            values=PRECISIONS,
        ),
    ] = None
    max_grad_norm: Annotated[
        float | None,
        Option("Clip the norm of the gradients to this; 0 does not clip.", "X", TRAINING),
    ] = None
    max_steps: Annotated[int | None, Option("Optimizer steps, at most.", "N", TRAINING)] = None
    train_samples: Annotated[
        int | None, Option("Rows to train on, at most; classes keep their shares.", "N", TRAINING)
    ] = None
    checkpoints: Annotated[
        Path | None,
        Option(
            "Folder for the state after each epoch; the same command resumes from it.",
            "DIR",
            TRAINING,
        ),
    ] = None

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

    metric: Annotated[
        str,
        Option(
            listed([f"{n}:{m.argument}" if m.argument else n for n, m in METRICS.items()]) + ".",
            "METRIC",
            MEASURING,
            short="-m",
            values={f"{n}:" if m.argument else n: m.help for n, m in METRICS.items()},
        ),
    ] = DEFAULT
    data: Annotated[
        tuple[str, ...],
        Option(
            "text:FILE (repeatable), hf:DATASET[:CONFIG[:SPLIT[:COLUMN]]], a table (CSV, JSONL, "
            "Parquet) or a folder of them. demo and models made from demo have their own text.",
            "SOURCE",
            MEASURING,
        ),
    ] = ()
    samples: Annotated[
        int | None,
        Option("Windows, questions or rows to measure on, at most; default: all.", "N", MEASURING),
    ] = None
    sequence_length: Annotated[
        int | None,
        Option("Tokens in a window or a row, at most what the model takes.", "N", MEASURING),
    ] = None
    stride: Annotated[
        int | None,
        Option(
            _for("stride", "tokens from one window to the next; default: no overlap."),
            "N",
            MEASURING,
        ),
    ] = None
    shots: Annotated[
        int, Option(_for("shots", "solved examples in the prompt."), "N", MEASURING)
    ] = 0
    protocol: Annotated[
        str,
        Option(
            _for("protocol", "letters (A to D, as MMLU), text (of the options, as ARC), or auto."),
            "PROTOCOL",
            MEASURING,
            values=PROTOCOLS,
        ),
    ] = "auto"
    max_new_tokens: Annotated[
        int | None,
        Option(_for("max_new_tokens", "tokens of an answer at most; default: 64."), "N", MEASURING),
    ] = None
    batch_size: Annotated[
        int | None, Option("Samples at once; halved where memory is full.", "N", MEASURING)
    ] = None
    task: Annotated[
        str | None,
        Option(
            ", ".join(task for spec in METRICS.values() for task in spec.tasks)
            + ": its data, columns, split and recipe.",
            "TASK",
            TRAINING,
            values={
                name: f"{task.help} (--metric {metric})"
                for metric, spec in METRICS.items()
                for name, task in spec.tasks.items()
            },
        ),
    ] = None
    train_data: Annotated[
        str | None,
        Option("What to train on; default: the split train of --data.", "SOURCE", TRAINING),
    ] = None
    text_columns: Annotated[
        tuple[str, ...],
        Option(
            "A column of text; given twice, texts are pairs.", "NAME", TRAINING, "--text-column"
        ),
    ] = ()
    label_column: Annotated[str | None, Option("The column of classes.", "NAME", TRAINING)] = None
    training: Annotated[Training | None, Fields()] = None
    seed: Annotated[int, Option("Seed of every random choice.", "N", MEASURING)] = 0
    device: Annotated[
        str,
        device_option("CUDA if there is any; all GPUs, where one does not hold the model"),
    ] = "auto"
    dtype: Annotated[str, dtype_option("float32 on the CPU, else the checkpoint's")] = "auto"

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
