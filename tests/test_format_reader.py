"""docs/format.md suffices to read compressed folders: its reader reads them, its examples hold.

The reader runs where numpy, safetensors and zstandard can be imported, and nothing else.
"""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import export_cases as cases
import layouts_shipped as shipped
import numpy as np
import pytest
import safetensors
import tiny_models
import torch
import zstandard
from docs_pages import blocks_of
from full import few
from layouts_reference import Part

from prunectl import NM, PruneSettings, export, prune
from prunectl.layouts.nm import to_cutlass
from prunectl.layouts.packing.chunks import encode_chunk
from prunectl.layouts.packing.planes import expanded
from prunectl.layouts.packing.scheme import read_scheme
from prunectl.layouts.parts import code_type
from prunectl.layouts.table import LAYOUTS
from prunectl.tensorspec import DTYPES

RealModel = Callable[[str], Path]

DOCS = Path(__file__).parents[1] / "docs"
READER = DOCS / "reader.py"
MAX_LINES = 80

PRUNINGS = {"40%": PruneSettings(sparsity=0.4), "2:4": PruneSettings(pattern=NM(2, 4))}

LIBRARIES = ("numpy", "numpy.libs", "safetensors", "zstandard")
ALONE = """
import importlib.util, runpy, sys
sys.path.insert(0, sys.argv[1])
assert not any(importlib.util.find_spec(name) for name in ("prunectl", "torch", "numba", "blake3"))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with links to what the reader may import."""
    folder = tmp_path_factory.mktemp("libraries")
    for package in (np, safetensors, zstandard):
        home = Path(str(package.__file__)).parents[1]
        for name in LIBRARIES:
            if (home / name).exists() and not (folder / name).exists():
                (folder / name).symlink_to(home / name)
    return folder


def read_alone(compressed: Path, libraries: Path) -> dict[str, np.ndarray]:
    """What the reader makes of a folder, in a process of its own without site-packages."""
    target = compressed / "read.npz"
    files = sorted(compressed.glob("*.prunectl.safetensors"))
    arguments = [str(path) for path in (libraries, READER, target, *files)]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error", "-c", ALONE, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(target) as arrays:
        return dict(arrays)


def extras(compressed: Path, key: str) -> set[Any]:
    """The values of one parameter, over all tensors that have it."""
    found = set()
    for path in compressed.glob("*.prunectl.safetensors"):
        described = cases.described(path).values()
        found |= {one["extra"][key] for one in described if key in one["extra"]}
    return found


def assert_reads(dense: Path, compressed: Path, libraries: Path) -> None:
    """The reader gives all tensors of ``dense``, bit for bit."""
    expected = cases.raw(dense)
    found = read_alone(compressed, libraries)
    assert found.keys() == expected.keys()
    for name, (dtype, shape, data) in expected.items():
        assert found[name].tobytes() == data, name
        if DTYPES[dtype].bits >= 8:
            assert found[name].shape == shape, name
            assert found[name].dtype == code_type(DTYPES[dtype]), name


# --- exports ------------------------------------------------------------------------------------


