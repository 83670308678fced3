"""A tensor that is stored as parts, as a header describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunectl.checkpoint.stored import StoredTensor
from prunectl.tensorspec import TensorSpec


@dataclass(frozen=True, slots=True)
class Packed:
    """A tensor that is stored as parts.

    Attributes:
        spec: the tensor that they stand for.
        file: the weights file that holds them.
        layout: its layout's name.
        extra: the layout's own parameters.
        parts: by suffix.
    """

    spec: TensorSpec
    file: str
    layout: str
    extra: Mapping[str, Any]
    parts: Mapping[str, StoredTensor]
