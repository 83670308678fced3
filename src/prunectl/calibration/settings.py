"""What is asked of a calibration; nothing is read."""

from __future__ import annotations

from dataclasses import dataclass

from prunectl.errors import InvalidOption


@dataclass(frozen=True, slots=True)
class Calibration:
    """Samples that are run forward, and how.

    Attributes:
        source: as :func:`prunectl.data.source.parse_source` reads it.
        samples: how many; sequence_length: tokens in each, at most what the model takes.
        seed: of the choice of samples.
        damping: added to the diagonal of the inputs' second moments, as a share of its mean.
        true_sequential: measure each matrix behind the pruned ones before it in the same block.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: of the forward: ``auto`` (fp32 on the CPU, the checkpoint's own elsewhere) or a name.
    """

    source: tuple[str, ...] = ()
    samples: int = 128
    sequence_length: int = 2048
    seed: int = 0
    damping: float = 0.01
    true_sequential: bool = False
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        given: object = self.source
        texts = (given,) if isinstance(given, str) else tuple(self.source)
        object.__setattr__(self, "source", texts)

    def check(self) -> None:
        """Raise InvalidOption for numbers with no meaning."""
        for name, least in (("samples", 1), ("sequence_length", 2)):
            if getattr(self, name) < least:
                option = name.replace("_", "-")
                raise InvalidOption(f"--{option} must be at least {least}")
        if not 0 < self.damping < 100:
            raise InvalidOption("--damping must be above 0 and below 100", hint="usually 0.01")
