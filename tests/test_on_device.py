"""Magnitude work in torch: bit for bit what the CPU's kernels give.

The same code runs on torch's CPU here, and on CUDA in the tests marked ``gpu``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import tiny_models
import torch
from full import few
from hypothesis import example, given
from hypothesis import strategies as st
from magnitude_reference import FLOATS, PRUNABLE, blocks, seeds, sizes, weights
from pretend_device import CUDA, PretendDevice
from test_masks import kinds, layouts, magnitudes, nm_reference, shaped

from prunectl import Calibration, Method, PruneSettings, analyze, prune, verify
from prunectl.checkpoint.opening import open_checkpoint
from prunectl.device import choose_device
from prunectl.errors import InvalidOption, NaNWeights
from prunectl.events import Advanced, Event, Note
from prunectl.exporting.masks import export_masks
from prunectl.geometry import Rows
from prunectl.magnitude import masks, on_device
from prunectl.magnitude.codes import code_format
from prunectl.magnitude.measure import TensorMeasure
from prunectl.magnitude.on_device import OnDevice
from prunectl.measure.measured import Measured, measure
from prunectl.parallel import streaming
from prunectl.parallel.run import Run
from prunectl.pattern import NM
from prunectl.tensorspec import DTYPES, DType, TensorSpec
from prunectl.transform.edits import Editor, RowGroups

Typed = Callable[..., tuple[int, str, str]]
dtypes = st.sampled_from(PRUNABLE)
PLACES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
on_each = pytest.mark.parametrize("place", PLACES)


def sent(codes: np.ndarray, place: str) -> torch.Tensor:
    """Codes on a device; a view of a larger tensor there if they are one here."""
    whole = codes if codes.base is None else codes.base
    there = torch.from_numpy(whole.view(f"i{codes.itemsize}").copy()).to(place)
    if whole is codes or there.numel() == codes.size:
        return there.reshape(codes.shape)
    strides = [step // codes.itemsize for step in codes.strides]
    return there.as_strided(codes.shape, strides)


def back(codes: torch.Tensor, like: np.ndarray) -> np.ndarray:
    return codes.cpu().contiguous().numpy().view(like.dtype)


# --- against the kernels ------------------------------------------------------------------------


@on_each
@given(dtype=dtypes, size=sizes, seed=seeds, share=st.floats(0, 1.1))
def test_cut(place: str, dtype: DType, size: int, seed: int, share: float) -> None:
    codes = weights(dtype, size, seed, inf=True)
    pool = np.append(magnitudes(codes), [0, 5, 1])
    code = int(pool[seed % pool.size])
    left = round(share * (magnitudes(codes) == code).sum())
    for part in blocks(codes, seed):
        there = sent(part, place)
        found = masks.cut(part, code, left)
        assert on_device.cut(there, code, left) == found
        assert np.array_equal(back(there, part), part)
        left -= found[1]


@on_each
@given(
    dtype=dtypes,
    layout=layouts,
    outer=st.integers(1, 4),
    axis=st.sampled_from([1, 2, 7, 64, 300]),
    inner=st.integers(1, 5),
    sparsity=st.floats(0.001, 0.999),
    seed=seeds,
)
def test_cut_rows(place, dtype, layout, outer, axis, inner, sparsity, seed) -> None:
    codes = shaped(dtype, layout, outer, axis, inner, seed)
    there = sent(codes, place)
    assert on_device.cut_rows(there, sparsity) == masks.cut_rows(codes, sparsity)
    assert np.array_equal(back(there, codes), codes)


@on_each
@given(
    kind=kinds,
    layout=layouts,
    outer=st.integers(1, 3),
    groups=st.sampled_from([1, 3, 40]),
    inner=st.sampled_from([1, 2, 5, 17]),
    seed=seeds,
)
def test_nm(place, kind, layout, outer, groups, inner, seed) -> None:
    dtype, n, m = kind
    codes = shaped(dtype, layout, outer, groups * m, inner, seed)
    there = sent(codes, place)
    assert on_device.nm(there, n, m) == masks.nm(codes, n, m)
    assert np.array_equal(back(there, codes), codes)


@on_each
@pytest.mark.parametrize("n", [1, 31, 63])
def test_the_widest_groups(place: str, n: int) -> None:
    """Without compiling a kernel for them."""
    codes = weights(DTYPES["F16"], 640, 2 + n).reshape(2, 64, 5)
    there, wanted = sent(codes, place), nm_reference(codes, n, 64)
    assert on_device.nm(there, n, 64) == (magnitudes(wanted) == 0).sum()
    assert np.array_equal(back(there, codes), wanted)


@on_each
@given(dtype=dtypes, size=sizes, seed=seeds, inf=st.booleans(), nan=st.booleans())
@example(dtype=DTYPES["BF16"], size=0, seed=0, inf=False, nan=False)
def test_counts(place: str, dtype: DType, size: int, seed: int, inf: bool, nan: bool) -> None:
    codes, format = weights(dtype, size, seed, inf=inf, nan=nan), code_format(dtype)
    there = sent(codes, place)
    assert on_device.count_zeros(there) == masks.count_zeros(codes)
    assert on_device.odd_codes(there, format) == masks.odd_codes(codes, format)


@on_each
@pytest.mark.parametrize(
    ("name", "kind"), [("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)]
)
def test_counts_of_8_bits(place: str, name: str, kind: torch.dtype) -> None:
    """Every code, with and without the sign, which is a bit like others in torch's u8."""
    codes = torch.arange(256, dtype=torch.uint8)
    values = codes.view(kind).double()
    odd = (int(values.isnan().sum()), int(values.isinf().sum()))
    assert on_device.count_zeros(codes.to(place)) == int((values == 0).sum()) == 2
    assert on_device.odd_codes(codes.to(place), code_format(DTYPES[name])) == odd


