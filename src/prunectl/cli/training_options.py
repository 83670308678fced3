"""The options of metrics that fine-tune the model: ``evaluate`` and ``sweep`` have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from prunectl.evaluation.metrics import METRICS
from prunectl.userdirs import expanded


def _option(name: str, metavar: str, text: str, **options: Any) -> Any:
    return typer.Option(name, metavar=metavar, help=text, show_default=False, **options)


Task = Annotated[
    str | None,
    _option(
        "--task",
        "TASK",
        ", ".join(task for spec in METRICS.values() for task in spec.tasks)
        + ": its data, columns, split and recipe.",
    ),
]
TrainData = Annotated[
    str | None,
    _option("--train-data", "SOURCE", "What to train on; default: the split train of --data."),
]
TextColumn = Annotated[
    list[str] | None,
    _option("--text-column", "NAME", "A column of text; given twice, texts are pairs."),
]
LabelColumn = Annotated[str | None, _option("--label-column", "NAME", "The column of classes.")]
TrainSamples = Annotated[
    int | None,
    _option("--train-samples", "N", "Rows to train on, at most; classes keep their shares."),
]
Epochs = Annotated[
    int | None,
    _option("--epochs", "N", "Passes over the data; 0 scores a trained model as it is."),
]
LearningRate = Annotated[
    float | None, _option("--learning-rate", "X", "The highest; it decays linearly to 0.")
]
TrainBatchSize = Annotated[
    int | None,
    _option("--train-batch-size", "N", "Samples in a step, on all devices together."),
]
WeightDecay = Annotated[float | None, _option("--weight-decay", "X", "AdamW's, of matrices.")]
Warmup = Annotated[
    float | None, _option("--warmup", "SHARE", "Of the steps, with a rising learning rate.")
]
GradientAccumulation = Annotated[
    int | None,
    _option("--gradient-accumulation", "N", "Passes a step, to need less memory."),
]
MixedPrecision = Annotated[
    str | None, _option("--mixed-precision", "PRECISION", "no, bf16, or fp16 on a GPU.")
]
MaxGradNorm = Annotated[
    float | None, _option("--max-grad-norm", "X", "Gradients are scaled down to it; 0: they stay.")
]
MaxSteps = Annotated[int | None, _option("--max-steps", "N", "Optimizer steps, at most.")]
Checkpoints = Annotated[
    Path | None,
    _option(
        "--checkpoints",
        "DIR",
        "Keeps the state after each epoch: the same command goes on from there.",
        parser=expanded,
    ),
]


def trained(params: Mapping[str, Any]) -> dict[str, Any]:
    """The options as :class:`prunectl.evaluation.settings.EvalSettings` takes them.

    Args:
        params: values of all of a command's options, by name.
    """
    from prunectl.evaluation.settings import Training

    given = Training(**{one.name: params[one.name] for one in fields(Training)})
    return {
        "task": params["task"],
        "train_data": params["train_data"],
        "text_columns": tuple(params["text_column"] or ()),
        "label_column": params["label_column"],
        "training": given if given != Training() else None,
    }
