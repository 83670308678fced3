"""``export`` and back: every bit, every file, on every small architecture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import export_cases as cases
import jsonschema
import pytest
import reference
import tiny_models
import torch
import transformers
import yaml
from blake3 import blake3
from export_cases import LAYOUTS, WEIGHTS
from full import few
from hubserver import python, serve
from reference import Tensors

from prunectl import NM, PruneSettings, VerifyReport, export, prune, verify
from prunectl.cli.run import run
from prunectl.errors import PatternMismatch
from prunectl.events import Event, Note

SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "manifest.schema.json").read_text())
SETTINGS = {"half": PruneSettings(sparsity=0.5), "2:4": PruneSettings(pattern=NM(2, 4))}
INDEX = f"{WEIGHTS}.index.json"
Pruned = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Pruned:
    """From an architecture and ``half`` or ``2:4`` to its pruned folder, not to be changed."""
    folders: dict[tuple[str, str], Path] = {}

    def get(name: str, how: str) -> Path:
        if (name, how) not in folders:
            place = tmp_path_factory.mktemp(name)
            tiny_models.build(name, place / "source")
            prune(place / "source", place / "pruned", SETTINGS[how])
            folders[name, how] = place / "pruned"
        return folders[name, how]

    return get


def assert_verified(report: VerifyReport) -> None:
    assert report.ok, report.differences
    assert all(check.passed for check in report.checks), report.checks


def there_and_back(source: Path, place: Path, layout: str, **options: Any) -> tuple[Path, Path]:
    """Export, and export again to dense; returns both folders."""
    there, back = place / f"there-{layout}", place / f"back-{layout}"
    export(source, there, layout, **options)
    assert not list(there.glob("model.safetensors*"))
    export(there, back, "dense")
    return there, back


# --- every architecture -------------------------------------------------------------------------


@pytest.mark.parametrize("model", few(tiny_models.NAMES, *tiny_models.FEW))
def test_there_and_back(pruned: Pruned, tmp_path: Path, model: str) -> None:
    source = pruned(model, "2:4")
    before = reference.contents(source)
    for layout in LAYOUTS:
        there, back = there_and_back(source, tmp_path, layout)
        cases.assert_same(cases.decoded(there), cases.raw(source))
        # Not only every tensor: the very files, weights included.
        assert cases.without_metadata(back) == cases.without_metadata(source)
    assert_verified(verify(tmp_path / "there-auto"))
    assert_verified(verify(tmp_path / "back-auto"))
    assert reference.contents(source) == before


@pytest.mark.parametrize(
    ("model", "dtype"),
    few([("gpt2", torch.bfloat16), ("albert", torch.float16), ("mixtral", torch.float16)]),
)
def test_half_precision(tmp_path: Path, model: str, dtype: torch.dtype) -> None:
    tiny_models.build(model, tmp_path / "source", dtype)
    prune(tmp_path / "source", tmp_path / "pruned", SETTINGS["half"])
    for layout in ("auto", "bitmask", "packed"):
        there, back = there_and_back(tmp_path / "pruned", tmp_path, layout)
        cases.assert_same(cases.decoded(there), cases.raw(tmp_path / "pruned"))
        assert cases.without_metadata(back) == cases.without_metadata(tmp_path / "pruned")
        assert_verified(verify(there))


@pytest.mark.parametrize(
    "model", few(["gpt2", "llama4", "gpt_oss", "mixtral", "bert"], "gpt2", "gpt_oss")
)
def test_groups_run_along_the_inputs(pruned: Pruned, tmp_path: Path, model: str) -> None:
    source = pruned(model, "2:4")
    record = {t["name"]: t for t in json.loads((source / "prunectl.json").read_bytes())["tensors"]}
    result = export(source, tmp_path / "out", "nm")
    groups = {one.name for one in result.tensors if one.pattern == "2:4"}
    assert {one.layout for one in result.tensors if one.name in groups} == {"nm"}
    assert groups == {name for name, one in record.items() if one["pattern"] == "2:4"}
    described = cases.described(tmp_path / "out" / WEIGHTS)
    for name in groups:
        assert described[name]["extra"]["axis"] == record[name]["input_axis"]
    axes = {record[name]["input_axis"] for name in groups}
    assert axes & {"gpt2": {0}, "llama4": {1}, "gpt_oss": {1}}.get(model, {1})


def test_a_plain_model_is_smaller_too(tmp_path: Path) -> None:
    tiny_models.build("bert", tmp_path / "source", torch.bfloat16)
    there, back = there_and_back(tmp_path / "source", tmp_path, "auto")
    cases.assert_same(cases.raw(back), cases.raw(tmp_path / "source"))
    document = json.loads((there / "prunectl.json").read_bytes())
    jsonschema.validate(document, SCHEMA, cls=jsonschema.Draft202012Validator)
    assert document["arguments"] == {"method": None}
    assert {t["pattern"] for t in document["tensors"]} == {None}
    assert "packed" in {t["layout"] for t in document["tensors"]}
    assert_verified(verify(there))
    assert_verified(verify(back))
    # Its own file, but for prunectl's way to write one.
    assert (back / "config.json").read_bytes() == (tmp_path / "source/config.json").read_bytes()


# --- every kind of tensor -----------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["auto", "bitmask", "packed"])
def test_odd_tensors(tmp_path: Path, layout: str) -> None:
    odd = cases.odd_tensors()
    source = cases.save_raw(tmp_path / "source", odd)
    there, back = there_and_back(source, tmp_path, layout)
    cases.assert_same(cases.decoded(there), odd)
    cases.assert_same(cases.raw(back), odd)
    found = {t["name"]: t for t in json.loads((there / "prunectl.json").read_bytes())["tensors"]}
    for name, (_, _, data) in odd.items():
        assert found[name]["blake3"] == blake3(data).hexdigest()
        assert found[name]["stored_bytes"] <= max(len(data), 1), name
    # What a layout is for is stored in it.
    for dtype in ("F32", "F16", "BF16"):
        assert found[f"zeros.{dtype}"]["layout"] in (layout, "packed", "bitmask", "nm")
        assert found[f"zeros.{dtype}"]["layout"] != "dense"
    for name in ("empty.F32", "scalar.F16", "any.I64", "any.BOOL", "mask.position_ids"):
        assert found[name]["layout"] == "dense"


def test_odd_groups(tmp_path: Path) -> None:
    odd = cases.odd_tensors()
    source = cases.save_raw(tmp_path / "source", odd)
    there, back = there_and_back(source, tmp_path, "nm")
    cases.assert_same(cases.decoded(there), odd)
    cases.assert_same(cases.raw(back), odd)
    described = cases.described(there / WEIGHTS)
    assert {"groups.F32", "groups.F16", "groups.BF16", "groups.F64"} <= described.keys()
    orders = {name: one["extra"]["order"] for name, one in described.items()}
    assert orders["groups.F16"] == orders["groups.BF16"] == "cutlass"
    assert orders["groups.F32"] == "plain"


@pytest.mark.parametrize(
    ("layout", "dtype"),
    few(
        [
            ("packed", torch.bfloat16),
            ("nm", torch.bfloat16),
            ("bitmask", torch.float16),
            ("auto", torch.float32),
            ("packed", torch.float32),
            ("nm", torch.float16),
        ],
        ("packed", torch.bfloat16),
        ("bitmask", torch.float16),
    ),
)
def test_tensors_of_many_blocks(tmp_path: Path, layout: str, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    wide = torch.randn(999, 1600)
    tensors = {
        "model.layers.0.mlp.up_proj.weight": reference.nm(wide, 2, 4).to(dtype),
        "model.layers.0.mlp.down_proj.weight": reference.alone(wide.T.contiguous(), 0.6).to(dtype),
        "model.embed_tokens.weight": wide[:, :801].contiguous().to(dtype),
        "model.norm.weight": torch.randn(1_300_001).to(dtype),
    }
    source = reference.save(tmp_path / "source", tensors)
    there, back = there_and_back(source, tmp_path, layout)
    cases.assert_same(cases.decoded(there), cases.as_raw(tensors))
    cases.assert_same(cases.raw(back), cases.as_raw(tensors))


@pytest.mark.parametrize(
    "pattern", few([NM(2, 4), NM(4, 8), NM(8, 16), NM(3, 5), NM(1, 16)]), ids=str
)
def test_groups_along_axis_0_over_many_blocks(tmp_path: Path, pattern: NM) -> None:
    config = transformers.GPT2Config(
        vocab_size=11, n_embd=480, n_layer=1, n_head=4, n_positions=8, n_inner=1120
    )
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "source")
    prune(tmp_path / "source", tmp_path / "pruned", PruneSettings(pattern=pattern))
    expected = cases.raw(tmp_path / "pruned")
    for layout in ("nm", "packed"):
        there, back = there_and_back(tmp_path / "pruned", tmp_path, layout)
        grouped = {
            one["extra"]["axis"]
            for one in cases.described(there / WEIGHTS).values()
            if "n" in one["extra"]
        }
        assert grouped == {0}
        cases.assert_same(cases.decoded(there), expected)
        cases.assert_same(cases.raw(back), expected)


def test_names_that_need_care(tmp_path: Path) -> None:
    names = [
        "",
        'a"b\\',
        "ключ.weight",
        "\U0001f600",
        "a b\n",
        ".",
        "x" * 900,
        "w",
        "w.w",
        "w.mask2",
    ]
    tensors = {name: torch.eye(60) * (place + 1) for place, name in enumerate(names)}
    source = reference.save(tmp_path / "source", tensors)
    for layout in LAYOUTS:
        _, back = there_and_back(source, tmp_path, layout, max_shard_size=60_000)
        cases.assert_same(cases.raw(back), cases.as_raw(tensors))
        report = verify(tmp_path / f"there-{layout}")
        assert report.ok, report.differences


# --- pickles, shared tensors --------------------------------------------------------------------


def as_pickle(model: str, folder: Path, state: Tensors) -> Path:
    tiny_models.build(model, folder)
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("layout", few(LAYOUTS, "packed"))
def test_a_tied_head_of_a_pickle_is_stored_once(tmp_path: Path, layout: str) -> None:
    state = dict(tiny_models.make("llama").state_dict())
    assert state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()
    for name, tensor in state.items():
        if "_proj" in name:
            tensor.copy_(reference.nm(tensor, 2, 4))
    source = as_pickle("llama", tmp_path / "source", state)
    there, back = there_and_back(source, tmp_path, layout)
    del state["lm_head.weight"]
    cases.assert_same(cases.raw(back), cases.as_raw(state))
    cases.assert_same(cases.decoded(there), cases.as_raw(state))
    assert_verified(verify(there))


def test_one_tensor_under_two_names_that_the_model_keeps_apart(tmp_path: Path) -> None:
    state = dict(tiny_models.make("llama_untied").state_dict())
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    source = as_pickle("llama_untied", tmp_path / "source", state)
    there, back = there_and_back(source, tmp_path, "auto")
    cases.assert_same(cases.raw(back), cases.as_raw(state))
    records = {t["name"]: t for t in json.loads((there / "prunectl.json").read_bytes())["tensors"]}
    head, embedding = records["lm_head.weight"], records["model.embed_tokens.weight"]
    assert {head["tied_to"], embedding["tied_to"]} == {None, "model.embed_tokens.weight"}
    assert head["blake3"] == embedding["blake3"]
    assert_verified(verify(there))
    assert_verified(verify(back))


def test_a_pickle_of_mixed_dtypes_odd_strides_and_buffers(tmp_path: Path) -> None:
    state = dict(tiny_models.make("bert_base").state_dict())
    for place, name in enumerate(state):
        if place % 3 == 0:
            state[name] = state[name].half()
    turned = "encoder.layer.0.intermediate.dense.weight"
    state[turned] = state[turned].t().contiguous().t()
    state["embeddings.position_ids"] = torch.arange(20)[None]
    source = as_pickle("bert_base", tmp_path / "source", state)
    for layout in ("auto", "bitmask", "packed"):
        there, back = there_and_back(source, tmp_path, layout)
        cases.assert_same(cases.raw(back), cases.as_raw(state))
        cases.assert_same(cases.decoded(there), cases.as_raw(state))


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", few([5_000, 30_000]))
def test_shards_and_their_index(pruned: Pruned, tmp_path: Path, limit: int) -> None:
    source = pruned("llama", "half")
    result = export(source, tmp_path / "out", "auto", max_shard_size=limit)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) == result.shards > 1
    assert files[0] == f"model-00001-of-{len(files):05}.prunectl.safetensors"
    index = json.loads((tmp_path / "out" / INDEX).read_bytes())
    where = {name: file for file in files for name in cases.entries(tmp_path / "out" / file)}
    assert index["weight_map"] == where
    sizes = [
        len(one[2]) for file in files for one in cases.entries(tmp_path / "out" / file).values()
    ]
    assert index["metadata"]["total_size"] == sum(sizes)
    assert sum(tensor.stored_bytes for tensor in result.tensors) == sum(sizes)
    assert result.nbytes == sum((tmp_path / "out" / file).stat().st_size for file in files)
    config = json.loads((tmp_path / "out" / "config.json").read_bytes())
    assert config["quantization_config"]["weights"] == INDEX
    assert_verified(verify(tmp_path / "out"))
    export(tmp_path / "out", tmp_path / "back", "dense", max_shard_size=limit)
    assert_verified(verify(tmp_path / "back"))
    shards = sorted(path.name for path in (tmp_path / "back").glob("*.safetensors"))
    assert [name.replace(".prunectl", "") for name in files] == shards
    cases.assert_same(cases.raw(tmp_path / "back"), cases.raw(source))
    export(tmp_path / "out", tmp_path / "whole", "dense")
    assert cases.without_metadata(tmp_path / "whole") == cases.without_metadata(source)


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A pruned checkpoint with all that a repository holds besides its weights."""
    folder = tmp_path / "full"
    tiny_models.build("llama", folder)
    (folder / "tokenizer.json").write_bytes(b'{"fake":\r\n "\xc3\xa9"}')
    (folder / "LICENSE").write_text("as it is")
    (folder / "modeling_own.py").write_text("raise SystemExit('never run')\n")
    (folder / "empty.txt").write_bytes(b"")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "README.md").write_text(
        "---\nlicense: mit\ntags:\n- mine\n---\n\n# Mine\n\nOf old.\n"
    )
    prune(folder, tmp_path / "pruned", SETTINGS["half"])
    return tmp_path / "pruned"


