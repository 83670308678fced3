"""docs/paper.md keeps its word: each of its commands at full size runs, whole, on reduced models.

The commands are those of the page. A Hub on 127.0.0.1 holds models and datasets by the names that
they have on the real one, so that nothing in a command is replaced: only options that make it
cheaper are put behind it. Widths and depth are small, the architecture and the files are the
published ones (tests/paper_models.py).
"""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import paper_data
import paper_models
import pytest
import torch
from docs_pages import blocks_of
from full import few
from hubserver import Hub, Worker
from paper_models import CONFIGS, matrices, reduced
from test_evaluate_arithmetic import SVAMP, Plain
from test_evaluate_multiple_choice import mmlu_prompt, rows_of
from test_lottery import bits_of
from transformers.utils import is_sentencepiece_available

from prunectl.evaluation.tasks import CLASSIFICATION, QA

PAGE = (Path(__file__).parents[1] / "docs" / "paper.md").read_text(encoding="utf-8")
LINES = [
    line
    for block in blocks_of(PAGE.partition("## At full size")[2])
    for line in block.text.splitlines()
    if line.startswith("prunectl ")
]
VICUNA, PYTHIA = "lmsys/vicuna-7b-v1.3", "EleutherAI/pythia-160m"
STEPS = (1000, 16000, 64000, 143000)

SHARES = (0.2, 0.5)
TRAINING = (
    "--samples 8 --train-samples 24 --epochs 4 --train-batch-size 4 --learning-rate 1e-3 "
    "--warmup 0.1"
)
CHEAPER = {
    ("sweep", "classification"): f"--sparsity 0.2,0.5 --sequence-length 16 {TRAINING}",
    ("sweep", "qa"): "--sparsity 0.2,0.5 --sequence-length 32 --samples 8 --max-steps 2",
    ("sweep", "choice"): "--sparsity 0.2,0.5 --samples 10",
    ("sweep", "calibrated"): "--calibration-samples 2 --calibration-length 32",
    ("sweep", "arithmetic"): "--sparsity 0.2,0.5 --max-new-tokens 3",
    ("lottery", "classification"): f"--rounds 2 --sequence-length 16 {TRAINING}",
    ("compare", ""): "",
    ("trace", ""): "",
}
"""What is put behind a command, by its verb and metric: less to train on and to score, no less of
what the command does."""

# --- the Hub, and who types ------------------------------------------------------------------


