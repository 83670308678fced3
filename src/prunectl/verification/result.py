"""What ``verify`` found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it should be: ``kind`` is the check, ``where`` a file or tensor."""

    kind: str
    where: str
    detail: str


@dataclass(frozen=True, slots=True)
class Check:
    """One check; ``passed`` is None where it was not possible, and ``detail`` says why."""

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The whole outcome; ``tensors`` and ``zeros`` are what was counted in the output."""

    output: Path
    tensors: int
    zeros: int
    checks: tuple[Check, ...]
    differences: tuple[Difference, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether no check found a difference."""
        return not self.differences

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        from prunectl.to_json import to_json

        return {"schema": "prunectl.verify/1", "ok": self.ok, **to_json(self)}
