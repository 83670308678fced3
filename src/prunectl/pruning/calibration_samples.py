"""What a calibration runs on: its samples, the device and the type; and what is too much for it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.device import choose_device
from prunectl.errors import BadCheckpoint, InvalidOption
from prunectl.events import Note, OnEvent
from prunectl.plan.settings import Calibration

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from prunectl.calibration.samples import Samples
    from prunectl.checkpoint.nature import Nature


def gather_samples(checkpoint: Checkpoint, settings: Calibration, on_event: OnEvent) -> Samples:
    """Read the samples that a model is calibrated on.

    Raises:
        InvalidOption: a device or dtype that is not there, or more samples than memory can hold.
        BadCheckpoint: a config that describes far more weights than there are.
        PrunectlError: see :mod:`prunectl.calibration.errors` and :mod:`prunectl.data.errors`.
    """
    from prunectl.calibration.samples import load_samples
    from prunectl.checkpoint.module_tree import (
        build_on_meta,
        model_class,
        quiet_transformers,
        unknown_if_it_fails,
    )
    from prunectl.checkpoint.nature import nature_of
    from prunectl.data.source import SourceKind, parse_source

    source = parse_source(settings.source, "--calibration")
    dtype_of(settings, checkpoint)  # what is wrong with it is said before data are fetched
    device_of(settings)
    with unknown_if_it_fails(), quiet_transformers():
        cls, config = model_class(checkpoint.folder, trust_remote_code=checkpoint.trust_remote_code)
        model = build_on_meta(cls, config)
    _check_size(model, checkpoint)
    nature = nature_of(model, checkpoint.folder)
    if source.kind is SourceKind.RANDOM:  # of all others there are as many as there are
        _check_count(settings, nature)
    samples = load_samples(
        source,
        checkpoint,
        nature,
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


def _check_count(settings: Calibration, nature: Nature) -> None:
    length = min(settings.sequence_length, nature.context or settings.sequence_length)
    if nature.image is not None:
        length = math.prod(nature.image)
    if settings.samples * length > _MOST_VALUES:
        what = "pixels" if nature.image is not None else "tokens"
        raise InvalidOption(
            f"{settings.samples:,} random samples of {length:,} {what} do not fit into memory",
            hint="lower --samples (128 are usual) or --sequence-length",
        )


def device_of(settings: Calibration) -> torch.device:
    """Where the samples are run.

    Raises:
        InvalidOption: it is not known, or not there.
    """
    return choose_device(settings.device)


def dtype_of(settings: Calibration, checkpoint: Checkpoint) -> torch.dtype:
    """What the samples are run in: fp32 on the CPU, whose bf16 is slow, else the largest tensor's.

    Raises:
        InvalidOption: it is not known.
    """
    import torch

    from prunectl.checkpoint.torch_tensors import torch_dtype

    wanted = settings.dtype
    if wanted != "auto":
        names = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
        name = names.get(wanted, wanted)
        if name not in names.values():  # torch has more, which no model runs in
            raise InvalidOption(
                f"dtype '{wanted}' is not known", hint="auto, float32, bfloat16 or float16"
            )
        found: torch.dtype = getattr(torch, name)
        return found
    if device_of(settings).type == "cpu":
        return torch.float32
    largest = max(checkpoint.tensors, key=lambda tensor: tensor.spec.nbytes)
    return torch_dtype(largest.spec)