def test_the_reader_is_short() -> None:
    assert len(READER.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.real
@pytest.mark.parametrize(
    ("model", "pruning", "layout"),
    few(
        [
            ("minilm", "40%", "packed"),
            ("minilm", "2:4", "nm"),
            ("rxnmapper", "40%", "bitmask"),
            ("smollm2", "2:4", "packed"),
            ("smollm2", "2:4", "nm"),
        ],
        ("rxnmapper", "40%", "bitmask"),
    ),
)
def test_reads_real_models(
    model: str, pruning: str, layout: str, real_model: RealModel, libraries: Path, tmp_path: Path
) -> None:
    dense, compressed = tmp_path / "dense", tmp_path / "compressed"
    prune(real_model(model), dense, PRUNINGS[pruning])
    result = export(dense, compressed, layout)
    assert layout in {tensor.layout for tensor in result.tensors}
    if layout == "nm":
        assert extras(compressed, "order") == {"cutlass" if model == "smollm2" else "plain"}
    if layout == "packed":
        assert ("nm" in extras(compressed, "mask")) == (pruning == "2:4")
    assert_reads(dense, compressed, libraries)
    for folder in (dense, compressed):  # pytest keeps what is left, hundreds of megabytes
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("dtype", "pattern"),
    few(
        [
            ("bfloat16", NM(2, 4)),
            ("float16", NM(1, 2)),
            ("float32", NM(2, 4)),
            ("float32", NM(3, 8)),
            ("float64", NM(8, 16)),
        ]
    ),
    ids=str,
)
def test_reads_groups_along_axis_0(
    dtype: str, pattern: NM, libraries: Path, tmp_path: Path
) -> None:
    tiny_models.build("gpt2", tmp_path / "model", getattr(torch, dtype))
    prune(tmp_path / "model", tmp_path / "dense", PruneSettings(pattern=pattern))
    for layout in ("packed", "nm"):
        export(tmp_path / "dense", tmp_path / layout, layout, max_shard_size="20KB")
        assert len(list((tmp_path / layout).glob("*.prunectl.safetensors"))) > 1
        assert extras(tmp_path / layout, "axis") == {0}
        assert extras(tmp_path / layout, "m") == {pattern.m}
        assert_reads(tmp_path / "dense", tmp_path / layout, libraries)


@pytest.mark.parametrize("layout", few(["packed", "bitmask", "nm", "auto"], "packed"))
def test_reads_every_type_and_shape(layout: str, libraries: Path, tmp_path: Path) -> None:
    source = cases.save_raw(tmp_path / "source", cases.odd_tensors())
    export(source, tmp_path / "compressed", layout)
    assert_reads(source, tmp_path / "compressed", libraries)


# --- the page -----------------------------------------------------------------------------------


def examples(key: str) -> list[dict[str, Any]]:
    """The examples of the page that have a member of that name."""
    blocks = blocks_of((DOCS / "format.md").read_text(encoding="utf-8"))
    documents = [json.loads(block.text) for block in blocks if block.language == "json"]
    return [document for document in documents if key in document]


def parts_of(example: dict[str, Any]) -> dict[str, Part]:
    return {
        suffix: Part(dtype, tuple(shape), np.frombuffer(bytes.fromhex(data), np.uint8))
        for suffix, (dtype, shape, data) in example["parts"].items()
    }


def name_of(example: dict[str, Any]) -> str:
    return f"{example['layout']}-{example['extra'].get('mask', '')}"


TENSORS = examples("dense")


