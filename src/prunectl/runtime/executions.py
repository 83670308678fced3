"""The executions: how a model's weights are held and multiplied when it runs.

Nothing here needs torch: the command line reads it for its help.
"""

from __future__ import annotations

from prunectl.errors import InvalidOption

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
