"""Calibration on a device with little memory: the CPU's result, or an error that says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
import transformers
from full import few
from pretend_device import CUDA, PretendDevice

from prunectl import NM, PruneSettings, prune
from prunectl.calibration.errors import DeviceFull
from prunectl.calibration.store import CalibratedStore
from prunectl.checkpoint.opening import open_checkpoint
from prunectl.data.source import Samples
from prunectl.events import Event, Note
from prunectl.parallel.run import Run
from prunectl.plan import job as plan_job
from prunectl.plan.job import Job, arguments, fingerprint, prepare
from prunectl.plan.settings import Calibration

Tiny = Callable[[str], Path]
Typed = Callable[..., tuple[int, str, str]]
PLENTY = 1 << 40


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``--device cuda`` is what is pretended; transformers loads in this thread, where that is."""
    choose = plan_job.choose_device

    def pretended(wanted: str) -> torch.device:
        return CUDA if wanted == "cuda" else choose(wanted)

    monkeypatch.setattr(plan_job, "choose_device", pretended)
    monkeypatch.setattr("prunectl.device.choose_device", pretended)
    # Magnitudes have threads of their own, where nothing is pretended (tests/test_on_device.py).
    monkeypatch.setattr(Run, "on_device", lambda self, wanted, **_: nullcontext(self))
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
    # The device that is pretended is the CPU by torch's products, and the CPU must take these too.
    monkeypatch.setattr("prunectl.methods.products._is_slow_in_mkl", lambda: False)
    return


