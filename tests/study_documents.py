"""Documents of comparisons, lotteries and traces, with what makes pages of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_models
from test_compare import other

from prunectl import CompareSettings, compare, trace
from prunectl.report.compare_page import compare_page
from prunectl.report.lottery_page import lottery_page
from prunectl.report.trace_page import trace_page
from prunectl.studies.compare.result import Overlap
from prunectl.studies.lottery.result import LotteryResult, Round, Scored

Make = Callable[[dict[str, Any]], str]
Documents = dict[str, tuple[Make, dict[str, Any]]]
NAMES = ("comparison", "trace", "lottery")


def documents(folder: Path) -> Documents:
    """Real results of tiny models, and a lottery."""
    tiny_models.build("llama", folder / "checkpoint-0")
    for step in range(1, 7):
        other(folder / "checkpoint-0", folder / f"checkpoint-{step}", step, 0.3)
    settings = CompareSettings((0.1, 0.3), ("2:4",))  # type: ignore[arg-type]
    compared = compare(folder / "checkpoint-0", folder / "checkpoint-1", settings)
    return {
        "comparison": (compare_page, compared.to_json()),
        "trace": (trace_page, trace([folder]).to_json()),
        "lottery": (lottery_page, lottery_document()),
    }


def lottery_document() -> dict[str, Any]:
    """A search of three rounds, of which the last one failed."""

    def scored(value: float | None) -> Scored:
        if value is None:
            return Scored(None, None, None, {"0": None}, 1.0, "the loss is NaN")
        return Scored(value, value - 0.02, value + 0.02, {"0": value}, 1.0)

    rounds = tuple(
        Round(
            number,
            0.2 * number,
            scored(ticket),
            scored(0.9 - 0.1 * number),
            None if ticket is None else 0.01,
            None if ticket is None else -0.01,
            None if ticket is None else 0.03,
            {} if ticket is None else {"0": Overlap.of_tensor(100, 20, 20, 15)},
            {"0": f"masks/seed-0-round-0{number}.safetensors"},
        )
        for number, ticket in ((1, 0.85), (2, 0.8), (3, None))
    )
    return LotteryResult(
        "my-model", None, 100, "classification", "rows", True, 50, {"metric": "classification"},
        {"sparsity": 0.6, "seeds": [0]}, {"cpu": "x"}, scored(0.9), 0.5, rounds, (0.2, 0.4, 0.6),
        3, "No difference can be shown.", "prunectl lottery", 3.0,
    ).to_json()  # fmt: skip