def load_reader() -> Any:
    spec = importlib.util.spec_from_file_location("reader", READER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_layout_has_an_example() -> None:
    assert {example["layout"] for example in TENSORS} == LAYOUTS.keys() - {"dense"}
    masks = {example["extra"].get("mask") for example in TENSORS}
    assert masks == {None, "none", "bits", "nm"}


@pytest.mark.parametrize("example", TENSORS, ids=name_of)
def test_examples_are_decoded(example: dict[str, Any]) -> None:
    dense = bytes.fromhex(example["dense"])
    parts = parts_of(example)
    raw = {suffix: part.data for suffix, part in parts.items()}
    assert load_reader().decode(example, raw).tobytes() == dense
    dtype, shape = DTYPES[example["dtype"]], tuple(example["shape"])
    found = shipped.Encoded(example["layout"], parts, example["extra"])
    assert shipped.decode(found, dtype, shape).tobytes() == dense


@pytest.mark.parametrize("example", TENSORS, ids=name_of)
def test_examples_are_what_is_written(example: dict[str, Any]) -> None:
    dtype, shape, extra = DTYPES[example["dtype"]], tuple(example["shape"]), example["extra"]
    codes = np.frombuffer(bytes.fromhex(example["dense"]), code_type(dtype))
    expected = {s: (p.dtype, p.shape, p.data.tobytes()) for s, p in parts_of(example).items()}
    if example["layout"] == "packed":  # of which this is not the smallest
        scheme = read_scheme(dtype, shape, extra)
        chunks = range(0, scheme.grid.groups, scheme.chunk)
        ends = [min(start + scheme.chunk, scheme.grid.groups) for start in chunks]
        groups = [scheme.grid.read(codes, *ends) for ends in zip(chunks, ends, strict=True)]
        planes = [encode_chunk(scheme, some) for some in groups]
        table = np.array([[plane.size for plane in row] for row in planes], np.uint32)
        data = b"".join(plane.tobytes() for row in planes for plane in row)
        found = {
            "chunks": ("U32", table.shape, table.tobytes()),
            "data": ("U8", (len(data),), data),
        }
    else:
        pattern = NM(extra["n"], extra["m"]) if extra else None
        encoded = shipped.encode(example["layout"], codes, dtype, shape, pattern=pattern)
        assert encoded.extra == extra
        found = {s: (p.dtype, p.shape, p.data.tobytes()) for s, p in encoded.parts.items()}
    assert found == expected


def test_the_example_of_a_frame() -> None:
    (example,) = examples("frame")
    frame = np.frombuffer(bytes.fromhex(example["frame"]), np.uint8)
    plane = bytes.fromhex(example["plane"]) * example["times"]
    assert expanded(frame, len(plane)).tobytes() == plane
    assert zstandard.get_frame_parameters(frame).content_size == len(plane)


def test_the_place_of_a_number_in_the_order_of_cutlass() -> None:
    text = (DOCS / "format.md").read_text(encoding="utf-8")
    (formula,) = [line.strip(" `") for line in text.splitlines() if "r % 32 // 16" in line]
    (example,) = examples("place")
    rows, columns = example["R"], example["C"]

    def place(r: int, c: int) -> int:
        return int(eval(formula, {"r": r, "c": c, "R": rows, "C": columns}))

    assert place(example["r"], example["c"]) == example["place"]
    plain = np.arange(rows * columns // 16, dtype=np.uint16)
    stored = to_cutlass(plain, rows).reshape(-1)
    for number in plain.tolist():
        assert stored[place(*divmod(number, columns // 16))] == number


# --- damage -------------------------------------------------------------------------------------


def a_packed_tensor(frame: bytes, weights: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A tensor of one chunk without a mask, whose symbols are stored as ``frame``."""
    extra = {"mask": "none", "chunk": math.ceil(weights / 8) * 8, "per_byte": 1, "symbols": []}
    tensor = {"layout": "packed", "dtype": "BF16", "shape": [weights], "extra": extra}
    low = bytes(weights)
    sizes = np.array([len(frame), 0, len(low)], "<u4")
    data = np.frombuffer(frame + low, np.uint8)
    return tensor, {"chunks": sizes.view(np.uint8), "data": data}


def test_the_reader_refuses_a_frame_of_another_size() -> None:
    reader = load_reader()
    weights = 4096
    good = zstandard.ZstdCompressor().compress(b"\x3f" * weights)
    assert (reader.decode(*a_packed_tensor(good, weights)) == 0x3F << 7).all()
    with pytest.raises(ValueError, match="reshape"):
        reader.decode(*a_packed_tensor(good, weights + 8))
    # The descriptor says that 8 bytes follow with the size of the content: a petabyte.
    huge = good[:4] + b"\xe0" + (10**15).to_bytes(8, "little") + good[7:]
    assert zstandard.get_frame_parameters(huge).content_size == 10**15
    with pytest.raises(ValueError, match="reshape"):
        reader.decode(*a_packed_tensor(huge, weights))


def test_the_reader_refuses_another_version(tmp_path: Path) -> None:
    source = cases.save_raw(tmp_path / "source", {"w": ("F32", (4096,), bytes(16384))})
    export(source, tmp_path / "compressed", "bitmask")
    path = tmp_path / "compressed" / cases.WEIGHTS
    reader = load_reader()
    assert [name for name, *_ in reader.find(path)] == ["w"]
    cases.edit_described(path, lambda document: document.update(format="2"))
    with pytest.raises(AssertionError, match="another format"):
        list(reader.find(path))
