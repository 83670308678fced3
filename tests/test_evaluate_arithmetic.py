"""Arithmetic in words: numbers read from text, and answers generated one prompt at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from full import few
from transformers import AutoModelForCausalLM, AutoTokenizer

from prunectl import demo
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.opening import open_checkpoint
from prunectl.data.errors import BadData, MissingColumn
from prunectl.errors import InvalidOption
from prunectl.evaluation.errors import MetricMismatch, NoData
from prunectl.evaluation.harness_run import HarnessMetric
from prunectl.evaluation.metric import prepare
from prunectl.evaluation.settings import EvalSettings
from prunectl.evaluation.word_problems import first_number, result_of, written

SVAMP = Path(__file__).parent / "data" / "svamp"


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint("demo")


def prepared(checkpoint: Checkpoint, data: Path, **options: Any) -> HarnessMetric:
    metric = prepare(checkpoint, EvalSettings("arithmetic", (str(data),), **options))
    assert isinstance(metric, HarnessMetric)
    return metric


def problems_of(metric: HarnessMetric) -> list[dict[str, Any]]:
    return list(metric.parts["problems"].task.eval_docs)


def answers(metric: HarnessMetric, model: Any) -> list[str]:
    """What the model writes, before a further question."""
    return [one["resps"][0][0] for one in metric.run(model)["samples"]["problems"]]


class Plain:
    """The model of a folder by transformers alone."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def greedy(self, prompt: str, count: int) -> str:
        """The likeliest next token, ``count`` times, without a cache."""
        ids = self.tokenizer(prompt)["input_ids"]
        new: list[int] = []
        for _ in range(count):
            with torch.no_grad():
                token = int(self.model(torch.tensor([ids + new])).logits[0, -1].argmax())
            if token == self.tokenizer.eos_token_id:
                break
            new.append(token)
            if "Question:" in self.tokenizer.decode(new):
                break
        return str(self.tokenizer.decode(new, skip_special_tokens=True)).partition("Question:")[0]


@pytest.fixture(scope="module")
def plain() -> Plain:
    return Plain(demo.model_folder())


# --- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,234", "1234"),
        ("2,345,678.5", "4691357/2"),
        ("It costs $5.", "5"),
        ("$1,000.50", "2001/2"),
        ("-$5", "-5"),
        ("$-6", "-6"),
        ("3/4 of 1 1/2 cups", "3/4"),
        ("1 1/2 cups", "3/2"),
        ("-2", "-2"),
        ("\u22127 degrees", "-7"),
        ("5.0", "5"),
        (".5 and 0.25.", "1/2"),
        ("10-4=6", "10"),
        ("x-4", "4"),
        ("12/4 = 3", "3"),
        ("1,2,3", "1"),
        ("1e3", "1000"),
        ("a 7th of 3rd", "7"),
        ("nothing", None),
        ("1/0", None),
        ("It is 3/4.", "3/4"),
        ("It is 1 1/2. Or 2", "3/2"),
        ("2/3.5", "2"),
        ("9" * 50, None),
    ],
)
def test_the_first_number_of_a_text(text: str, number: str | None) -> None:
    assert first_number(text) == (None if number is None else Fraction(number))
    assert [written(Fraction(one)) for one in ("5.0", "0.75", "-3")] == ["5", "0.75", "-3"]


@pytest.mark.parametrize(
    ("equation", "result"),
    [
        ("( 9.0 - 4.0 )", "5"),
        ("X=((22.0-14.0)/4.0)", "2"),
        ("-(2+3)*0.5=x", "-5/2"),
        ("9-2=7", None),
        ("- number0 number1", None),
        ("5/0", None),
        ("2**9999999", None),
        ("__import__('os')", None),
        ("(" * 5000, None),
    ],
)
def test_results_of_equations(equation: str, result: str | None) -> None:
    assert result_of(equation) == (None if result is None else Fraction(result))


# --- data ---------------------------------------------------------------------------------------

