"""Calibration samples: exact against plain references, on real tokenizers, and on bad data."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import pytest
import tiny_models
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from prunectl import demo
from prunectl.calibration.samples import load_samples
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.model_kind import (
    Kind,
    ModelKind,
    accepted_inputs,
    model_kind_of,
)
from prunectl.checkpoint.module_tree import build_on_meta, model_class
from prunectl.checkpoint.opening import open_checkpoint
from prunectl.data.errors import BadData, BadTokenizer, WrongTokenizer
from prunectl.data.source import Samples, parse_source
from prunectl.data.table_files import read_pairs
from prunectl.data.text import PIECE, read_files
from prunectl.data.tokens import windows
from prunectl.errors import InvalidOption
from prunectl.events import Advanced, Event, PhaseDone, PhaseStarted

WORDS = [f"word{number}" for number in range(50)]
"""The vocabulary of the tokenizers that are made here: ids 5 to 54."""
Made = Callable[..., tuple[Checkpoint, ModelKind]]


def model_kind_in(folder: Path) -> ModelKind:
    return model_kind_of(build_on_meta(*model_class(folder, trust_remote_code=False)), folder)


def save_tokenizer(folder: Path, *, bert: bool = False, shift: int = 0, **options: Any) -> None:
    """A tokenizer of whole words; ``shift`` makes its ids larger than they should be."""
    special = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
    extra = [f"<extra{number}>" for number in range(shift)]
    vocabulary = {word: at for at, word in enumerate([*special, *extra, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bert:
        inner.post_processor = processors.BertProcessing(("</s>", 3), ("<s>", 2))
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, **names, **options
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A function from a tiny model's name to its checkpoint, with a tokenizer of whole words."""
    root = tmp_path_factory.mktemp("tiny")

    def build(name: str, **options: Any) -> tuple[Checkpoint, ModelKind]:
        folder = root / f"{name}-{len(list(root.iterdir()))}"
        tiny_models.build(name, folder)
        save_tokenizer(folder, **options)
        return open_checkpoint(folder), model_kind_in(folder)

    return build


@pytest.fixture(scope="module")
def llama(made: Made) -> tuple[Checkpoint, ModelKind]:
    return made("llama")


@pytest.fixture(scope="module")
def demo_model() -> tuple[Checkpoint, ModelKind]:
    return open_checkpoint("demo"), model_kind_in(demo.model_folder())


