"""What a calibration takes of memory, against what it was said to take."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from prunectl import PruneSettings, open_checkpoint, prune
from prunectl.calibration import forward
from prunectl.calibration import run as calibration_run
from prunectl.calibration.engine import try_model
from prunectl.checkpoint.block_model import BlockModel
from prunectl.events import Event, Note, PhaseStarted
from prunectl.plan.settings import Calibration

RANDOM = Calibration(("random",), samples=4, sequence_length=12)

CHILD = """
import ctypes, gc, json, shutil, sys
from pathlib import Path
import torch, transformers
from prunectl import PruneSettings, prune
from prunectl.calibration import reconstruction, run as calibration_run, scales
from prunectl.plan.settings import Calibration

torch.set_num_threads(1)
reconstruction.STEPS = scales.STEPS = 2
forecast, told = calibration_run.forecast, []
def listen(*args):
    told.append(forecast(*args))
    return told[-1]
calibration_run.forecast = listen

def status(key):
    line = next(x for x in open("/proc/self/status") if x.startswith(key))
    return int(line.split()[1]) * 1024

def run(folder, method, **options):
    calibration = Calibration(("random",), samples=8, sequence_length=256)
    settings = PruneSettings(sparsity=0.5, method=method, calibration=calibration, **options)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    prune(folder, "out", settings)
    shutil.rmtree("out")
    return status("VmHWM") - before, told[-1].total

def save(name, **fields):
    fields = {"vocab_size": 64, "num_attention_heads": 8} | fields
    config = getattr(transformers, f"{name}Config")(**fields)
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(name)
    return name

save("Llama", hidden_size=64, intermediate_size=64, num_hidden_layers=1)
run("Llama", "admm", refine=True, reconstruct=True)  # what is loaded once is loaded
wide = save("Llama", hidden_size=1024, intermediate_size=1024, num_hidden_layers=1)
found = {"wide": run(wide, "sparsegpt"), "wide, fitted": run(wide, "wanda", reconstruct=True)}
experts = save("Mixtral", hidden_size=512, intermediate_size=512, num_hidden_layers=1,
               num_key_value_heads=8, num_local_experts=16)
found["experts"] = run(experts, "wanda")
vocabulary = save("Qwen2", vocab_size=200_000, hidden_size=128, intermediate_size=128,
                  num_hidden_layers=1, num_key_value_heads=8, tie_word_embeddings=False)
found["vocabulary"] = run(vocabulary, "wanda")
found["vocabulary, fitted"] = run(vocabulary, "wanda", reconstruct=True)
json.dump(found, sys.stdout)
"""


@pytest.mark.full
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="Linux counts the peak")
def test_the_peak_is_about_what_was_foretold(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", CHILD], check=False, capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    for name, (peak, foretold) in json.loads(child.stdout).items():
        assert peak < 1.1 * foretold, (name, peak, foretold)
        assert foretold < 3 * peak, (name, peak, foretold)


def test_full_memory_puts_what_blocks_put_out_into_files_in_every_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_models.build("llama", tmp_path / "source")
    events: list[Event] = []
    files: list[str] = []
    in_file = forward._in_file

    def watched(*args: Any) -> torch.Tensor:
        files.append([e.phase for e in events if isinstance(e, PhaseStarted)][-1])
        return in_file(*args)

    settings = PruneSettings(sparsity=0.5, method="wanda", scope="global", calibration=RANDOM)  # type: ignore[arg-type]
    prune(tmp_path / "source", tmp_path / "whole", settings)
    monkeypatch.setattr(forward, "_in_file", watched)
    monkeypatch.setattr(calibration_run, "free_memory", lambda device: 1000)
    prune(tmp_path / "source", tmp_path / "out", settings, on_event=events.append)
    weights = [tmp_path / name / "model.safetensors" for name in ("out", "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert {one.name for one in tmp_path.iterdir()} == {"source", "whole", "out"}
    assert set(files) == {"comparing weights", "calibrating"}
    (note,) = [i for i, e in enumerate(events) if isinstance(e, Note) and "takes up to" in e.text]
    phases = {e.phase: i for i, e in enumerate(events) if isinstance(e, PhaseStarted)}
    assert phases["trying the model"] < note < phases["comparing weights"]
    assert "in a file for block outputs" in getattr(events[note], "text", "")


def test_images_count(tmp_path: Path) -> None:
    """A class and four patches of 32 values, three times."""
    tiny_models.build("vit", tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    with checkpoint.open() as reader:
        block_model = BlockModel(
            checkpoint, reader, device=torch.device("cpu"), dtype=torch.float32
        )
        order = try_model(block_model, [{"pixel_values": torch.randn(1, 3, 16, 16)}] * 3)
    assert (order.states, order.rows) == (3 * 5 * 32 * 4, 3 * 5)
