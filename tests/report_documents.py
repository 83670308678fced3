"""Documents of sweeps for the reports: a real one, and what a real one may become."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

REAL = Path(__file__).parent / "data" / "sweep" / "demo.json"
"""What ``prunectl sweep demo`` wrote; its own command is in it."""

HOSTILE = (
    '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 2">'
    '<!-- \\" + warn(1) + " \'"&amp; {{ 7 * 7 }} {% raw %} javascript:alert(1) \u2028\x00 ]]>'
)


def real() -> dict[str, Any]:
    """Perplexity of demo, unstructured and in 2:4."""
    document: dict[str, Any] = json.loads(REAL.read_text(encoding="utf-8"))
    return document


def accuracy() -> dict[str, Any]:
    """Two models, higher is better, absolute tolerance, seeds, parts, a failed point, no knee."""
    document = real()
    document["metric"] |= {"name": "choice", "unit": "questions", "higher_is_better": True}
    document["settings"] |= {"epsilon_mode": "absolute", "seeds": [0, 1]}
    models = ["org/first", "org/second"]
    document["models"] = [document["models"][0] | {"model": name} for name in models]
    curves = []
    for model, dense in zip(models, (0.46, 0.58), strict=True):
        for curve in copy.deepcopy(document["curves"]):
            for point in curve["points"]:
                change = 0.2 * point["sparsity"] ** 3
                point |= {
                    "score": dense - change, "low": dense - change - 0.01,
                    "high": dense - change + 0.01, "change": change, "change_low": change - 0.004,
                    "change_high": change + 0.004, "parts": {"stem": dense - 2 * change},
                    "seeds": {"0": dense - change, "1": dense - change},
                }  # fmt: skip
            curve |= {"model": model, "label": f"{model}, {curve['pattern']}"}
            curve |= {"bound": dense - 0.01, "dense": curve["points"][0], "knee": None}
            curves.append(curve)
    nothing = dict.fromkeys(("score", "low", "high", "change", "change_low", "change_high"))
    curves[2]["points"][-1] |= nothing | {"failed": "the loss became NaN", "seeds": {"0": None}}
    curves[1]["essential"] |= {"sparsity": None, "low": None, "high": None, "status": "noise"}
    return document | {"curves": curves}


def many() -> dict[str, Any]:
    """More curves than there are colours, with the same label all."""
    document = real()
    return document | {"curves": [copy.deepcopy(document["curves"][0]) for _ in range(11)]}


def bare() -> dict[str, Any]:
    """One curve of one point, which failed: nothing is known."""
    document = real()
    nothing = dict.fromkeys(("score", "low", "high"))
    (curve,) = document["curves"][:1]
    curve["points"] = [
        {"sparsity": 0.0, "requested": 0.0, "overall": 0.0, **nothing, "change": None,
         "change_low": None, "change_high": None, "seconds": None, "seeds": {}, "failed": "no"}
    ]  # fmt: skip
    curve |= {"dense": nothing, "bound": None, "knee": None, "command": None}
    curve["essential"] |= {"sparsity": None, "low": None, "high": None, "status": "failed"}
    return document | {"curves": [curve], "interrupted": True}


def two_points() -> dict[str, Any]:
    """A curve too short for a band, above a large rise."""
    document = real()
    (curve,) = document["curves"][:1]
    curve["points"] = curve["points"][:1] + curve["points"][-1:]
    curve["points"][1] |= {"score": 3e7, "low": 2e7, "high": 4e7, "change": 1e6}
    return document | {"curves": [curve]}


def hostile() -> dict[str, Any]:
    """Every text of the document wants to be more than a text."""

    def spoil(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {
                (name if name in _SCHEMA else name + HOSTILE): spoil(item, name)
                for name, item in value.items()
            }
        if isinstance(value, list):
            return [spoil(item, key) for item in value]
        if isinstance(value, str) and key not in ("epsilon_mode", "status"):
            return HOSTILE + value + "\udcff"  # no valid Unicode, as a file's name may be
        return value

    document: dict[str, Any] = spoil(accuracy())
    return document


def _keys(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {key for item in value.values() for key in _keys(item)}
    return {key for item in value for key in _keys(item)} if isinstance(value, list) else set()


_OWN = _keys({k: v for k, v in real().items() if k != "machine"})
_SCHEMA = _OWN - {"nats per token"} | {"machine"}
"""Keys that are not up to the user."""

EVERY = {"real": real, "accuracy": accuracy, "many": many, "bare": bare, "two points": two_points}