def write_words(path: Path, count: int, seed: int = 0, line: int = 9) -> Path:
    words = np.random.default_rng(seed).choice(WORDS, count).tolist()
    lines = [" ".join(words[at : at + line]) for at in range(0, count, line)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def ids_of(text: str) -> list[int]:
    """What the tokenizer of whole words makes of a text."""
    return [5 + WORDS.index(word) for word in text.split()]


def rows_of(samples: Samples, name: str = "input_ids") -> list[list[int]]:
    found = [one[name] for one in samples.inputs]
    assert all(one.dtype == torch.int64 and one.dim() == 2 and len(one) == 1 for one in found)
    return [one[0].tolist() for one in found]


# --- where windows are --------------------------------------------------------------------------


def test_windows_do_not_overlap_and_every_place_is_as_likely() -> None:
    rng = np.random.default_rng(0)
    seen: dict[tuple[int, ...], int] = {}
    for _ in range(3000):
        found = windows(2, 3, 8, rng)
        assert all(one.stop - one.start == 3 for one in found)
        starts = tuple(one.start for one in found)
        seen[starts] = seen.get(starts, 0) + 1
    every = {(a, b) for a in range(6) for b in range(6) if b >= a + 3}
    assert seen.keys() == every
    assert min(seen.values()) > 3000 / len(every) * 0.8


# --- causal language models ---------------------------------------------------------------------


def test_windows_are_parts_of_the_joined_text(
    llama: tuple[Checkpoint, ModelKind], tmp_path: Path
) -> None:
    files = [write_words(tmp_path / f"{n}.txt", 200, seed=n) for n in range(2)]
    source = parse_source([f"text:{files[0]}", f"text:{files[1]}"], "--calibration")
    found = load_samples(source, *llama, samples=7, sequence_length=13, seed=3)
    joined = ids_of(" ".join(file.read_text() for file in files))
    at, places = 0, []
    for row in rows_of(found):
        assert len(row) == 13
        at = next(i for i in range(at, len(joined)) if joined[i : i + 13] == row)
        places.append(at)
        at += 13  # the next window begins behind this one
    assert places != list(range(0, 7 * 13, 13)), "random, not the first ones"
    assert [set(one) for one in found.inputs] == [{"input_ids"}] * 7
    assert found.notes == ()
    size = sum(file.stat().st_size for file in files)
    assert found.record == {
        "kind": "text",
        "files": ["0.txt", "1.txt"],
        "bytes_read": size,
        "bytes_total": size,
        "samples": 7,
        "sequence_length": 13,
        "tokens": 7 * 13,
        "seed": 3,
        "blake3": reference_digest(found),
    }
    json.dumps(found.record)


def reference_digest(samples: Samples) -> str:
    """By hand, a number at a time."""
    data = b""
    for one in samples.inputs:
        for name, value in one.items():
            data += name.encode() + b"\0"
            data += b"".join(struct.pack("<q", size) for size in value.shape)
            kind = "<q" if value.dtype == torch.int64 else "<f"
            data += b"".join(struct.pack(kind, number) for number in value.flatten().tolist())
    return blake3.blake3(data).hexdigest()


def test_the_seed_alone_decides(llama: tuple[Checkpoint, ModelKind], tmp_path: Path) -> None:
    source = parse_source(f"text:{write_words(tmp_path / 'a.txt', 500)}", "--calibration")

    def digest_of(seed: int) -> str:
        found = load_samples(source, *llama, samples=8, sequence_length=12, seed=seed)
        return str(found.record["blake3"])

    assert digest_of(0) == digest_of(0)
    assert len({digest_of(seed) for seed in range(4)}) == 4


def test_length_is_capped_by_the_model_and_short_texts_are_said(
    llama: tuple[Checkpoint, ModelKind], tmp_path: Path
) -> None:
    assert llama[1].context == 20
    source = parse_source(f"text:{write_words(tmp_path / 'a.txt', 58)}", "--calibration")
    found = load_samples(source, *llama, samples=4)
    assert [len(row) for row in rows_of(found)] == [20, 20, 18], "the last is what is left"
    assert [*chain(*rows_of(found))] == ids_of((tmp_path / "a.txt").read_text())
    assert found.record["sequence_length"] == 20
    assert found.notes == (
        "samples of 20 tokens instead of 2,048: the model takes no more",
        f"3 samples instead of 4: {source.name} gives no more",
    )
    found = load_samples(source, *llama, samples=3, sequence_length=20)
    assert [len(row) for row in rows_of(found)] == [20, 20, 18]
    write_words(tmp_path / "a.txt", 47)
    rest = load_samples(source, *llama, samples=3, sequence_length=20)
    assert [len(row) for row in rows_of(rest)] == [20, 20], "7 tokens are no sample"


def test_less_than_one_window(llama: tuple[Checkpoint, ModelKind], tmp_path: Path) -> None:
    source = parse_source(f"text:{write_words(tmp_path / 'a.txt', 16)}", "--calibration")
    found = load_samples(source, *llama, samples=1)
    assert [len(row) for row in rows_of(found)] == [16]
    assert f"{source.name} has 16 tokens, less than one full sample" in found.notes
    write_words(tmp_path / "a.txt", 15)
    with pytest.raises(BadData, match="has 15 tokens, and a sample has at least 16"):
        load_samples(source, *llama)
    assert len(load_samples(source, *llama, samples=3, sequence_length=5).inputs) == 3


def test_each_window_begins_as_the_tokenizer_begins_a_text(made: Made, tmp_path: Path) -> None:
    checkpoint, model_kind = made("llama", bert=True)
    source = parse_source(f"text:{write_words(tmp_path / 'a.txt', 100)}", "--calibration")
    rows = rows_of(load_samples(source, checkpoint, model_kind, samples=6, sequence_length=10))
    assert all(row[0] == 2 and min(row[1:]) >= 5 and len(row) == 10 for row in rows)
    with pytest.raises(InvalidOption, match="leaves no room"):
        load_samples(source, checkpoint, model_kind, samples=6, sequence_length=2)


def test_the_demo_calibrates_itself(demo_model: tuple[Checkpoint, ModelKind]) -> None:
    found = load_samples(parse_source("demo", "--calibration"), *demo_model, samples=16)
    assert found.record["kind"] == "demo"
    assert [len(row) for row in rows_of(found)] == [demo_model[1].context] * 16
    inner = transformers.AutoTokenizer.from_pretrained(demo.model_folder())
    text = inner.decode(found.inputs[0]["input_ids"][0])
    assert text in demo.calibration_text().read_text(encoding="utf-8")


# --- text files ---------------------------------------------------------------------------------


def test_large_files_are_read_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    lines = [f"{number:06d} äöü" for number in range(60_000)]
    path.write_text("\n".join(lines), encoding="utf-8")
    events: list[Event] = []
    found = read_files([path], 3 * PIECE, 1, events.append)
    assert (found.is_all, found.read, found.total) == (False, 3 * PIECE, path.stat().st_size)
    read = [line for text in found.texts for line in text.split("\n")]
    assert set(read) <= set(lines), "whole lines only"
    assert read == sorted(read)
    assert 0.9 < sum(len(one.encode()) + 1 for one in read) / (3 * PIECE) <= 1
    assert read_files([path], 3 * PIECE, 1) == found
    assert read_files([path], 3 * PIECE, 2) != found
    assert read_files([path], path.stat().st_size, 1).texts == (path.read_text(encoding="utf-8"),)
    assert events[0] == PhaseStarted("reading data", 3 * PIECE)
    assert sum(one.count for one in events if isinstance(one, Advanced)) <= 3 * PIECE
    assert isinstance(events[-1], PhaseDone)


def test_where_all_pieces_are_read_the_files_are_read_whole(tmp_path: Path) -> None:
    """Each piece drops the line that it begins in the middle of."""
    path = tmp_path / "a.txt"
    path.write_text("".join(f"{number:099d}\n" for number in range(2000)))
    found = read_files([path], path.stat().st_size - 1, 0)
    assert found.is_all
    assert found.texts == (path.read_text(),)


def test_pieces_of_one_endless_line_hold_whole_characters(tmp_path: Path) -> None:
    path = tmp_path / "line.txt"
    path.write_text("語" * 200_000, encoding="utf-8")
    for seed in range(4):
        found = read_files([path], 2 * PIECE, seed)
        assert {*"".join(found.texts)} == {"語"}
        assert len("".join(found.texts)) >= 2 * (PIECE // 3 - 2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it holds no text"),
        (b" \n\n\t ", "it holds no text"),
        (b"word1 word2 \xff\xfe", "not UTF-8 text \\(byte 0xff\\)"),
        (b"word1 \x00 word2", "it holds zero bytes"),
        (b"word1 word2 word3", "has 3 tokens, and a sample has at least 16"),
    ],
)
def test_bad_text(
    llama: tuple[Checkpoint, ModelKind], tmp_path: Path, data: bytes, message: str
) -> None:
    (tmp_path / "bad.txt").write_bytes(data)
    with pytest.raises(BadData, match=message) as caught:
        load_samples(parse_source(str(tmp_path / "bad.txt"), "--calibration"), *llama)
    assert caught.value.hint


