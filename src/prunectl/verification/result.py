"""The result of ``verify``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunectl import numbers


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference: ``kind`` is the check, ``where`` a file or tensor."""

    kind: str
    where: str
    detail: str


@dataclass(frozen=True, slots=True)
class Check:
    """A check; ``passed`` is None if it could not be made, and ``detail`` states why."""

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The result of ``verify``; ``tensors`` and ``zeros`` are counted in the output."""

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
        """The result as JSON values."""
        from prunectl.to_json import to_json

        return {"schema": "prunectl.verify/1", "ok": self.ok, **to_json(self)}


# --- checks, and the differences found so far -----------------------------------------------------

CHECKS = {
    "files": "every file is listed, and none is missing",
    "side files": "side files are unchanged",
    "index": "the index lists every tensor in its file",
    "shapes": "names, dtypes and shapes are those of the manifest",
    "layout": "each tensor is stored as the manifest states",
    "hashes": "stored bytes have the hashes of the manifest",
    "zeros": "zeros are as many as the manifest states",
    "pattern": "N:M holds in every group",
    "calibrated": "weights that calibration changed are finite, and its records are consistent",
    "source": "every tensor is in the source, with its dtype and shape",
    "survivors": "survivors are bit-identical to the source",
    "untouched": "tensors that were not pruned are bit-identical to the source",
    "threshold": "no pruned weight was larger than a kept one",
    "side files of the source": "side files are identical to the source's",
    "loads": "transformers finds every weight, in its shape",
}
NEED_SOURCE = ("source", "survivors", "untouched", "threshold", "side files of the source")


@dataclass
class Findings:
    """Differences so far, and checks that could not be made."""

    differences: list[Difference] = field(default_factory=list)
    impossible: dict[str, str] = field(default_factory=dict)
    sentences: dict[str, str] = field(default_factory=lambda: dict(CHECKS))

    def add(self, kind: str, where: str, detail: str) -> None:
        self.differences.append(Difference(kind, where, detail))

    def checks(self) -> Iterator[Check]:
        """Every check with its result, in order."""
        counts = Counter(difference.kind for difference in self.differences)
        for kind, sentence in self.sentences.items():
            if counts[kind]:
                found = numbers.plural(counts[kind], "difference")
                yield Check(kind, False, f"failed, {found}: {sentence}")
            elif kind in self.impossible:
                yield Check(kind, None, self.impossible[kind])
            else:
                yield Check(kind, True, sentence)
