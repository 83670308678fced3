"""Metrics on real models and real data, against a plain loop of one's own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

from prunectl.evaluation.mmlu import GROUPS, group_of
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
