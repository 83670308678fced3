"""``prunectl bench`` as a whole: on the demo, on small models of each kind, and on bad input."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from full import few

import gpu
import prunectl
from prunectl import device
from prunectl.benchmarking import models as sides
from prunectl.benchmarking.compare import bench_csv, compare_bench, read_bench
from prunectl.benchmarking.errors import BadBenchFile, CannotRun, NotEnoughMemory
from prunectl.benchmarking.limits import cache_bytes, count_flops
from prunectl.benchmarking.loading import measure_loading
from prunectl.benchmarking.models import find_config
from prunectl.benchmarking.result import Agreement, BenchResult, KernelRow, Skipped
from prunectl.benchmarking.running import cache_after, make_pass, outputs_of
from prunectl.benchmarking.settings import PRESETS
from prunectl.benchmarking.timing import Ratio, WallClock, summarize
from prunectl.benchmarking.verb import _method_notes
from prunectl.benchmarking.workloads import Workload
from prunectl.checkpoint.model_kind import Kind
from prunectl.checkpoint.opening import open_checkpoint
from prunectl.cli.bench import _show
from prunectl.cli.bench_screen import bench_screen
from prunectl.cli.output import Output
from prunectl.cli.run import run
from prunectl.device import choose_device, is_out_of_memory, left_in_groups
from prunectl.errors import BadCheckpoint, InvalidOption
from prunectl.events import Event, Note
from prunectl.loading import model

pytestmark = pytest.mark.usefixtures("one_thread", "small_products")

CPU = torch.device("cpu")
QUICK = prunectl.BenchSettings(
    batch_sizes=(1,),
    prompt_tokens=(8,),
    new_tokens=3,
    rounds=7,
    seconds=0.1,
    threads=1,
    measure_loading=False,
)
FORWARD = replace(QUICK, new_tokens=None)
Model = Callable[[str], Path]


@pytest.fixture(scope="module")
def demo_result(small_products: None) -> BenchResult:
    return prunectl.bench("demo", settings=QUICK)


# --- what is measured ---------------------------------------------------------------------------


def test_the_demo_is_timed_beside_itself_with_zeros(demo_result: BenchResult) -> None:
    dense, pruned = demo_result.sides
    assert (dense.label, pruned.label) == ("demo", "demo, 2:4")
    assert (dense.zeros.sparsity, pruned.zeros.sparsity) == (0.0, 0.5)
    assert pruned.zeros.follow_2_4 == pruned.zeros.matrices == 42
    assert dense.weight_bytes == pruned.weight_bytes == 2 * dense.parameters
    assert dense.disk_bytes is not None
    assert dense.disk_bytes > dense.weight_bytes
    assert pruned.disk_bytes is None
    rows = [(one.phase, one.side) for one in demo_result.runs]
    assert rows == [(p, s) for p in ("prefill", "decode") for s in ("demo", "demo, 2:4")]
    for one in demo_result.runs:
        assert len(one.samples) == one.seconds.rounds >= 7
        assert one.seconds == summarize(one.samples)
        assert one.rate == pytest.approx(
            {"prefill": 8, "decode": 1}[one.phase] / one.seconds.median
        )
        assert (one.against is None) == (one.side == "demo")
        assert one.of_limit > 0


def test_on_the_cpu_it_says_that_zeros_bring_nothing(demo_result: BenchResult) -> None:
    runs = tuple(replace(one, against=one.against and Ratio(1.0, 0.9, 1.1))
                 for one in demo_result.runs)  # fmt: skip
    verdicts = replace(demo_result, runs=runs).verdicts
    assert verdicts[0] == (
        "demo, 2:4: no difference found at prefill (1.00x, could be 0.90x to 1.10x), no "
        "difference found at decode (1.00x, could be 0.90x to 1.10x); against demo."
    )
    assert "Zeros bring no speed-up on the CPU" in verdicts[1]
    fast = tuple(replace(one, against=one.against and Ratio(2.0, 1.9, 2.1)) for one in runs)
    assert len(replace(demo_result, runs=fast).verdicts) == 1, "not against what was measured"


def test_less_memory_is_part_of_the_verdict(demo_result: BenchResult) -> None:
    dense, pruned = demo_result.sides
    smaller = replace(pruned, weight_bytes=round(0.56 * dense.weight_bytes))
    assert "44% less weight memory" in replace(demo_result, sides=(dense, smaller)).verdicts[0]


def test_the_document_is_strict_json_and_names_no_host(demo_result: BenchResult) -> None:
    import platform

    text = json.dumps(demo_result.to_json(), allow_nan=False)
    document = json.loads(text)
    assert document["schema"] == "prunectl.bench/1"
    assert document["runs"][1]["against"]["ratio"] > 0
    assert document["runs"][0]["samples"] == list(demo_result.runs[0].samples)
    assert document["machine"]["threads"] == 1
    assert set(document["machine"]["versions"]) >= {"torch", "transformers"}
    assert len(platform.node()) < 4 or platform.node() not in text


@pytest.mark.parametrize("layout", few(["dense", "packed"], "packed"))
def test_a_pruned_model_against_its_source(tmp_path: Path, layout: str, tiny: Model) -> None:
    pruned = tmp_path / "pruned"
    prunectl.prune(tiny("llama"), pruned, prunectl.PruneSettings(sparsity=0.5), use_cache=False)
    folder = pruned
    if layout != "dense":
        folder = tmp_path / layout
        prunectl.export(pruned, folder, layout)
    found = prunectl.bench(folder, [tiny("llama")], replace(QUICK, execution="dense"))
    source, mine = found.sides
    assert (source.model, mine.model) == (str(tiny("llama")), str(folder))
    assert (source.zeros.sparsity, mine.zeros.sparsity) == (0.0, 0.5)
    assert (source.label, mine.label) == ("llama", folder.name)
    assert {one.side for one in found.runs if one.against} == {folder.name}
    assert mine.disk_bytes == sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def test_a_pruned_model_alone_is_compared_with_its_zeros_filled(
    tmp_path: Path, tiny: Model
) -> None:
    settings = prunectl.PruneSettings(sparsity=0.5)
    prunectl.prune(tiny("bert"), tmp_path / "out", settings, use_cache=False)
    found = prunectl.bench(tmp_path / "out", settings=FORWARD)
    filled, mine = found.sides
    assert filled.label == "out, filled"
    assert (filled.zeros.sparsity, mine.zeros.sparsity) == (0.0, 0.5)


def test_two_models_of_one_name_are_told_apart(tmp_path: Path, tiny: Model) -> None:
    shutil.copytree(tiny("bert"), tmp_path / "bert")
    found = prunectl.bench(tiny("bert"), [tmp_path / "bert", tiny("bert")], FORWARD)
    full = str(tiny("bert"))
    assert [side.label for side in found.sides] == ["bert", full, f"{full} (2)"]


def test_a_restless_machine_is_told_of(demo_result: BenchResult) -> None:
    quiet = tuple(replace(one, seconds=summarize([1.0] * 15)) for one in demo_result.runs)
    assert not list(_method_notes(quiet, QUICK))
    noisy = (replace(quiet[0], seconds=summarize([1.0, 2.0] * 4)), *quiet[1:])
    (note,) = _method_notes(noisy, QUICK)
    assert "spread by up to 36%" in note
    few = (replace(quiet[0], seconds=summarize([1.0] * 7)), *quiet[1:])
    (note,) = _method_notes(few, replace(QUICK, rounds=15))
    assert "7 rounds instead of 15" in note


@pytest.mark.parametrize(
    ("name", "kind", "phases"),
    few(
        [
            ("bert", "encoder", ("forward",)),
            ("gpt2", "causal-lm", ("prefill", "decode")),
            ("t5", "encoder-decoder", ("prefill", "decode")),
            ("vit", "vision", ("forward",)),
        ],
        ("gpt2", "causal-lm", ("prefill", "decode")),
    ),
)
def test_every_kind_of_model(tiny: Model, name: str, kind: str, phases: tuple[str, ...]) -> None:
    settings = QUICK if len(phases) == 2 else FORWARD
    if kind == "vision":
        settings = replace(settings, prompt_tokens=())
    found = prunectl.bench(tiny(name), settings=settings)
    assert (found.kind, found.phases) == (kind, phases)
    assert found.sides[1].zeros.sparsity == 0.5
    assert all(one.flops > 0 and one.nbytes > 0 for one in found.runs)
    assert "pixels, 3x16x16" in found.inputs if kind == "vision" else "tokens" in found.inputs


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param("minilm", "encoder", marks=pytest.mark.full),
        pytest.param("smollm2", "causal-lm", marks=pytest.mark.slow),
    ],
)
def test_real_models(real_model: Callable[[str], Path], name: str, kind: str) -> None:
    folder = real_model(name)
    settings = QUICK if kind == "causal-lm" else FORWARD
    found = prunectl.bench(folder, settings=replace(settings, measure_loading=True))
    assert found.kind == kind
    dense = found.sides[0]
    assert dense.loading is not None
    assert dense.loading.seconds > 0
    assert dense.loading.peak_bytes - dense.loading.before_bytes > 0.9 * dense.weight_bytes
    assert found.sides[1].loading is None


def test_random_weights_by_config(tiny: Model) -> None:
    found = prunectl.bench(random_weights=str(tiny("llama")), settings=QUICK)
    assert [side.label for side in found.sides] == [
        f"{tiny('llama')}, random weights",
        f"{tiny('llama')}, random weights, 2:4",
    ]
    assert found.sides[0].disk_bytes is None


def test_presets_are_what_their_names_say() -> None:
    import transformers

    parameters = {}
    for name in PRESETS:
        config = find_config(name)
        fields = {key: value for key, value in config.items() if key != "model_type"}
        made = transformers.AutoConfig.for_model(config["model_type"], **fields)
        with torch.device("meta"):
            model = getattr(transformers, config["architectures"][0])._from_config(made)
        parameters[name] = round(sum(one.numel() for one in model.parameters()) / 1e6)
    assert parameters == {
        "llama-7b": 6738, "llama-8b": 8030, "llama-1b": 1236,
        "bert-base": 110, "vit-base": 87, "t5-base": 223,
    }  # fmt: skip


def test_a_text_is_the_input_of_one_model() -> None:
    settings = replace(QUICK, text="In the beginning", pattern=None)
    found = prunectl.bench("demo", settings=settings)
    assert found.inputs == "the text's tokens"
    assert len(found.sides) == 1, "without a pattern it is timed alone"
    assert not found.verdicts
    assert all(one.against is None for one in found.runs)


# --- the parts ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, on import
def test_decoding_with_the_cache_gives_the_tokens_of_generate() -> None:
    model = prunectl.load_model("demo").float().requires_grad_(False)
    prompt = torch.arange(40, 60).reshape(2, 10)
    expected = model.generate(prompt, max_new_tokens=6, do_sample=False, eos_token_id=None)[:, 10:]
    seen: list[torch.Tensor] = []
    model.register_forward_hook(
        lambda module, args, found: seen.append(found.logits[:, -1].argmax(-1))
    )
    for graphs in (False, True):
        one = make_pass(model, Kind.CAUSAL_LM, Workload(2, 10, 6), prompt, graphs=graphs)
        with torch.inference_mode():
            for _ in range(2):  # a fixed cache must begin anew
                seen.clear()
                spans = one(WallClock())
                assert torch.equal(torch.stack(seen, 1), expected)
        assert {phase: steps for phase, (_, _, steps) in spans.items()} == {
            "prefill": 1, "decode": 5,
        }  # fmt: skip


def test_an_encoder_decoder_gives_the_tokens_of_generate() -> None:
    model = tiny_models.make("bart").requires_grad_(False)
    source = torch.arange(4, 24).reshape(2, 10)
    expected = model.generate(
        source, max_new_tokens=5, do_sample=False, num_beams=1, eos_token_id=None,
        forced_eos_token_id=None, forced_bos_token_id=None,
    )[:, 1:]  # fmt: skip
    seen: list[torch.Tensor] = []
    model.register_forward_hook(
        lambda module, args, found: seen.append(found.logits[:, -1].argmax(-1))
    )
    make_pass(model, Kind.SEQ2SEQ, Workload(2, 10, 5), source)(WallClock())
    assert torch.equal(torch.stack(seen, 1), expected)


def test_operations_are_those_of_the_formula() -> None:
    model = tiny_models.make("llama").requires_grad_(False)
    batch, length, heads, width = 2, 6, 4, 8
    ids = torch.ones(batch, length, dtype=torch.int64)
    linears = sum(
        2 * batch * length * module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    )
    head = 2 * batch * 61 * 32  # of the last token only
    attention = 2 * 2 * 2 * batch * heads * length * length * width  # two layers, two products
    rotary = 2 * batch * (width // 2) * length  # positions times frequencies
    one = make_pass(model, Kind.CAUSAL_LM, Workload(batch, length, 1), ids)
    with torch.inference_mode():
        found = count_flops(lambda: one(WallClock()), CPU)
    assert linears + head + attention <= found <= linears + head + attention + 2 * rotary


def test_bytes_of_caches() -> None:
    llama = tiny_models.make("llama").requires_grad_(False)
    ids = torch.ones(3, 5, dtype=torch.int64)
    # Two layers, keys and values, two heads of width 8, float32.
    assert cache_bytes(cache_after(llama, Kind.CAUSAL_LM, ids)) == 2 * 2 * 3 * 2 * 5 * 8 * 4
    bart = tiny_models.make("bart").requires_grad_(False)
    # Three layers, keys and values of width 32: of one token, and of the five of the encoder.
    expected = 3 * 2 * 3 * 32 * (1 + 5) * 4
    assert cache_bytes(cache_after(bart, Kind.SEQ2SEQ, ids)) == expected
    assert cache_bytes(None) == 0


@pytest.mark.full
def test_what_fails_in_the_process_that_loads_is_said(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match="loading it failed"):
        measure_loading(tmp_path, "cpu", "auto")


# --- what goes wrong ----------------------------------------------------------------------------


def test_a_batch_without_memory_leaves_the_smaller_ones(tiny: Model) -> None:
    notes: list[Event] = []
    settings = replace(FORWARD, batch_sizes=(1, 10**12, 10**13))
    found = prunectl.bench(tiny("bert"), settings=settings, on_event=notes.append)
    assert {one.workload.batch for one in found.runs} == {1}
    assert [(one.what, one.why) for one in found.skipped] == [
        ("batch 1000000000000, 8 tokens", "out of memory"),
        ("batch 10000000000000, 8 tokens", "a smaller one was out of memory"),
    ]
    assert Note("timing batch 1, 8 tokens") in notes


def test_torch_words_for_no_memory_are_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    for library in ("CUBLAS", "CUSOLVER"):  # which have handles and workspaces of their own
        assert is_out_of_memory(RuntimeError(f"CUDA error: {library}_STATUS_ALLOC_FAILED when ..."))
    assert not is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE when ..."))
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize(
    ("names", "settings", "error", "why"),
    [
        ("llama", {"device": "tpu:banana"}, InvalidOption, "'tpu:banana' is not known"),
        ("llama", {"device": "mps"}, InvalidOption, "'mps' is not known"),
        ("llama", {"text": "some words"}, InvalidOption, "--text needs a tokenizer"),
        ("llama", {"prompt_tokens": (10**9,), "new_tokens": 30}, InvalidOption, "context of 20"),
        ("bert llama", {}, InvalidOption, r"\(encoder\) and .* \(causal-lm\)|cannot be given"),
        ("clip", {"new_tokens": None}, CannotRun, "cannot be run: batch 1, 8 tokens"),
        ("bert", {"new_tokens": None, "batch_sizes": (10**12,)}, NotEnoughMemory,
         "batch 1000000000000, 8 tokens: out of memory"),
    ],
)  # fmt: skip
def test_what_cannot_be_timed(
    tiny: Model, names: str, settings: dict[str, Any], error: type[Exception], why: str
) -> None:
    model, *against = map(tiny, names.split())
    with pytest.raises(error, match=why):
        prunectl.bench(model, against, replace(QUICK, **settings))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_it_is_said() -> None:
    with pytest.raises(InvalidOption, match="sees no CUDA device"):
        choose_device("cuda")
    with pytest.raises(InvalidOption, match="kernels need a CUDA device"):
        prunectl.bench("demo", settings=replace(QUICK, kernels="sparse"))
    assert choose_device("auto") == CPU


@pytest.mark.parametrize(("device", "goes"), [("auto", "auto"), ("cuda:1", "cuda:1")])
def test_a_device_that_is_named_is_meant(
    device: str, goes: str, tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that it does not hold goes elsewhere with ``auto`` only."""
    asked: list[Any] = []

    def loaded(folder: Path, *, device_map: Any, **options: Any) -> Any:
        asked.append(device_map)
        return load(folder, **options)

    load = model.load_model
    monkeypatch.setattr(model, "load_model", loaded)
    monkeypatch.setattr(sides, "free_memory", lambda device: 1)
    source = sides.source_of(open_checkpoint(tiny("llama")))
    sides._load(source, torch.device("cuda", 1), replace(QUICK, device=device))
    assert asked == [goes]


