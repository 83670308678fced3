"""What people are told of a calibration: of single tensors at once, the rest when all is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunectl.events import Note, OnEvent

if TYPE_CHECKING:
    from prunectl.calibration.calibrator import CalibratedFacts
    from prunectl.calibration.matrix import Done


class CalibrationNotes:
    """Collects what should not go by in silence.

    Args:
        by_mask: whether a file of masks has chosen the weights.
    """

    def __init__(self, on_event: OnEvent, *, by_mask: bool) -> None:
        self._on_event, self._by_mask = on_event, by_mask
        self._unreached: list[str] = []
        self._missed: list[str] = []
        self._dead: dict[str, int] = {}

    def tensor(
        self, name: str, facts: CalibratedFacts, missed: Sequence[bool], done: Sequence[Done]
    ) -> None:
        """A tensor is pruned.

        Args:
            missed: of each of its matrices, :attr:`Captured.missed`. done: facts on each.
        """
        if facts.skipped:
            text = f"{name}: {facts.skipped:,} inputs held NaN or Inf, or were far too large, and"
            self._warn(f"{text} were left out.")
        if facts.raised:
            text = f"{name}: its second moments are singular; damping was raised to"
            self._warn(f"{text} {facts.damping:g}.")
        if over := sum(one.overflowed for one in done):
            text = f"{name}: its dtype does not hold new weights of {over:,} rows:"
            self._warn(f"{text} what is not pruned there is as it was.")
        blind = [one for one, made in zip(missed, done, strict=True) if made.by_magnitude]
        known = sum(blind)
        for count, told in ((known, self._missed), (len(blind) - known, self._unreached)):
            if count:
                whole = count == len(done)
                told.append(name if whole else f"{count} of {len(done)} matrices of {name}")
        if facts.dead_inputs:
            self._dead[name] = facts.dead_inputs

    def end(self) -> None:
        """All is done."""
        what = "their survivors are as before" if self._by_mask else "magnitudes decided there"
        if self._unreached:
            text = f"No sample reaches {_some(self._unreached)}: {what}."
            self._warn(f"{text} The manifest says which.")
        if self._missed:
            text = f"How {_some(self._missed)} is multiplied is not recognised: {what}."
            self._warn(f"{text} The manifest says which.")
        if self._dead:
            count = sum(self._dead.values())
            inputs = "One input" if count == 1 else f"{count:,} inputs"
            text = f"{inputs} of {_some(list(self._dead))} never fired on the samples:"
            self._warn(f"{text} weights there cost nothing, and go first, the smallest ones first.")

    def _warn(self, text: str) -> None:
        self._on_event(Note(text, warning=True))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"
