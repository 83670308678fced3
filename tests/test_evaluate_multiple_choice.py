"""Multiple choice, against likelihoods of prompts that are written out here."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import tiny_tokenizers
import torch
from full import few
from transformers import AutoModelForCausalLM, AutoTokenizer

from prunectl import demo
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.opening import open_checkpoint
from prunectl.data.errors import BadData, BadTokenizer, MissingColumn, WrongTokenizer
from prunectl.data.tokens import load_tokenizer
from prunectl.errors import InvalidOption
from prunectl.evaluation.errors import MetricMismatch, NoData
from prunectl.evaluation.harness_run import HarnessMetric
from prunectl.evaluation.metric import prepare
from prunectl.evaluation.questions import GROUP_OF, group_of
from prunectl.evaluation.settings import EvalSettings
from prunectl.evaluation.verb import evaluate

MMLU = Path(__file__).parent / "data" / "mmlu"
GROUPS = {
    "philosophy": "humanities",
    "high_school_geography": "social sciences",
    "conceptual_physics": "STEM",
    "nutrition": "other",
}


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint("demo")


def prepared(checkpoint: Checkpoint, data: Path | str, **options: Any) -> HarnessMetric:
    metric = prepare(checkpoint, EvalSettings("choice", data=(str(data),), **options))
    assert isinstance(metric, HarnessMetric)
    return metric


def docs_of(metric: HarnessMetric) -> list[dict[str, Any]]:
    return [doc for part in metric.parts.values() for doc in part.task.eval_docs]


def prompts_of(metric: HarnessMetric) -> list[str]:
    return [
        part.task.fewshot_context(doc=doc, num_fewshot=part.task.config.num_fewshot)
        for part in metric.parts.values()
        for doc in part.task.eval_docs
    ]


def likelihoods(metric: HarnessMetric, model: Any) -> list[list[float]]:
    """Log likelihoods of each question's options."""
    samples = metric.run(model)["samples"]
    return [
        [resps[0][0] for resps in one["resps"]] for name in metric.parts for one in samples[name]
    ]


class Reference:
    """The model by transformers alone, one text at a time."""

    def __init__(self) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(demo.model_folder())
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            demo.model_folder(), dtype=torch.float32
        ).eval()

    def next_of(self, context: str, ends: list[str]) -> list[float]:
        """Log probabilities of single tokens."""
        ids = self.tokenizer(context)["input_ids"]
        with torch.no_grad():
            known = self.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        tokens = [self.tokenizer(context + end)["input_ids"][len(ids) :] for end in ends]
        return [float(known[token]) for (token,) in tokens]

    def log_likelihood(self, context: str, end: str) -> float:
        before = self.tokenizer(context)["input_ids"]
        ids = self.tokenizer(context + end)["input_ids"]
        assert ids[: len(before)] == before
        with torch.no_grad():
            known = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(float(known[at - 1, ids[at]]) for at in range(len(before), len(ids)))


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