def test_other_bad_input(tiny: Model, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="takes a model"):
        prunectl.bench()
    with pytest.raises(InvalidOption, match="takes a model"):
        prunectl.bench("demo", random_weights="llama-7b")
    with pytest.raises(InvalidOption, match="is no preset, and no config"):
        prunectl.bench(random_weights=str(tmp_path))
    with pytest.raises(CannotRun, match="one weights file"):
        prunectl.bench(tiny("bert") / "model.safetensors", settings=FORWARD)
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}', encoding="utf-8")
    with pytest.raises(CannotRun, match="its config is refused"):
        prunectl.bench(random_weights=str(tmp_path), settings=FORWARD)


@pytest.mark.parametrize(
    ("changed", "error", "why"),
    [
        ({"hidden_size": "big"}, CannotRun, "expected int"),
        ({"hidden_size": -64}, CannotRun, "config is refused"),
        ({"num_attention_heads": 0}, CannotRun, "config is refused"),
        ({"architectures": [7]}, CannotRun, "config is refused"),
        ({"num_hidden_layers": 2 * 10**9}, CannotRun, "more than 10000 in num_hidden_layers"),
        ({"hidden_size": 10**9}, NotEnoughMemory, "out of memory on cpu"),
        ({"vocab_size": 10**10}, NotEnoughMemory, "bytes of weights"),
    ],
)
def test_hostile_configs(
    tiny: Model, tmp_path: Path, changed: dict[str, Any], error: type[Exception], why: str
) -> None:
    config = json.loads((tiny("llama") / "config.json").read_bytes()) | changed
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(error, match=why):
        prunectl.bench(random_weights=str(tmp_path), settings=QUICK)