SHAPES: dict[str, dict[str, Any]] = {
    "svamp": {"Body": "Sam had 9 apples and lost 4.", "Question": "How many are left?",
              "Equation": "( 9.0 - 4.0 )", "Answer": 5.0, "Type": "Subtraction"},
    "asdiv": {"body": "Sam had 9 apples and lost 4.", "question": "How many are left?",
              "solution_type": "Subtraction", "answer": "5 (apples)", "formula": "9-4=5"},
    "mawps of mwptoolkit": {"id": 1, "equation": "X=(9.0-4.0)", "ans": 5.0, "segmented_text": "x",
                            "original_text": "Sam had 9 apples and lost 4. How many are left?"},
    "mawps": {"iIndex": 1, "sQuestion": "Sam had 9 apples and lost 4. How many are left?",
              "lEquations": ["X=(9.0-4.0)"], "lSolutions": [5.0]},
    "svamp's csv": {"Question": "Sam had number0 apples and lost number1. How many are left?",
                    "Numbers": "9.0 4.0", "Equation": "- number0 number1", "Answer": "5.0",
                    "Body": "Sam had number0 apples and lost number1.",
                    "Ques_Statement": "How many are left?"},
    "gsm8k": {"question": "Sam had 9 apples and lost 4. How many are left?",
              "answer": "He has 9-4=<<9-4=5>>5 left.\n#### 5"},
    "equation": {"text": "Sam had 9 apples and lost 4. How many are left?",
                 "equation": "x = 9.0 - 4.0"},
}  # fmt: skip