# --- the tokenizer ------------------------------------------------------------------------------


def test_no_tokenizer(tmp_path: Path) -> None:
    tiny_models.build("bert", tmp_path / "bert")
    checkpoint, model_kind = open_checkpoint(tmp_path / "bert"), model_kind_in(tmp_path / "bert")
    source = parse_source("demo", "--calibration")
    with pytest.raises(BadTokenizer, match="has none") as caught:
        load_samples(source, checkpoint, model_kind)
    assert "random" in caught.value.hint
    (tmp_path / "bert" / "tokenizer.json").write_text("{}")
    with pytest.raises(BadTokenizer, match="does not load"):
        load_samples(source, checkpoint, model_kind)


def test_a_tokenizer_of_another_model(made: Made, tmp_path: Path) -> None:
    checkpoint, model_kind = made("llama", shift=20)
    source = parse_source(f"text:{write_words(tmp_path / 'a.txt', 300)}", "--calibration")
    with pytest.raises(WrongTokenizer, match=r"makes token id 74 and the model's .* has 61"):
        load_samples(source, checkpoint, model_kind)


def test_text_that_the_tokenizer_does_not_know(
    llama: tuple[Checkpoint, ModelKind], tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("what is this " * 20 + "word1 " * 20)
    source = parse_source(str(tmp_path / "a.txt"), "--calibration")
    with pytest.raises(WrongTokenizer, match="does not know 75% of the text's tokens"):
        load_samples(source, *llama, samples=4, sequence_length=20)


# --- encoders -----------------------------------------------------------------------------------


def test_an_encoder_reads_paragraphs(made: Made, tmp_path: Path) -> None:
    checkpoint, model_kind = made("bert_base", bert=True)
    assert model_kind.kind is Kind.ENCODER
    path = write_words(tmp_path / "a.txt", 300, line=30)
    path.write_text(path.read_text() + "\nword1 word2\n   \nword3")
    source = parse_source(str(path), "--calibration")
    found = load_samples(source, checkpoint, model_kind, samples=20)
    each = [ids_of(line)[:18] for line in path.read_text().splitlines() if line.strip()]
    assert sorted(rows_of(found)) == sorted([2, *line, 3] for line in each)
    assert rows_of(found) != [[2, *line, 3] for line in each], "drawn by the seed"
    assert "12 samples instead of 20" in found.notes[-1]
    assert (found.record["units"], found.record["tokens"]) == ("lines", 10 * 20 + 4 + 3)
    found = load_samples(source, checkpoint, model_kind, samples=2)
    assert sorted(rows_of(found)) == sorted([[2, *each[0], 3], [2, *each[-1], 3]])
    assert found.record["units"] == "paragraphs"


def test_what_the_model_does_not_take_is_left_out(made: Made, tmp_path: Path) -> None:
    kinds = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    source = parse_source(str(write_words(tmp_path / "a.txt", 90)), "--calibration")
    bert, distilbert = made("bert_base", bert=True, **kinds), made("distilbert", bert=True, **kinds)
    assert set(load_samples(source, *bert).inputs[0]) == {"input_ids", "token_type_ids"}
    assert set(load_samples(source, *distilbert).inputs[0]) == {"input_ids"}
    assert "token_type_ids" in accepted_inputs(bert[0].folder, trust_remote_code=False)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'id,first,second\n1,word1 word2,"word3, word4"\n2,word5 word6,word7\n3,,word8\n'),
        ("a.csv", '1,word1 word2,"word3, word4"\n2,word5 word6,word7\n'),
        ("a.tsv", "first\tsecond\tscore\nword1 word2\tword3, word4\t0.5\nword5 word6\tword7\t1\n"),
        (
            "a.jsonl",
            '{"n": 1, "a": "word1 word2", "b": "word3, word4"}\n\n'
            '{"n": 2, "a": "word5 word6", "b": "word7"}\n{"n": 3}\n[]\n',
        ),
    ],
)
def test_tables_of_pairs(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    pairs = [("word1 word2", "word3, word4"), ("word5 word6", "word7")]
    assert read_pairs(tmp_path / name, 5, 0) == (pairs, 2)
    assert len({read_pairs(tmp_path / name, 1, seed)[0][0] for seed in range(9)}) == 2


def test_pairs_are_two_sequences_or_one(made: Made, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("word1 word2,word3\nword4,word5\n")
    source = parse_source(f"pairs:{tmp_path / 'a.csv'}", "--calibration")
    found = load_samples(source, *made("bert_base", bert=True), samples=3)
    assert rows_of(found) == [[2, 6, 7, 3], [2, 8, 3], [2, 9, 3]]
    assert found.record["pairs"] == 2
    found = load_samples(source, *made("bert_classifier", bert=True), samples=2)
    assert rows_of(found) == [[2, 6, 7, 3, 8, 3], [2, 9, 3, 10, 3]]
    found = load_samples(source, *made("bart", bert=True), samples=2)
    assert rows_of(found) == [[2, 6, 7, 3], [2, 9, 3]]
    assert rows_of(found, "decoder_input_ids")[0][1:] == [2, 8]
    with pytest.raises(InvalidOption, match="pairs is for encoders"):
        load_samples(source, *made("llama"))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"", "no pair"),
        ("a.csv", b"only one\n", "no two columns of text"),
        ("a.csv", b"1,2\n", "no two columns of text"),
        ("a.csv", b"\xff\xfe,b\n", "not UTF-8 text .byte 0xff."),
        ("a.csv", b"a b,c\0d\n", "zero bytes"),
        ("a.csv", b'a b,"c d\n' + b"x" * (17 << 20), "a line of more than 16,777,216 characters"),
        (
            "a.jsonl",
            b'{"a": "b", "c": "d"}\n{"a": "b", \n',
            "line 2 is no JSON: Expecting property name",
        ),
        ("a.jsonl", b"[" * 100_000, "line 1 is no JSON: its lists and"),
    ],
)
def test_bad_pairs(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadData, match=message):
        read_pairs(tmp_path / name, 5, 0)


