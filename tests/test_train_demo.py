"""The script that trains the demo model, run small, and its parts against plain references."""

from __future__ import annotations

import itertools
import json
import math
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, ViTForImageClassification

import demo_digits
import demo_text
import train_demo
from demo_bigram import Bigram
from prunectl import demo

pytestmark = pytest.mark.full

SCRIPT = Path(train_demo.__file__)
# One thread: the same bytes on any number of cores, and no waiting for each other on a busy one.
TINY = (
    "--hidden 32 --intermediate 48 --layers 2 --heads 4 --kv-heads 2 --vocab 300 --context 32 "
    "--threads 1 "
)
LANGUAGE = TINY + "--steps 40 --batch 4 --save-every 20 --seed 1"


def language_options(output: Path) -> list[str]:
    return ["--output", str(output), "--text", str(demo.calibration_text()), *LANGUAGE.split()]


@pytest.fixture
def run_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., dict[str, Any]]]:
    """Run the script in this process, which has loaded torch already; gives what it printed."""

    def run(*options: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
        capsys.readouterr()
        train_demo.main()
        (line,) = capsys.readouterr().out.splitlines()
        return dict(json.loads(line))

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)
    transformers.utils.logging.enable_progress_bar()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A tiny language model trained for 40 steps: where, and the numbers that were printed."""
    output = tmp_path_factory.mktemp("lm") / "out"
    command = [sys.executable, str(SCRIPT), *language_options(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "step 40/40" in done.stderr
    (line,) = done.stdout.splitlines()
    return output, json.loads(line)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_run_leaves_a_model_checkpoints_and_both_texts(
    trained: tuple[Path, dict[str, Any]],
) -> None:
    output, _ = trained
    assert {path.name for path in output.iterdir()} == {
        "model",
        "checkpoint-20",
        "checkpoint-40",
        "heldout.txt",
        "calibration.txt",
    }
    for name in ("model", "checkpoint-20", "checkpoint-40"):
        model, found = AutoModelForCausalLM.from_pretrained(output / name, output_loading_info=True)
        assert not any(found.values())
        assert model.dtype == torch.bfloat16
        assert model.config.num_key_value_heads == 2
        assert len(AutoTokenizer.from_pretrained(output / name)) == 300
    assert weights(output / "checkpoint-40") == weights(output / "model")
    assert weights(output / "checkpoint-20") != weights(output / "model")


def test_the_loss_falls_and_the_numbers_are_of_the_run(
    trained: tuple[Path, dict[str, Any]],
) -> None:
    output, numbers = trained
    assert numbers["last_loss"] < numbers["first_loss"] - 0.3
    assert numbers["perplexity"] < 300
    assert numbers["tokens_seen"] == 40 * 4 * 32
    assert numbers["heldout_bytes"] == len((output / "heldout.txt").read_bytes())
    card = (output / "model" / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---\n")[1])
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == round(numbers["perplexity"], 2)
    assert "--text calibration.txt --steps 40 --batch 4" in card
    assert "--seed 1 --threads 1 --hidden 32 --intermediate 48 --layers 2" in card


def test_the_same_seed_gives_the_same_bytes(
    trained: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    run_here: Callable[..., dict[str, Any]],
) -> None:
    output, numbers = trained
    again = run_here(*language_options(tmp_path))
    assert weights(tmp_path / "model") == weights(output / "model")
    for name in ("perplexity", "bigram_perplexity", "last_loss", "sample"):
        assert again[name] == numbers[name]


@pytest.mark.parametrize("objective", ["supervised", "self-supervised"])
def test_a_digit_classifier_learns_and_loads(
    objective: str, tmp_path: Path, run_here: Callable[..., dict[str, Any]]
) -> None:
    options = TINY + f"--objective {objective} --steps 200 --learning-rate 3e-3 --save-every 200"
    numbers = run_here("--output", str(tmp_path), *options.split())
    assert numbers["last_loss"] < numbers["first_loss"]
    assert numbers["heldout_images"] == 359
    model, found = ViTForImageClassification.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not any(found.values())
    assert model.classifier.out_features == 10
    _, _, images, labels = demo_digits.load_digits(seed=0)
    with torch.no_grad():
        found = model(pixel_values=images).logits.argmax(-1).tolist()
    right = sum(a == b for a, b in zip(found, labels.tolist(), strict=True))
    assert right / 359 == numbers["accuracy"]
    assert right / 359 > 0.3, "chance is a tenth"
    assert ViTForImageClassification.from_pretrained(tmp_path / "checkpoint-200")


def literal_lzw(text: str) -> bytes:
    """An LZW stream of 9-bit literals only, which is valid while the table is short."""
    bits = sum(ord(letter) << (9 * place) for place, letter in enumerate(text))
    return bits.to_bytes(-(-9 * len(text) // 8), "little")


def test_the_data_file_of_the_bible_is_read_window_by_window() -> None:
    parts = [literal_lzw("Title\nGe1:1 In the"), literal_lzw(" beginning\nGe1:2 And\n")]
    first = 0x5C + 4 * 3
    offsets = [first, first + len(parts[0]), first + len(parts[0]) + len(parts[1])]
    header = bytes(0x58) + struct.pack(">4I", 2, *offsets)
    text = demo_text.decompress(header + b"".join(parts))
    assert text == "Title\nGe1:1 In the beginning\nGe1:2 And\n"


def test_what_is_held_out_is_nowhere_else() -> None:
    splits = demo_text.disjoint(["a\nb\nc\n", " d \n\nb\n", "c\n"], "b\n\nx\n", "c\nx\ny\n")
    assert splits.training == ["a\n", " d \n\n"]
    assert (splits.heldout, splits.calibration) == ("b\n\nx\n", "c\ny\n")
    assert splits.removed == 5


def test_bigram_probabilities_are_kneser_ney_by_hand() -> None:
    vocab = 5
    stream = [0, 1, 2, 1, 2, 3, 0, 1, 3, 3, 2, 1, 2, 4]
    text = [torch.tensor([0, 1, 2, 3, 3])]
    bigram = Bigram.tuned(torch.tensor(stream), vocab, text)
    pairs = Counter(itertools.pairwise(stream))
    before = {w: len({a for a, b in pairs if b == w}) + 1 for w in range(vocab)}
    discount = bigram.discount
    for v in range(vocab):
        row = {w: pairs[v, w] for w in range(vocab)}
        total, kinds = sum(row.values()), sum(count > 0 for count in row.values())
        found = bigram.probability(torch.full((vocab,), v), torch.arange(vocab)).tolist()
        assert math.isclose(sum(found), 1)
        for w in range(vocab):
            backed = before[w] / sum(before.values())
            direct = max(row[w] - discount, 0) + discount * kinds * backed
            assert math.isclose(found[w], direct / total if total else backed)


def test_no_digit_is_both_trained_on_and_held_out() -> None:
    images, labels, test_images, test_labels = demo_digits.load_digits(seed=0)
    assert images.shape == (1438, 1, 8, 8)
    assert test_images.shape == (359, 1, 8, 8)
    assert (images.min(), images.max()) == (-1, 1)
    everything = torch.cat([labels, test_labels]).bincount().tolist()
    assert everything == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