def write(folder: Path, rows: list[dict[str, Any]], name: str = "a.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(split: str) -> list[dict[str, str]]:
    import csv

    with (MMLU / f"{split}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def mmlu_prompt(row: dict[str, str], shots: int) -> str:
    def one(row: dict[str, str]) -> str:
        return (
            f"{row['question']}\nA. {row['A']}\nB. {row['B']}\nC. {row['C']}\nD. {row['D']}\n"
            "Answer:"
        )

    subject = row["subject"]
    solved = [dev for dev in rows_of("dev") if dev["subject"] == subject][:shots]
    text = "The following are multiple choice questions (with answers) about "
    text += subject.replace("_", " ") + ".\n\n"
    for dev in solved:
        text += one(dev) + " " + dev["answer"] + "\n\n"
    return text + one(row)


@pytest.mark.parametrize("shots", few([2, 0]))
def test_letters_are_scored_as_a_plain_loop_does(
    checkpoint: Checkpoint, reference: Reference, shots: int
) -> None:
    rows = rows_of("test")
    want = []
    for row in rows:
        found = reference.next_of(mmlu_prompt(row, shots), [" A", " B", " C", " D"])
        want.append("ABCD"[int(np.argmax(found))] == row["answer"])
    result = evaluate(checkpoint, EvalSettings("choice", data=(str(MMLU),), shots=shots))
    assert result.score == pytest.approx(np.mean(want))
    assert result.samples == 20
    assert result.higher_is_better
    groups = [GROUPS[row["subject"]] for row in rows]
    answers = [row["answer"] for row in rows]
    assert result.parts.pop("majority") == max(map(answers.count, "ABCD")) / len(answers)
    assert list(result.parts) == ["humanities", "social sciences", "STEM", "other"]
    for name, score in result.parts.items():
        right = [one for one, group in zip(want, groups, strict=True) if group == name]
        assert score == pytest.approx(np.mean(right))
    assert result.interval is not None
    assert result.interval.low <= result.score <= result.interval.high
    assert result.record["protocol"] == "letters"
    assert result.record["shots"] == shots
    assert result.record["questions"] == 20


def test_the_prompt_is_that_of_mmlu_to_the_letter(checkpoint: Checkpoint) -> None:
    metric = prepared(checkpoint, MMLU, shots=1)
    at = next(i for i, one in enumerate(docs_of(metric)) if one["subject"] == "philosophy")
    assert prompts_of(metric)[at] == (
        "The following are multiple choice questions (with answers) about philosophy.\n\n"
        "Who wrote the Critique of Pure Reason?\nA. Hume\nB. Plato\nC. Kant\nD. Mill\n"
        'Answer: C\n\n"I think, therefore I am" was written by\nA. Descartes\nB. Aristotle\n'
        "C. Locke\nD. Nietzsche\nAnswer:"
    )
    assert docs_of(metric)[at]["letters"] == ["A", "B", "C", "D"]
    assert metric.record["prompt"] == (
        "The following are multiple choice questions (with answers) about {subject}.\n\n"
        "{question}\nA. {option}\nB. {option}\nAnswer:"
    )


def test_texts_of_the_data_are_no_templates(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The harness' own templates could run code."""
    text = "{{ 1 // 0 }}{% for x in y %}"
    row = {"question": text, "choices": [text, "{{a}}"], "answer": 0, "subject": text}
    for protocol in ("letters", "text"):
        for prompt in prompts_of(
            prepared(checkpoint, write(tmp_path, [row] * 2), protocol=protocol)
        ):
            assert text in prompt


ARC = [
    {"question": "What do bees make?", "answerKey": "2",
     "choices": {"text": ["milk", "honey", "cheese and butter"], "label": ["1", "2", "3"]}},
    {"question": "Which of these is the largest?", "answerKey": "A",
     "choices": {"text": ["the sun", "a mouse", "the moon", "a house by the sea"],
                 "label": ["A", "B", "C", "D"]}},
]  # fmt: skip
ENDINGS = [
    {"ctx": "The man opened the door and", "label": "1",
     "endings": ["the of was.", "went into the house.", "green."]},
    {"ctx": "She looked at him for a long time, and then she", "label": "0",
     "endings": ["turned and walked away.", "seven of the is a."]},
]  # fmt: skip


@pytest.mark.parametrize(("rows", "batch_size"), [(ARC, 1), (ENDINGS, 3)])
def test_texts_of_options_are_scored_by_their_characters(
    checkpoint: Checkpoint,
    reference: Reference,
    tmp_path: Path,
    rows: list[dict[str, Any]],
    batch_size: int,
) -> None:
    metric = prepared(checkpoint, write(tmp_path, rows), batch_size=batch_size)
    assert metric.record["protocol"] == "text"
    want: list[list[float]] = []
    for row in rows:
        if rows is ARC:
            context, options = f"Question: {row['question']}\nAnswer:", row["choices"]["text"]
        else:
            context, options = row["ctx"], row["endings"]
        want.append([reference.log_likelihood(context, f" {one}") for one in options])
    for have, expected in zip(likelihoods(metric, reference.model), want, strict=True):
        np.testing.assert_allclose(have, expected, atol=1e-4)
    normalised = [
        int(np.argmax([value / len(one) for value, one in zip(v, q["choices"], strict=True)]))
        for v, q in zip(want, docs_of(metric), strict=True)
    ]
    right = [a == q["answer"] for a, q in zip(normalised, docs_of(metric), strict=True)]
    assert [q["answer"] for q in docs_of(metric)] == [1, 0]
    result = evaluate(checkpoint, EvalSettings("choice", data=(str(tmp_path / "a.jsonl"),)))
    assert result.score == np.mean(right)


def test_the_protocol_can_be_chosen(checkpoint: Checkpoint, tmp_path: Path) -> None:
    letters = prepared(checkpoint, write(tmp_path, ENDINGS), protocol="letters")
    assert prompts_of(letters)[1] == (
        "The following are multiple choice questions (with answers).\n\nShe looked at him for a "
        "long time, and then she\nA. turned and walked away.\nB. seven of the is a.\nAnswer:"
    )
    text = prepared(checkpoint, MMLU, protocol="text", shots=1)
    assert prompts_of(text)[0] == (
        "Question: Which of these is the longest river in Africa?\nAnswer: Nile\n\n"
        "Question: The capital of France is\nAnswer:"
    )
    with pytest.raises(InvalidOption, match="--protocol 'words' is not known"):
        EvalSettings("choice", protocol="words")


def test_the_command(typed: Callable[..., tuple[int, str, str]]) -> None:
    args = ("--metric", "choice", "--data", MMLU, "--protocol", "text", "--shots", "1", "--json")
    code, out, _ = typed("evaluate", "demo", *args)
    assert code == 0
    document = json.loads(out)
    want = evaluate("demo", EvalSettings("choice", (str(MMLU),), protocol="text", shots=1))
    assert document["score"] == want.score
    assert document["record"] == want.record
    code, _, err = typed("evaluate", "demo", "--metric", "choice", "--data", MMLU, "--shots", "9")
    assert code == 1
    assert "--shots asks for 9" in err


CHOICES = ["red", "green", "blue"]


@pytest.mark.parametrize(
    "answers", [[2, 0], ["2", "0"], [2.0, 0.0], ["c", "A"], ["blue", "red"], [" C ", "A"]]
)
def test_answers_are_numbers_letters_or_texts(
    checkpoint: Checkpoint, tmp_path: Path, answers: list[Any]
) -> None:
    rows = [{"question": "Colour?", "choices": CHOICES, "answer": one} for one in answers]
    metric = prepared(checkpoint, write(tmp_path, rows))
    assert [one["answer"] for one in docs_of(metric)] == [2, 0]


def test_a_table_has_its_lists_as_text_and_questions_of_fewer_options(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "list.csv").write_text(
        'question,choices,answer\nOne?,"[""red"", ""it\'s""]",1\nTwo?,"[\'red\', \'green\']",0\n'
    )
    listed = prepared(checkpoint, tmp_path / "list.csv")
    assert [one["choices"] for one in docs_of(listed)] == [["red", "it's"], ["red", "green"]]
    (tmp_path / "letters.csv").write_text("question,A,B,C,answer\nOne?,1,2,3,A\nTwo?,1,2,,B\n")
    lettered = prepared(checkpoint, tmp_path / "letters.csv")
    assert [one["choices"] for one in docs_of(lettered)] == [["1", "2", "3"], ["1", "2"]]


def test_fewer_questions_are_drawn_by_the_seed(checkpoint: Checkpoint) -> None:
    every = docs_of(prepared(checkpoint, MMLU))
    first = prepared(checkpoint, MMLU, samples=5, seed=1)
    again, other = (docs_of(prepared(checkpoint, MMLU, samples=5, seed=seed)) for seed in (1, 2))
    assert docs_of(first) == again != other
    places = [every.index(one) for one in again]
    assert places == sorted(places)
    assert first.record["questions"] == 5
    assert first.record["questions_available"] == 20
    assert first.record != prepared(checkpoint, MMLU, samples=5, seed=2).record
    whole = [prepared(checkpoint, MMLU, samples=20, seed=seed).record for seed in (1, 2)]
    assert whole[0] == whole[1]  # nothing is drawn


def test_prompts_that_do_not_fit_lose_their_beginning(
    checkpoint: Checkpoint, reference: Reference
) -> None:
    def lengths(shots: int) -> list[int]:
        """Tokens of prompts that the model is fed with a letter, of which the last is not."""
        texts = prompts_of(prepared(checkpoint, MMLU, shots=shots))
        return [len(reference.tokenizer(text)["input_ids"]) for text in texts]

    alone, both = lengths(0), lengths(2)
    room = max(alone)
    squeezed = prepared(checkpoint, MMLU, shots=2, sequence_length=room)
    fewer = sum(one > room for one in both)
    assert squeezed.record["questions_with_fewer_examples"] == fewer > 0
    assert squeezed.record["questions_cut"] == 0
    assert squeezed.notes == (f"{fewer} questions lose examples: the model takes {room} tokens",)
    cut = prepared(checkpoint, MMLU, sequence_length=16)
    assert cut.record["questions_cut"] == 20
    assert cut.notes == ("20 questions lose their beginning: the model takes 16",)
    assert prepared(checkpoint, MMLU, sequence_length=15).record != cut.record
    ids = reference.tokenizer(prompts_of(cut)[0])["input_ids"][-16:]
    with torch.no_grad():
        known = reference.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    letters = [reference.tokenizer(f" {one}")["input_ids"][0] for one in "ABCD"]
    found = likelihoods(cut, reference.model)[0]
    np.testing.assert_allclose(found, known[letters], atol=1e-4)


def test_tokenizers_that_do_not_fit(tmp_path: Path) -> None:
    tiny_models.build("llama", tmp_path / "llama")
    row = {"question": "word1", "choices": ["word2", "word3"], "answer": 0}
    data = write(tmp_path, [row] * 2)
    tiny_tokenizers.save(tmp_path / "llama", bert=False, eos_token=None)
    with pytest.raises(BadTokenizer, match="has no end-of-text token"):
        prepared(open_checkpoint(tmp_path / "llama"), data)
    tiny_tokenizers.save(tmp_path / "llama", bert=False)
    with pytest.raises(WrongTokenizer):  # it knows none of the words of a prompt
        prepared(open_checkpoint(tmp_path / "llama"), data, protocol="letters")


def test_a_tokenizer_that_fails(checkpoint: Checkpoint) -> None:
    def fails(*texts: Any, **options: Any) -> Any:
        raise RuntimeError("no such merge\nand more")

    broken = replace(load_tokenizer(checkpoint), inner=fails)
    with pytest.raises(BadTokenizer, match=r"which fails: no such merge$"):
        broken.each(["in the"])


BAD: dict[str, tuple[list[dict[str, Any]], str]] = {
    "one row": ([ARC[0]], "1 questions, and at least 2 are needed"),
    "no question": ([{"question": " ", "choices": CHOICES, "answer": 0}] * 2, "row 1 has no"),
    "not among them": (
        [{"question": "a", "choices": CHOICES, "answer": one} for one in ("A", "B", "D", "C")],
        "row 3: answer 'D' is none of its 3 options",
    ),
    "number from one": (
        [{"question": "a", "choices": CHOICES, "answer": one} for one in (1, 3)],
        "row 2: answer '3' is none of its 3 options",
    ),
    "no list": ([{"question": "a", "choices": "red, blue", "answer": 0}] * 2, "is no list"),
    "one option": ([{"question": "a", "choices": ["red"], "answer": 0}] * 2, "row 1 has 1 options"),
    "empty option": (
        [{"question": "a", "choices": ["red", " "], "answer": 0}] * 2, "has an empty option",
    ),
    "too many options": (
        [{"question": "a", "choices": list(map(str, range(27))), "answer": 0}] * 2,
        "row 1 has 27 options, and 2 to 26 are needed",
    ),
    "no answers": ([{"question": "a", "choices": CHOICES, "answer": -1}] * 2, "answers is empty"),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "why"), BAD.values(), ids=BAD)
def test_bad_questions(
    checkpoint: Checkpoint, tmp_path: Path, rows: list[dict[str, Any]], why: str
) -> None:
    with pytest.raises(BadData, match=why) as caught:
        prepared(checkpoint, write(tmp_path, rows))
    assert caught.value.hint


def test_columns_that_are_missing(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for lacking in ("question", "choices", "answer"):
        row = {"question": "a", "choices": CHOICES, "answer": 0, "x": 1}
        row.pop(lacking)
        with pytest.raises(MissingColumn, match=lacking):
            prepared(checkpoint, write(tmp_path, [row] * 2))


def test_examples_that_are_missing(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(BadData, match="--shots takes examples from a split of its own"):
        prepared(checkpoint, write(tmp_path, ENDINGS), shots=1)
    with pytest.raises(BadData, match=r"2 examples of subject '.*', and --shots asks for 3"):
        prepared(checkpoint, MMLU, shots=3)


def test_models_and_data_that_do_not_fit(
    checkpoint: Checkpoint, tiny: Callable[[str], Path]
) -> None:
    with pytest.raises(MetricMismatch, match="of kind encoder") as caught:
        prepare(open_checkpoint(tiny("bert")), EvalSettings("choice", data=(str(MMLU),)))
    assert "similarity" in caught.value.hint
    with pytest.raises(NoData, match="--metric choice needs --data for demo"):
        prepare(checkpoint, EvalSettings("choice"))
    with pytest.raises(BadData, match="an option has more than the 2 tokens there are"):
        prepared(checkpoint, MMLU, protocol="text", sequence_length=2)


def test_the_57_subjects() -> None:
    assert Counter(GROUP_OF.values()) == {
        "humanities": 13, "social sciences": 12, "STEM": 18, "other": 14,
    }  # fmt: skip
    assert group_of("Anatomy") == group_of("anatomy") == "other"
    assert group_of("high school physics") == "STEM"
    assert group_of("cooking") == "cooking"
