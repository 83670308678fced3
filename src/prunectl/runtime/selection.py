"""The instruction set that kernels use: chosen once, or forced for tests and measurements."""

from __future__ import annotations

import os
from functools import cache

from prunectl.errors import InvalidOption
from prunectl.runtime.instructions import INSTRUCTION_SETS, usable

VARIABLE = "PRUNECTL_INSTRUCTIONS"


@cache
def instructions() -> str:
    """``$PRUNECTL_INSTRUCTIONS`` if set, else the fastest that this CPU has.

    Raises:
        InvalidOption: the variable names none, or one that this CPU lacks.
    """
    wanted = os.environ.get(VARIABLE, "")
    if not wanted:
        return usable()[0]
    if wanted not in INSTRUCTION_SETS:
        raise InvalidOption(
            f"{VARIABLE} '{wanted}' is not known", hint=f"one of {', '.join(INSTRUCTION_SETS)}"
        )
    if wanted not in usable():
        raise InvalidOption(f"{VARIABLE}: this CPU has no {wanted}", hint=", ".join(usable()))
    return wanted