def test_ctrl_c_keeps_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    note = Output.note

    def stop(self: Output, text: str) -> None:
        note(self, text)
        if text.startswith("timing batch 2"):
            raise KeyboardInterrupt

    monkeypatch.setattr(Output, "note", stop)
    args = ["bench", "demo", *ARGS, "--batch-size", "1,2,4", "-o", "part.json"]
    assert run(args) == 130
    out, err = capsys.readouterr()
    assert "Left out: batch 2, 8 + 2 tokens: interrupted." in out
    assert "interrupted" in err
    document = json.loads(Path("part.json").read_bytes())
    assert {one["batch"] for one in document["runs"]} == {1}
    assert document["interrupted"]


def group(folder: Path, limit: object, used: int, cached: int, *, version: int = 2) -> None:
    """A control group as Linux shows it."""
    folder.mkdir(parents=True)
    names = ("memory.max", "memory.current")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    caches = f"inactive_file {cached}\n" if version == 2 else f"total_inactive_file {cached}\n"
    stat = caches if version == 2 else f"inactive_file 1\n{caches}"
    for name, text in zip((*names, "memory.stat"), (limit, used, f"anon 5\n{stat}"), strict=True):
        (folder / name).write_text(f"{text}\n", encoding="ascii")


def process(folder: Path, groups: str, *mounts: str) -> Path:
    folder.mkdir()
    (folder / "cgroup").write_text(groups, encoding="ascii")
    disk = "22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw"
    (folder / "mountinfo").write_text("\n".join([disk, *mounts, ""]), encoding="ascii")
    return folder


