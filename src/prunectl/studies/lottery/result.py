"""What a search for a lottery ticket found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prunectl._version import __version__
from prunectl.studies.compare.result import Overlap
from prunectl.to_json import to_json

SCHEMA = "prunectl.lottery/1"
_ALONE = (
    " That is of one training each: what another seed would change is not in the interval "
    "(--seeds 0,1,2)."
)


@dataclass(frozen=True, slots=True)
class Scored:
    """The scores of one mask over the seeds.

    Attributes:
        score: mean over the seeds; None where a seed failed. low, high: its 95% interval.
        seeds: the score of each; None where it failed. seconds: of all trainings.
        failed: why there is no score.
    """

    score: float | None
    low: float | None
    high: float | None
    seeds: dict[str, float | None]
    seconds: float
    failed: str | None = None


@dataclass(frozen=True, slots=True)
class Round:
    """One round: its ticket, and one-shot pruning to the same sparsity.

    Attributes:
        number: from 1. sparsity: of both.
        ticket, one_shot: their scores, with one recipe and the same seeds.
        gain: ticket over one-shot, in the metric's units, positive where the ticket is better;
            its 95% interval is over samples and seeds, both drawn in pairs.
        overlaps: of the two masks, by seed.
        masks: files of masks in the output folder, by seed.
    """

    number: int
    sparsity: float
    ticket: Scored
    one_shot: Scored
    gain: float | None
    gain_low: float | None
    gain_high: float | None
    overlaps: dict[str, Overlap]
    masks: dict[str, str]


@dataclass(frozen=True, slots=True)
class LotteryResult:
    """The whole result of ``prunectl lottery``.

    Attributes:
        model, revision: of the checkpoint. weights: the prunable ones.
        metric, unit, higher_is_better, samples, record: as in an evaluation.
        dense: the unpruned model, with the same recipe.
        majority: the score of always giving the most frequent answer; None if it is unknown.
        rounds: the finished ones. planned: the sparsity after each round, finished or not.
        trainings: for the last ticket, for each seed; one-shot pruning takes none.
        verdict: one sentence; '' before the first round is done.
    """

    model: str
    revision: str | None
    weights: int
    metric: str
    unit: str
    higher_is_better: bool
    samples: int
    record: dict[str, Any]
    settings: dict[str, Any]
    machine: dict[str, Any]
    dense: Scored
    majority: float | None
    rounds: tuple[Round, ...]
    planned: tuple[float, ...]
    trainings: int
    verdict: str
    command: str
    seconds: float
    interrupted: bool = False

    def to_json(self) -> dict[str, Any]:
        """The document of ``--json`` and of ``lottery.json``."""
        document: dict[str, Any] = {"schema": SCHEMA, "prunectl": __version__, **to_json(self)}
        for written, one in zip(document["rounds"], self.rounds, strict=True):
            written["overlaps"] = {seed: own.to_json() for seed, own in one.overlaps.items()}
        return document


def verdict(result: LotteryResult) -> str:
    """Say in one sentence whether the last round's ticket is worth its trainings."""
    last = result.rounds[-1]
    at = f"At {100 * last.sparsity:.4g}% sparsity"
    if last.gain is None:
        why = last.ticket.failed or last.one_shot.failed
        return f"{at} the two cannot be compared: {why}."
    if result.majority is not None and (result.dense.score or 0.0) <= result.majority:
        return (
            "The dense model is no better than always giving the most frequent answer, so that "
            "neither mask says anything: train longer, or on more."
        )
    cost = f"{result.trainings} training{'s' * (result.trainings != 1)}"
    by = f"{abs(last.gain):.4g}"
    if last.gain_low is None or last.gain_high is None:
        return (
            f"{at} the ticket's score differs by {last.gain:+.4g}; how sure that is is not known."
        )
    sure = f"95%: {last.gain_low:+.4g} to {last.gain_high:+.4g}"
    alone = "" if len(last.ticket.seeds) > 1 else _ALONE
    if last.gain_low > 0:
        return f"{at} the ticket is better by {by} ({sure}), for {cost}.{alone}"
    if last.gain_high < 0:
        lost = f"{cost} {'is' if result.trainings == 1 else 'are'} lost"
        return f"{at} one-shot pruning, which is free, is better by {by} ({sure}); {lost}.{alone}"
    return f"{at} no difference can be shown: {last.gain:+.4g} ({sure}), after {cost}."