def test_side_files_are_copied_byte_for_byte(full: Path, tmp_path: Path) -> None:
    there, back = there_and_back(full, tmp_path, "auto")
    source, small = reference.contents(full), reference.contents(there)
    assert small.keys() == source.keys() - {"model.safetensors"} | {WEIGHTS}
    same = source.keys() - {"README.md", "prunectl.json", "config.json", "model.safetensors"}
    assert len(same) == 6
    assert {name: small[name] for name in same} == {name: source[name] for name in same}
    assert cases.without_metadata(back) == cases.without_metadata(full)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b"\n", b"\r\n") + b"\n\n \n",
        lambda text: text.replace(b"{", '{\n "_note": "é \\u00e9 }", '.encode(), 1).rstrip(),
    ],
)
def test_config_json_comes_back_to_the_byte(
    full: Path, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    original = change((full / "config.json").read_bytes())
    (full / "config.json").write_bytes(original)
    there, back = there_and_back(full, tmp_path, "packed")
    marked = json.loads((there / "config.json").read_bytes())
    assert marked.pop("quantization_config") == {"quant_method": "prunectl", "weights": WEIGHTS}
    assert marked == json.loads(original)
    assert (back / "config.json").read_bytes() == original
    export(there, tmp_path / "again", "bitmask")
    assert (tmp_path / "again/config.json").read_bytes() == (there / "config.json").read_bytes()


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff\xfe", None])
def test_a_config_that_cannot_be_marked_is_copied_and_said(
    full: Path, tmp_path: Path, text: bytes | None
) -> None:
    (full / "config.json").unlink()
    if text is not None:
        (full / "config.json").write_bytes(text)
    events: list[Event] = []
    result = export(full, tmp_path / "out", on_event=events.append)
    (warning,) = result.warnings
    assert "config.json" in warning
    assert "prunectl.load_state_dict can" in warning
    assert Note(warning, warning=True) in events
    if text is not None:
        assert (tmp_path / "out" / "config.json").read_bytes() == text
    export(tmp_path / "out", tmp_path / "back", "dense")
    cases.assert_same(cases.raw(tmp_path / "back"), cases.raw(full))


@pytest.mark.parametrize(
    ("layout", "how"),
    [("auto", "half"), ("packed", "2:4"), ("bitmask", "half"), ("nm", "2:4"), ("dense", "half")],
)
def test_the_manifest(pruned: Pruned, tmp_path: Path, layout: str, how: str) -> None:
    source = pruned("llama", how)
    result = export(source, tmp_path / "out", layout, max_shard_size=30_000)
    before, after = (
        json.loads((folder / "prunectl.json").read_bytes()) for folder in (source, tmp_path / "out")
    )
    jsonschema.validate(after, SCHEMA, cls=jsonschema.Draft202012Validator)
    assert after["export"]["layout"] == layout
    for key in ("source", "arguments", "totals", "tool"):
        assert after[key] == before[key], key
    described: dict[str, Any] = {}
    stored: cases.Raw = {}
    for path in (tmp_path / "out").glob("*.safetensors"):
        stored |= cases.entries(path)
        described |= cases.described(path) if layout != "dense" else {}
    for old, new, shown in zip(before["tensors"], after["tensors"], result.tensors, strict=True):
        changed = {key for key in new if new.get(key) != old.get(key)}
        assert changed <= {"file", "layout", "stored_bytes"}
        one = described.get(new["name"])
        names = [f"{new['name']}.{suffix}" for suffix in one["parts"]] if one else [new["name"]]
        assert new["layout"] == (one["layout"] if one else "dense") == shown.layout
        assert new["stored_bytes"] == sum(len(stored[name][2]) for name in names)
        assert new["stored_bytes"] == shown.stored_bytes
        assert (one or new)["blake3"] == new["blake3"]
        assert shown.zeros == new["zeros"]
    kinds = {new["layout"] for new in after["tensors"]}
    assert kinds <= {layout, "dense"} if layout != "auto" else "packed" in kinds
    totals = {total.layout: total.tensors for total in result.layouts}
    assert sum(totals.values()) == len(after["tensors"])


def test_the_card(full: Path, tmp_path: Path) -> None:
    export(full, tmp_path / "out", "packed", command="prunectl export pruned -o out -l packed")
    card = (tmp_path / "out" / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    data = yaml.safe_load(front)
    assert data["license"] == "mit"
    assert {"mine", "prunectl"} <= set(data["tags"])
    assert text.count("# Mine\n\nOf old.") == 1
    assert text.count("prunectl:start") == 1
    assert "layout `packed`" in text
    assert f"{(tmp_path / 'out' / WEIGHTS).stat().st_size:,} bytes" in text
    assert "import prunectl" in text
    assert "prunectl export pruned -o out -l packed" in text
    export(tmp_path / "out", tmp_path / "back", "dense")
    back = (tmp_path / "back" / "README.md").read_text()
    assert back.count("prunectl:start") == 1
    assert back.count("# Mine\n\nOf old.") == 1
    assert "import prunectl" not in back
    assert "compressed" not in back


# --- the same bytes -----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", few([*LAYOUTS, "dense"], "packed", "dense"))
def test_the_same_bytes_whatever_the_threads(tmp_path: Path, layout: str) -> None:
    torch.manual_seed(2)
    tensors = {
        f"model.layers.{i}.mlp.up_proj.weight": reference.nm(torch.randn(700, 1200), 2, 4)
        for i in range(4)
    }
    source = reference.save(tmp_path / "source", tensors | {"model.norm.weight": torch.ones(7)})
    whole = None
    for number, jobs in enumerate((1, 2, 5, 2)):
        out = tmp_path / f"out{number}"
        export(source, out, layout, jobs=jobs, max_shard_size=8_000_000)
        whole = whole or reference.contents(out)
        assert reference.contents(out) == whole
    assert whole
    assert sum(name.endswith(".safetensors") for name in whole) == 2


def test_one_export_of_another(pruned: Pruned, tmp_path: Path) -> None:
    source = pruned("gpt2", "2:4")
    direct: dict[str, Path] = {}
    for layout in LAYOUTS:
        direct[layout] = tmp_path / layout
        export(source, direct[layout], layout)
    for first in LAYOUTS:
        for second in LAYOUTS:
            out = tmp_path / f"{first}-{second}"
            export(direct[first], out, second)
            assert cases.without_metadata(out) == cases.without_metadata(direct[second])
    assert_verified(verify(tmp_path / "packed-nm"))


def test_a_pattern_that_is_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = {name: reference.nm(torch.randn(64, 60), 3, 5)}
    source = reference.save(tmp_path / "source", tensors)
    result = export(source, tmp_path / "out", "nm", pattern="3:5")
    assert result.tensors[0].pattern == "3:5"
    cases.assert_same(cases.decoded(tmp_path / "out"), cases.as_raw(tensors))
    with pytest.raises(PatternMismatch, match=name):
        export(source, tmp_path / "other", "nm", pattern="2:5")
    assert not (tmp_path / "other").exists()


# --- as typed, and from the Hub -----------------------------------------------------------------


def test_as_typed(pruned: Pruned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(pruned("llama", "2:4"))
    assert run(["export", source, "-o", str(tmp_path / "small"), "-l", "nm", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "prunectl.export/1"
    assert document["nbytes"] == (tmp_path / "small" / WEIGHTS).stat().st_size
    assert {one["layout"] for one in document["layouts"]} == {"nm", "dense"}
    assert (
        run(["export", str(tmp_path / "small"), "-o", str(tmp_path / "back"), "-l", "dense"]) == 0
    )
    out, _ = capsys.readouterr()
    assert "dense" in out
    cases.assert_same(cases.raw(tmp_path / "back"), cases.raw(Path(source)))
    assert run(["verify", str(tmp_path / "small"), "-q"]) == 0


CHILD = """
import hashlib, json, sys
import prunectl
model, out = sys.argv[1:]
prunectl.export(model, out + "/dense", "dense")
prunectl.export(model, out + "/again", "bitmask")
state = prunectl.load_state_dict(model)
print(json.dumps({name: t.untyped_storage().nbytes() for name, t in state.items()}))
"""


@pytest.mark.full
def test_from_the_hub(pruned: Pruned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = pruned("llama", "half")
    export(source, tmp_path / "small", "packed", max_shard_size=20_000)
    files = reference.contents(tmp_path / "small")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with serve(tmp_path / "hub") as hub:
        hub.put("org/small", files, lfs=[name for name in files if "safetensors" in name])
        done = python(hub.url, "-c", CHILD, "org/small", tmp_path)
        assert set(hub.fetched()) == files.keys()
    expected = cases.raw(source)
    assert json.loads(done.stdout) == {name: len(one[2]) for name, one in expected.items()}
    cases.assert_same(cases.raw(tmp_path / "dense"), expected)
    cases.assert_same(cases.decoded(tmp_path / "again"), expected)
    report = verify(tmp_path / "dense", source=None)
    assert report.ok, report.differences