def test_limits_of_memory_are_those_of_all_groups_above(tmp_path: Path) -> None:
    """As of a batch system: the job's is the one that counts, and the task's folder has none."""
    assert left_in_groups(tmp_path) == []
    root = tmp_path / "cgroup"
    job = root / "system.slice" / "job_7"
    group(root / "system.slice", 5000, 900, 100)
    group(job, 1000, 700, 200)
    group(job / "step_0", "max", 600, 200)
    (job / "step_0" / "task_0").mkdir()
    group(root / "other", 1, 1, 0)
    mount = f"30 23 0:26 / {root} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
    one = process(tmp_path / "one", "0::/system.slice/job_7/step_0/task_0\n", mount)
    assert sorted(left_in_groups(one)) == [500, 4200]
    (job / "memory.current").write_text("1300", encoding="ascii")
    assert min(left_in_groups(one)) == 0


def test_limits_of_memory_of_cgroups_1(tmp_path: Path) -> None:
    root = tmp_path / "memory"
    group(root, 2**63 - 4096, 5000, 0, version=1)
    group(root / "slurm" / "job_7", 1000, 700, 200, version=1)
    mounts = [
        f"35 31 0:32 / {root} rw,relatime - cgroup cgroup rw,memory",
        f"36 31 0:33 / {tmp_path / 'cpu'} rw,relatime - cgroup cgroup rw,cpu,cpuacct",
        f"41 31 0:38 / {tmp_path / 'unified'} rw,relatime - cgroup2 cgroup2 rw",
    ]
    groups = "12:cpu,cpuacct:/slurm\n4:memory:/slurm/job_7/step_0\n0::/\n"
    assert left_in_groups(process(tmp_path / "one", groups, *mounts)) == [500]


