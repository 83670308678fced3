"""``export`` of real trained checkpoints: every bit, and the same tokens by every loader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import export_cases as cases
import numpy as np
import pytest
import reference
import torch
import transformers
from children import child
from export_cases import WEIGHTS
from full import few

from prunectl import NM, PruneSettings, export, load_model, load_state_dict, prune, verify

pytestmark = pytest.mark.real

RealModel = Callable[[str], Path]
Pruned = Callable[[str, str], Path]
SETTINGS = {"40%": PruneSettings(sparsity=0.4), "2:4": PruneSettings(pattern=NM(2, 4))}


@pytest.fixture(scope="module")
def pruned(real_model: RealModel, tmp_path_factory: pytest.TempPathFactory) -> Pruned:
    """From a model and ``40%`` or ``2:4`` to its pruned dense folder, not to be changed."""
    folders: dict[tuple[str, str], Path] = {}

    def get(name: str, how: str) -> Path:
        if (name, how) not in folders:
            out = tmp_path_factory.mktemp(name) / "pruned"
            prune(real_model(name), out, SETTINGS[how])
            folders[name, how] = out
        return folders[name, how]

    return get


def assert_there_and_back(source: Path, place: Path, layout: str, **options: Any) -> Path:
    """Every file comes back; the state dict is that of the dense file. Returns the export."""
    there, back = place / layout, place / "back"
    export(source, there, layout, **options)
    export(there, back, "dense")
    assert cases.without_metadata(back) == cases.without_metadata(source)
    reference.assert_same(load_state_dict(there), reference.stored(source))
    return there


def assert_verified(folder: Path) -> None:
    report = verify(folder)
    assert report.ok, report.differences
    assert all(check.passed for check in report.checks), report.checks


# --- SmolLM2, bf16 ------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize(
    ("how", "layout"), [("2:4", "packed"), ("2:4", "nm"), ("40%", "bitmask"), ("40%", "auto")]
)
def test_smollm2_there_and_back(pruned: Pruned, tmp_path: Path, how: str, layout: str) -> None:
    source = pruned("smollm2", how)
    there = assert_there_and_back(source, tmp_path, layout)
    small = (there / WEIGHTS).stat().st_size
    assert small < (source / "model.safetensors").stat().st_size
    if layout == "auto":
        assert_verified(there)


def entropy(counts: np.ndarray) -> float:
    """Bits of the whole, if each member is coded for itself by its frequency."""
    some = counts[counts > 0].astype(float)
    return float(-(some * np.log2(some / some.sum())).sum())


def least_bytes(tensors: reference.Tensors) -> float:
    """Mask, and of what is kept sign and exponent, at their order-0 entropies; raw mantissas."""
    bits = 0.0
    for tensor in tensors.values():
        assert tensor.dtype == torch.bfloat16
        codes = tensor.reshape(-1).view(torch.int16).numpy().view(np.uint16)
        kept = codes[codes != 0]
        bits += entropy(np.array([kept.size, codes.size - kept.size]))
        bits += entropy(np.bincount(kept >> 7, minlength=512)) + 7 * kept.size
    return bits / 8


@pytest.mark.full
@pytest.mark.parametrize("how", SETTINGS)
def test_smollm2_packed_is_as_small_as_its_entropy(
    pruned: Pruned, tmp_path: Path, how: str
) -> None:
    source = pruned("smollm2", how)
    export(source, tmp_path / "out", "packed")
    size = (tmp_path / "out" / WEIGHTS).stat().st_size
    assert size <= 1.015 * least_bytes(reference.stored(source))


LOADERS = """
import sys
import torch
import prunectl
from transformers import AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(1)  # threads that wait for each other are slow beside other work
folder, dense = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
prompt = tokenizer("The capital of France is", return_tensors="pt")

def answer(model):
    made = model.generate(**prompt, max_new_tokens=12, do_sample=False, pad_token_id=0)
    with torch.no_grad():
        return made[0].tolist(), model(**prompt).logits

def assert_same(model):
    tokens, logits = answer(model)
    assert tokens == expected[0]
    assert torch.equal(logits, expected[1])

# In fp32, which holds every bf16 and is faster on a CPU.
model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
expected = answer(model)
with torch.no_grad():
    for parameter in model.parameters():
        parameter.fill_(torch.nan)
missing, unexpected = model.load_state_dict(prunectl.load_state_dict(folder), strict=False)
assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
assert_same(model)
assert_same(prunectl.load_model(folder, dtype=torch.float32))
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
assert model.lm_head.weight is model.model.embed_tokens.weight
assert_same(model)
print(tokenizer.decode(expected[0]))
"""


@pytest.mark.full
@pytest.mark.parametrize(
    ("how", "layout", "limit"),
    [
        ("40%", "bitmask", "100MB"),
        ("2:4", "packed", "100MB"),
        ("2:4", "nm", "5GB"),
    ],
)
def test_smollm2_says_the_same_by_every_loader(
    pruned: Pruned, tmp_path: Path, how: str, layout: str, limit: str
) -> None:
    source = pruned("smollm2", how)
    result = export(source, tmp_path / "out", layout, max_shard_size=limit)
    assert result.shards == (1 if limit == "5GB" else 3)
    done = child(LOADERS, tmp_path / "out", source)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("The capital of France is")


# --- all-MiniLM-L6-v2, fp32 ---------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize(
    ("how", "layout"), [("40%", "packed"), ("2:4", "nm"), ("40%", "bitmask"), ("2:4", "auto")]
)
def test_minilm_there_and_back(pruned: Pruned, tmp_path: Path, how: str, layout: str) -> None:
    source = pruned("minilm", how)
    there = assert_there_and_back(source, tmp_path, layout, max_shard_size="30MB")
    assert len(list(there.glob("*.safetensors"))) > 1
    assert_verified(there)


@pytest.mark.parametrize("how", few(SETTINGS))
def test_minilm_embeds_the_same(pruned: Pruned, tmp_path: Path, how: str) -> None:
    source = pruned("minilm", how)
    export(source, tmp_path / "out", "auto")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    batch = tokenizer(
        ["A man plays a guitar.", "Bread in the oven"], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        wanted = transformers.AutoModel.from_pretrained(source)(**batch).last_hidden_state
        for model in (
            load_model(tmp_path / "out"),
            transformers.AutoModel.from_pretrained(tmp_path / "out"),
        ):
            assert torch.equal(model(**batch).last_hidden_state, wanted)


# --- rxnmapper, an ALBERT in a pickle -----------------------------------------------------------


@pytest.mark.parametrize(("how", "layout"), few([("2:4", "packed"), ("40%", "bitmask")]))
def test_rxnmapper_there_and_back(pruned: Pruned, tmp_path: Path, how: str, layout: str) -> None:
    there = assert_there_and_back(pruned("rxnmapper", how), tmp_path, layout)
    report = verify(there)
    assert report.ok, report.differences
    wanted = transformers.AutoModelForMaskedLM.from_pretrained(pruned("rxnmapper", how))
    found = transformers.AutoModelForMaskedLM.from_pretrained(there)
    reference.assert_same(found.state_dict(), wanted.state_dict())
    assert len(list(found.parameters())) == len(list(wanted.parameters()))


def test_rxnmapper_straight_from_its_pickle(real_model: RealModel, tmp_path: Path) -> None:
    source = real_model("rxnmapper")
    export(source, tmp_path / "out", "auto")
    export(tmp_path / "out", tmp_path / "back", "dense")
    expected = reference.stored(source)
    found = load_state_dict(tmp_path / "out")
    reference.assert_same(found, expected)
    reference.assert_same(reference.stored(tmp_path / "back"), expected)
