"""Errors of the studies, raised on purpose."""

from __future__ import annotations

from pathlib import Path

from prunectl.errors import OutputError, SourceError, UsageError


class NothingToCompare(UsageError):
    """Two models without a common prunable tensor, or masks that remove nothing or everything."""

    def __init__(self, first: str, second: str, *, why: str, hint: str) -> None:
        super().__init__(f"{first} and {second} cannot be compared: {why}", hint=hint)
        self.first, self.second, self.why = first, second, why


class TooFewCheckpoints(UsageError):
    """Fewer checkpoints than a trace needs."""

    def __init__(self, found: int, least: int) -> None:
        super().__init__(
            f"{found} checkpoint{'s' * (found != 1)} given, and a trace needs at least {least}",
            hint="name several folders or revisions, or a folder that holds checkpoint-* folders",
        )
        self.found, self.least = found, least


class SameStep(UsageError):
    """Two checkpoints of one training step."""

    def __init__(self, step: int, first: str, second: str) -> None:
        super().__init__(
            f"{first} and {second} are both of step {step}",
            hint="leave one of them out; steps come from trainer_state.json, or from names such "
            "as checkpoint-500 and step1000",
        )
        self.step, self.first, self.second = step, first, second


class DifferentCheckpoints(SourceError):
    """Checkpoints that are not of one training run."""

    def __init__(self, first: str, second: str, why: str) -> None:
        super().__init__(
            f"{second} is not of the same run as {first}: {why}",
            hint="all checkpoints must have the same prunable tensors; --exclude leaves some out",
        )
        self.first, self.second, self.why = first, second, why


class NoSchedule(UsageError):
    """Rounds and a rate that do not reach the sparsity."""


class OtherLottery(OutputError):
    """The folder holds the rounds of another search."""

    exit_code = 2

    def __init__(self, folder: Path, *, is_known: bool = True) -> None:
        if is_known:
            why = "holds rounds of another model, other data or other settings"
            hint = "choose another -o; the command that it belongs to is in its lottery.json"
        else:
            why = "holds scores, but no lottery.json that can be read"
            hint = "choose another -o"
        super().__init__(f"{folder} {why}", hint=hint)
        self.folder = folder
