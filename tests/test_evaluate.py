"""Perplexity against a plain loop over windows, intervals against a plain bootstrap, and what a
user can get wrong."""

from __future__ import annotations

import gc
import json
import math
import os
import shutil
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import own_words
import pytest
import scipy.stats
import tiny_tokenizers
import tokenizers
import torch
from full import few
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from prunectl import demo
from prunectl.checkpoint.opening import open_checkpoint
from prunectl.data.errors import BadData, BadTokenizer, WrongTokenizer
from prunectl.errors import BadCheckpoint, InvalidOption
from prunectl.evaluation.batches import in_batches, tell_unshared
from prunectl.evaluation.errors import EvaluationFailed, MetricMismatch, NoData
from prunectl.evaluation.metric import prepare
from prunectl.evaluation.perplexity import Perplexity, batch_of
from prunectl.evaluation.resampling import Interval, draws, interval, redrawn
from prunectl.evaluation.settings import EvalSettings
from prunectl.evaluation.verb import evaluate
from prunectl.events import Advanced, Event, Note, PhaseDone, PhaseStarted
from prunectl.exporting.verb import export
from prunectl.plan.settings import PruneSettings
from prunectl.pruning.verb import prune
from prunectl.studies.sweep.settings import SweepSettings
from prunectl.studies.sweep.verb import sweep

pytestmark = pytest.mark.usefixtures("one_thread")

Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and beside it ``speaker.txt``."""
    folder = tmp_path_factory.mktemp("own") / "speaker"
    own_words.build(folder, windows=12)
    return folder


@pytest.fixture(scope="module")
def text(speaker: Path) -> Path:
    return speaker.with_suffix(".txt")


@pytest.fixture
def verses(tmp_path: Path) -> Path:
    """The beginning of the demo model's text."""
    path = tmp_path / "verses.txt"
    path.write_text(demo.heldout_text().read_text(encoding="utf-8")[:1500], encoding="utf-8")
    return path


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def prepared(model: str | Path, data: Path | None, **options: Any) -> Perplexity:
    given = () if data is None else (f"text:{data}",)
    metric = prepare(open_checkpoint(model), EvalSettings(data=given, **options))
    assert isinstance(metric, Perplexity)
    return metric


