"""What the mathematics cannot do with finite numbers."""

from __future__ import annotations

from prunectl.errors import PrunectlError


class SingularHessian(PrunectlError):
    """The second moments cannot be factorized, however much they are damped.

    Attributes:
        damping: the last one tried.
    """

    def __init__(self, damping: float) -> None:
        super().__init__(
            "the second moments of a layer's inputs cannot be factorized, "
            f"even with a damping of {damping:g} x their mean",
            hint="its inputs are degenerate: calibrate on more or other data",
        )
        self.damping = damping