@on_each
@given(
    dtype=st.sampled_from([d for d in FLOATS if d.bits <= 16]),
    size=sizes,
    seed=seeds,
    inf=st.booleans(),
    nan=st.booleans(),
)
def test_measurement(place: str, dtype: DType, size: int, seed: int, inf: bool, nan: bool) -> None:
    """Blocks that were counted there, here, or by turns are one tensor."""
    codes = weights(dtype, size, seed, inf=inf, nan=nan)
    device = OnDevice(torch.device(place))
    all_here, all_there, mixed = (TensorMeasure(dtype) for _ in range(3))
    for number, part in enumerate(blocks(codes, seed)):
        all_here.update(part)
        device.run(part, all_there.update)
        mixed.update(part) if number % 2 else device.run(part, mixed.update)
    wanted = all_here.finish()
    for one in (all_there.finish(), mixed.finish()):
        assert repr(one.facts) == repr(wanted.facts)  # NaN is itself there
        assert one.histogram.to_bytes() == wanted.histogram.to_bytes()


def test_sums_of_floats_stay_with_the_kernels() -> None:
    with pytest.raises(TypeError, match="sums of floats"):
        TensorMeasure(DTYPES["F32"]).update(torch.zeros(3, dtype=torch.int32))


@on_each
@pytest.mark.parametrize(("shape", "axis"), [((12, 16), 1), ((16, 12), 0), ((3, 8, 5), 1)])
def test_blocks_of_rows(place: str, shape: tuple[int, ...], axis: int) -> None:
    dtype = DTYPES["BF16"]
    spec, edit = TensorSpec("w", dtype, shape), RowGroups(NM(2, 4), ((1, 3), (4, 5), (9, 12)))
    codes = weights(dtype, spec.numel, 3)
    rows = Rows.of(shape, axis)
    here, there = Editor(edit, rows), Editor(edit, rows)
    width = int(np.prod(shape[axis + 1 :]))
    device = OnDevice(torch.device(place))
    for part in np.split(codes, spec.numel // (4 * width)):
        mine = part.copy()
        assert device.run(mine, there.apply, back=True) == here.apply(part)
        assert np.array_equal(mine, part)


# --- there and back -----------------------------------------------------------------------------


@on_each
def test_many_threads_share_a_device(place: str) -> None:
    device = OnDevice(torch.device(place))
    results: dict[int, bool] = {}

    def work(number: int) -> None:
        block = device.buffer(4096).view(np.uint16)
        for seed in range(20):
            codes = weights(DTYPES["BF16"], block.size, 100 * number + seed)
            block[:] = codes
            found = device.run(block, lambda there: on_device.nm(there[None, :, None], 2, 4),
                               back=True)  # fmt: skip
            same = found == masks.nm(codes.reshape(1, -1, 1), 2, 4) and (block == codes).all()
            results[number] = results.get(number, True) and bool(same)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(4), True)
    assert not device.was_full