# --- encoder-decoders, random -------------------------------------------------------------------


def test_t5_reads_a_window_and_writes_it_again(made: Made, tmp_path: Path) -> None:
    checkpoint, model_kind = made("t5", bert=True, model_max_length=15)
    assert (model_kind.kind, model_kind.context) == (Kind.SEQ2SEQ, None)
    source = parse_source(str(write_words(tmp_path / "a.txt", 500)), "--calibration")
    found = load_samples(source, checkpoint, model_kind, samples=5)
    sources, targets = rows_of(found), rows_of(found, "decoder_input_ids")
    assert [len(row) for row in sources] == [15] * 5, "capped by the tokenizer"
    assert all(row[0] == 2 and row[-1] == 3 for row in sources)
    assert targets == [[0, *row[:-1]] for row in sources], "T5's decoder starts with padding"
    model = tiny_models.make("t5")
    with torch.no_grad():
        assert model(**found.inputs[0]).logits.shape == (1, 15, 61)


def test_random_tokens_are_asked_for_by_name(made: Made) -> None:
    checkpoint, model_kind = made("bart")
    source = parse_source("random", "--calibration")
    found = load_samples(source, checkpoint, model_kind, samples=50, sequence_length=20, seed=5)
    assert model_kind.avoided
    used = set(chain(*rows_of(found)))
    assert used == set(range(61)) - model_kind.avoided
    assert (found.record["kind"], found.record["tokens"]) == ("random", 50 * 20 * 2)
    again = load_samples(source, checkpoint, model_kind, samples=50, sequence_length=20, seed=5)
    other = load_samples(source, checkpoint, model_kind, samples=50, sequence_length=20, seed=6)
    assert found.record == again.record != other.record


# --- real models --------------------------------------------------------------------------------


@pytest.mark.real
def test_real_smollm2(real_model: Callable[[str], Path]) -> None:
    folder = real_model("smollm2")
    found = load_samples(
        parse_source("demo", "--calibration"),
        open_checkpoint(folder),
        model_kind_in(folder),
        samples=8,
        sequence_length=512,
    )
    inner = transformers.AutoTokenizer.from_pretrained(folder)
    ids = inner(demo.calibration_text().read_text(encoding="utf-8"), verbose=False)["input_ids"]
    joined = ",".join(map(str, ids))
    rows = rows_of(found)
    assert [len(row) for row in rows] == [512] * 8
    places = [joined.index(",".join(map(str, row))) for row in rows]
    assert places == sorted(set(places))
    model_kind = ModelKind(Kind.CAUSAL_LM, 512, 1000, None, frozenset())
    checkpoint = open_checkpoint(folder)
    with pytest.raises(WrongTokenizer, match="vocabulary has 1,000"):
        load_samples(parse_source("demo", "--calibration"), checkpoint, model_kind, samples=2)
