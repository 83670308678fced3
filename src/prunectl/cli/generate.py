"""``prunectl generate``: what a model writes, and how fast."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from prunectl import numbers
from prunectl.cli import options
from prunectl.cli.command_line import visible
from prunectl.cli.output import Output
from prunectl.option import MEASURING, Option, device_option, dtype_option
from prunectl.runtime.executions import execution_option

if TYPE_CHECKING:
    from prunectl.benchmarking.generating import Generation

EXAMPLES = (
    'prunectl generate demo "The tree" --max-new-tokens 16',
    'prunectl generate small/ "The tree" --execution compressed',
)


def generate(
    model: Annotated[
        str,
        Option(
            "Hub id, folder of a dense or compressed model, or demo.", "MODEL", is_argument=True
        ),
    ],
    prompt: Annotated[str, Option("The text to continue.", "PROMPT", is_argument=True)],
    access: options.RevisionAccess,
    out: Output,
    max_new_tokens: Annotated[int, Option("Most tokens to add.", "N", MEASURING, least=1)] = 128,
    execution: Annotated[str, execution_option("auto on the CPU.")] = "",
    device: Annotated[str, device_option("CUDA if there is any")] = "auto",
    dtype: Annotated[str, dtype_option("the checkpoint's")] = "auto",
) -> None:
    """Continue a text, token by token, and say how fast that was.

    Each next token is the most likely one, so the same weights give the same text.
    """
    from prunectl.benchmarking.generating import generate
    from prunectl.cli.model_argument import ModelChoice

    checkpoint = access.open(ModelChoice(model, access.revision), out, compressed=True)
    is_shown = not out.json

    def show(text: str) -> None:
        if is_shown:
            sys.stdout.write("\n".join(map(visible, text.split("\n"))))
            sys.stdout.flush()

    found = generate(
        checkpoint,
        prompt,
        max_new_tokens=max_new_tokens,
        execution=execution,
        device=device,
        dtype=dtype,
        on_text=show,
    )
    show("\n")
    out.data(found.to_json())
    out.note(_summary(found))


def _summary(found: Generation) -> str:
    rate = f", then {found.rate:.1f} tokens/s" if found.rate else ""
    held = f"{found.compressed} of the weights compressed" if found.compressed else "weights dense"
    return (
        f"{found.tokens:,} tokens: the first after {numbers.duration(found.first_seconds)}{rate}; "
        f"{numbers.size(found.weight_bytes)} of weights in memory, {held}"
    )
