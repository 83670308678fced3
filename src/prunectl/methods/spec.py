"""What a method says of itself, once, for all that have to know."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from prunectl.methods.target import Target
    from prunectl.pattern import Scope


class Needs(StrEnum):
    """What a method is given of a matrix's inputs, over all calibration tokens.

    ``nothing``: None. It is for magnitudes alone, which are compared exactly while the checkpoint
    streams, without samples. ``norms``: fp32 [in], ``||x_j||_2``. ``second moments``: fp32
    [in, in], ``2/n * sum x x^T``, not damped; not to be changed.
    """

    NOTHING = "nothing"
    NORMS = "norms"
    MOMENTS = "second moments"


class Memory(NamedTuple):
    """The most memory that pruning a matrix [out, in] takes, beside its old and new values.

    Attributes:
        squares: in matrices [in, in] of fp32, other than the second moments themselves.
        matrices: in matrices [out, in] of fp32.
    """

    squares: int
    matrices: int


class Prune(Protocol):
    """Prunes one matrix."""

    def __call__(self, weight: Tensor, inputs: Any, target: Target, /, *, damping: float) -> Pruned:
        """Choose the weights that go, and what the others become.

        Args:
            weight: fp32 [out, in], finite.
            inputs: see :class:`Needs`; on the weight's device.
            target: how many go, and what is compared with what.
            damping: what is added to the diagonal of second moments, as a share of its mean.

        Raises:
            SingularHessian: the second moments are of no use, however they are damped.
        """


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """A method.

    Attributes:
        name: in options, settings and manifests.
        prune: the method itself.
        needs: what it is given of the inputs.
        updates: whether it changes the weights that stay. Of one that does not, survivors keep
            their bits, and ``verify`` holds an output to that.
        scope: what it compares together unless it is told otherwise, as in its paper.
        memory: measured.
        help: a line for the completion of ``--method``.
        card: what was done to a model, for its card: ``one-shot pruning by NAME (arXiv NUMBER)``.
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
        """Whether samples are run to see the inputs."""
        return self.needs is not Needs.NOTHING


# --- results --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pruned:
    """A pruned matrix.

    Attributes:
        weight: fp32 [out, in], +0.0 where pruned.
        mask: bool [out, in], True = kept. Its zeros are exactly as many as the target says; the
            weight has more only where more were zero before: a weight that was zero stays so.
        damping: the share of the mean diagonal that was added to the second moments; 0.0 if none.
        raised: how often the damping was raised tenfold before the second moments could be used.
        dead: inputs that never fired in calibration.
    """

    weight: Tensor
    mask: Tensor
    damping: float = 0.0
    raised: int = 0
    dead: int = 0
