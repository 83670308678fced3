"""The executions: how a model's weights are held and multiplied when it runs.

Nothing here needs torch: the command line reads it for its help.
"""

from __future__ import annotations

from prunectl.errors import InvalidOption
from prunectl.option import COMPUTING, Option

DENSE = "dense"
AUTO = "auto"

EXECUTIONS = {
    DENSE: "weights as torch keeps them",
    "compressed": "the smallest form of each weight",
    AUTO: "the smallest form that is not slower than dense on this machine",
}


def check_execution(execution: str) -> None:
    """Refuse an unknown execution.

    Raises:
        InvalidOption: it is not one of EXECUTIONS.
    """
    if execution not in EXECUTIONS:
        raise InvalidOption(
            f"execution '{execution}' is not known", hint=f"one of {', '.join(EXECUTIONS)}"
        )


def check_place(execution: str, place: object) -> None:
    """Refuse an execution on a device that it has no kernels for.

    Raises:
        InvalidOption: it is not ``dense``, and ``place`` not the CPU.
    """
    if execution != DENSE and str(place) != "cpu":
        raise InvalidOption(
            f"--execution {execution} runs on the CPU, not on {place}", hint="add --device cpu"
        )


def execution_option(default: str = "", whose: str = "the weights") -> Option:
    """The option ``--execution``."""
    return Option(
        f"How {whose} are held in memory: dense, compressed, or auto (compressed where that is "
        f"not slower).{default and ' Default: '}{default}",
        "EXECUTION",
        COMPUTING,
        values=EXECUTIONS,
    )
