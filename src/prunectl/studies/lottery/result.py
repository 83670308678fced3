"""What a search for a ticket found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prunectl._version import __version__
from prunectl.studies.compare.result import Overlap
from prunectl.to_json import to_json

SCHEMA = "prunectl.lottery/1"


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of one mask, over seeds.

    Attributes:
        score: mean over the seeds; None where a seed failed. low, high: its 95% interval.
        seeds: score of each; None where it failed. seconds: of all trainings.
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
    """One round: the ticket that it leaves, and one-shot pruning to the same sparsity.

    Attributes:
        number: from 1. sparsity: of both.
        ticket, one_shot: their scores, by one recipe and the same seeds.
        gain: ticket over one-shot, in the metric's units and positive where the ticket is better;
            with its 95% interval over samples and seeds, both drawn in pairs.
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
        model, revision: what was pruned. weights: prunable ones.
        metric, unit, higher_is_better, samples, record: as of an evaluation.
        dense: the model that is not pruned, by the same recipe.
        majority: what always giving the most frequent answer would score; None if that is unknown.
        rounds: those that are done.
        planned: the sparsity after each round, to the end.
        trainings: that the last ticket took, for each seed; one-shot pruning takes none.
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
        for told, one in zip(document["rounds"], self.rounds, strict=True):
            told["overlaps"] = {seed: own.to_json() for seed, own in one.overlaps.items()}
        return document