@pytest.mark.parametrize(
    ("seen", "path"), [("/docker/ab12", "/docker/ab12"), ("/docker/ab12", "/"), ("/", "/../../x")]
)
def test_limits_of_memory_of_a_container(tmp_path: Path, seen: str, path: str) -> None:
    """It sees its own group as the root, whatever that is called outside."""
    group(tmp_path / "memory", 1000, 700, 200, version=1)
    mount = f"35 31 0:32 {seen} {tmp_path / 'memory'} ro,relatime - cgroup cgroup rw,memory"
    assert left_in_groups(process(tmp_path / "one", f"4:memory:{path}\n", mount)) == [500]


def test_the_smallest_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "memory_stated", lambda key: 2000)
    for left, free in (([], 2000), ([3000], 2000), ([700, 3000], 700), ([0], 0)):
        monkeypatch.setattr(device, "left_in_groups", lambda process, left=left: left)
        assert device.free_memory(torch.device("cpu")) == free
    monkeypatch.setattr(device, "memory_stated", lambda key: 0)
    monkeypatch.setattr(device, "left_in_groups", lambda process: [])
    assert device.free_memory(torch.device("cpu")) is None


def test_missing_weights_are_never_random(tiny: Model, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny("bert"), tmp_path / "part")
    weights = load_file(tmp_path / "part" / "model.safetensors")
    del weights["bert.encoder.layer.0.output.dense.weight"]
    save_file(weights, tmp_path / "part" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadCheckpoint, match="1 weights of the model are not in it"):
        prunectl.bench(tmp_path / "part", settings=FORWARD)


