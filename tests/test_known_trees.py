"""What is known of common classes, against the module trees themselves."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from full import few

import make_known_trees
import prunectl
from prunectl.checkpoint.known_trees import roles_from_table
from prunectl.checkpoint.modules import roles_from_modules
from prunectl.tensorspec import DTYPES, TensorSpec

KNOWN = {
    "bert", "bert_base", "bert_classifier", "roberta", "distilbert", "opt", "gpt2",
    "llama", "llama_untied", "qwen2", "qwen3", "mistral", "gemma2", "phi", "phi3", "vit", "dinov2",
    "dinov2_swiglu", "gpt_neox", "bloom", "falcon", "olmo",
}  # fmt: skip
REAL = ("minilm", "smollm2", "smollm2-bin", "dinov2")


def opened(folder: Path) -> tuple[dict[str, Any], list[TensorSpec]]:
    checkpoint = prunectl.open_checkpoint(folder)
    return dict(checkpoint.config), [tensor.spec for tensor in checkpoint.tensors]


@pytest.mark.parametrize("name", few(tiny_models.NAMES, *tiny_models.FEW))
def test_the_table_says_what_the_module_tree_says(name: str, tiny: Callable[[str], Path]) -> None:
    config, specs = opened(tiny(name))
    found = roles_from_table(config, specs)
    assert (found is not None) == (name in KNOWN)
    if found is not None:
        assert found == roles_from_modules(tiny(name), specs)


@pytest.mark.real
@pytest.mark.parametrize("name", REAL)
def test_so_it_does_of_trained_models(name: str, real_model: Callable[[str], Path]) -> None:
    config, specs = opened(real_model(name))
    found = roles_from_table(config, specs)
    assert found is not None
    assert found == roles_from_modules(real_model(name), specs)


def test_what_differs_in_anything_is_not_answered(tiny: Callable[[str], Path]) -> None:
    config, specs = opened(tiny("llama"))
    assert roles_from_table(config, specs) is not None
    one = TensorSpec("model.layers.0.self_attn.q_proj.weight", DTYPES["F32"], (32, 32))
    others = [spec for spec in specs if spec.name != one.name]
    odd = {
        "a name more": [*specs, replace(one, name="model.layers.0.extra.weight")],
        "more layers than the config says": [
            *specs, replace(one, name="model.layers.2.self_attn.q_proj.weight")
        ],
        "a number that is none": [*specs, replace(one, name="model.layers.x.mlp.up_proj.weight")],
        "dimensions": [*others, replace(one, shape=(2, 16, 32))],
        "whole numbers for weights": [*others, replace(one, dtype=DTYPES["I8"])],
    }  # fmt: skip
    for what, tensors in odd.items():
        assert roles_from_table(config, tensors) is None, what
    configs: list[dict[str, Any]] = [
        {"auto_map": {"AutoModelForCausalLM": "mine.Llama"}},
        {"architectures": ["MyLlama"]},
        {"architectures": "LlamaForCausalLM"},
        {"architectures": ["LlamaForCausalLM", "LlamaModel"]},
        {"architectures": [["LlamaForCausalLM"]]},
        {"model_type": "mistral"},
        {"tie_word_embeddings": "yes"},
        {"num_hidden_layers": "2"},
        {"num_hidden_layers": 1},
        {"num_hidden_layers": None},
    ]
    for changed in configs:
        assert roles_from_table({**config, **changed}, specs) is None, changed
    assert roles_from_table({}, specs) is None


def test_opening_a_known_class_imports_no_torch(tiny: Callable[[str], Path]) -> None:
    import subprocess

    code = (
        "import sys, prunectl; "
        f"found = prunectl.open_checkpoint({str(tiny('llama'))!r}).roles; "
        "assert found.origin == 'modules'; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "types",
    [
        pytest.param(("llama", "gpt2"), id="some", marks=pytest.mark.full),
        pytest.param((), id="all", marks=pytest.mark.slow),
    ],
)
def test_the_table_is_that_of_this_transformers(
    types: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    arguments = ["--types", *types] if types else []
    monkeypatch.setattr(sys, "argv", ["make_known_trees.py", "--check", *arguments])
    assert make_known_trees.main() == 0


@pytest.mark.full
def test_a_table_that_says_otherwise_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, one_thread: None
) -> None:
    table = json.loads(make_known_trees.OUTPUT.read_bytes())
    table["classes"]["OPTModel"]["tensors"].popitem()
    monkeypatch.setattr(make_known_trees, "OUTPUT", tmp_path / "table.json")
    make_known_trees.OUTPUT.write_text(json.dumps(table))
    monkeypatch.setattr(sys, "argv", ["make_known_trees.py", "--check", "--types", "opt"])
    assert make_known_trees.main() == 1
