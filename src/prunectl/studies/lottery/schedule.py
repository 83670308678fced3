"""How sparse the ticket is after each round of iterative magnitude pruning."""

from __future__ import annotations

import math

from prunectl.studies.lottery.errors import NoSchedule

DEFAULT_RATE = 0.1
"""Of what is left, in each round; common, and not given by arXiv 2306.03805."""
MOST = 100
_SLACK = 1e-9


def schedule(sparsity: float, rounds: int | None, rate: float | None) -> tuple[float, ...]:
    """The sparsity after each round, rising to ``sparsity``.

    Each round prunes the same share of what is left: after r rounds (1 - rate)**r is (Frankle and
    Carbin, arXiv 1803.03635). The last one prunes what is missing.

    Args:
        sparsity: of the ticket, between 0 and 1.
        rounds: how many; the rate follows. rate: of what is left; the number of rounds follows.
            With both, the rounds must suffice; with neither, the rate is a tenth.

    Raises:
        NoSchedule: they do not reach the sparsity, or have no meaning.
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
    # Rounded, so that a round has the same name and count wherever it is computed.
    rounded = dict.fromkeys(round(one, 6) for one in before)
    return (*(one for one in rounded if 0 < one < sparsity - _SLACK), sparsity)
