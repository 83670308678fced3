"""Errors of a trace."""

from __future__ import annotations

from prunectl.errors import SourceError, UsageError


class TooFewCheckpoints(UsageError):
    """Fewer checkpoints than make a course."""

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
