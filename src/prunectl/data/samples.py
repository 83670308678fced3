"""What a model is fed, one sample at a time, and a record of where it is from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """What a model is run on to gather statistics; equal to itself only.

    Attributes:
        inputs: arguments of ``model.forward``, one sample each, of batch size 1 on the CPU:
            ``input_ids`` (1, tokens) int64 and what else the model takes of its tokenizer;
            ``decoder_input_ids`` (1, tokens) int64; ``pixel_values`` (1, channels, height, width)
            float32. Nothing is padded, so there is no mask; lengths may differ.
        record: for the manifest, ready for JSON: ``kind``, what was read (names without folders),
            ``samples``, ``sequence_length``, ``tokens``, ``seed`` and ``blake3``
            (:func:`prunectl.calibration.samples.digest`).
        notes: sentences for people: what had to be other than asked for.
    """

    inputs: tuple[dict[str, torch.Tensor], ...]
    record: dict[str, Any]
    notes: tuple[str, ...] = ()
