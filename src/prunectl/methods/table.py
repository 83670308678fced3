"""All methods. A new one is a module of this package, and a line here."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from prunectl.methods import admm, magnitude, sparsegpt, wanda
from prunectl.methods.spec import MethodSpec, Needs


class Method(StrEnum):
    """How weights are chosen, and how the kept ones change. In the order of the help.

    Attributes:
        spec: from the method's module. Its name is the member's value.
    """

    spec: MethodSpec

    def __new__(cls, spec: MethodSpec) -> Self:
        """A member, from its spec."""
        member = str.__new__(cls, spec.name)
        member._value_, member.spec = spec.name, spec
        return member

    @property
    def meaning(self) -> str:
        """A few words, for completion."""
        return self.spec.help

    MAGNITUDE = magnitude.METHOD
    WANDA = wanda.METHOD
    SPARSEGPT = sparsegpt.METHOD
    ADMM = admm.METHOD


DEFAULT = next(iter(Method))
"""The first, which needs no calibration. It also prunes a matrix whose inputs no sample reached."""
CALIBRATED = tuple(method for method in Method if method.spec.is_calibrated)
UPDATING = tuple(method for method in Method if method.spec.updates)


def needing(needs: Needs) -> tuple[Method, ...]:
    """The methods that need these statistics of the inputs."""
    return tuple(method for method in Method if method.spec.needs is needs)