def plain_perplexity(
    folder: Path, text: str, length: int, stride: int | None, prefix: Sequence[int] = ()
) -> tuple[float, int]:
    """By transformers alone, one window at a time in fp64: the score, and the tokens scored."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    words = tokenizer(text, add_special_tokens=False)["input_ids"]
    body = length - len(prefix)
    losses: list[float] = []
    scored: set[int] = set()
    for start in range(0, len(words), stride or body):
        if start and start + body > len(words):
            break
        ids = [*prefix, *words[start : start + body]]
        with torch.no_grad():
            known = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for at in range(1, len(ids)):
            place = start + at - len(prefix)
            if place >= start and place not in scored:
                losses.append(-float(known[at - 1, ids[at]]))
                scored.add(place)
        scored.add(start)  # predicted, or never to be: nothing stands before it
    return math.exp(math.fsum(losses) / len(losses)), len(losses)


@pytest.mark.parametrize(
    ("length", "stride"), few([(64, None), (64, 63), (17, 1), (64, 24)], (64, None), (17, 1))
)
def test_perplexity_is_that_of_a_plain_loop(verses: Path, length: int, stride: int | None) -> None:
    settings = EvalSettings(
        data=(f"text:{verses}",),
        sequence_length=length,
        stride=stride,
        batch_size=3,
        dtype="float64",
        samples=None if length > 17 else 200,
    )
    if length == 17:
        verses.write_text(verses.read_text(encoding="utf-8")[:120], encoding="utf-8")
    found = evaluate("demo", settings)
    wanted, tokens = plain_perplexity(
        demo.model_folder(), verses.read_text(encoding="utf-8"), length, stride
    )
    assert found.score == pytest.approx(wanted, rel=1e-9)
    assert found.record["tokens"] == tokens
    assert found.parts["nats per token"] == pytest.approx(math.log(wanted), rel=1e-9)
    assert (found.dtype, found.device, found.unit) == ("float64", "cpu", "windows")


@pytest.mark.parametrize("stride", [None, 7])
def test_what_a_tokenizer_begins_a_text_with_begins_each_window(
    speaker: Path, text: Path, tmp_path: Path, stride: int | None
) -> None:
    folder = copied(speaker, tmp_path / "model")
    own_words.begin_texts(folder)
    found = evaluate(
        folder, EvalSettings(data=(f"text:{text}",), stride=stride, dtype="float64", batch_size=5)
    )
    words = text.read_text(encoding="utf-8")
    wanted, tokens = plain_perplexity(folder, words, own_words.LENGTH, stride, prefix=[2])
    assert found.score == pytest.approx(wanted, rel=1e-9)
    assert found.record["prefix"] == [2]
    assert found.record["tokens"] == tokens
    assert found.record["sequence_length"] == own_words.LENGTH
    without = evaluate(speaker, EvalSettings(data=(f"text:{text}",), dtype="float64"))
    assert without.record["prefix"] == []
    assert without.score != pytest.approx(found.score, rel=1e-4)


def test_a_text_that_is_shorter_than_a_window_is_one(verses: Path) -> None:
    words = verses.read_text(encoding="utf-8")[:200]
    verses.write_text(words, encoding="utf-8")
    found = evaluate(
        "demo", EvalSettings(data=(f"text:{verses}",), dtype="float64", sequence_length=256)
    )
    wanted, tokens = plain_perplexity(demo.model_folder(), words, 256, None)
    assert found.score == pytest.approx(wanted, rel=1e-9)
    assert (found.samples, found.record["tokens"]) == (1, tokens)
    assert found.record["sequence_length"] == tokens + 1
    # One sample tells nothing of how sure it is.
    assert found.interval is None


LINES = [" = Genesis = \n", "", " In the beginning God created \n", " ", " the heaven. \n"] * 300


def demo_ids(texts: Sequence[str]) -> list[int]:
    """The usual protocol of WikiText: all of it is one text."""
    tokenizer: Any = AutoTokenizer.from_pretrained(open_checkpoint("demo").folder)
    return tokenizer("\n\n".join(texts), add_special_tokens=False, verbose=False)["input_ids"]


def all_ids(metric: Any) -> list[int]:
    return np.concatenate([one.ids for one in metric.windows]).tolist()


def test_documents_are_tokenized_as_one_text(speaker: Path, tmp_path: Path) -> None:
    """In the manner of GPT-2, where the last break before a word stands apart from the others."""
    folder = copied(speaker, tmp_path / "model")
    vocabulary = {part: at for at, part in enumerate(["<unk>", "\n\n", "\n", "one"])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    pattern = tokenizers.Regex(r"\s+(?!\S)|\s+|\S+")
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split(pattern, "isolated")
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>").save_pretrained(folder)
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("one\n\none\n\none", encoding="utf-8")
    files = tuple(f"text:{tmp_path / name}.txt" for name in "abc")
    found = prepare(open_checkpoint(folder), EvalSettings(data=files))
    assert all_ids(found) == inner.encode("\n\n".join(["one"] * 9)).ids[:20]
    assert (found.record["joiner"], found.record["files"]) == ("\n\n", ["a.txt", "b.txt", "c.txt"])
    assert 1 not in all_ids(found)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_rows_of_a_dataset_are_one_text_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in WikiText, whose rows are the lines of articles, empty ones among them."""
    lines = [f"{line}{at}\n" if line.strip() else line for at, line in enumerate(LINES)]
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps({"text": one}) + "\n" for one in lines), encoding="utf-8")
    data = (f"hf:{path}",)
    found = prepare(open_checkpoint("demo"), EvalSettings(data=data, sequence_length=2, seed=3))
    wanted = demo_ids(lines)
    assert all_ids(found) == wanted[: len(wanted) // 2 * 2]
    few = prepare(open_checkpoint("demo"), EvalSettings(data=data, sequence_length=2, samples=4))
    assert few.record["windows_available"] == len(wanted) // 2  # spread over all that there is
    monkeypatch.setattr("prunectl.evaluation.perplexity._MOST", sum(map(len, lines[:70])))
    first = prepare(open_checkpoint("demo"), EvalSettings(data=data, sequence_length=2))
    some = demo_ids(lines[:70])
    assert all_ids(first) == some[: len(some) // 2 * 2]
    assert first.notes == (f"hf:{path}: only its first 70 rows are read",)
    assert found.notes == ()
    path.write_text('{"text": ""}\n{"text": " "}\n', encoding="utf-8")
    with pytest.raises(BadData, match="it holds no text"):
        prepare(open_checkpoint("demo"), EvalSettings(data=data))
    gc.collect()  # datasets leaves files open


def test_samples_are_spread_over_the_text(speaker: Path, text: Path) -> None:
    every = prepared(speaker, text, stride=3)
    few = prepared(speaker, text, stride=3, samples=7)
    total = len(every.windows)
    assert few.record["windows_available"] == total
    assert few.samples == few.record["windows"] == 7
    places = [
        next(i for i, one in enumerate(every.windows) if np.array_equal(one.ids, window.ids))
        for window in few.windows
    ]
    gaps = np.diff([*places, total])
    assert places[0] == 0
    assert set(gaps) <= {total // 7, total // 7 + 1}
    more = prepared(speaker, text, samples=10**6)
    assert more.samples == more.record["windows_available"] == 12


def test_windows_are_no_longer_than_the_model_takes(speaker: Path, text: Path) -> None:
    notes: list[Event] = []
    settings = EvalSettings(data=(f"text:{text}",), sequence_length=50)
    metric = prepare(open_checkpoint(speaker), settings, notes.append)
    assert metric.record["sequence_length"] == own_words.LENGTH
    said = "windows of 20 tokens instead of 50: the model takes no more"
    assert said in [event.text for event in notes if isinstance(event, Note)]
    assert prepared(speaker, text, sequence_length=20).notes == ()
    assert prepared(speaker, text).record["sequence_length"] == own_words.LENGTH


def test_the_record_is_the_same_for_the_same_data_only(
    speaker: Path, text: Path, tmp_path: Path
) -> None:
    first = prepared(speaker, text).record
    elsewhere = tmp_path / text.name
    words = text.read_text(encoding="utf-8")
    elsewhere.write_text(words, encoding="utf-8")
    assert prepared(speaker, elsewhere).record == first
    assert json.loads(json.dumps(first)) == first
    for other in (words + " word1", words.replace("word1 ", "word2 ", 1)):
        elsewhere.write_text(other, encoding="utf-8")
        assert prepared(speaker, elsewhere).record != first
    for options in ({"stride": 3}, {"samples": 5}, {"sequence_length": 10}):
        assert prepared(speaker, text, **options).record != first
    again = [evaluate(speaker, EvalSettings(data=(f"text:{text}",))) for _ in range(2)]
    assert again[0].record == again[1].record == first
    assert (again[0].score, again[0].interval) == (again[1].score, again[1].interval)


def test_pruned_compressed_and_in_memory_are_one_score(
    speaker: Path, text: Path, tmp_path: Path
) -> None:
    settings = EvalSettings(data=(f"text:{text}",))
    dense = evaluate(speaker, settings)
    prune(speaker, tmp_path / "pruned", PruneSettings(sparsity=0.5))
    export(tmp_path / "pruned", tmp_path / "packed", layout="packed")
    pruned = evaluate(tmp_path / "pruned", settings)
    packed = evaluate(tmp_path / "packed", settings)
    assert pruned.score != dense.score
    assert packed.score == pruned.score
    assert packed.interval == pruned.interval
    assert packed.sparsity == pruned.sparsity == pytest.approx(0.5, abs=1e-4)
    assert dense.sparsity == 0
    swept = sweep(speaker, SweepSettings(settings, sparsity="0.5"))
    assert [point.score for point in swept.curves[0].points] == [dense.score, pruned.score]
    assert swept.curves[0].points[1].sparsity == pruned.sparsity


# --- what cannot be scored ------------------------------------------------------------------


def test_a_model_that_does_not_continue_text_is_refused(tiny: Callable[[str], Path]) -> None:
    for name, kind in (("bert", "encoder"), ("t5", "encoder-decoder"), ("vit", "vision")):
        with pytest.raises(MetricMismatch, match=f"of kind {kind}") as failed:
            evaluate(tiny(name), EvalSettings(data=("text:x",)))
        assert failed.value.exit_code == 2


def test_weights_that_are_missing_are_not_made_up(
    speaker: Path, text: Path, tmp_path: Path
) -> None:
    folder = copied(speaker, tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    settings = EvalSettings(data=(f"text:{text}",))
    for name, words in (
        ("lm_head.weight", "lacks lm_head.weight, which perplexity depends on"),
        ("model.layers.1.mlp.up_proj.weight", "lacks mlp.up_proj.weight"),
    ):
        rest = {key: value for key, value in state.items() if key != name}
        save_file(rest, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(BadCheckpoint, match=words):
            evaluate(folder, settings)


def test_weights_that_are_no_numbers_give_no_score(
    speaker: Path, text: Path, tmp_path: Path
) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    folder = copied(speaker, tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    state[name].view(-1)[0] = torch.nan
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(EvaluationFailed, match="perplexity: the loss of 12 windows is NaN"):
        evaluate(folder, EvalSettings(data=(f"text:{text}",)))


def test_a_perplexity_too_large_for_a_number_is_infinite() -> None:
    values = np.array([[8000.0, 10.0], [7000.0, 10.0]])
    metric = Perplexity((), 1, {})
    assert metric.statistic(values) == math.inf
    assert metric.statistic(np.array([[7.0, 4.0], [3.0, 6.0]])) == pytest.approx(math.e)


def test_data_that_tell_nothing(speaker: Path, tmp_path: Path) -> None:
    def refused(content: bytes, kind: type[Exception], words: str, **options: Any) -> None:
        path = tmp_path / "text.txt"
        path.write_bytes(content)
        with pytest.raises(kind, match=words):
            prepared(speaker, path, **options)

    refused(b" \n\t\n", BadData, "it holds no text")
    refused(b"word1 word2", BadData, "its text has 2 tokens, and 16 are needed")
    refused(b"other words " * 20, WrongTokenizer, "does not know 100%")
    refused(b"word1 " * 20, InvalidOption, "--stride 21 is not valid", stride=21)
    with pytest.raises(NoData, match="--metric perplexity needs --data"):
        prepared(speaker, None)
    with pytest.raises(InvalidOption, match="there is no such file"):
        prepared(speaker, tmp_path / "nothing.txt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidOption, match="the folder holds no"):
        prepared(speaker, tmp_path / "folder")


def test_windows_without_room_for_a_prediction(speaker: Path, text: Path, tmp_path: Path) -> None:
    folder = copied(speaker, tmp_path / "model")
    own_words.begin_texts(folder)
    with pytest.raises(InvalidOption, match="--sequence-length 2 leaves room for 1 token"):
        prepared(folder, text, sequence_length=2)
    assert prepared(folder, text, sequence_length=3).record["tokens"] == 240
    assert prepared(speaker, text, sequence_length=2).record["tokens"] == 120


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_column_that_is_not_there(speaker: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,words\n" + "1,word1 word2 word3\n" * 30, encoding="utf-8")
    with pytest.raises(BadData, match="no column 'text'; it has id, words"):
        prepare(open_checkpoint(speaker), EvalSettings(data=(f"hf:{path}:::text",)))
    found = prepare(open_checkpoint(speaker), EvalSettings(data=(f"hf:{path}:::words",)))
    assert found.record["column"] == "words"
    gc.collect()  # datasets leaves files open


def test_a_model_without_a_tokenizer(speaker: Path, text: Path, tmp_path: Path) -> None:
    folder = copied(speaker, tmp_path / "model")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(BadTokenizer, match=r"and .* has none") as failed:
        prepared(folder, text)
    assert "--calibration" not in failed.value.hint


def test_settings_without_a_meaning() -> None:
    for options, words in (
        ({"samples": 1}, "--samples 1 is not valid: at least 2"),
        ({"samples": 2**70}, "--samples"),
        ({"sequence_length": 1}, "--sequence-length 1"),
        ({"stride": 0}, "--stride 0"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"shots": -1}, "--shots -1"),
        ({"seed": -1}, "--seed -1"),
        ({"protocol": "own"}, "--protocol 'own' is not known"),
        ({"task": "qqp"}, "--metric perplexity does not take --task"),
    ):
        with pytest.raises(InvalidOption, match=words):
            EvalSettings(**options)  # type: ignore[arg-type]


# --- batches and intervals ------------------------------------------------------------------


def test_outputs_of_a_large_vocabulary_do_not_fill_the_memory(speaker: Path, text: Path) -> None:
    assert [batch_of(512, 49_152), batch_of(2048, 49_152)] == [4, 2]
    assert batch_of(2048, 151_936) == 1 == batch_of(1 << 17, 1 << 18)
    assert prepared(speaker, text).batch_size == 4
    assert prepared(speaker, text, batch_size=7).batch_size == 7


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
              RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)  # fmt: skip
def test_a_full_memory_halves_the_batches(error: Exception) -> None:
    sizes: list[int] = []
    events: list[Event] = []

    def work(items: Sequence[int]) -> list[int]:
        sizes.append(len(items))
        if len(items) > 3:
            raise error
        return [-item for item in items]

    found = in_batches(
        list(range(20)), 16, work, phase="scoring", unit="rows", on_event=events.append
    )
    assert found == [-item for item in range(20)]
    assert sizes == [16, 8, 4, *[2] * 10]
    assert [event.text for event in events if isinstance(event, Note)] == [
        f"memory is full: {size} rows at once from here on" for size in (8, 4, 2)
    ]
    assert sum(event.count for event in events if isinstance(event, Advanced)) == 20
    assert (events[0], events[-1]) == (PhaseStarted("scoring", 20, "rows"), PhaseDone("scoring"))


def test_a_memory_too_small_for_one_sample_ends_it() -> None:
    def work(items: Sequence[int]) -> list[int]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        in_batches([1, 2, 3], 2, work, phase="", unit="", on_event=lambda _: None)

    def broken(items: Sequence[int]) -> list[int]:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        in_batches([1, 2, 3], 2, broken, phase="", unit="", on_event=lambda _: None)


def mean(values: Any) -> float:
    return float(np.mean(values))


def test_intervals_are_the_percentile_bootstrap() -> None:
    values = np.random.default_rng(1).exponential(size=(40, 1))
    found = interval(redrawn(values, mean, 7))
    # A plain loop over the same draws, with percentiles between the two nearest by hand.
    drawn = np.random.default_rng(7).integers(40, size=(1000, 40))
    means = sorted(math.fsum(values[i, 0] for i in row) / 40 for row in drawn)

    def percentile(share: float) -> float:
        at = share * 999
        low = math.floor(at)
        return means[low] + (at - low) * (means[low + 1] - means[low])

    assert found is not None
    assert found.low == pytest.approx(percentile(0.025), rel=1e-12)
    assert found.high == pytest.approx(percentile(0.975), rel=1e-12)
    other = scipy.stats.bootstrap(
        (values[:, 0],), np.mean, n_resamples=20_000, method="percentile",
        rng=np.random.default_rng(3),
    ).confidence_interval  # fmt: skip
    width = other.high - other.low
    assert found.low == pytest.approx(other.low, abs=0.08 * width)
    assert found.high == pytest.approx(other.high, abs=0.08 * width)


def test_draws_are_the_same_for_the_same_seed_and_none_for_one_sample() -> None:
    first, again, other = (np.array(list(draws(9, seed))) for seed in (1, 1, 2))
    assert first.shape == (1000, 9)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not list(draws(1, 0))
    assert interval(redrawn(np.ones((1, 1)), mean, 0)) is None
    assert interval(np.array([1.0, math.nan])) is None
    assert interval(np.array([1.0, math.inf])) is None


def test_draws_of_many_samples_are_not_in_memory_at_once() -> None:
    values = np.random.default_rng(1).random((50_000, 1))
    tracemalloc.start()
    try:
        found = redrawn(values, mean, 3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.shape == (1000,)
    assert peak < 20 * values.nbytes < 50_000 * 1000 * 8 / 25
    assert interval(np.ones(5)) == Interval(1.0, 1.0)


# --- the command ----------------------------------------------------------------------------


def test_the_command_prints_and_saves_one_document(
    typed: Typed, speaker: Path, text: Path, tmp_path: Path
) -> None:
    code, out, err = typed("evaluate", speaker, "--data", f"text:{text}", "--json", "-o", "e.json")
    assert code == 0, err
    document = json.loads(out)
    assert document == json.loads((tmp_path / "e.json").read_text(encoding="utf-8"))
    assert document["schema"] == "prunectl.evaluate/1"
    assert document["metric"] == "perplexity"
    assert document["samples"] == 12
    assert document["score"] == evaluate(speaker, EvalSettings(data=(f"text:{text}",))).score
    assert document["interval"]["low"] < document["score"] < document["interval"]["high"]
    assert document["record"]["files"] == [text.name]
    assert err == "saved: e.json\n"


def test_the_screen_says_what_was_measured(typed: Typed, speaker: Path, text: Path) -> None:
    options = ("--data", f"text:{text}", "--stride", "4", "--samples", "9")
    code, out, err = typed("evaluate", speaker, *options)
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert any(line.startswith("perplexity ") and "lower is better" in line for line in lines)
    for words in ("measured on 9 windows", "prunable weights 0.0% zero", "stride 4"):
        assert words in lines, words
    assert "blake3" not in out
    assert "blake3" in typed("evaluate", speaker, *options, "-v")[1]
    assert typed("evaluate", speaker, *options, "-q") == (0, "", "")


def test_one_window_has_no_interval(typed: Typed, speaker: Path, text: Path) -> None:
    short = text.with_name("short.txt")
    short.write_text(" ".join(tiny_tokenizers.WORDS[:18]), encoding="utf-8")
    code, out, _ = typed("evaluate", speaker, "--data", f"text:{short}")
    assert code == 0
    assert "none: these samples do not show how certain the score is" in out
    code, out, _ = typed("evaluate", speaker, "--data", f"text:{short}", "--json")
    assert json.loads(out)["interval"] is None


@pytest.mark.parametrize(
    ("argv", "code", "error", "hint"),
    [
        ("MODEL", 2, "--metric perplexity needs --data", "--data text:FILE"),
        ("MODEL --data text:no.txt", 2, "--data text:no.txt: there is no such file", ""),
        ("MODEL --data bytes.txt", 1, "data bytes.txt: not UTF-8 text (byte 0xff)", "iconv"),
        ("MODEL --data random", 2, "--data random is not text", "text:FILE"),
        ("MODEL --data images:.", 2, "--data images is not text", "text:FILE"),
        ("MODEL --data rows.csv", 2, "could mean a table", "hf:rows.csv"),
        ("MODEL --data TEXT --metric guess", 2, "--metric 'guess' is not known", "perplexity"),
        ("MODEL --data TEXT --metric perplexity:x", 2, "'perplexity:x' is not known", "choice"),
        ("MODEL --data TEXT --stride 99", 2, "--stride 99 is not valid for windows of 20", ""),
        ("MODEL --data TEXT --dtype int4", 2, "dtype 'int4' is not known", "float32"),
        ("MODEL --data TEXT --device tpu", 2, "--device 'tpu' is not known", "auto, cpu"),
        ("MODEL --data TEXT -o no/such.json", 1, "there is no folder no", ""),
        ("MODEL --data TEXT -o .", 1, "it is a folder", ""),
        ("./no-model --data TEXT", 1, "no-model: no such file or folder", "org/name"),
        ("NAKED --data TEXT", 1, "text needs the model's tokenizer", "tokenizer.json"),
        ("MODEL/model.safetensors --data TEXT", 1, "one weights file has no config", "folder"),
    ],
)  # fmt: skip
def test_every_error_is_two_lines_at_most(
    typed: Typed, speaker: Path, text: Path, argv: str, code: int, error: str, hint: str
) -> None:
    Path("bytes.txt").write_bytes(b"word1 \xff " * 30)
    Path("rows.csv").write_text("id,words\n1,word1\n", encoding="utf-8")
    naked = Path("naked")
    naked.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(speaker / name, naked)
    places = {"MODEL": str(speaker), "TEXT": f"text:{text}", "NAKED": "naked"}
    words = [one.replace("MODEL", places["MODEL"]) for one in argv.split()]
    found, out, err = typed("evaluate", *(places.get(one, one) for one in words))
    assert (found, out) == (code, "")
    lines = err.splitlines()
    assert 1 <= len(lines) <= 2, err
    assert lines[0].startswith("error: ")
    assert error in lines[0]
    assert hint in err


@pytest.mark.parametrize(
    "argv",
    [
        "analyze MODEL -o MODEL/model.safetensors",
        "analyze MODEL --html MODEL/config.json",
        "evaluate MODEL --data TEXT -o MODEL/../speaker/tokenizer.json",
        "sweep MODEL --data TEXT -s 0.3 --csv MODEL/model.safetensors",
        "bench MODEL --no-load -o MODEL/model.safetensors.index.json",
        "analyze MODEL -o MODEL/modeling_own.py",
        "analyze MODEL -o MODEL/1_Pooling/config.json",
        "compare MODEL MODEL -o MODEL/model.safetensors",
        "compare MODEL MODEL --html MODEL/tokenizer.json",
        "trace MODEL MODEL -o MODEL/config.json",
        "lottery MODEL -o MODEL/../out --html MODEL/config.json",
    ],
)
def test_no_result_takes_the_place_of_a_file_of_the_model(
    typed: Typed, speaker: Path, text: Path, tmp_path: Path, argv: str
) -> None:
    folder = tmp_path / "speaker"
    shutil.copytree(speaker, folder)
    (folder / "1_Pooling").mkdir()
    for name in ("model.safetensors.index.json", "modeling_own.py", "1_Pooling/config.json"):
        (folder / name).write_text("{}", encoding="utf-8")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    words = [one.replace("MODEL", str(folder)).replace("TEXT", f"text:{text}") for one in
             argv.split()]  # fmt: skip
    code, out, err = typed(*words)
    assert (code, out) == (2, "")
    assert "is a file of the model, which is never changed" in err
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert after == before


def test_a_result_beside_the_weights_is_replaced(
    typed: Typed, speaker: Path, text: Path, tmp_path: Path
) -> None:
    shutil.copytree(speaker, tmp_path / "speaker")
    for samples in ("2", "3"):
        code, _, err = typed("evaluate", tmp_path / "speaker", "--data", f"text:{text}", "-q", "-o",
                             tmp_path / "speaker/evaluate.json", "--samples", samples)  # fmt: skip
        assert (code, err) == (0, "")
    assert json.loads((tmp_path / "speaker/evaluate.json").read_bytes())["samples"] == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
def test_a_document_that_cannot_be_saved_is_shown_all_the_same(
    typed: Typed, speaker: Path, text: Path
) -> None:
    code, out, err = typed("evaluate", speaker, "--data", f"text:{text}", "--json", "-o",
                           "/dev/full")  # fmt: skip
    assert json.loads(out)["samples"] == 12
    assert code == 1
    assert err.splitlines()[0] == f"error: /dev/full: cannot write: {os.strerror(28)}"


@pytest.mark.parametrize("rank", [0, 1])
def test_several_processes_that_share_nothing_are_told_so_once(
    rank: int, verses: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    settings = EvalSettings(data=(f"text:{verses}",), samples=2)
    evaluate("demo", settings, on_event=events.append)
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    more: list[Event] = []
    evaluate("demo", settings, on_event=more.append)
    text = "each of the 2 processes does all of it: only training is shared out"
    told = [event for event in more if event not in events]
    assert told == ([] if rank else [Note(text, warning=True)])
    told.clear()
    tell_unshared(told.append, trains=True)
    assert not told
