"""What a search for a lottery ticket is asked for, and its rounds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

from prunectl.errors import InvalidOption
from prunectl.evaluation.metrics import DEFAULT_TRAINED, spec_of, trained
from prunectl.evaluation.settings import EvalSettings
from prunectl.option import PRUNING, Fields, Option, device_option
from prunectl.pattern import Unstructured
from prunectl.plan.settings import Exclude, Include, PruneSettings, check_sparsity
from prunectl.studies.errors import NoSchedule
from prunectl.studies.sweep.settings import Seeds, SweepSettings

DEFAULT_RATE = 0.1
"""Share of the remaining weights that each round prunes; common, not given by arXiv 2306.03805."""
MOST = 100
_SLACK = 1e-9


def schedule(sparsity: float, rounds: int | None, rate: float | None) -> tuple[float, ...]:
    """The sparsity after each round, rising to ``sparsity``.

    Each round prunes the same share of the remaining weights: (1 - rate)**r remain after r rounds
    (Frankle and Carbin, arXiv 1803.03635). The last round prunes the rest.

    Args:
        sparsity: of the ticket, between 0 and 1.
        rounds: their number, from which the rate follows.
        rate: share that each round prunes, from which the number of rounds follows. If both are
            given, the rounds must suffice; if neither is, the rate is a tenth.

    Raises:
        NoSchedule: rounds and rate do not reach the sparsity, or are out of range.
    """
    if rounds is not None and not 1 <= rounds <= MOST:
        raise NoSchedule(f"--rounds {rounds} is not 1 to {MOST}")
    if rate is not None and not 0 < rate < 1:
        raise NoSchedule(f"--rate {rate:g} is not between 0 and 1", hint="such as 0.1 or 0.2")
    if rounds is None:
        rate = DEFAULT_RATE if rate is None else rate
        rounds = max(1, math.ceil(math.log(1 - sparsity) / math.log(1 - rate) - _SLACK))
        if rounds > MOST:
            raise NoSchedule(
                f"--rate {rate:g} takes {rounds:,} rounds to {sparsity:g}, and {MOST} is the most",
                hint="a higher --rate",
            )
    elif rate is None:
        rate = 1 - (1 - sparsity) ** (1 / rounds)
    elif 1 - (1 - rate) ** rounds < sparsity - _SLACK:
        reached = 1 - (1 - rate) ** rounds
        raise NoSchedule(
            f"{rounds} rounds at a rate of {rate:g} reach {reached:.3g}, not {sparsity:g}",
            hint="more --rounds, a higher --rate, or only one of the two",
        )
    before = [1 - (1 - rate) ** number for number in range(1, rounds)]
    # Rounded, so that a round has the same name and count on every machine.
    rounded = dict.fromkeys(round(one, 6) for one in before)
    return (*(one for one in rounded if 0 < one < sparsity - _SLACK), sparsity)


@dataclass(frozen=True)
class LotterySettings:
    """What is trained, how often, and how much is pruned.

    Attributes:
        evaluation: a metric that trains, its data and its recipe, for tickets and for one-shot
            pruning alike.
        sparsity: of the ticket.
        rounds, rate: see :func:`prunectl.studies.lottery.settings.schedule`.
        seeds: one search for each, with this seed in all of its trainings.
        include, exclude: selectors that add to, and take from, the prunable tensors.

    Raises:
        InvalidSparsity, NoSchedule, InvalidOption: values that have no meaning.
    """

    evaluation: Annotated[
        EvalSettings,
        Fields(
            without=("stride", "shots", "protocol", "max_new_tokens"),
            instead={"device": device_option("CUDA if there is any")},
        ),
    ] = field(default_factory=lambda: EvalSettings(DEFAULT_TRAINED))
    sparsity: Annotated[float, Option("Sparsity of the ticket.", "SHARE", PRUNING, short="-s")] = (
        0.5
    )
    rounds: Annotated[
        int | None,
        Option(
            "How many times to train and prune on the way to the sparsity. The share pruned in "
            "each follows from it, unless --rate is given too.",
            "N",
            PRUNING,
        ),
    ] = None
    rate: Annotated[
        float | None,
        Option(
            "Share of the weights still left that each round prunes. The number of rounds follows "
            "from it; default: 0.1.",
            "SHARE",
            PRUNING,
        ),
    ] = None
    seeds: Seeds = (0,)
    include: Include = ()
    exclude: Exclude = ()

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity, Unstructured())
        for name in ("seeds", "include", "exclude"):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
        training = self.evaluation.training
        trains = spec_of(self.evaluation.metric).trains
        if not trains or (training and training.epochs == 0):
            raise InvalidOption(
                f"--metric {self.evaluation.metric} does not train, and a lottery ticket is found "
                "by training",
                hint=f"--metric {' or '.join(trained())}",
            )
        _ = self.sweep, self.steps

    @cached_property
    def steps(self) -> tuple[float, ...]:
        """The sparsity after each round."""
        return schedule(self.sparsity, self.rounds, self.rate)

    @cached_property
    def sweep(self) -> SweepSettings:
        """One-shot pruning to the same sparsities, as a sweep measures it."""
        return SweepSettings(
            evaluation=self.evaluation,
            sparsity=",".join(map(str, self.steps)),
            pruning=PruneSettings(include=self.include, exclude=self.exclude),
            seeds=self.seeds,
        )
