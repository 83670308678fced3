"""What samples are asked for, and what is found out on the way to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.model_kind import ModelKind
from prunectl.data.source import DataSource
from prunectl.events import OnEvent

Arrays = dict[str, NDArray[Any]]
"""One sample: arrays by the name of the input that they are."""


@dataclass(slots=True)
class Request:
    """What is asked for, and what is noted on the way."""

    source: DataSource
    checkpoint: Checkpoint
    model_kind: ModelKind
    samples: int
    length: int
    seed: int
    on_event: OnEvent
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def rng(self) -> np.random.Generator:
        """A new generator of the same seed, so that no draw depends on another."""
        return np.random.default_rng(self.seed)