def settings(method: str, device: str, **options: Any) -> PruneSettings:
    calibration = Calibration(
        ("random",), samples=4, sequence_length=12, device=device, dtype="float32"
    )
    options.setdefault("sparsity", 0.5)
    return PruneSettings(method=method, calibration=calibration, **options)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the manifest and the card, which say how long it took and what was typed."""
    return {
        name: data for name, data in reference.contents(folder).items() if name.endswith("tensors")
    }


def warnings(events: list[Event]) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Note) and event.warning)


CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "sparsegpt", {"scope": "global"}),
    ("llama", "admm", {"sparsity": 0.3, "pattern": NM(2, 4)}),
    ("llama", "wanda", {"sparsity": 0.3, "pattern": NM(2, 4), "budget": "rows"}),
    ("bert", "magnitude", {"refine": True}),
    ("mixtral", "sparsegpt", {}),
    ("t5", "sparsegpt", {}),
    ("vit", "sparsegpt", {}),
]


@pytest.mark.usefixtures("cuda", "one_thread")
@pytest.mark.parametrize(
    ("name", "method", "options"),
    few(CASES),
)
def test_a_device_with_room_gives_what_the_cpu_gives(
    tiny: Tiny, tmp_path: Path, name: str, method: str, options: dict[str, Any]
) -> None:
    prune(tiny(name), tmp_path / "cpu", settings(method, "cpu", **options))
    with PretendDevice(PLENTY) as device:
        prune(tiny(name), tmp_path / "cuda", settings(method, "cuda", **options))
    assert device.most > 50_000
    assert not device.refused
    assert contents(tmp_path / "cuda") == contents(tmp_path / "cpu")


SHARES = (0.97, 0.95, 0.92, 0.9, 0.87, 0.85, 0.82, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5, 0.4, 0.2, 0.02)
"""Of the memory that a run takes: close, since what is refused first differs."""


@pytest.mark.full
@pytest.mark.usefixtures("cuda", "one_thread")
@pytest.mark.parametrize(
    "no_room",
    few(
        [
            torch.OutOfMemoryError("CUDA out of memory."),
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
            ),
        ]
    ),
)
def test_however_little_room_there_is(tiny: Tiny, tmp_path: Path, no_room: RuntimeError) -> None:
    """Either the result is that of the CPU, or the device is said to be full, by name."""
    prune(tiny("llama"), tmp_path / "cpu", settings("admm", "cpu"))
    with PretendDevice(PLENTY) as device:
        prune(tiny("llama"), tmp_path / "plenty", settings("admm", "cuda"))
    said: list[str] = []
    failed: list[DeviceFull] = []
    for share in SHARES:
        events: list[Event] = []
        out = tmp_path / str(share)
        with PretendDevice(int(device.most * share)) as tight:
            tight.no_room = no_room
            try:
                prune(tiny("llama"), out, settings("admm", "cuda"), on_event=events.append)
            except DeviceFull as error:
                failed.append(error)
        if failed:
            assert not out.exists()
            continue
        assert contents(out) == contents(tmp_path / "cpu")
        assert tight.most <= tight.room
        assert bool(warnings(events)) == bool(tight.refused)
        said.append(warnings(events))
    assert any("are pruned on the CPU, model.layers.0" in text for text in said)
    assert any("kept in the host's memory" in text for text in said)
    assert all(text.count("\n") <= 1 for text in said)  # once each, however many blocks there are
    assert len(said) + len(failed) == len(SHARES)  # what is too little for one is for all after it
    for what in ("outside its blocks", "one short sample", "model.layers.0 and its inputs"):
        assert any(what in error.what for error in failed)
    assert {error.device for error in failed} == {"cuda:0"}


@pytest.mark.usefixtures("cuda", "one_thread")
def test_the_cpu_goes_on_where_the_device_was_full(
    tiny: Tiny, tmp_path: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ("prune", tiny("llama"), "-s", "0.5", "--method", "sparsegpt", "--calibration", "random",
            "--samples", "4", "--sequence-length", "12", "--dtype", "float32")  # fmt: skip
    finish = CalibratedStore.finish
    device = PretendDevice(PLENTY)

    def taken(self: CalibratedStore, block: str) -> None:
        finish(self, block)
        device.room = device.used + 1000  # others have taken the rest

    with monkeypatch.context() as patch, device:
        patch.setattr(CalibratedStore, "finish", taken)
        code, _, err = typed(*line, "-o", "out", "--device", "cuda", "-q")
    assert code == 1
    assert err.splitlines() == [
        "error: calibration failed: cuda:0 has too little free memory for model.layers.1 and its "
        "inputs",
        "hint: the same command with --device cpu --dtype float32 goes on from the finished "
        "blocks; a lower --sequence-length takes less",
    ]
    code, _, err = typed(*line, "-o", "out", "--device", "cpu")
    assert code == 0, err
    assert "continuing from 1 finished block of an earlier run" in err
    code, _, err = typed(*line, "-o", "whole", "--device", "cpu")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("cuda", "one_thread")
def test_experts_that_do_not_fit_when_they_are_put_together(tiny: Tiny, tmp_path: Path) -> None:
    """transformers catches what goes wrong while it stacks weights, and goes on without them."""
    with PretendDevice(70_000), pytest.raises(DeviceFull, match="a block of the model") as caught:
        prune(tiny("mixtral"), tmp_path / "out", settings("wanda", "cuda"))
    assert isinstance(caught.value.__cause__, MemoryError)
    assert list(tmp_path.iterdir()) == []


def test_a_host_without_memory(
    tiny: Tiny, tmp_path: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU's allocator really refuses; its error is another one than a device's."""

    def greedy(self: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.empty(1 << 50)

    monkeypatch.setattr(transformers.models.llama.modeling_llama.LlamaMLP, "forward", greedy)
    code, _, err = typed("prune", tiny("llama"), "-s", "0.5", "--method", "wanda", "--calibration",
                         "random", "--samples", "2", "-o", "out", "-q")  # fmt: skip
    assert code == 1
    assert err.splitlines() == [
        "error: calibration failed: this machine has too little free memory for a block of the "
        "model and one short sample",
        "hint: a lower --sequence-length takes less, and so does --method wanda; --reconstruct "
        "takes the most",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("cuda")
def test_what_auto_means_decides_whether_a_run_goes_on(tiny: Tiny, tmp_path: Path) -> None:
    """The type that the model runs in is recorded and counts; where it runs is recorded."""
    checkpoint = open_checkpoint(tiny("llama"))

    def job_of(device: str, dtype: str) -> Job:
        choice = settings("wanda", device)
        assert choice.calibration is not None
        choice = replace(choice, calibration=replace(choice.calibration, dtype=dtype))
        job = prepare(checkpoint, tmp_path / "out", choice, "5GB", force=False, command="")
        return replace(job, samples=Samples((), {}))

    for device, dtype, said in (("cpu", "auto", "float32"), ("cuda", "bf16", "bfloat16")):
        told = arguments(job_of(device, dtype))["calibration"]
        assert (told["device"], told["dtype"]) == (device, said)
    first = fingerprint(job_of("cpu", "auto"))
    assert fingerprint(job_of("cuda", "float32")) == fingerprint(job_of("cpu", "fp32")) == first
    assert fingerprint(job_of("cpu", "bfloat16")) != first