def too_much(*_: Any) -> torch.Tensor:
    """Ask torch for more than any machine has: its own error."""
    return torch.empty(1 << 60, dtype=torch.uint8)


def test_a_block_without_room_is_worked_on_here() -> None:
    device = OnDevice(torch.device("cpu"))

    def work(codes: Any) -> str:
        codes[:] = 7
        if isinstance(codes, torch.Tensor):
            too_much()
        return "here"

    codes = np.array([1, 2], np.uint16)
    assert device.run(codes, work, back=True) == "here"
    assert codes.tolist() == [7, 7]
    assert device.was_full


class Unstreamed(OnDevice):
    """Of a device that is pretended, which has no streams."""

    _on_stream = nullcontext  # type: ignore[assignment]


@pytest.mark.parametrize("room", [1 << 30, 3_000])
def test_nothing_is_in_two_places(room: int) -> None:
    """A pretended device refuses tensors of both places in one operation, and to be too full."""
    cases: list[tuple[Callable[[Any], Any], tuple[int, ...]]] = [
        (lambda codes: masks.kernels_for(codes).cut(codes, 1, 3), (999,)),
        (lambda codes: masks.kernels_for(codes).cut_rows(codes.reshape(9, 111, 1), 0.4), (999,)),
        (lambda codes: masks.kernels_for(codes).nm(codes.reshape(-1, 4, 25), 2, 4), (1000,)),
        (lambda codes: masks.kernels_for(codes).count_zeros(codes), (999,)),
        (lambda codes: masks.kernels_for(codes).odd_codes(codes, code_format(DTYPES["BF16"])),
         (999,)),
    ]  # fmt: skip
    for work, shape in cases:
        codes = weights(DTYPES["BF16"], shape[0], 7, inf=True)
        wanted = codes.copy()
        found = work(wanted)
        with PretendDevice(room) as pretended:
            device = Unstreamed(CUDA)
            assert device.run(codes, work, back=True) == found
        assert np.array_equal(codes, wanted)
        assert device.was_full == (pretended.refused > 0) == (room < 1 << 30)
    with PretendDevice(1 << 30):
        device, measure = Unstreamed(CUDA), TensorMeasure(DTYPES["BF16"])
        device.run(codes, measure.update)
    assert measure.finish().facts.numel == codes.size


@pytest.mark.gpu
def test_a_gpu_without_room() -> None:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        device = OnDevice(torch.device("cuda"))
        codes = np.ones(64 << 20, np.uint16)
        assert device.run(codes, lambda one: isinstance(one, np.ndarray), back=True)
        assert device.was_full
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


# --- the verbs ----------------------------------------------------------------------------------


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models are of many blocks then."""
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 600)
    monkeypatch.setattr(streaming, "LARGE_BYTES", 2500)


@pytest.fixture
def torch_cpu(monkeypatch: pytest.MonkeyPatch) -> list[OnDevice]:
    """``cuda`` is torch's CPU where there is no CUDA; the devices that verbs have asked for."""
    used: list[OnDevice] = []

    @contextmanager
    def named(self: Run, wanted: str, **_: bool) -> Iterator[Run]:
        if wanted != "cuda":
            yield self
            return
        used.append(OnDevice(torch.device("cuda" if torch.cuda.is_available() else "cpu")))
        yield replace(self, device=used[-1])
        if used[-1].was_full:
            self.note("it was full")

    monkeypatch.setattr(Run, "on_device", named)
    for verb in ("analysis", "pruning"):
        monkeypatch.setattr(f"prunectl.{verb}.verb.check_device", lambda wanted: None)
    return used


