"""Compressed folders in memory: state dicts, single tensors and rows, transformers models."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import export_cases as cases
import pytest
import reference
import tiny_models
import torch
import transformers
from children import child
from export_cases import LAYOUTS, WEIGHTS
from full import few

from prunectl import (
    NM,
    PruneSettings,
    export,
    load_model,
    load_state_dict,
    open_checkpoint,
    open_weights,
    prune,
)
from prunectl.errors import (
    BadCheckpoint,
    InvalidOption,
    UnknownArchitecture,
    UnsupportedCheckpoint,
)
from prunectl.loading import safe_open

INDEX = f"{WEIGHTS}.index.json"
MODELS = ("llama", "llama_untied", "bert", "albert", "gpt2", "mixtral", "gpt_oss", "t5", "bart")
MODELS += ("vit", "clip", "whisper", "qwen3_vl_moe")
FEW = ("llama", "gpt2", "mixtral", "bert", "vit")
Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """From an architecture to a folder with its ``pruned`` checkpoint and exports of that."""
    folders: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in folders:
            place = folders[name] = tmp_path_factory.mktemp(name)
            tiny_models.build(name, place / "source", torch.bfloat16)
            prune(place / "source", place / "pruned", PruneSettings(pattern=NM(2, 4)))
            for layout in LAYOUTS:
                export(place / "pruned", place / layout, layout)
            export(place / "pruned", place / "shards", "auto", max_shard_size=15_000)
        return folders[name]

    return get


# --- state dicts --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", few(["pruned", "shards", *LAYOUTS], "pruned", "shards"))
def test_load_state_dict(made: Made, layout: str) -> None:
    place = made("llama")
    expected = reference.stored(place / "pruned")
    reference.assert_same(load_state_dict(place / layout), expected)
    for jobs in (1, 5):
        reference.assert_same(load_state_dict(str(place / layout), jobs=jobs), expected)
    opened = open_checkpoint(place / "pruned")
    reference.assert_same(load_state_dict(opened), expected)


@pytest.mark.parametrize("layout", ["auto", "bitmask", "nm", "packed"])
def test_every_type_and_shape(tmp_path: Path, layout: str) -> None:
    unknown = {"F4", "F6_E2M3", "F6_E3M2"}
    odd = {name: one for name, one in cases.odd_tensors().items() if one[0] not in unknown}
    source = cases.save_raw(tmp_path / "source", odd)
    export(source, tmp_path / "out", layout)
    expected = reference.stored(source)
    assert expected.keys() == odd.keys()
    reference.assert_same(load_state_dict(tmp_path / "out"), expected)
    reference.assert_same(load_state_dict(source), expected)


def test_types_that_torch_lacks_are_an_error_that_says_so(tmp_path: Path) -> None:
    source = cases.save_raw(tmp_path / "source", {"w": ("F6_E2M3", (4,), b"abc")})
    with pytest.raises(BadCheckpoint, match="torch has no type for"):
        load_state_dict(source)


@pytest.mark.parametrize("layout", ["source", *LAYOUTS])
def test_tied_tensors_of_a_pickle(tmp_path: Path, layout: str) -> None:
    state = dict(tiny_models.make("llama").state_dict())
    tiny_models.build("llama", tmp_path / "source")
    (tmp_path / "source" / "model.safetensors").unlink()
    for name, tensor in state.items():
        if "_proj" in name:
            tensor.copy_(reference.nm(tensor, 2, 4))
    torch.save(state, tmp_path / "source" / "pytorch_model.bin")
    if layout == "source":
        found = load_state_dict(tmp_path / "source")
        reference.assert_same(found, state)
        assert found["lm_head.weight"] is found["model.embed_tokens.weight"]
        return
    export(tmp_path / "source", tmp_path / layout, layout)
    del state["lm_head.weight"]
    reference.assert_same(load_state_dict(tmp_path / layout), state)


def test_the_device_is_where_tensors_go(made: Made) -> None:
    found = load_state_dict(made("llama") / "packed", device="meta")
    assert {tensor.device.type for tensor in found.values()} == {"meta"}
    shapes = {
        name: tensor.shape for name, tensor in reference.stored(made("llama") / "pruned").items()
    }
    assert {name: tensor.shape for name, tensor in found.items()} == shapes


# --- single tensors and rows --------------------------------------------------------------------


@pytest.mark.parametrize("layout", few(["pruned", "shards", *LAYOUTS], "pruned", "packed"))
def test_open_weights(made: Made, layout: str) -> None:
    place = made("gpt2")
    expected = reference.stored(place / "pruned")
    with open_weights(place / layout) as weights:
        assert list(weights) == list(expected)
        assert len(weights) == len(expected)
        reference.assert_same(dict(weights), expected)
        for name, tensor in expected.items():
            assert name in weights
            assert weights.spec(name).shape == tuple(tensor.shape)
            if tensor.ndim:
                rows = tensor.shape[0]
                for start, stop in ((0, rows), (1, 3), (rows // 2, rows), (rows, rows), (0, 0)):
                    found = weights.rows(name, start, stop)
                    reference.assert_same({name: found}, {name: tensor[start:stop]})
        assert "no.such" not in weights
        with pytest.raises(KeyError):
            weights["no.such"]
        with pytest.raises(InvalidOption, match="has no rows 0:1000"):
            weights.rows(name, 0, 1000)
        with pytest.raises(InvalidOption):
            weights.rows(name, -1, 1)


@pytest.fixture
def read_bytes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Bytes that were read of weights since the last call."""
    counts: list[int] = []
    read = os.preadv

    def counted(descriptor: int, buffers: Any, offset: int) -> int:
        got = read(descriptor, buffers, offset)
        counts.append(got)
        return got

    def since() -> int:
        total = sum(counts)
        counts.clear()
        return total

    monkeypatch.setattr(os, "preadv", counted)
    return since


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three matrices of 4 MB (fp16); two follow 2:4."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("wide")
    tensors = {
        f"model.layers.{i}.mlp.up_proj.weight": reference.nm(torch.randn(2048, 1024), 2, 4).half()
        for i in range(2)
    }
    cut = reference.alone(torch.randn(2048, 1024), 0.6).half()
    reference.save(place / "dense", tensors | {"model.layers.1.mlp.down_proj.weight": cut})
    for layout in LAYOUTS:
        export(place / "dense", place / layout, layout)
    return place


