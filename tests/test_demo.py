"""The embedded demo model: whole, small, as its card says, and better than counting pairs."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import prunectl
from prunectl import demo, verify

MB = 1_000_000
MODEL_FILES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def bytes_under(folder: Path) -> int:
    files = (path for path in folder.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files if "__pycache__" not in path.parts)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(demo.model_folder(), dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(demo.model_folder())


@pytest.fixture(scope="module")
def card() -> str:
    return (demo.model_folder() / "README.md").read_text(encoding="utf-8")


def test_the_folder_is_complete_and_small() -> None:
    assert {path.name for path in demo.model_folder().iterdir()} == MODEL_FILES
    assert bytes_under(demo.model_folder()) <= 6 * MB
    assert bytes_under(demo.model_folder().parent) <= 6.5 * MB
    for text in (demo.heldout_text(), demo.calibration_text()):
        assert 90_000 <= len(text.read_bytes()) <= 110_000


def test_every_weight_is_stored_once_in_bf16_with_sides_that_fit_2_4_kernels() -> None:
    with safe_open(demo.model_folder() / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert 2e6 <= sum(tensor.numel() for tensor in tensors.values()) <= 3e6
    assert "lm_head.weight" not in tensors
    for name, tensor in tensors.items():
        assert all(side % 64 == 0 for side in tensor.shape), name
        assert tensor.isfinite().all(), name


def test_transformers_loads_it_and_finds_every_weight_and_no_other() -> None:
    loaded, found = AutoModelForCausalLM.from_pretrained(
        demo.model_folder(), output_loading_info=True
    )
    assert not any(found.values()), found
    assert loaded.dtype == torch.bfloat16
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


@pytest.mark.parametrize("text", [demo.heldout_text(), demo.calibration_text()])
def test_the_tokenizer_gives_the_shipped_texts_back(tokenizer: Any, text: Path) -> None:
    original = text.read_text(encoding="utf-8")
    tokens = tokenizer(original)["input_ids"]
    assert tokenizer.decode(tokens) == original
    assert len(tokens) < len(original) / 3
    assert tokenizer.eos_token_id not in tokens


def test_the_tokenizer_gives_any_text_back(tokenizer: Any) -> None:
    text = "Zoë  paid £3\tfor 猫 🙂 .\n\n\n?"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_heldout_and_calibration_text_share_no_line() -> None:
    lines = [
        {line.strip() for line in path.read_text(encoding="utf-8").splitlines()} - {""}
        for path in (demo.heldout_text(), demo.calibration_text())
    ]
    assert all(len(part) > 500 for part in lines)
    assert not lines[0] & lines[1]


def plain_loss(model: Any, tokens: list[int], context: int) -> float:
    """Mean loss in nats, one window and one token at a time, as a textbook has it."""
    losses = []
    for start in range(0, len(tokens), context):
        window = tokens[start : start + context]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([window])).logits[0].double()
        for position in range(len(window) - 1):
            scores = logits[position]
            losses.append((scores.logsumexp(0) - scores[window[position + 1]]).item())
    return math.fsum(losses) / len(losses)


@pytest.mark.full
def test_the_card_tells_the_perplexity_that_a_plain_loop_finds(
    model: Any, tokenizer: Any, card: str
) -> None:
    text = demo.heldout_text().read_text(encoding="utf-8")
    tokens = tokenizer(text)["input_ids"]
    loss = plain_loss(model, tokens, model.config.max_position_embeddings)
    perplexity = f"{math.exp(loss):.2f}"
    bits_per_byte = f"{loss / math.log(2) * len(tokens) / len(text.encode()):.3f}"
    assert f"| this model | {perplexity} | {bits_per_byte} |" in card
    (result,) = yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"]
    shown = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert shown == {"perplexity": float(perplexity), "bits_per_byte": float(bits_per_byte)}


def test_by_the_card_the_model_is_clearly_better_than_bigrams(card: str) -> None:
    rows = dict(re.findall(r"^\| (this model|bigrams) \| ([0-9.]+) \|", card, re.MULTILINE))
    assert float(rows["this model"]) < 0.7 * float(rows["bigrams"])


def test_greedy_search_makes_words_of_the_language(model: Any, tokenizer: Any) -> None:
    texts = [demo.heldout_text(), demo.calibration_text()]
    known = set(re.findall(r"[a-z]+", " ".join(path.read_text() for path in texts).lower()))
    prompt = tokenizer("And it came to pass", return_tensors="pt")
    made = model.generate(**prompt, max_new_tokens=40, do_sample=False)
    text = tokenizer.decode(made[0, prompt["input_ids"].shape[1] :])
    words = re.findall(r"[a-z]+", text.lower())
    assert len(words) >= 20
    assert len(set(words)) >= 8
    assert sum(word in known for word in words) >= 0.9 * len(words), text


def test_a_folder_by_the_name_of_the_embedded_model_is_that_folder(
    typed: Callable[..., tuple[int, str, str]],
) -> None:
    code, _, err = typed("prune", "demo", "-s", "0.4", "-o", "demo/", "-q")
    assert code == 0, err
    for name in ("demo", "./demo"):
        assert typed("verify", name, "-q")[0] == 0
    assert verify(Path("demo")).ok
    assert prunectl.open_checkpoint(Path("demo")).kind == "folder"
    assert prunectl.open_checkpoint("demo").kind == "demo"
    with Path("demo/model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    code, out, err = typed("verify", "demo", "-q")
    assert (code, out) == (3, "")
    assert err.startswith("warning: demo: ")
    assert "difference" in err
