"""Compressed execution: kernels and forms against plain torch, and models that run from them."""

from __future__ import annotations

import copy
import io
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
import tiny_models
import tiny_tokenizers
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from llvmlite import ir
from rich.console import Console
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

import prunectl
from prunectl import NM, PruneSettings, export, load_model, prune
from prunectl.benchmarking import limits
from prunectl.benchmarking.settings import BenchSettings
from prunectl.cli import run as cli
from prunectl.cli.bench_screen import bench_screen
from prunectl.errors import BadCheckpoint, InvalidOption, UnsupportedCheckpoint
from prunectl.loading.compressed import open_model, stored_layouts
from prunectl.output.parts import METADATA_KEY
from prunectl.runtime import choice, kernels, matrix, operators, selection
from prunectl.runtime.forms import FORMS, compress, reason_against
from prunectl.runtime.instructions import INSTRUCTION_SETS, usable
from prunectl.runtime.models import weights_of
from prunectl.runtime.weight import CompressedWeight

SETS = usable()
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def made(
    rows: int, columns: int, share: float | str, dtype: torch.dtype, seed: int
) -> torch.Tensor:
    """Weights with a share of zeros, or 2:4, and with every kind of special value."""
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(rows, columns, generator=generator) * 0.02).to(dtype)
    if share == "2:4":
        order = torch.rand(rows, -(-columns // 4), 4, generator=generator).argsort(dim=2)
        weight[order.reshape(rows, -1)[:, :columns] < 2] = 0
    else:
        weight[torch.rand(rows, columns, generator=generator) < share] = 0
    special = torch.tensor([-0.0, 1e-40, 6e-8, -300.0, 1e-20, 65000.0]).to(dtype)
    places = torch.randperm(weight.numel(), generator=generator)[: len(special)]
    if share != "2:4":
        weight.view(-1)[places] = special[: len(places)]
    return weight


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 200),
    share=st.sampled_from([0.0, 0.05, 0.4, 0.9, 1.0, "2:4"]),
    dtype=st.sampled_from(DTYPES),
    form=st.sampled_from(list(FORMS)),
    name=st.sampled_from(SETS),
    count=st.sampled_from([1, 2, 3, 5, 6, 7, 8, 9, 40]),
    seed=st.integers(0, 99),
)
def test_a_form_holds_the_same_bits_and_multiplies_as_torch_does(
    rows, columns, share, dtype, form, name, count, seed
):
    weight = made(rows, columns, share, dtype, seed)
    matrix = compress(weight, form, name)
    assert torch.equal(bits(matrix.dense()), bits(weight))
    order = np.random.default_rng(seed).integers(0, rows, 5)
    assert torch.equal(bits(matrix.decoded(order)), bits(weight[torch.from_numpy(order)]))

    generator = torch.Generator().manual_seed(seed + 1)
    inputs = torch.randn(count, columns, generator=generator).to(dtype)
    bias = torch.randn(rows, generator=generator).to(dtype)
    exact = functional.linear(inputs.double(), weight.double(), bias.double())
    # each product is rounded once per term in fp32, and the sum once in the dtype
    terms = functional.linear(inputs.double().abs(), weight.double().abs(), bias.double().abs())
    allowed = terms * 2e-6 + exact.abs() * torch.finfo(dtype).eps + torch.finfo(dtype).tiny
    found = matrix.product(inputs, bias).double()
    finite = exact.abs() < torch.finfo(dtype).max
    assert ((found - exact).abs() <= allowed)[finite].all()


@pytest.mark.parametrize("form", FORMS)
def test_inf_and_nan_reach_the_result_as_in_a_dense_product(form: str) -> None:
    weight = made(7, 65, 0.5, torch.bfloat16, 0).clamp(-1, 1)
    weight[1, 3], weight[2, 4] = float("inf"), float("nan")
    inputs = torch.randn(2, 65).to(torch.bfloat16)
    inputs[1, 5] = float("inf")  # times a pruned zero gives NaN, as in a dense product
    dense = functional.linear(inputs.float(), weight.float())
    found = compress(weight, form, SETS[0]).product(inputs, None).float()
    assert torch.equal(found.isnan(), dense.isnan())
    assert torch.equal(found.isinf(), dense.isinf())