@pytest.mark.parametrize("layout", ["dense", "bitmask", "packed", "nm"])
def test_one_tensor_is_all_that_is_read(
    wide: Path, layout: str, read_bytes: Callable[[], int]
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    stored = cases.entries(next((wide / layout).glob("*.safetensors")))
    own = sum(len(one[2]) for part, one in stored.items() if part.startswith(name))
    with open_weights(wide / layout) as weights:
        assert read_bytes() == 0
        found = weights[name]
        assert 0 < read_bytes() <= own * 1.3
    reference.assert_same({name: found}, {name: reference.stored(wide / "dense")[name]})


@pytest.mark.parametrize(
    ("layout", "most"), [("dense", 1.0), ("bitmask", 0.5), ("packed", 0.5), ("nm", 0.5)]
)
def test_rows_are_all_that_is_decoded(
    wide: Path, layout: str, most: float, read_bytes: Callable[[], int]
) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    expected = reference.stored(wide / "dense")[name]
    with open_weights(wide / layout) as weights:
        found = weights.rows(name, 1000, 1010)
        some = read_bytes()
    reference.assert_same({name: found}, {name: expected[1000:1010]})
    # The rows alone take 20 kB of 4 MB; a chunk or block around them, and the masks, are read too.
    assert 0 < some < expected.nbytes * most * 0.35
    if layout == "dense":
        assert some == 10 * 1024 * 2


def test_the_mask_of_a_tensor_is_counted_once(wide: Path, read_bytes: Callable[[], int]) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    with open_weights(wide / "bitmask") as weights:
        weights.rows(name, 0, 1)
        first = read_bytes()
        weights.rows(name, 5, 6)
        assert read_bytes() < first


def test_damage_elsewhere_does_not_matter_to_a_tensor_or_row(wide: Path, tmp_path: Path) -> None:
    out = cases.copied(wide / "packed", tmp_path / "out")
    path = out / WEIGHTS
    other, name = (f"model.layers.{i}.mlp.up_proj.weight" for i in range(2))
    stored = cases.entries(path)
    dtype, shape, data = stored[f"{other}.data"]
    cases.replace_stored(path, {f"{other}.data": (dtype, shape, b"\0" * len(data))})
    with open_weights(out) as weights:
        assert weights[name].any()
        with pytest.raises(BadCheckpoint, match=other):
            weights[other]
    with pytest.raises(BadCheckpoint, match=other):
        load_state_dict(out)


# --- models -------------------------------------------------------------------------------------


def plain(place: Path) -> torch.nn.Module:
    """The pruned model as transformers loads it from its dense folder."""
    config = transformers.AutoConfig.from_pretrained(place / "pruned")
    kind = getattr(transformers, config.architectures[0])
    return kind.from_pretrained(place / "pruned", dtype="auto")  # type: ignore[no-any-return]


def assert_same_model(found: Any, wanted: Any) -> None:
    assert type(found) is type(wanted)
    reference.assert_same(found.state_dict(), wanted.state_dict())
    buffers = dict(wanted.named_buffers())
    reference.assert_same(dict(found.named_buffers()), buffers)
    assert not found.training
    assert {id(p) for p in found.parameters()} == {id(p) for _, p in found.named_parameters()}
    assert len(list(found.parameters())) == len(list(wanted.parameters()))  # tied ones are tied
    assert settings_of(found) == settings_of(wanted)


def settings_of(model: Any) -> dict[str, Any]:
    """The model's config, but for where it came from."""
    return {k: v for k, v in model.config.to_dict().items() if k != "_name_or_path"}


@pytest.mark.parametrize("model", few(MODELS, *FEW))
def test_load_model(made: Made, model: str) -> None:
    place = made(model)
    wanted = plain(place)
    for folder in ("auto", "shards", "pruned"):
        assert_same_model(load_model(place / folder), wanted)


@pytest.mark.parametrize("layout", few(["bitmask", "nm", "packed"], "nm"))
def test_load_model_from_every_layout(made: Made, layout: str) -> None:
    for model in ("llama", "gpt2"):
        assert_same_model(load_model(made(model) / layout), plain(made(model)))


@pytest.mark.parametrize("model", few(MODELS, *FEW))
def test_from_pretrained(made: Made, model: str) -> None:
    place = made(model)
    wanted = plain(place)
    kind = type(wanted)
    for folder in ("auto", "shards"):
        found, info = kind.from_pretrained(place / folder, dtype="auto", output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert_same_model(found, wanted)


def test_models_compute_the_same(made: Made) -> None:
    tokens = torch.arange(12).reshape(2, 6)
    for model in ("llama", "gpt2", "mixtral", "bert"):
        wanted = plain(made(model))
        for found in (
            load_model(made(model) / "auto"),
            type(wanted).from_pretrained(made(model) / "shards", dtype="auto"),
        ):
            with torch.no_grad():
                assert torch.equal(found(tokens).logits, wanted(tokens).logits)
    image = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16).bfloat16()
    with torch.no_grad():
        found = load_model(made("vit") / "packed")(image).logits
        assert torch.equal(found, plain(made("vit"))(image).logits)


@pytest.mark.parametrize("dtype", few([torch.float32, "float32", torch.float16], "float32"))
def test_another_dtype_is_that_of_the_dense_model(made: Made, dtype: Any) -> None:
    place = made("llama")
    wanted = transformers.LlamaForCausalLM.from_pretrained(place / "pruned", dtype=dtype)
    assert_same_model(load_model(place / "auto", dtype=dtype), wanted)
    found = transformers.LlamaForCausalLM.from_pretrained(place / "auto", dtype=dtype)
    assert_same_model(found, wanted)


@pytest.mark.parametrize(
    "device_map", few(["auto", "cpu", {"": "cpu"}, torch.device("cpu")], "auto")
)
def test_device_maps(made: Made, device_map: Any) -> None:
    place = made("llama")
    found = load_model(place / "shards", device_map=device_map)
    wanted = plain(place)
    reference.assert_same(found.state_dict(), wanted.state_dict())
    assert len(list(found.parameters())) == len(list(wanted.parameters()))


@pytest.mark.gpu
@pytest.mark.parametrize("device_map", ["cuda", "auto", {"": 0}])
def test_a_model_on_the_gpu(made: Made, device_map: Any) -> None:
    place = made("llama")
    found = load_model(place / "shards", device_map=device_map)
    assert {p.device.type for p in found.parameters()} == {"cuda"}
    on_cpu = {name: tensor.cpu() for name, tensor in found.state_dict().items()}
    reference.assert_same(on_cpu, plain(place).state_dict())


def test_offload_to_disk_is_refused(made: Made, tmp_path: Path) -> None:
    places = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu"}
    places |= {"lm_head": "cpu", "model.rotary_emb": "cpu"}
    for load in (load_model, transformers.LlamaForCausalLM.from_pretrained):
        with pytest.raises(UnsupportedCheckpoint, match="cannot be offloaded to disk") as caught:
            load(made("llama") / "auto", device_map=places, offload_folder=tmp_path / "offload")
        assert "--layout dense" in caught.value.hint


def test_a_loaded_model_is_saved_plain(made: Made, tmp_path: Path) -> None:
    place = made("llama")
    loaded = load_model(place / "auto")
    assert not hasattr(loaded, "hf_quantizer")
    assert not hasattr(loaded.config, "quantization_config")
    loaded.save_pretrained(tmp_path / "saved")
    plain(place).save_pretrained(tmp_path / "wanted")
    assert reference.contents(tmp_path / "saved") == reference.contents(tmp_path / "wanted")
    assert not any("prunectl" in path.name for path in (tmp_path / "saved").iterdir())
    assert b"prunectl" not in (tmp_path / "saved" / "config.json").read_bytes()


@pytest.mark.full
def test_a_loaded_model_can_be_trained(made: Made) -> None:
    loaded = load_model(made("llama") / "auto", dtype=torch.float32).train()
    tokens = torch.arange(6)[None]
    loaded(tokens, labels=tokens).loss.backward()
    assert loaded.model.layers[0].mlp.up_proj.weight.grad.any()


def test_missing_weights_are_never_made_up(made: Made, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    state = reference.stored(made("llama") / "pruned")
    del state[name]
    source = reference.save(tmp_path / "source", state)
    config = (made("llama") / "pruned" / "config.json").read_bytes()
    (source / "config.json").write_bytes(config)
    export(source, tmp_path / "out")
    for folder in (source, tmp_path / "out"):
        with pytest.raises(BadCheckpoint, match=name):
            load_model(folder)


def test_damage_is_noticed_by_every_loader(made: Made, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    out = cases.copied(made("llama") / "bitmask", tmp_path / "out")
    dtype, shape, data = cases.entries(out / WEIGHTS)[f"{name}.values"]
    flipped = bytes([data[0] ^ 1]) + data[1:]
    cases.replace_stored(out / WEIGHTS, {f"{name}.values": (dtype, shape, flipped)})
    for load in (load_model, load_state_dict, transformers.LlamaForCausalLM.from_pretrained):
        with pytest.raises(BadCheckpoint, match=f"tensor '{name}' is damaged"):
            load(out)


def test_a_config_that_asks_for_too_much_is_not_built(made: Made, tmp_path: Path) -> None:
    out = cases.copied(made("llama") / "auto", tmp_path / "out")
    config = json.loads((out / "config.json").read_bytes())
    (out / "config.json").write_text(json.dumps(config | {"num_labels": 3_000_000}))
    with pytest.raises(UnknownArchitecture, match="asks for 3,000,000 in 'num_labels'"):
        load_model(out)


def test_a_single_file_is_no_model(made: Made) -> None:
    with pytest.raises(BadCheckpoint, match="one weights file"):
        load_model(made("llama") / "auto" / WEIGHTS)
    found = load_state_dict(made("llama") / "auto" / WEIGHTS)
    reference.assert_same(found, reference.stored(made("llama") / "pruned"))


# --- the slices that transformers asks for ------------------------------------------------------


@pytest.mark.parametrize("layout", few(LAYOUTS))
def test_slices(made: Made, layout: str) -> None:
    expected = reference.stored(made("gpt2") / "pruned")
    with safe_open.SafeOpen(made("gpt2") / layout / WEIGHTS) as file:
        assert file.keys() == list(expected)
        assert file.metadata() == {"format": "pt"}
        for name, tensor in expected.items():
            part = file.get_slice(name)
            assert part.get_shape() == list(tensor.shape)
            assert part.get_dtype() == "BF16"
            for index in (..., slice(None), slice(1, 5), slice(-3, None), slice(5, 2), 0, -1):
                reference.assert_same({name: part[index]}, {name: tensor[index]})
            if tensor.ndim == 2:
                for pair in (
                    (slice(2, 9), slice(1, 4)),
                    (slice(None), slice(0, 8)),
                    (..., slice(3, 5)),
                    (slice(0, 30, 7), 2),
                    (3, slice(None)),
                ):
                    reference.assert_same({name: part[pair]}, {name: tensor[pair]})


# --- the import hook ----------------------------------------------------------------------------


ORDERS = {
    "prunectl first": "import prunectl\nimport transformers\n",
    "transformers first": "import transformers\nimport prunectl\n",
    "its models first": "from transformers import AutoModelForCausalLM\nimport prunectl\n",
    "its quantizers first": "import transformers.quantizers.auto\nimport prunectl\n",
    "twice": "import prunectl\nfrom prunectl.loading import hook\nhook.install()\nhook.install()\n",
    "prunectl, then quantizers": "import prunectl\nimport transformers.quantizers.auto\n",
    "only a part of it": "from prunectl import errors\n",
}

LOAD = """
import sys
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(model.model.layers[0].mlp.up_proj.weight.float().abs().sum().item())
import importlib.util
import transformers.quantizers.auto as auto
assert not any("prunectl" in type(finder).__module__ for finder in sys.meta_path)
assert auto.__spec__.loader is auto.__loader__
assert "prunectl" not in type(auto.__loader__).__module__
"""


@pytest.mark.full
@pytest.mark.parametrize("order", ORDERS)
def test_either_may_be_imported_first(made: Made, order: str) -> None:
    done = child(ORDERS[order] + LOAD, made("llama") / "shards")
    assert done.returncode == 0, done.stderr
    weight = plain(made("llama")).model.layers[0].mlp.up_proj.weight  # type: ignore[union-attr]
    assert float(done.stdout) == weight.float().abs().sum().item()


@pytest.mark.full
def test_transformers_that_cannot_be_registered_with_still_works(made: Made) -> None:
    code = """
import warnings, sys, types
import transformers.quantizers.auto as auto
def refuse(name): raise RuntimeError("no more methods")
auto.register_quantization_config = refuse
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import prunectl
print(seen[0].message)
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1])
"""
    done = child(code, made("llama") / "pruned")
    assert done.returncode == 0, done.stderr
    assert "could not register" in done.stdout
    assert "no more methods" in done.stdout


PLAIN = """
import json, sys
from transformers import AutoModelForCausalLM
for folder, options in json.loads(sys.argv[1]):
    try:
        AutoModelForCausalLM.from_pretrained(folder, **options)
    except Exception as error:
        print(json.dumps(f"{type(error).__name__} {error}"))
    else:
        print(json.dumps("it was loaded"))
assert "prunectl" not in sys.modules
"""


@pytest.mark.full
def test_transformers_alone_refuses(made: Made, tmp_path: Path) -> None:
    """Also where the quantization config was taken out: the names of the weight files are the
    second lock, since they are not those that it looks for."""
    options: list[dict[str, Any]] = [{}, {"use_safetensors": True}, {"device_map": "cpu"}]
    asked = [
        (str(made("llama") / folder), one)
        for folder in ("auto", "shards", "nm", "bitmask", "packed")
        for one in options
    ]
    for folder in ("auto", "shards"):
        out = cases.copied(made("llama") / folder, tmp_path / folder)
        config = json.loads((out / "config.json").read_bytes())
        del config["quantization_config"]
        (out / "config.json").write_text(json.dumps(config))
        asked.append((str(out), {}))
    done = child(PLAIN, json.dumps(asked))
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for what, answer in zip(asked, answers, strict=True):
        name = "" if what[0].startswith(str(tmp_path)) else " model.safetensors"
        assert f"no file named{name}" in answer, what
    assert "prunectl" in done.stderr  # an unknown quantization method
    assert "newly initialized" not in done.stderr
