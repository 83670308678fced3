"""Metrics on real models and real data, against a plain loop of one's own."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import is_required
from test_evaluate_arithmetic import Plain, answers, prepared, problems_of, prompt_of

import lee
from prunectl import open_checkpoint
from prunectl.evaluation.questions import GROUPS, group_of
from prunectl.evaluation.settings import EvalSettings
from prunectl.evaluation.verb import evaluate

pytestmark = pytest.mark.real

_QUESTION = re.compile(
    r"(.*?)\n\(A\) (.*?) \(B\) (.*?) \(C\) (.*?) \(D\) (.*?)\n"
    r"A: Let's think step by step\..*The answer is \(([A-D])\)\.?\s*",
    re.DOTALL,
)


def mmlu() -> list[dict[str, Any]]:
    """273 questions of MMLU's dev split: lm-evaluation-harness has them with their solutions."""
    file = resources.files("lm_eval") / "tasks/mmlu/flan_cot_fewshot/_cot_prompts.json"
    rows = []
    for subject, text in json.loads(file.read_text(encoding="utf-8")).items():
        found = (_QUESTION.fullmatch(block) for block in text.split("\n\nQ: ")[1:])
        for match in filter(None, found):
            question, *choices, answer = match.groups()
            rows.append({
                "question": question, "choices": choices,
                "answer": "ABCD".index(answer), "subject": subject,
            })  # fmt: skip
    return rows


@pytest.mark.full
def test_questions_of_mmlu(real_model: Callable[[str], Path], tmp_path: Path) -> None:
    """The model's answers, its score and those of the four groups are those of a plain loop."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = mmlu()
    assert (len(rows), len({row["subject"] for row in rows})) == (273, 56)
    asked = rows[::13]
    data = tmp_path / "mmlu.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    folder = real_model("smollm2")
    found = evaluate(folder, EvalSettings(metric="choice", data=(f"hf:{data}",)))

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    letters = [tokenizer(f" {one}", add_special_tokens=False).input_ids for one in "ABCD"]
    right = []
    for row in asked:
        lines = [f"{letter}. {one}" for letter, one in zip("ABCD", row["choices"], strict=True)]
        about = row["subject"].replace("_", " ")
        head = f"The following are multiple choice questions (with answers) about {about}.\n\n"
        prompt = head + "\n".join([row["question"], *lines, "Answer:"])
        with torch.no_grad():
            logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
        right.append(int(logits[[one[0] for one in letters]].argmax()) == row["answer"])
    assert found.score == sum(right) / len(right)
    assert found.samples == len(asked)
    groups = [group_of(row["subject"]) for row in asked]
    own = {
        group: sum(hit for hit, one in zip(right, groups, strict=True) if one == group)
        / groups.count(group)
        for group in GROUPS
    }
    assert {group: found.parts[group] for group in GROUPS} == own
    assert 0 < sum(right) < len(right)


def word_problems() -> list[dict[str, Any]]:
    """The eight problems that Wei et al. (arXiv 2201.11903) solve by hand before those of GSM8K."""
    file = resources.files("lm_eval") / "tasks/gsm8k/gsm8k-cot.yaml"
    rows = []
    for one in yaml.safe_load(file.read_text(encoding="utf-8"))["fewshot_config"]["samples"]:
        body, _, question = one["question"].rpartition(". ")
        answer = float(one["target"].rpartition("The answer is ")[2].rstrip("."))
        rows.append({"Body": f"{body}." if body else "", "Question": question, "Answer": answer})
    return rows


@pytest.mark.full
def test_word_problems_of_gsm8k(real_model: Callable[[str], Path], tmp_path: Path) -> None:
    """What the model writes is what it writes in a plain loop, and the right ones are counted."""
    rows = word_problems()
    assert [row["Answer"] for row in rows] == [6, 5, 39, 8, 9, 29, 33, 8]
    data = tmp_path / "test.jsonl"
    asked = [row for row in rows if row["Body"]][:2]
    data.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    plain = Plain(real_model("smollm2"))
    metric = prepared(open_checkpoint(real_model("smollm2")), data, max_new_tokens=5)
    assert answers(metric, plain.model) == [plain.greedy(prompt_of(row, 0), 5) for row in asked]
    assert [float(one["answer"]) for one in problems_of(metric)] == [row["Answer"] for row in asked]


def test_pairs_of_news(real_model: Callable[[str], Path], tmp_path: Path) -> None:
    """People's judgements of pairs of news: Spearman's correlation is that of a plain loop."""
    from scipy.stats import spearmanr
    from transformers import AutoModel, AutoTokenizer

    try:
        folder = lee.fetch()
    except (OSError, subprocess.CalledProcessError) as error:
        if is_required():
            raise
        pytest.skip(f"the pairs cannot be fetched: {error}")
    with (folder / "test.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1225
    some = sorted({row["sentence1"] for row in rows})[:9]
    pairs = [row for row in rows if row["sentence1"] in some and row["sentence2"] in some]
    with (tmp_path / "test.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(pairs[0]))
        table.writeheader()
        table.writerows(pairs)
    model = real_model("minilm")
    found = evaluate(model, EvalSettings(metric="similarity", data=(str(tmp_path),)))

    tokenizer, encoder = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model)
    vectors = {}
    for text in {row[side] for row in pairs for side in ("sentence1", "sentence2")}:
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
        with torch.no_grad():
            mean = encoder.float().eval()(**inputs).last_hidden_state[0].mean(0)
        vectors[text] = mean / mean.norm()
    own = [float(vectors[row["sentence1"]] @ vectors[row["sentence2"]]) for row in pairs]
    expected = spearmanr([float(row["score"]) for row in pairs], own).statistic
    assert found.samples == len(pairs)
    assert found.score == pytest.approx(expected, abs=1e-9)
