"""What an evaluation is asked to do; nothing is read."""

from __future__ import annotations

from dataclasses import dataclass

from prunectl.errors import InvalidOption


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """A metric, its data, and how both are used; None where the metric's own default holds.

    Attributes:
        metric: ``perplexity``, ``choice``, ``similarity``, ``arithmetic``, ``classification``,
            ``qa``, or ``harness:TASK[,TASK]``.
        data: sources, as ``--data`` takes them; several texts are one source.
        samples: how many windows, questions or rows at most, drawn evenly or by ``seed``.
        sequence_length: tokens in a window or a row, at most what the model takes.
        stride: perplexity: tokens from one window to the next; the length, where it is None.
        shots: choice, arithmetic: solved examples before each question.
        batch_size: samples at once; halved where memory is full.
        seed: of all that is drawn.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: of the weights in memory: ``auto`` (fp32 on the CPU, the checkpoint's own elsewhere)
            or a name.
    """

    metric: str = "perplexity"
    data: tuple[str, ...] = ()
    samples: int | None = None
    sequence_length: int | None = None
    stride: int | None = None
    shots: int = 0
    batch_size: int | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        given: object = self.data
        object.__setattr__(self, "data", (given,) if isinstance(given, str) else tuple(self.data))
        for name, least in (
            ("samples", 2), ("sequence_length", 2), ("stride", 1), ("batch_size", 1),
            ("shots", 0), ("seed", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not least <= value < 2**63:
                option = name.replace("_", "-")
                raise InvalidOption(f"--{option} {value} is not valid: at least {least}")

    @property
    def name(self) -> str:
        """The metric, without what stands behind its colon."""
        return self.metric.partition(":")[0]
