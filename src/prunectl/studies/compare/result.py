"""What a comparison says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prunectl._version import __version__
from prunectl.measure.model_stats import ModelStats
from prunectl.studies.compare.overlap import Overlap
from prunectl.to_json import to_json

SCHEMA = "prunectl.comparison/1"
AS_THEY_ARE = "as they are"
"""The target where both sides bring their own masks."""


@dataclass(frozen=True, slots=True)
class ComparedSide:
    """One of the two.

    Attributes:
        model: as given. label: what it is called in tables.
        kind: ``weights`` (masks are made of its magnitudes), ``zeros`` (it is pruned: its zeros are
            the mask) or ``masks`` (a file of masks).
        revision: commit, if it came from the Hub.
        stats: of the weights that are compared; None of a file of masks.
        unmatched: prunable tensors that the other side lacks -> why.
    """

    model: str
    label: str
    kind: str
    revision: str | None
    stats: ModelStats | None
    unmatched: dict[str, str]


@dataclass(frozen=True, slots=True)
class MaskPair:
    """The masks of both sides at one target.

    Attributes:
        target: ``40%``, ``2:4``, or ``as they are`` where both sides bring their own.
        sparsity: asked for; None where a pattern or the sides decide.
        overlap: over all compared weights.
        components, layers: by component (``self_attn.q_proj``) and by 'stack.layer'.
    """

    target: str
    sparsity: float | None
    overlap: Overlap
    components: dict[str, Overlap]
    layers: dict[str, Overlap]

    @property
    def at(self) -> str:
        """``at 40%``, or ``as they are``."""
        return self.target if self.target == AS_THEY_ARE else f"at {self.target}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The whole result of ``prunectl compare``.

    Attributes:
        first, second: the sides. tensors, weights: how much is compared.
        renamed: pairs of names that differ.
        masks: by target. findings: sentences on what they mean.
        command: that was given. seconds: all of it.
    """

    first: ComparedSide
    second: ComparedSide
    tensors: int
    weights: int
    renamed: tuple[tuple[str, str], ...]
    masks: tuple[MaskPair, ...]
    findings: tuple[str, ...]
    command: str
    seconds: float

    @property
    def sides(self) -> tuple[ComparedSide, ComparedSide]:
        return self.first, self.second

    def to_json(self) -> dict[str, Any]:
        """The document of ``--json`` and of ``-o``."""
        return {
            "schema": SCHEMA,
            "prunectl": __version__,
            "command": self.command,
            "seconds": self.seconds,
            "models": [to_json(side) for side in self.sides],
            "compared": {"tensors": self.tensors, "weights": self.weights},
            "renamed": to_json(self.renamed),
            "masks": [_pair(pair) for pair in self.masks],
            "findings": list(self.findings),
        }


def _pair(pair: MaskPair) -> dict[str, Any]:
    return {
        "target": pair.target,
        "sparsity": pair.sparsity,
        **pair.overlap.to_json(),
        "components": {name: one.to_json() for name, one in pair.components.items()},
        "layers": {name: one.to_json() for name, one in pair.layers.items()},
    }