@pytest.fixture(scope="module")
def filled(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """The Hub with all models and datasets of the page."""
    root = tmp_path_factory.mktemp("models")
    for repo_id in CONFIGS:
        hub.put(repo_id, _files(paper_models.build(repo_id, root / repo_id)))
    for step in STEPS:
        folder = paper_models.build(PYTHIA, root / f"step{step}", seed=step)
        hub.put(PYTHIA, _files(folder), ref=f"refs/heads/step{step}")
    made = {name: make() for name, make in paper_data.MADE.items()}
    plain = Plain(root / VICUNA)
    made["cais/mmlu"] = paper_data.mmlu(answered_choices(plain))
    made["ChilleD/SVAMP"] = paper_data.svamp(answered_problems(plain))
    for name, files in made.items():
        hub.put(name, dict(files), type_="dataset")
    return hub


def _files(folder: Path) -> dict[str, bytes | Path | None]:
    return {path.name: path for path in folder.iterdir()}


def answered_choices(plain: Plain) -> list[dict[str, Any]]:
    """Questions of MMLU, with what the model of random weights holds for right."""
    rows = []
    letters = [plain.tokenizer.convert_tokens_to_ids(f"▁{one}") for one in "ABCD"]
    for row in rows_of("test"):
        ids = plain.tokenizer(mmlu_prompt(row, 0))["input_ids"]
        with torch.no_grad():
            found = plain.model(torch.tensor([ids])).logits[0, -1][letters]
        asked = {"question": row["question"], "choices": [row[one] for one in "ABCD"]}
        rows.append(asked | {"subject": row["subject"], "answer": int(found.argmax())})
    return rows


def answered_problems(plain: Plain) -> list[dict[str, Any]]:
    """Problems of SVAMP, with what the model writes for an answer: digits, since it likes those."""
    rows = []
    for line in (SVAMP / "test.jsonl").read_text().splitlines():
        row = json.loads(line)
        asked = f"{row['Body']} {row['Question']}"
        told = plain.greedy(f"Question: {asked}\nAnswer:", 3)
        assert told.strip().isdigit()
        rows.append(row | {"Answer": told.strip(), "question_concat": asked})
    return rows


class Typist:
    """Types commands of the page in a process whose Hub is the one that holds its models."""

    def __init__(self, hub: Hub, worker: Worker) -> None:
        self.hub, self._worker, self.cache = hub, worker, worker.home / "hub"

    def type(self, folder: Path, command: str) -> dict[str, Any]:
        """The document that a command prints; it is run in ``folder``."""
        done = self._worker.type(folder, *shlex.split(command)[1:], "--json")
        assert done.code == 0, f"{command}\n{done.err}"
        found: dict[str, Any] = done.document
        return found

    def commit(self, name: str, type_: str = "model", ref: str = "main") -> str:
        return self.hub.repo(name, type_).refs[f"refs/heads/{ref}"]


@pytest.fixture(scope="module")
def typist(filled: Hub, pusher: Worker) -> Typist:
    return Typist(filled, pusher)


# --- the page --------------------------------------------------------------------------------


def words_of(line: str) -> tuple[str, list[str], dict[str, str]]:
    """The verb, the models and the options of a command."""
    _, verb, *rest = shlex.split(line)
    models = [word for word in rest if re.fullmatch(r"[\w-]+/[\w.-]+", word)]
    options = {a: b for a, b in zip(rest, [*rest[1:], ""], strict=True) if a.startswith("-")}
    return verb, models, options


def task_of(line: str) -> str:
    verb, models, options = words_of(line)
    names = [verb, *(one.partition("/")[2] for one in models[:1])]
    more = ("--task", "--data", "--pattern", "--method")
    return " ".join([*names, *(options[one] for one in more if one in options)])


def lines_of(*verbs: str) -> list[Any]:
    return [pytest.param(line, id=task_of(line)) for line in LINES if words_of(line)[0] in verbs]


def test_every_model_task_and_claim_of_the_page_is_here() -> None:
    parsed = [words_of(line) for line in LINES]
    assert {model for _, models, _ in parsed for model in models} == set(CONFIGS)
    # Whatever has the form of a Hub id, wherever it stands, is a model or data that are served.
    ids = set(re.findall(r"(?<![\w/.-])([\w-]+/[\w.-]+)(?=[\s:]|$)", "\n".join(LINES)))
    assert ids == {*CONFIGS, "cais/mmlu", "ChilleD/SVAMP", "allenai/c4"}
    assert {one["--task"] for _, _, one in parsed if "--task" in one} == {*CLASSIFICATION, *QA}
    verbs = {verb for verb, _, _ in parsed}
    assert verbs == {verb for verb, _ in CHEAPER} == {"sweep", "lottery", "compare", "trace"}
    table = PAGE.partition("## Sweeps")[0]
    cells = re.findall(r"^\| .*? \| (.*?) \|", table, re.MULTILINE)
    named = [re.findall(r"[\w:-]+", one) for cell in cells for one in re.findall(r"`(.*?)`", cell)]
    # Calibrated pruning (prune --method) is swept here.
    assert {verb for verb, *_ in named} - {"prune"} == verbs
    options = {word for _, *words in named for word in words if word.startswith("--")}
    assert options <= {option for _, _, given in parsed for option in given}


# --- what is prunable ------------------------------------------------------------------------


@pytest.mark.parametrize("repo_id", few(CONFIGS))
def test_what_is_prunable_follows_from_the_config(
    repo_id: str, typist: Typist, tmp_path: Path
) -> None:
    found = typist.type(tmp_path, f"prunectl analyze {repo_id}")
    prunable = {one["name"]: tuple(one["shape"]) for one in found["tensors"] if one["prunable"]}
    assert prunable == matrices(reduced(CONFIGS[repo_id]))
    assert found["source"]["repo_id"] == repo_id
    assert found["source"]["architecture"] == CONFIGS[repo_id]["architectures"][0]


def test_the_counts_at_full_size_are_the_paper_s() -> None:
    """BERT-base: 72 matrices, 84,934,656 weights (arXiv 2306.03805 and its code)."""
    shapes = matrices(CONFIGS["google-bert/bert-base-uncased"])
    assert (len(shapes), sum(map(prod, shapes.values()))) == (72, 84_934_656)


def test_vicunas_tokenizer_needs_a_library(
    tmp_path: Path, typed: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = paper_models.build(VICUNA, tmp_path / "vicuna")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)  # as if it were not installed
    is_sentencepiece_available.cache_clear()
    try:
        code, out, err = typed(
            "evaluate", folder, "--metric", "arithmetic", "--data", SVAMP, "--max-new-tokens", "2"
        )
    finally:
        is_sentencepiece_available.cache_clear()
    assert (code, out) == (1, "")
    assert "text needs the model's tokenizer, and what reads it is not installed" in err
    assert err.endswith("hint: pip install sentencepiece\n")


# --- the commands ----------------------------------------------------------------------------


def shapes_of(repo_id: str) -> list[int]:
    return [prod(shape) for shape in matrices(reduced(CONFIGS[repo_id])).values()]


def count(sparsity: float, weights: int) -> int:
    return math.floor(sparsity * weights + 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("line", lines_of("sweep"))
def test_sweeps(line: str, typist: Typist, tmp_path: Path) -> None:
    _, models, options = words_of(line)
    metric = options["--metric"]
    calibrated = CHEAPER["sweep", "calibrated"] if "--calibration" in options else ""
    found = typist.type(tmp_path, f"{line} {CHEAPER['sweep', metric]} {calibrated}")
    assert (found["metric"]["name"], found["interrupted"]) == (metric, False)
    known = [(one["model"], one["revision"], one["prunable"]) for one in found["models"]]
    assert known == [(one, typist.commit(one), sum(shapes_of(one))) for one in models]
    task = {**CLASSIFICATION, **QA}.get(options.get("--task", ""))
    data = (options.get("--data") or (task and task.data) or "").split(":")
    for model in found["models"]:
        record = model["record"]
        named = [record["dataset"], *([record["config"]] if "config" in record else [])]
        assert (["hf", *named], record.get("task")) == (data, options.get("--task"))
        assert record["revision"] == typist.commit(data[1], "dataset")
        assert model["dtype"] == options.get("--dtype", "float32")
        if task is not None:
            precision = options.get("--mixed-precision", "no")
            assert record["recipe"]["mixed_precision"] == precision
    patterns = options.get("--pattern", "unstructured").split(",")
    curves = [(one["model"], one["pattern"]) for one in found["curves"]]
    assert curves == [(model, pattern) for model in models for pattern in patterns]
    calibration = found["settings"]["calibration"]
    assert (calibration or {}).get("source") == (
        [options["--calibration"]] if calibration else None
    )
    for curve in found["curves"]:
        assert curve["method"] == options.get("--method", "magnitude")
        check_points(curve, options.get("--seeds", "0").split(","))
        # Of all but SQuAD, which is trained too shortly here, the dense model knows the answers.
        assert metric == "qa" or curve["dense"]["score"] >= 0.75
    if "--html" in options:
        assert (tmp_path / options["--html"]).read_text(encoding="utf-8").startswith("<!")


def check_points(curve: dict[str, Any], seeds: list[str]) -> None:
    """All are there, with scores, and with exactly as many zeros as were asked for."""
    points = curve["points"]
    assert [one["requested"] for one in points] == [0, *SHARES]
    sizes = shapes_of(curve["model"])
    weights = sum(sizes)
    for point in points:
        assert point["failed"] is None
        assert list(point["seeds"]) == seeds
        values = list(point["seeds"].values())
        assert point["score"] == pytest.approx(sum(values) / len(values))
        assert point["low"] <= point["score"] <= point["high"]
        zeros, asked = point["sparsity"] * weights, point["requested"]
        if curve["method"] != "magnitude":  # within each matrix
            assert zeros == pytest.approx(sum(count(asked, one) for one in sizes), abs=1e-6)
        elif curve["pattern"] == "unstructured" or asked in (0, 0.5):
            assert zeros == pytest.approx(count(asked, weights), abs=1e-6)
        else:  # whole matrices, each of which loses half
            assert abs(zeros - asked * weights) <= max(sizes) / 4


@pytest.mark.full
@pytest.mark.parametrize("line", lines_of("lottery"))
def test_lotteries(line: str, typist: Typist, tmp_path: Path) -> None:
    _, (model,), options = words_of(line)
    found = typist.type(tmp_path, f"{line} {CHEAPER['lottery', 'classification']}")
    shapes = matrices(reduced(CONFIGS[model]))
    weights = sum(map(prod, shapes.values()))
    assert (found["model"], found["weights"]) == (model, weights)
    assert found["record"]["task"] == options["--task"]
    last = float(options["--sparsity"])
    planned = [1 - math.sqrt(1 - last), last]
    assert found["planned"] == pytest.approx(planned, abs=1e-6)
    assert [one["sparsity"] for one in found["rounds"]] == found["planned"]
    assert found["dense"]["score"] >= 0.75
    seeds = options["--seeds"].split(",")
    for one in found["rounds"]:
        for scored in (one["ticket"], one["one_shot"]):
            assert scored["failed"] is None
            assert list(scored["seeds"]) == seeds
            assert None not in scored["seeds"].values()
        zeros = count(one["sparsity"], weights)
        for seed in seeds:
            assert one["overlaps"][seed]["pruned"] == [zeros, zeros]
            masks = bits_of(tmp_path / options["-o"] / one["masks"][seed])
            assert {name: mask.size for name, mask in masks.items()} == {
                name: prod(shape) for name, shape in shapes.items()
            }
            assert sum(int(mask.sum()) for mask in masks.values()) == zeros


@pytest.mark.full
@pytest.mark.parametrize("line", lines_of("compare"))
def test_comparisons(line: str, typist: Typist, tmp_path: Path) -> None:
    _, models, _ = words_of(line)
    found = typist.type(tmp_path, line)
    assert [(one["model"], one["revision"]) for one in found["models"]] == [
        (one, typist.commit(one)) for one in models
    ]
    sizes = shapes_of(models[0])
    assert found["compared"] == {"tensors": len(sizes), "weights": sum(sizes)}
    assert [one["unmatched"] for one in found["models"]] == [{}, {}]
    assert [one["sparsity"] for one in found["masks"]] == [0.1, 0.2, 0.3, 0.4]
    for one in found["masks"]:
        assert one["pruned"] == [count(one["sparsity"], sum(sizes))] * 2
        assert one["cosine"] == pytest.approx(one["cosine_chance"], abs=0.02)  # of random weights
        assert sum(part["weights"] for part in one["layers"].values()) == sum(sizes)
    assert found["findings"]


@pytest.mark.full
@pytest.mark.parametrize("line", lines_of("trace"))
def test_traces(line: str, typist: Typist, tmp_path: Path) -> None:
    _, (model,), options = words_of(line)
    found = typist.type(tmp_path, line)
    names = options["--revisions"].split(",")
    commits = [typist.commit(model, ref=name) for name in names]
    assert [(one["revision"], one["step"]) for one in found["points"]] == [
        (commit, int(name.removeprefix("step")))
        for commit, name in zip(commits, names, strict=True)
    ]
    sizes = shapes_of(model)
    assert (found["tensors"], found["weights"]) == (len(sizes), sum(sizes))
    assert found["steps_known"]
    series = {one["name"]: one["values"] for one in found["series"]}
    assert {"zero", "lost at 0.2", "lost at 0.4", "lost at 0.6", "lost by 2:4"} <= set(series)
    assert all(len(set(values)) == len(names) for name, values in series.items() if "lost" in name)
    assert "--drop" in options
    held = typist.cache.glob("models--*--pythia-160m/snapshots/*/model.safetensors")
    assert not {path.parent.name for path in held} & set(commits)