# --- results beside older ones ------------------------------------------------------------------


def saved(result: BenchResult, path: Path) -> Path:
    path.write_text(json.dumps(result.to_json()), encoding="utf-8")
    return path


def test_a_result_beside_itself_has_not_changed(demo_result: BenchResult, tmp_path: Path) -> None:
    path = saved(demo_result, tmp_path / "old.json")
    found = compare_bench(read_bench(path), path, demo_result)
    assert len(found.changes) == len(demo_result.runs)
    assert {one.against.ratio for one in found.changes} == {1.0}
    assert not found.missing
    assert not found.differences
    assert not found.below(0.99)


def test_what_got_slower_and_what_else_differs_is_said(
    demo_result: BenchResult, tmp_path: Path
) -> None:
    runs = [replace(one, samples=(1.0,) * 7) for one in demo_result.runs]
    path = saved(replace(demo_result, runs=tuple(runs)), tmp_path / "old.json")
    new = replace(
        demo_result,
        runs=(replace(runs[0], samples=(3.0,) * 7), *runs[1:-1]),
        machine=replace(demo_result.machine, threads=64),
        inputs="the text's tokens",
    )
    found = compare_bench(read_bench(path), path, new)
    assert found.missing == 1
    assert [one.against.ratio for one in found.changes] == pytest.approx([1 / 3, 1, 1])
    assert [(one.side, one.phase) for one in found.below(0.95)] == [("demo", "prefill")]
    assert not found.below(0.3)
    assert found.differences == (
        "threads was 1 and is 64",
        "inputs were random tokens and are the text's tokens",
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "No such file"),
        ("{", "is not JSON"),
        ("[]", "is no result of schema"),
        ('{"schema": "prunectl.prune/1"}', "is no result of schema"),
        ('{"schema": "prunectl.bench/1"}', "is damaged: runs is missing"),
        ('{"schema": "prunectl.bench/1", "runs": [3]}', "is damaged: runs.0. is not an object"),
        (
            '{"schema": "prunectl.bench/1", "runs": [{"workload": "", "phase": "", "side": "", '
            '"samples": ["x"]}]}',
            r"is damaged: runs.0..samples.0. is not a number",
        ),
    ],
)
def test_files_that_are_no_results(
    demo_result: BenchResult, tmp_path: Path, text: str | None, why: str
) -> None:
    path = tmp_path / "old.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(BadBenchFile, match=why):
        compare_bench(read_bench(path), path, demo_result)