@pytest.mark.parametrize("row", SHAPES.values(), ids=SHAPES)
def test_problems_of_known_sets(
    checkpoint: Checkpoint, tmp_path: Path, row: dict[str, Any]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text((json.dumps(row) + "\n") * 2)
    for problem in problems_of(prepared(checkpoint, path)):
        assert problem["question"] == "Sam had 9 apples and lost 4. How many are left?"
        assert problem["answer"] == "5"
        assert problem["kind"] in (None, "Subtraction")


BAD = {
    "one row": ([{"question": "a", "answer": 1}], "1 problems, and at least 2 are needed"),
    "no number": (
        [{"question": "a", "answer": 1}, {"question": "b", "answer": "many"}],
        "row 2: 'many' in 'answer' is no number",
    ),
    "two solutions": ([{"question": "a", "answer": [1, 2]}] * 2, "is no number"),
    "no question": ([{"question": "", "body": "a", "answer": 1}] * 2, "row 1 has no 'question'"),
    "no answers": ([{"question": "a", "answer": ""}] * 2, "column of answers is empty"),
    "no result": ([{"question": "a", "equation": "x"}] * 2, "'x' in 'equation' is no number"),
}


@pytest.mark.parametrize(("rows", "why"), BAD.values(), ids=BAD)
def test_bad_problems(
    checkpoint: Checkpoint, tmp_path: Path, rows: list[dict[str, Any]], why: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(BadData, match=why):
        prepared(checkpoint, path)


def test_columns_models_and_examples_that_are_missing(
    checkpoint: Checkpoint, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    path = tmp_path / "a.csv"
    for header in ("x,answer", "question,x"):
        path.write_text(f"{header}\na,1\nb,2\n")
        with pytest.raises(MissingColumn):
            prepared(checkpoint, path)
    path.write_text("question,answer\na,1\nb,2\n")
    with pytest.raises(BadData, match="--shots takes examples from a split of its own"):
        prepared(checkpoint, path, shots=1)
    with pytest.raises(BadData, match="it has 3 examples, and --shots asks for 4"):
        prepared(checkpoint, SVAMP, shots=4)
    with pytest.raises(NoData):
        prepare(checkpoint, EvalSettings("arithmetic"))
    with pytest.raises(MetricMismatch, match="of kind encoder"):
        prepare(open_checkpoint(tiny("bert")), EvalSettings("arithmetic", (str(path),)))


# --- the score ----------------------------------------------------------------------------------


def prompt_of(row: dict[str, Any], shots: int) -> str:
    def asked(row: dict[str, Any]) -> str:
        return f"Question: {row['Body']} {row['Question']}\nAnswer:"

    lines = (SVAMP / "train.jsonl").read_text().splitlines()[:shots]
    solved = [json.loads(line) for line in lines]
    return "".join(f"{asked(one)} {one['Answer']:g}\n\n" for one in solved) + asked(row)


@pytest.mark.parametrize(("shots", "batch_size"), few([(2, 8), (0, 3)]))
def test_answers_are_those_of_a_plain_loop(
    checkpoint: Checkpoint, plain: Plain, shots: int, batch_size: int
) -> None:
    rows = [json.loads(line) for line in (SVAMP / "test.jsonl").read_text().splitlines()]
    metric = prepared(checkpoint, SVAMP, shots=shots, max_new_tokens=8, batch_size=batch_size)
    want = [plain.greedy(prompt_of(row, shots), 8) for row in rows]
    assert answers(metric, plain.model) == want
    assert [float(one["answer"]) for one in problems_of(metric)] == [row["Answer"] for row in rows]


@pytest.mark.full
@pytest.mark.real
def test_a_real_model_writes_numbers(real_model: Callable[[str], Path]) -> None:
    folder = real_model("smollm2")
    rows = [json.loads(line) for line in (SVAMP / "test.jsonl").read_text().splitlines()][:3]
    plain = Plain(folder)
    metric = prepared(open_checkpoint(folder), SVAMP, shots=2, samples=3, seed=1, max_new_tokens=5)
    texts = answers(metric, plain.model)
    by_text = {f"{row['Body']} {row['Question']}": row for row in rows}
    compared = 0
    for problem, text in zip(problems_of(metric), texts, strict=True):
        assert first_number(text) is not None
        if problem["question"] in by_text:
            assert text == plain.greedy(prompt_of(by_text[problem["question"]], 2), 5)
            compared += 1
    assert compared


WRITTEN = {
    " 3": "3", " 9 - 6 = 3": "3", " $3.": "3", "The answer is 1,234": "1234", " -7 degrees": "-7",
    " 3\n\nQuestion: How many are 6 and 7?": "3", " #### 3": "3", " 0.75": "0.75",
}  # fmt: skip
"""What a model writes, and the answer that is in it."""


def test_the_score_is_the_share_that_is_right(
    checkpoint: Checkpoint, plain: Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo writes no numbers: here, texts are put in place of what it writes."""
    path = tmp_path / "a.jsonl"
    for text, answer in (*WRITTEN.items(), (" 5 of the 9 apples", None), (" five", None)):
        wrong = {"question": "Wrong?", "answer": 5, "Type": "wrong"}
        rows = [wrong, wrong | {"answer": answer or 6, "Type": "right"}]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        end = torch.tensor(plain.tokenizer(text)["input_ids"])

        def generate(input_ids: torch.Tensor, end: Any = end, **options: Any) -> torch.Tensor:
            return torch.cat([input_ids, end.expand(len(input_ids), -1)], 1)

        monkeypatch.setattr(plain.model, "generate", generate)
        score = prepared(checkpoint, path).score(plain)  # type: ignore[arg-type]
        right = float(answer is not None)
        assert score.values[:, 0].tolist() == [0, right], text
        assert score.value == right / 2
        assert score.parts == {"right": right, "wrong": 0.0, "majority": 0.5}


def test_sampling_of_the_model_does_not_hold(checkpoint: Checkpoint) -> None:
    metric = prepared(checkpoint, SVAMP, max_new_tokens=6)
    want = answers(metric, Plain(demo.model_folder()).model)
    odd = Plain(demo.model_folder())
    odd.model.generation_config.update(
        do_sample=True, temperature=5.0, repetition_penalty=3.0, no_repeat_ngram_size=1, num_beams=2
    )
    assert answers(metric, odd.model) == want


@pytest.mark.parametrize(
    ("metric", "options"),
    [
        ("similarity", {"shots": 1}),
        ("arithmetic", {"stride": 4}),
        ("perplexity", {"protocol": "text"}),
        ("choice", {"max_new_tokens": 4}),
    ],
)
def test_options_that_a_metric_would_ignore(metric: str, options: dict[str, Any]) -> None:
    name = next(iter(options)).replace("_", "-")
    with pytest.raises(InvalidOption, match=f"--metric {metric} does not take --{name}"):
        EvalSettings(metric, **options)


def test_the_defaults(checkpoint: Checkpoint) -> None:
    assert prepared(checkpoint, SVAMP).record["max_new_tokens"] == 64
    with pytest.raises(InvalidOption, match="leaves no room for a question in 20 tokens"):
        prepared(checkpoint, SVAMP, sequence_length=20, max_new_tokens=20)
    with pytest.raises(InvalidOption, match="--max-new-tokens 0 is not valid: at least 1"):
        EvalSettings("arithmetic", max_new_tokens=0)
