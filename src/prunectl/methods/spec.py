"""The description of a pruning method, in one place for all its users."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from prunectl.methods.goal import MatrixGoal
    from prunectl.pattern import Scope


class Needs(StrEnum):
    """The statistics of a matrix's inputs that a method needs, over all calibration tokens.

    ``nothing``: None; for magnitudes alone, which are compared exactly while the checkpoint
    streams, without samples. ``norms``: fp32 [in], ``||x_j||_2``. ``second moments``: fp32 [in,
    in], ``2/n * sum x x^T``, not damped, read-only.
    """

    NOTHING = "nothing"
    NORMS = "norms"
    MOMENTS = "second moments"


class Memory(NamedTuple):
    """Peak memory of pruning a matrix [out, in], in addition to its old and new values.

    Attributes:
        squares: in matrices [in, in] of fp32, other than the second moments themselves.
        matrices: in matrices [out, in] of fp32.
    """

    squares: int
    matrices: int


class Prune(Protocol):
    """Prunes one matrix."""

    def __call__(
        self, weight: Tensor, inputs: Any, goal: MatrixGoal, /, *, damping: float
    ) -> Pruned:
        """Prune one matrix: choose the mask, and the kept values.

        Args:
            weight: fp32 [out, in], finite.
            inputs: the statistics in :class:`Needs`, on the weight's device.
            goal: how many weights to prune, and which are compared with each other.
            damping: added to the diagonal of second moments, as a share of its mean.

        Raises:
            SingularHessian: the second moments cannot be used, even with large damping.
        """


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """A pruning method.

    Attributes:
        name: in options, settings and manifests.
        prune: the function.
        needs: the statistics of the inputs that it needs.
        updates: whether it changes the kept weights. If not, survivors keep their bits, and
            ``verify`` checks this.
        scope: the default scope, as in its paper.
        memory: measured.
        help: a line for the completion of ``--method``.
        card: description for the model card: ``one-shot pruning by NAME (arXiv NUMBER)``.
    """

    name: str
    prune: Prune
    needs: Needs
    updates: bool
    scope: Scope
    memory: Memory
    help: str
    card: str

    @property
    def is_calibrated(self) -> bool:
        """Whether samples are run to gather statistics of the inputs."""
        return self.needs is not Needs.NOTHING


# --- results --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pruned:
    """A pruned matrix.

    Attributes:
        weight: fp32 [out, in], +0.0 where pruned.
        mask: bool [out, in], True = kept. The goal gives its exact number of zeros; the weight
            has more only if more were zero before, since these stay zero.
        damping: the share of the mean diagonal that was added to the second moments; 0.0 if none.
        raised: how often the damping was raised tenfold before the second moments could be used.
        dead: inputs that never fired in calibration.
    """

    weight: Tensor
    mask: Tensor
    damping: float = 0.0
    raised: int = 0
    dead: int = 0