def test_samples_that_are_none(demo_result: BenchResult, tmp_path: Path) -> None:
    path = saved(demo_result, tmp_path / "old.json")
    document = json.loads(path.read_bytes())
    for samples in (
        [math.nan],
        [math.inf],
        [0.0],
        [-1],
        "12",
        [10**400],
        [True],
        ["x"],
        [1] * 10_001,
    ):
        document["runs"][0]["samples"] = samples
        path.write_text(json.dumps(document), encoding="utf-8")
        with pytest.raises(BadBenchFile, match="is damaged"):
            compare_bench(read_bench(path), path, demo_result)


def test_another_device_or_no_common_row_decides_nothing(
    demo_result: BenchResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "old.json"
    machine = replace(demo_result.machine, name="\x1b[2JEVIL")
    renamed = tuple(replace(one, side="x") for one in demo_result.runs)
    for old in (replace(demo_result, machine=machine), replace(demo_result, runs=renamed)):
        document = read_bench(saved(old, path))
        _show(demo_result, Output(), document, path, None)
        assert "\x1b" not in capsys.readouterr().out
        with pytest.raises(BadBenchFile, match="--fail-below cannot decide"):
            _show(demo_result, Output(), document, path, 0.5)


def test_the_rows_bench_csv(demo_result: BenchResult) -> None:
    rows = list(csv.DictReader(StringIO(bench_csv(demo_result))))
    assert len(rows) == len(demo_result.runs)
    for row, one in zip(rows, demo_result.runs, strict=True):
        assert (row["side"], row["phase"], row["batch"]) == (one.side, one.phase, "1")
        assert float(row["median_s"]) == one.seconds.median
        assert row["ratio"] == ("" if one.against is None else str(one.against.ratio))


# --- the command --------------------------------------------------------------------------------

ARGS = ["--batch-size", "1", "--prompt-tokens", "8", "--new-tokens", "2", "--seconds", "0.1",
        "--threads", "1", "--no-load"]  # fmt: skip


def test_the_command_prints_the_verdict_and_one_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["bench", "demo", *ARGS, "-o", "b.json", "--csv", "b.csv"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[2].startswith("demo, 2:4: ")
    (header,) = [line for line in lines if "speed to A" in line]
    assert " ".join(header.split()) == "batch phase median cv tok/s speed to A limit"
    assert "1 x 8+2" in out
    assert max(map(len, lines)) <= 80
    assert "timing batch 1, 8 + 2 tokens" in err
    assert json.loads(Path("b.json").read_bytes())["schema"] == "prunectl.bench/1"
    assert Path("b.csv").read_text(encoding="utf-8").startswith("workload,batch,")
    compared = ["bench", "demo", *ARGS, "--compare", "b.json", "--json"]
    assert run([*compared, "--fail-below", "0.0001"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["comparison"]["changes"]) == 4
    assert run([*compared, "--fail-below", "10000"]) == 1
    assert "error: slower than 10000x of before: demo, batch 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["demo", "--batch-size", "1,x"], "--batch-size '1,x' is no list of whole numbers"),
        (["demo", "--fail-below", "0.9"], "--fail-below needs a result"),
        (["demo", "--random-weights", "llama-7b"], "exclude each other"),
        (["demo", "--text", "absent.txt"], "--text absent.txt: No such file"),
        (["demo", "--pattern", "4:2"], "pattern '4:2' is not valid"),
        (["demo", "--compare", "absent.json"], "absent.json: No such file"),
        (["demo", "--rounds", "2"], "--rounds 2 is too few"),
        (["demo", "--compare", "x", "--fail-below", "nan"], "must be a number above 0"),
        (["demo", "--compare", "x", "--fail-below", "-1"], "--fail-below must be a number above 0"),
        (["demo", "-o", "x.json", "--csv", "./x.json"], "x.json is given for two files"),
        (["demo", "--text", "empty.txt"], "--text empty.txt: it holds no words"),
        (["demo", "--threads", "100000000"], "--threads 100000000: this machine has"),
    ],
)
def test_usage_errors_come_before_the_work(
    args: list[str],
    complaint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text(" \n", encoding="utf-8")
    assert run(["bench", *args]) == 2
    out, err = capsys.readouterr()
    assert complaint in err
    assert not out


def test_outputs_that_differ_fail_the_run(
    demo_result: BenchResult, capsys: pytest.CaptureFixture[str]
) -> None:
    import typer

    bad = replace(demo_result, agreements=(Agreement("demo, 2:4", "demo", 3.0, 0.5, 0.05),))
    with pytest.raises(typer.Exit) as caught:
        _show(bad, Output(), None, None, None)
    assert caught.value.exit_code == 3
    out, err = capsys.readouterr()
    assert "Outputs of B and A DIFFER: relative error 0.500 (allowed 0.0500)" in out
    assert "do not trust these speeds" in err
    assert not bad.to_json()["ok"]


def test_every_field_is_on_the_screen_with_v(demo_result: BenchResult) -> None:
    from prunectl.cli.output import screen

    row = KernelRow((192, 512), 12, 1.0, 8, "CUTLASS", 2e-5, 1e-5, Ratio(2, 1.9, 2.1), True, 0.0)
    lost = replace(row, batch=1, against=Ratio(0.5, 0.4, 0.6), chosen=False)
    none = KernelRow((5, 7), 1, 0.5, 0, "", 0.0, 0.0, None, False, 0.0, "no kernel runs")
    full = replace(
        demo_result, kernels=(lost, row, none), skipped=(Skipped("batch 9", "out of memory"),),
        notes=("something changed",), compile="default",
    )  # fmt: skip
    text = StringIO()
    console = screen(text)
    for part in bench_screen(full, everything=True):
        console.print(part)
    for words in ("192 x 512", "CUTLASS", "2.00x (1.90-2.10)", "no kernel runs", "compile",
                  "192 x 512: the sparse kernel wins from 8 input rows on",
                  "5 x 7: the sparse kernel wins at none of these", "p10 to p90",
                  "Left out: batch 9: out of memory.", "Note: something changed.",
                  "torch 2"):  # fmt: skip
        assert words in text.getvalue(), words


def test_outputs_are_compared_as_the_model_gives_them() -> None:
    for name, kind in (("llama", Kind.CAUSAL_LM), ("bart", Kind.SEQ2SEQ), ("bert", Kind.ENCODER)):
        model = tiny_models.make(name).requires_grad_(False)
        found = outputs_of(model, kind, torch.ones(2, 6, dtype=torch.int64))
        assert found.dtype == torch.float32
        assert found.shape == {"llama": (2, 1, 61), "bart": (2, 1, 61), "bert": (2, 6, 61)}[name]


# --- benchmarks/gpu.py --------------------------------------------------------------------------


@pytest.mark.full
def test_the_benchmark_for_gpus_runs_on_what_there_is(
    tiny: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--random-weights", str(tiny("llama")), "--device", "cpu", "--batch-size", "1", "2",
            "--prompt-tokens", "8", "--new-tokens", "3", "--seconds", "0.1"]  # fmt: skip
    assert gpu.main([*args, "-o", str(tmp_path / "gpu.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| batch ") for line in lines) == 8
    assert json.loads((tmp_path / "gpu.json").read_bytes())["kind"] == "causal-lm"
    if not torch.cuda.is_available():
        assert gpu.main([]) == 2
        assert "sees no CUDA device" in capsys.readouterr().err


@pytest.mark.full
def test_it_times_magnitude_work_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("of another command")
    args = ["--magnitude", str(tmp_path), "--size-gb", "0.01", "--rounds", "1"]
    assert gpu.main([*args, "--device", "cpu", "-o", str(tmp_path / "gpu.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("| yes |") for line in lines] == [False, False, *[True] * len(gpu.JOBS)]
    rows = json.loads((tmp_path / "gpu.json").read_bytes())
    assert [row["job"] for row in rows] == list(gpu.JOBS)
    assert (tmp_path / "out" / "mine").exists()
    assert {one.name for one in tmp_path.iterdir()} == {"gpu.json", "llama-0.01gb-bf16", "out"}
    if not torch.cuda.is_available():
        assert gpu.main(args) == 2
        assert "sees no CUDA device" in capsys.readouterr().err
