"""What a new user meets: the first commands, the demo model's texts, and a busy machine."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable

import pytest

from prunectl.benchmarking import limits
from prunectl.benchmarking.machine import busy_warning

Typed = Callable[..., tuple[int, str, str]]
FEW = ("--samples", "2", "--sequence-length", "64")


def test_prunectl_alone_names_three_commands_that_run(typed: Typed) -> None:
    code, out, err = typed()
    assert (code, err) == (0, "")
    shown = [line.strip() for line in out.splitlines() if line.startswith("  prunectl ")]
    assert [line.split()[1] for line in shown] == ["analyze", "prune", "verify"]
    for line in shown:
        assert typed(*shlex.split(line)[1:])[0] == 0, line


def test_what_was_made_from_demo_has_demos_texts(typed: Typed) -> None:
    def done(*command: str) -> str:
        code, out, err = typed(*command)
        assert code == 0, err
        return out

    half = ("--method", "wanda", "-s", "0.5", "--samples", "2", "--sequence-length", "64")
    done("prune", "demo", "-s", "0.3", "-o", "once", "-q")
    done("prune", "once", *half, "-o", "twice", "-q")
    done("export", "twice", "-o", "small", "-q")

    named = json.loads(done("evaluate", "demo", "--data", "demo", *FEW, "--json"))
    found = json.loads(done("evaluate", "small", *FEW, "--json"))
    assert found["record"] == named["record"]
    calibrated = json.loads(done("sweep", "small", "-m", "perplexity", *FEW, "--method", "wanda",
                                 "-s", "0.6", "--calibration-samples", "2", "--json"))  # fmt: skip
    assert calibrated["curves"][0]["points"][-1]["score"] > found["score"]


def test_a_busy_machine_is_said_first(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    monkeypatch.setitem(limits._SQUARE, "cpu", 64)  # large products in bf16 take seconds
    code, _, err = typed("bench", "./no-model")
    assert code == 1
    assert "machine is busy" not in err  # it was not asked to measure anything
    code, _, err = typed("bench", "demo", "--threads", "1", "--batch-size", "1", "--prompt-tokens",
                         "4", "--new-tokens", "1", "--rounds", "7", "--seconds", "0.1",
                         "--no-load")  # fmt: skip
    assert code == 0
    assert err.startswith("warning: this machine is busy: a load of 1000.0 over the last minute")


def test_a_load_that_is_small_or_not_stated_is_not_busy() -> None:
    assert busy_warning(4.0, 16)
    assert not busy_warning(3.9, 16)
    assert not busy_warning(0.0, 1)
