"""A real language model, the whole way: calibrated, killed, gone on with, exported, speaking."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reference

import brown
from prunectl.output.target import calibrated_journal

pytestmark = [pytest.mark.real, pytest.mark.slow]

LLAMA = r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight"
BEFORE_THE_KILL = 3
"""Blocks that are finished by then."""

SPEAK = """
import sys
import prunectl
from transformers import AutoModelForCausalLM, AutoTokenizer
small, dense = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(small)
inputs = tokenizer("The capital of France is", return_tensors="pt")
how = dict(max_new_tokens=20, min_new_tokens=20, do_sample=False)
models = prunectl.load_model(small), AutoModelForCausalLM.from_pretrained(dense, dtype="auto")
said = [model.eval().generate(**inputs, **how)[0].tolist() for model in models]
assert said[0] == said[1]
assert len(said[0]) == inputs["input_ids"].shape[1] + 20
print(tokenizer.decode(said[0]))
"""


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src")}


def prunectl(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "prunectl", *args],
        cwd=folder, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def finished(out: Path) -> int:
    """Blocks in the journal of a calibration that is under way."""
    try:
        return calibrated_journal(out).read_bytes().count(b'"shard":')
    except FileNotFoundError:
        return 0


def ok(folder: Path, name: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(prunectl(folder, "verify", name, "--json").stdout)
    assert report["ok"], report["differences"]
    assert all(check["passed"] for check in report["checks"])
    return report


def test_smollm2_from_calibration_to_speech(
    real_model: Callable[[str], Path], tmp_path: Path
) -> None:
    source, text = real_model("smollm2"), brown.fetch() / "calibration"
    line = ("prune", str(source), "--method", "admm", "--refine", "--pattern", "2:4",
            "--calibration", f"text:{text}", "--samples", "8", "--sequence-length", "256",
            "-o", "out")  # fmt: skip
    child = subprocess.Popen(
        [sys.executable, "-m", "prunectl", *line],
        cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while finished(tmp_path / "out") < BEFORE_THE_KILL:
        assert child.poll() is None
        time.sleep(0.2)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "out").exists()
    kept = finished(tmp_path / "out")
    done = prunectl(tmp_path, *line, "--json")
    assert f"out: continuing from {kept} finished blocks of an earlier run" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    tensors = json.loads(done.stdout)["tensors"]
    errors = [one["calibrated"]["error"] for one in tensors if one["calibrated"]]
    assert len(errors) == 210
    assert 0 < min(errors) <= max(errors) < 1
    assert all(one["calibrated"]["survivors"] == "updated" for one in tensors if one["calibrated"])
    assert all(
        one["calibrated"]["error"] <= 1.01 * one["calibrated"]["error_before_refine"] + 1e-4
        for one in tensors
        if one["calibrated"]
    )

    before, after = reference.stored(source), reference.stored(tmp_path / "out")
    for name, tensor in after.items():
        if re.fullmatch(LLAMA, name):
            assert int((tensor.view(-1, 4) != 0).sum(1).max()) == 2, name
        else:
            assert reference.raw(tensor) == reference.raw(before[name]), name
    zeros = ok(tmp_path, "out")["zeros"]

    prunectl(tmp_path, "export", "out", "--layout", "nm", "-o", "small")
    assert ok(tmp_path, "small")["zeros"] == zeros
    sizes = [
        sum(path.stat().st_size for path in (tmp_path / name).glob("*safetensors*"))
        for name in ("out", "small")
    ]
    assert sizes[1] < 0.7 * sizes[0]
    said = subprocess.run(
        [sys.executable, "-c", SPEAK, "small", "out"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("The capital of France is")