def model_of(name: str, dtype: torch.dtype, folder: Path) -> Path:
    tiny_models.build(name, folder / name, dtype)
    return folder / name


CHOICES = [
    PruneSettings(sparsity=0.4),
    PruneSettings(sparsity=0.4, scope="tensor"),  # type: ignore[arg-type]
    PruneSettings(sparsity=0.3, scope="row"),  # type: ignore[arg-type]
    PruneSettings(pattern="2:4"),  # type: ignore[arg-type]
    PruneSettings(pattern="8:16"),  # type: ignore[arg-type]
    PruneSettings(pattern="2:4", sparsity=0.3),  # type: ignore[arg-type]
    PruneSettings(pattern="2:4", sparsity=0.3, budget="rows"),  # type: ignore[arg-type]
]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", few([torch.bfloat16, torch.float16, torch.float32]), ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_prune_writes_the_same_bytes(
    name: str, dtype: torch.dtype, torch_cpu: list[OnDevice], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The whole folder, whatever was asked for; and edits do go to the device."""
    source, edits = model_of(name, dtype, tmp_path), 0
    for verb in ("cut", "cut_rows", "nm"):
        original = getattr(on_device, verb)

        def counted(*args: Any, original: Callable[..., Any] = original) -> Any:
            nonlocal edits
            edits += 1
            return original(*args)

        monkeypatch.setattr(on_device, verb, counted)
    for number, choice in enumerate(CHOICES):
        before = edits
        outputs = []
        for device in ("cpu", "cuda"):
            out = tmp_path / f"{number}-{device}"
            prune(source, out, choice, use_cache=False, device=device, jobs=2)
            outputs.append(reference.contents(out))
        assert outputs[0] == outputs[1], choice
        # Rows across the stored lines take a pass for each bit, and stay on the CPU.
        assert edits > before or (name == "gpt2" and choice.scope == "row"), choice
    assert len(torch_cpu) == len(CHOICES)
    assert not any(device.was_full for device in torch_cpu)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", few([torch.bfloat16, torch.float16, torch.float32]), ids=str)
def test_analyze_finds_the_same(
    dtype: torch.dtype, torch_cpu: list[OnDevice], tmp_path: Path
) -> None:
    """Patterns too, whose sums depend on where blocks begin: 2:3 does not divide one."""
    source = model_of("llama", dtype, tmp_path)
    found = [
        analyze(source, use_cache=False, patterns=["2:4", "2:3", "8:16"], device=device).to_json()
        for device in ("cpu", "cuda")
    ]
    for document in found:
        del document["seconds"]
    assert found[0] == found[1]
    assert len(torch_cpu) == 1


@on_each
def test_large_blocks_give_the_same_sums(place: str, tmp_path: Path) -> None:
    """Blocks of the real sizes, cut into pieces for what is summed up on the CPU."""
    name = "model.layers.0.mlp.up_proj.weight"
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(1200, 1005, generator=generator)
    # Squares from 1e-24 to 1e24, so that the order of additions shows.
    weight = (
        weight * 10 ** torch.empty_like(weight).uniform_(-12, 12, generator=generator)
    ).bfloat16()
    checkpoint = open_checkpoint(reference.save(tmp_path / "model", {name: weight}))
    found = []
    for device in (None, OnDevice(torch.device(place))):
        into = Measured()
        patterns = {name: (NM(2, 3), NM(2, 5))}
        measure(checkpoint, [name], patterns, {name: 1}, into=into, run=Run(1, device=device))
        found.append((into.facts, into.patterns, into.histograms.get(name).to_bytes()))
        into.close()
    assert found[0] == found[1]


@pytest.mark.usefixtures("small_blocks", "torch_cpu")
def test_a_full_device_is_told_of_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = model_of("llama", torch.bfloat16, tmp_path)
    prune(source, tmp_path / "here", CHOICES[0], use_cache=False)
    for verb in ("cut", "tally"):
        monkeypatch.setattr(on_device, verb, too_much)
    notes: list[Event] = []
    prune(source, tmp_path / "there", CHOICES[0], use_cache=False, device="cuda",
          on_event=notes.append)  # fmt: skip
    assert reference.contents(tmp_path / "here") == reference.contents(tmp_path / "there")
    assert Note("it was full") in notes


@on_each
@pytest.mark.usefixtures("small_blocks")
def test_samples_and_magnitudes_on_one_device(
    place: str, torch_cpu: list[OnDevice], tmp_path: Path
) -> None:
    """What is refined is chosen by magnitudes, and fitted to samples."""
    source = model_of("llama", torch.bfloat16, tmp_path)
    if place == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def refined(device: str) -> tuple[float, list[int]]:
        calibration = Calibration(("random",), samples=4, sequence_length=12, dtype="float32",
                                  device=place if device == "cuda" else "cpu")  # fmt: skip
        choice = PruneSettings(sparsity=0.4, refine=True, calibration=calibration)
        out = tmp_path / device
        result = prune(source, out, choice, use_cache=False, device=device, jobs=2)
        assert verify(out, source=source).ok
        return result.sparsity, [one.zeros for one in result.tensors]

    assert refined("cuda") == refined("cpu")
    assert [device.was_used for device in torch_cpu] == [True]
    if place == "cuda":
        assert torch.cuda.max_memory_allocated() > 100_000  # a block, and what it works on


# --- which device -------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["auto", "cpu"])
def test_the_cpu_is_what_is_not_named(wanted: str) -> None:
    with Run().on_device(wanted) as run:
        assert run.device is None


@pytest.mark.gpu
def test_a_gpu_that_is_named() -> None:
    with Run().on_device("cuda") as run:
        assert run.device is not None
        assert run.device.device.type == "cuda"


def test_a_full_device_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    notes: list[Event] = []
    with Run(on_event=notes.append).on_device("cuda") as run:
        assert run.device is not None
        run.device.was_full = run.device.was_used = True
    assert notes == [Note("cuda:0 was full: the CPU processed the tensors that did not fit")]


@pytest.fixture
def one_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says that there is a device; nothing may go there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


def said(events: list[Event]) -> str:
    return "\n".join(one.text for one in events if isinstance(one, Note))


@pytest.mark.usefixtures("one_cuda")
def test_a_device_that_gets_nothing_is_said(tmp_path: Path) -> None:
    """Of masks, and of fp32, in Python as on the command line; not where it has other work."""
    source = model_of("llama", torch.float32, tmp_path)
    prune(source, tmp_path / "first", CHOICES[0], use_cache=False)
    export_masks(open_checkpoint(tmp_path / "first"), tmp_path / "masks.safetensors")
    by_mask = PruneSettings(mask=tmp_path / "masks.safetensors")
    for work in (
        lambda heard: prune(source, tmp_path / "out", by_mask, device="cuda", on_event=heard),
        lambda heard: analyze(source, use_cache=False, patterns=(), device="cuda", on_event=heard),
    ):
        events: list[Event] = []
        work(events.append)
        assert "cuda:0 was not used" in said(events)
    events = []
    with Run(on_event=events.append).on_device("cuda", tells_unused=False):
        pass
    assert not events


def test_auto_is_always_fine(typed: Typed, tmp_path: Path) -> None:
    """Also where nothing is compared; and of a plan it is said that nothing is computed."""
    prune("demo", tmp_path / "first", CHOICES[0])
    export_masks(open_checkpoint(tmp_path / "first"), tmp_path / "m.safetensors")
    line = ("prune", "demo", "--mask", tmp_path / "m.safetensors", "--device", "auto")
    assert typed(*line, "-o", "out")[0] == 0
    code, _, err = typed(*line, "--dry-run")
    assert (code, "a plan does not use it" in err) == (0, False)
    code, _, err = typed(*line[:-1], "cpu", "--dry-run")
    assert (code, "--device cpu: a plan does not use it" in err) == (0, True)


@pytest.mark.parametrize("place", ["tpu", "cuda:77"])
def test_python_refuses_it_before_it_opens_anything(place: str, tmp_path: Path) -> None:
    calibration = Calibration(("random",), device=place)
    wanda = PruneSettings(sparsity=0.5, method=Method.WANDA, calibration=calibration)
    with pytest.raises(InvalidOption, match="--device"):
        prune(tmp_path / "none", tmp_path / "out", CHOICES[0], device=place)
    with pytest.raises(InvalidOption, match="--device"):
        prune(tmp_path / "none", tmp_path / "out", wanda)
    with pytest.raises(InvalidOption, match="--device"):
        analyze(tmp_path / "none", device=place)


def test_processes_of_a_host_have_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert choose_device("cuda") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "3")
    for wanted in ("auto", "cuda"):
        assert choose_device(wanted) == torch.device("cuda", 1)
    assert choose_device("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(InvalidOption, match="there are 2"):
        choose_device("cuda:2")


@pytest.mark.parametrize(
    ("argv", "error", "hint"),
    [
        ("analyze demo --device tpu", "'tpu' is not known", "cuda:N"),
        ("analyze org/name --remote --device cpu", "--device is for what is measured", ""),
        ("prune demo -s 0.4 -o out --device tpu", "'tpu' is not known", "cuda:N"),
        # Before anything is asked of the Hub, and where nothing would be computed.
        ("prune org/name -s 0.4 --dry-run --device tpu", "'tpu' is not known", "cuda:N"),
        ("prune org/name -s 0.4 --remote --dry-run --device tpu", "'tpu' is not known", "cuda:N"),
        ("evaluate org/name --device tpu", "'tpu' is not known", "cuda:N"),
        *(
            pytest.param(
                line, "sees no CUDA device", "--device cpu",
                marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
            )
            for line in ("prune demo -p 8:16 -o out --device cuda", "analyze a/b --device cuda:7")
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(
    typed: Callable[..., tuple[int, str, str]], argv: str, error: str, hint: str
) -> None:
    code, out, err = typed(*argv.split(), "-q")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) <= 2
    assert error in err
    assert hint in err
    assert not Path("out").exists()


@pytest.mark.usefixtures("small_blocks", "torch_cpu")
def test_nan_stops_on_a_device_too(tmp_path: Path) -> None:
    weight = torch.zeros(40, 40, dtype=torch.bfloat16)
    weight[39, 39] = torch.nan
    name = "model.layers.0.mlp.up_proj.weight"
    source = reference.save(tmp_path / "model", {name: weight})
    with pytest.raises(NaNWeights, match="up_proj"):
        prune(source, tmp_path / "out", CHOICES[3], use_cache=False, device="cuda")


@pytest.mark.usefixtures("small_blocks", "torch_cpu")
def test_the_cpu_goes_on_where_a_device_was_stopped(tmp_path: Path) -> None:
    source = model_of("llama", torch.bfloat16, tmp_path)
    options: dict[str, Any] = {"max_shard_size": 10_000, "use_cache": False, "jobs": 1}
    whole = prune(source, tmp_path / "whole", CHOICES[4], **options)
    assert whole.shards > 3
    seen = 0

    def stop(event: Event) -> None:
        nonlocal seen
        seen += isinstance(event, Advanced) and event.phase == "writing weights"
        if seen == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(source, tmp_path / "out", CHOICES[4], **options, device="cuda", on_event=stop)
    assert prune(source, tmp_path / "out", CHOICES[4], **options).resumed_shards > 0
    assert reference.contents(tmp_path / "out") == reference.contents(tmp_path / "whole")