@pytest.mark.parametrize("dtype", DTYPES)
def test_panels_are_put_together(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """150 rows in panels of 64: the last one is short."""
    monkeypatch.setattr(matrix, "_PANEL", 1)
    monkeypatch.setattr(matrix, "_NARROW_PANEL", 1)
    weight = made(150, 70, 0.4, dtype, 2).clamp(-1, 1)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(3, 5, 70, generator=generator).to(dtype)
    bias = torch.randn(150, generator=generator).to(dtype)
    found = compress(weight, "coded", SETS[0]).product(inputs, bias)
    expected = functional.linear(inputs.double(), weight.double(), bias.double())
    torch.testing.assert_close(found, expected.to(dtype), rtol=0.02, atol=0.02)


def test_python_threads_share_a_matrix() -> None:
    weight = made(300, 640, 0.4, torch.bfloat16, 1)
    held = compress(weight, "coded", SETS[0])
    inputs = [torch.randn(count, 640).to(torch.bfloat16) for count in (1, 4, 20, 2, 33, 8) * 4]
    alone = [held.product(one, None) for one in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda one: held.product(one, None), inputs))
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(alone, together, strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_kernels_run_in_the_pool_of_torch_and_in_no_other() -> None:
    """sentencepiece brings an OpenMP library of its own; two pools would wait for each other."""
    code = """
import ctypes, sentencepiece, torch
from prunectl.runtime import pool
address = ctypes.cast(pool._openmp(), ctypes.c_void_p).value
for line in open("/proc/self/maps"):
    first, last = (int(one, 16) for one in line.split()[0].split("-"))
    if first <= address < last:
        print(line.split()[-1])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert Path(ran.stdout.strip()).is_relative_to(Path(torch.__file__).parent)


def test_a_result_does_not_depend_on_the_number_of_threads() -> None:
    weight = made(700, 640, 0.4, torch.bfloat16, 1)
    inputs = torch.randn(3, 640).to(torch.bfloat16)
    before = torch.get_num_threads()
    try:
        for form in FORMS:
            matrix = compress(weight, form, SETS[0])
            found = []
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                found.append(matrix.product(inputs, None))
            assert torch.equal(found[0], found[1])
            assert torch.equal(found[0], found[2])
    finally:
        torch.set_num_threads(before)


def test_sizes_are_those_of_the_documentation() -> None:
    weight = torch.randn(256, 4096).mul(0.02).to(torch.bfloat16)
    zeros = torch.rand(256, 4096) < 0.4
    pruned = weight.masked_fill(zeros, 0)
    share = {
        (form, name): compress(one, form, SETS[0]).nbytes / weight.nbytes
        for form in FORMS
        for name, one in (("pruned", pruned), ("dense", weight))
    }
    assert share["bitmask", "pruned"] == pytest.approx(0.663, abs=0.01)
    assert share["coded", "pruned"] == pytest.approx(0.514, abs=0.01)
    assert share["coded", "dense"] == pytest.approx(0.751, abs=0.01)
    regular = made(64, 4096, "2:4", torch.bfloat16, 0)
    regular[3][regular[3].nonzero()[5]] = 0  # a zero among the kept weights of a group
    found = compress(regular, "nm", SETS[0])
    assert found.form == "nm"
    assert found.nbytes / regular.nbytes == pytest.approx(0.5625, abs=0.001)
    assert torch.equal(found.dense(), regular)
    assert compress(pruned, "nm", SETS[0]).form == "bitmask"


def test_weights_that_no_kernel_takes_are_named_with_a_reason() -> None:
    assert reason_against(torch.zeros(3)) == "it is not a matrix"
    assert reason_against(torch.zeros(0, 3)) == "it is not a matrix"
    assert reason_against(torch.zeros(3, 3, dtype=torch.float64)) == "float64 has no kernel"
    assert "meta" in reason_against(torch.zeros(3, 3, device="meta"))
    assert not reason_against(torch.zeros(3, 3))


@pytest.mark.parametrize(
    ("name", "triple", "cpu", "words"),
    [
        ("avx512", "x86_64-unknown-linux-gnu", "icelake-server", ("vpexpandw", "vpexpandd")),
        ("avx2", "x86_64-unknown-linux-gnu", "haswell", ("vpshufb", "vperm")),
        ("neon", "aarch64-unknown-linux-gnu", "neoverse-n1", ("tbl",)),
        ("plain", "riscv64-unknown-linux-gnu", "generic-rv64", ()),
    ],
)
def test_every_instruction_set_compiles_to_its_instructions(name, triple, cpu, words):
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3)
    code = ""
    for dtype, is_coded in (("bf16", True), ("fp16", False), ("fp32", False)):
        for batch in (0, 8):
            module = ir.Module("test")
            kernel = kernels.Kernel(name, dtype, True, is_coded, batch)
            kernels._Writer(kernel, module).write()
            parsed = llvm.parse_assembly(str(module))
            parsed.verify()
            code += machine.emit_assembly(parsed)
    assert [word for word in words if word not in code] == []


def test_the_instruction_set_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = selection.instructions.__wrapped__
    assert chosen() in SETS
    monkeypatch.setenv(selection.VARIABLE, "plain")
    assert chosen() == "plain"
    monkeypatch.setenv(selection.VARIABLE, "mmx")
    with pytest.raises(InvalidOption, match="'mmx' is not known"):
        chosen()
    missing = next(name for name in INSTRUCTION_SETS if name not in SETS)
    monkeypatch.setenv(selection.VARIABLE, missing)
    with pytest.raises(InvalidOption, match=f"this CPU has no {missing}"):
        chosen()


def test_an_unknown_instruction_set_is_refused_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """transformers would report a conversion that failed instead."""
    monkeypatch.setenv(selection.VARIABLE, "mmx")
    selection.instructions.cache_clear()
    try:
        with pytest.raises(InvalidOption, match="'mmx' is not known"):
            load_model("demo", execution="compressed")
    finally:
        selection.instructions.cache_clear()


def test_instructions_that_no_test_has_run_are_checked_before_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert all(selection.is_right(name) for name in SETS)
    # a wrong one: an expansion that gives every lane 0
    broken = copy.copy(INSTRUCTION_SETS["plain"])
    wrong = type(broken)(
        lanes=8,
        needs=(),
        expand16=lambda emitted, mask, pointer: ir.Constant(
            ir.VectorType(ir.IntType(16), 8), [0] * 8
        ),
        expand32=lambda emitted, mask, pointer: ir.Constant(
            ir.VectorType(ir.IntType(32), 8), [0] * 8
        ),
        lookup=broken.lookup,
    )
    monkeypatch.setitem(INSTRUCTION_SETS, "wrong", wrong)
    assert not selection.is_right("wrong")


def halved(rows: int, columns: int) -> tuple[torch.nn.Linear, torch.nn.Linear]:
    """A linear layer with half of its weights 0, dense and compressed."""
    layer = torch.nn.Linear(columns, rows)
    layer.weight.data = made(rows, columns, 0.5, torch.float32, 0).clamp(-1, 1)
    layer.requires_grad_(False)
    return copy.deepcopy(layer), prunectl.compress_model(layer)


def test_only_inputs_and_biases_of_the_right_size_reach_a_kernel() -> None:
    dense, small = halved(48, 32)
    given = torch.randn(3, 32)
    for bias in (torch.randn(96)[::2], torch.ones(1), torch.randn(3, 48)):
        found, expected = (functional.linear(given, one.weight, bias) for one in (small, dense))
        assert torch.allclose(found, expected, atol=1e-4)
    both = functional.linear(small.weight, small.weight)
    assert torch.allclose(both, functional.linear(dense.weight, dense.weight), atol=1e-4)
    for columns in (64, 16):
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            small(torch.randn(1, columns))
    with pytest.raises(RuntimeError, match="existing size"):
        functional.linear(given, small.weight, torch.ones(5))


def test_default_dtype_and_device_of_torch_do_not_reach_a_kernel() -> None:
    dense, small = halved(48, 32)
    given = torch.randn(20, 32)
    try:
        torch.set_default_dtype(torch.bfloat16)
        matrix._nothing.cache_clear()
        assert matrix._nothing().dtype == torch.float32
        with torch.device("meta"):
            assert torch.equal(small.weight.decoded(), dense.weight)
            assert torch.allclose(small(given), dense(given), atol=1e-4)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*jit:DeprecationWarning")
def test_other_tracers_record_a_product_too() -> None:
    _, small = halved(48, 32)
    given = torch.randn(3, 32)
    traced = torch.jit.trace(small, (given,), check_trace=False)
    recorded = make_fx(lambda one: small(one))(given)
    assert torch.equal(traced(given * 2), small(given * 2))
    assert torch.equal(recorded(given * 2), small(given * 2))
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:  # without memory
        assert small(fake.from_tensor(given)).shape == (3, 48)
    with pytest.raises(UnsupportedCheckpoint, match="names a compressed weight that is not in"):
        operators.held(0)


# Models.

Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """From an architecture to a folder of it with 40% zeros in bf16."""
    folder = tmp_path_factory.mktemp("pruned")

    def get(name: str) -> Path:
        if not (folder / name).exists():
            tiny_models.build(name, folder / f"{name}-source", torch.bfloat16)
            prune(folder / f"{name}-source", folder / name, PruneSettings(sparsity=0.4))
        return folder / name

    return get


def outputs(model: torch.nn.Module, rows: int = 1) -> torch.Tensor:
    if model.config.model_type in ("vit", "dinov2"):
        inputs = {"pixel_values": torch.rand(rows, 3, 16, 16).to(model.dtype)}
    else:
        inputs = {"input_ids": torch.arange(1, 1 + 9 * rows).reshape(rows, 9) % 60}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    torch.manual_seed(0)
    with torch.inference_mode():
        return model(**inputs)[0].float()


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "bert", "t5_gated", "mixtral", "gpt_oss", "vit", "opt"]
)
def test_a_model_runs_from_compressed_weights_and_saves_what_it_was_loaded_from(
    name: str, pruned: Made, tmp_path: Path
) -> None:
    folder = pruned(name)
    dense = load_model(folder)
    small = load_model(folder, execution="compressed")
    held = weights_of(small)
    assert held
    dense_weights = dict(dense.named_parameters())
    for key, weight in held.items():
        assert torch.equal(bits(weight.decoded()), bits(dense_weights[key]))
        assert weight.held_bytes < dense_weights[key].nbytes
    torch.manual_seed(0)
    expected = outputs(dense)
    torch.manual_seed(0)
    assert outputs(small) == pytest.approx(expected, abs=0.03 * expected.abs().max().item())
    small.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved/config.json").read_text())
    again = load_model(tmp_path / "saved")
    for key, value in again.state_dict().items():
        assert torch.equal(bits(value), bits(dense.state_dict()[key])), key


@pytest.mark.parametrize("layout", ["bitmask", "packed"])
def test_transformers_takes_an_execution_for_compressed_and_dense_folders(
    layout: str, pruned: Made, tmp_path: Path
) -> None:
    export(pruned("llama"), tmp_path / "small", layout)
    for folder in (pruned("llama"), tmp_path / "small"):
        config = prunectl.Compressed(execution="compressed")
        warned = pytest.warns(UserWarning, match="quantization_config")
        with warned if folder.parent == tmp_path else nullcontext():
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, quantization_config=config
            )
        assert model.lm_head.weight is model.model.embed_tokens.weight  # tied, held once
        assert len(weights_of(model)) == 15
        assert not hasattr(model.config, "quantization_config")
    with pytest.raises(InvalidOption, match="execution 'fast' is not known"):
        prunectl.Compressed(execution="fast")
    with pytest.raises(InvalidOption, match="execution 'fast' is not known"):
        load_model(pruned("llama"), execution="fast")


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_weights_of_a_bitmask_folder_stay_in_its_file(
    name: str, pruned: Made, tmp_path: Path
) -> None:
    export(pruned(name), tmp_path / "small", "bitmask")
    dense, small = load_model(pruned(name)), load_model(tmp_path / "small", execution="compressed")
    mapped = set()
    for key, weight in weights_of(small).items():
        assert torch.equal(bits(weight.decoded()), bits(dense.get_parameter(key)))
        if weight.dim() == 3:
            continue
        values = weight.matrix.values.data
        while values.base is not None and not isinstance(values, np.memmap):
            values = values.base
        if isinstance(values, np.memmap):
            mapped.add(key)
    layouts = stored_layouts(open_model(tmp_path / "small"))
    stored = {
        key
        for key, weight in weights_of(small).items()
        if weight.dim() == 2 and layouts[key][0] == "bitmask" and weight.shape[1] % 32 == 0
    }
    assert stored
    assert mapped == (set() if name == "gpt2" else stored)  # a Conv1D's rows are its outputs
    wide = load_model(tmp_path / "small", execution="compressed", dtype=torch.float32)
    assert {one.dtype for one in wide.parameters()} == {torch.float32}
    assert type(load_model(tmp_path / "small").lm_head.weight) is torch.nn.Parameter


@pytest.mark.parametrize("layout", ["packed", "bitmask"])
def test_a_damaged_part_ends_at_loading_with_the_name_of_the_tensor(
    layout: str, pruned: Made, tmp_path: Path
) -> None:
    export(pruned("llama"), tmp_path / "small", layout)
    (file,) = (tmp_path / "small").glob("*.safetensors*")
    data = bytearray(file.read_bytes())
    place = -300
    if layout == "bitmask":  # mapped: its masks are counted, and no hash is computed
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        begin, _ = header["model.layers.0.mlp.up_proj.weight.mask"]["data_offsets"]
        place = 8 + int.from_bytes(data[:8], "little") + begin
    data[place] ^= 0x10
    file.write_bytes(data)
    with pytest.raises(BadCheckpoint, match="tensor 'model"):
        load_model(tmp_path / "small", execution="compressed")


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"parts": ["mask"]}, "'values' is missing"), ({"shape": [1, 1536]}, "needs \\[48, 32\\]")],
)
def test_a_header_that_does_not_fit_the_model_ends_at_loading(changed, words, pruned, tmp_path):
    export(pruned("llama"), tmp_path / "small", "bitmask")
    (tmp_path / "small/prunectl.json").unlink()  # which names every shape
    file = tmp_path / "small/model.prunectl.safetensors"
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    described = json.loads(header["__metadata__"][METADATA_KEY])
    described["tensors"]["model.layers.0.mlp.up_proj.weight"] |= changed
    header["__metadata__"][METADATA_KEY] = json.dumps(described)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[start:])
    with pytest.raises(BadCheckpoint, match=words):
        load_model(tmp_path / "small", execution="compressed")


def test_what_a_compressed_model_cannot_do_is_said_in_a_sentence(pruned: Made) -> None:
    model = load_model(pruned("llama"), execution="compressed")
    weight = model.model.layers[0].mlp.up_proj.weight
    for action, words in (
        (lambda: model.to("meta"), "stays on the CPU and cannot move to meta"),
        (lambda: model.to(torch.float32), "cannot become torch.float32"),
        (lambda: weight.mul_(2), "cannot be changed in place"),
        (model.share_memory, "cannot be shared between processes"),
        (lambda: load_model(pruned("llama"), execution="compressed", device_map="meta"), "CPU"),
    ):
        with pytest.raises(UnsupportedCheckpoint, match=words):
            action()
    with pytest.raises(ValueError, match="half"):  # transformers' own words
        model.half()
    inputs = torch.randn(1, 32, dtype=torch.bfloat16, requires_grad=True)
    with pytest.raises(UnsupportedCheckpoint, match="has no backward pass"):
        model.model.layers[0].mlp.up_proj(inputs).sum().backward()
    with pytest.raises(UnsupportedCheckpoint, match="cannot be pickled"):
        torch.save(model.state_dict(), io.BytesIO())
    with pytest.raises(IndexError):
        functional.embedding(torch.tensor([61]), model.model.embed_tokens.weight)
    with pytest.raises(RuntimeError, match="inputs are"):
        functional.linear(torch.randn(1, 32), weight)
    assert torch.equal((weight != 0).sum(), (weight.decoded() != 0).sum())
    load_model(pruned("llama")).load_state_dict(model.state_dict())  # written to dense ones
    assert isinstance(copy.deepcopy(model).lm_head.weight, CompressedWeight)


def test_compile_and_export_see_one_operator_for_each_product(pruned: Made) -> None:
    layer = torch.nn.Sequential(
        torch.nn.Embedding(50, 64), torch.nn.Linear(64, 96), torch.nn.Linear(96, 64, bias=False)
    ).to(torch.bfloat16)
    for parameter in layer.parameters():
        parameter.data[parameter.abs() < 0.05] = 0
    places = torch.arange(6).reshape(2, 3)
    expected = layer(places)
    prunectl.compress_model(layer)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(places), layer(places))
    assert torch.allclose(compiled(places), expected, rtol=0.02)
    with pytest.raises(UnsupportedCheckpoint, match="has no backward pass"):
        compiled(places).sum().backward()
    graph = torch.export.export(layer, (places,), strict=True)
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert called == ["prunectl.rows.default", *["prunectl.product.default"] * 2]
    assert torch.equal(graph.module()(places), layer(places))

    # Other operations decode, in graphs of their own.
    weight = layer[2].weight
    functions: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda given: given @ weight.T + weight.sum(),
        lambda given: torch.mm(given, weight.t()) * weight[3].sum(),
    ]
    given = torch.randn(64, 96).to(torch.bfloat16)
    for one in functions:
        torch.compiler.reset()
        assert torch.equal(torch.compile(one, backend="aot_eager")(given), one(given))

    model = load_model(pruned("llama"), execution="compressed")
    whole = torch.compile(model, backend="aot_eager", fullgraph=True)
    ids = torch.arange(1, 10)[None]
    with torch.inference_mode():
        found, plain = (one(ids, use_cache=False).logits for one in (whole, model))
    assert torch.allclose(found, plain, rtol=0.05, atol=0.05)


def test_auto_keeps_the_smallest_form_that_was_measured_not_to_be_slower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = made(64, 96, 0.5, torch.bfloat16, 3)
    choice._known.cache_clear()
    measured = []

    def seconds(sides):
        measured.append(len(sides))
        return [1.0, 0.9, 2.0][: len(sides)]  # torch, the smallest form, the next

    monkeypatch.setattr(choice, "_seconds", seconds)
    smallest = min((compress(weight, form, SETS[0]) for form in FORMS), key=lambda one: one.nbytes)
    assert choice.kept(weight, "auto").form == smallest.form
    choice._known.cache_clear()  # another process: it is read from the cache
    assert choice.kept(weight.clone(), "auto").form == smallest.form
    assert measured == [3]
    monkeypatch.setattr(choice, "_seconds", lambda sides: [1.0, 2.0, 2.0])
    assert choice.kept(made(32, 96, 0.5, torch.bfloat16, 3), "auto") is None
    assert choice.kept(torch.ones(32, 32), "compressed") is None  # no form is smaller
    choice._known.cache_clear()


def test_what_auto_measures_is_a_time_for_each_form() -> None:
    weight = made(64, 64, 0.5, torch.bfloat16, 4)
    sides = [choice._dense_copies(weight), choice._copies(compress(weight, "bitmask", SETS[0]))]
    assert all(0 < taken < 60 for taken in choice._seconds(sides))


# Commands.


def test_generate_writes_the_same_text_from_every_execution(
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = []
    for execution in ("dense", "compressed"):
        arguments = ["generate", "demo", "The tree", "--max-new-tokens", "8", "--json"]
        assert cli.run([*arguments, "--execution", execution]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["tokens"] == 8
        assert document["execution"] == execution
        assert (document["compressed"] > 0) == (execution == "compressed")
        texts.append(document["text"])
    assert texts[0] == texts[1]
    assert cli.run(["generate", "demo", "The tree", "--max-new-tokens", "8"]) == 0
    shown = capsys.readouterr()
    assert shown.out == texts[0] + "\n"
    assert "8 tokens: the first after" in shown.err


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["demo", "x", "--execution", "fast"], "execution 'fast' is not known", 2),
        (["demo", ""], "the prompt holds no tokens", 2),
        (["{bert}", "x"], "generates no text", 1),
        (["{llama}", "x"], "has none", 1),
    ],
)
def test_generate_says_what_it_cannot_do(arguments, words, code, pruned, capsys):
    tiny_tokenizers.save(pruned("bert"))
    filled = [one.format(bert=pruned("bert"), llama=pruned("llama")) for one in arguments]
    assert cli.run(["generate", *filled]) == code
    assert words in capsys.readouterr().err


def test_bench_compares_a_compressed_folder_with_its_own_dense_execution(
    pruned: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(limits._SQUARE, "cpu", 64)  # the machine's rate matters to no assertion
    export(pruned("mixtral"), tmp_path / "small", "packed")
    settings = BenchSettings(
        batch_sizes=(1,),
        prompt_tokens=(4,),
        new_tokens=2,
        rounds=7,
        seconds=0.5,
        measure_loading=False,
        execution="compressed",
    )
    result = prunectl.bench(tmp_path / "small", settings=settings)
    dense, small = result.sides
    assert [dense.label, small.label] == ["small, dense", "small, compressed"]
    assert [dense.kernels, small.kernels] == ["dense", "compressed"]
    assert small.weight_bytes < dense.weight_bytes
    assert small.zeros == dense.zeros
    assert small.converted == sum(small.forms.values()) > 0
    router = "model.layers.0.mlp.gate.weight"
    assert small.kept_dense == dict.fromkeys(
        (router, router.replace("0", "1")),
        "it is no matrix of a linear layer, an embedding or experts",
    )
    screen = Console(width=200, record=True, file=io.StringIO())
    screen.print(*bench_screen(result, everything=True))
    assert f"B dense: {router}: it is no matrix" in screen.export_text()


def test_evaluate_scores_compressed_weights_as_dense_ones() -> None:
    settings = prunectl.EvalSettings(samples=2)
    dense = prunectl.evaluate("demo", settings)
    small = prunectl.evaluate("demo", settings, execution="compressed")
    assert small.score == pytest.approx(dense.score, rel=1e-4)
    with pytest.raises(InvalidOption, match="execution 'fast' is not known"):
        prunectl.evaluate("demo", settings, execution="fast")


@pytest.mark.real
@pytest.mark.full
def test_smollm2_writes_the_same_200_tokens_in_fp32(real_model: Callable[[str], Path], tmp_path):
    prune(real_model("smollm2"), tmp_path / "pruned", PruneSettings(pattern=NM(2, 4)))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "pruned")
    ids = tokenizer("The history of the city", return_tensors="pt").input_ids
    found = []
    for execution in ("dense", "compressed"):
        model = load_model(tmp_path / "pruned", dtype=torch.float32, execution=execution)
        with torch.inference_mode():
            found.append(model.generate(ids, max_new_tokens=200, do_sample=False))
    assert weights_of(model)
    assert torch.equal(*found)
