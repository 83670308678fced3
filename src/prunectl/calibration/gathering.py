"""What a calibration runs on: its samples, the device and the type; and what is too much for it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.errors import BadCheckpoint, InvalidOption
from prunectl.events import Note, OnEvent
from prunectl.plan.placement import device_of, dtype_of
from prunectl.plan.settings import Calibration

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from prunectl.checkpoint.model_kind import ModelKind
    from prunectl.data.samples import Samples


def gather_samples(checkpoint: Checkpoint, settings: Calibration, on_event: OnEvent) -> Samples:
    """Read the samples that a model is calibrated on.

    Raises:
        InvalidOption: a device or dtype that is not there, or more samples than memory can hold.
        BadCheckpoint: a config that describes far more weights than there are.
        PrunectlError: see :mod:`prunectl.calibration.errors` and :mod:`prunectl.data.errors`.
    """
    from prunectl.calibration.samples import load_samples
    from prunectl.checkpoint.model_kind import model_kind_of
    from prunectl.checkpoint.module_tree import (
        build_on_meta,
        model_class,
        quiet_transformers,
        unknown_if_it_fails,
    )
    from prunectl.data.source import SourceKind, parse_source

    source = parse_source(settings.source, "--calibration")
    dtype_of(settings, checkpoint)  # what is wrong with it is said before data are fetched
    device_of(settings)
    with unknown_if_it_fails(), quiet_transformers():
        cls, config = model_class(checkpoint.folder, trust_remote_code=checkpoint.trust_remote_code)
        model = build_on_meta(cls, config)
    _check_size(model, checkpoint)
    model_kind = model_kind_of(model, checkpoint.folder)
    if source.kind is SourceKind.RANDOM:  # of all others there are as many as there are
        _check_count(settings, model_kind)
    samples = load_samples(
        source,
        checkpoint,
        model_kind,
        samples=settings.samples,
        sequence_length=settings.sequence_length,
        seed=settings.seed,
        on_event=on_event,
    )
    for text in samples.notes:
        on_event(Note(text))
    return samples


_MOST_MADE_UP = 10**9
"""Weights that a checkpoint may lack, such as a head's: they are made up as zeros."""
_MOST_VALUES = 1 << 28
"""Tokens or pixels that random samples may hold."""


def _check_size(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    asked = sum(parameter.numel() for parameter in model.parameters())
    there = sum(tensor.spec.numel for tensor in checkpoint.tensors)
    if asked > 10 * there + _MOST_MADE_UP:
        raise BadCheckpoint(
            checkpoint.folder / "config.json",
            f"it describes a model of {asked:,} weights, and the files hold {there:,}",
        )


def _check_count(settings: Calibration, model_kind: ModelKind) -> None:
    length = min(settings.sequence_length, model_kind.context or settings.sequence_length)
    if model_kind.image is not None:
        length = math.prod(model_kind.image)
    if settings.samples * length > _MOST_VALUES:
        what = "pixels" if model_kind.image is not None else "tokens"
        raise InvalidOption(
            f"{settings.samples:,} random samples of {length:,} {what} do not fit into memory",
            hint="lower --samples (128 are usual) or --sequence-length",
        )
