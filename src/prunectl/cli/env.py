"""``prunectl env``: what a bug report needs to know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prunectl import numbers
from prunectl.cli.output import Output
from prunectl.cli.tables import facts, heading

if TYPE_CHECKING:
    from rich.console import RenderableType

    from prunectl.benchmarking.environment import Environment

EXAMPLES = (
    "prunectl env",
    "prunectl env --json | jq .versions",
)


def env(out: Output) -> None:
    """Print versions, CPU, devices, caches and settings, as a bug report needs them.

    Tokens, passwords and the name of the home folder are not shown.
    """
    from prunectl.benchmarking.environment import environment

    found = environment()
    out.data(found.to_json())
    out.show(*env_screen(found))


def env_screen(found: Environment) -> Iterator[RenderableType]:
    """Parts of the screen, in order."""
    yield facts(
        [
            ("prunectl", found.prunectl),
            ("Python", found.python),
            ("system", found.system),
            ("CPU", found.processor),
            ("instructions", " ".join(found.instructions)),
            ("kernels", ", ".join(found.kernels)),
            ("cores", f"{found.usable_cores} of {found.cores}"),
            (
                "memory",
                f"{numbers.size(found.memory)}, {numbers.size(found.free_memory)} free"
                if found.memory
                else "",
            ),
            *((one.device, f"{one.name}, {numbers.size(one.memory)}, {one.driver}")
              for one in found.devices),
            *(("problem", text) for text in found.problems),
        ]
    )  # fmt: skip
    yield heading("Libraries")
    yield facts((name, version or "not installed") for name, version in found.versions.items())
    yield heading("Caches")
    yield facts((one.holds, f"{numbers.size(one.nbytes)} in {one.path}") for one in found.caches)
    if found.variables:
        yield heading("Environment")
        yield facts((name, value or "(empty)") for name, value in found.variables.items())
