"""Tasks of lm-evaluation-harness on local data, and metrics made of such tasks, as it runs them."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from full import few
from transformers import AutoModelForCausalLM

from prunectl import demo
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.opening import open_checkpoint
from prunectl.data.errors import BadData
from prunectl.errors import InvalidOption, MissingLibrary
from prunectl.evaluation import harness_run
from prunectl.evaluation.errors import EvaluationFailed, MetricMismatch
from prunectl.evaluation.harness_run import OWN_TASKS, HarnessMetric
from prunectl.evaluation.metric import prepare
from prunectl.evaluation.settings import EvalSettings
from prunectl.evaluation.verb import evaluate
from prunectl.events import Advanced, Note, PhaseDone, PhaseStarted

lm_eval = pytest.importorskip("lm_eval")

MMLU = Path(__file__).parent / "data" / "mmlu"
SVAMP = Path(__file__).parent / "data" / "svamp"

_LETTERS = r"""
dataset_path: csv
dataset_kwargs:
  data_files:
    test: {folder}/{loaded}_test.csv
    dev: {folder}/{loaded}_dev.csv
test_split: test
fewshot_split: dev
fewshot_config:
  sampler: first_n
output_type: multiple_choice
description: "The following are multiple choice questions (with answers) about {words}.\n\n"
doc_to_text: "{{{{question}}}}\nA. {{{{A}}}}\nB. {{{{B}}}}\nC. {{{{C}}}}\nD. {{{{D}}}}\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 7.0
task: own_{loaded}
"""
_TEXTS = r"""
dataset_path: csv
dataset_kwargs:
  data_files: {{test: {folder}/philosophy_test.csv}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\nAnswer:"
doc_to_choice: "{{{{[A, B, C, D]}}}}"
doc_to_target: "{{{{'ABCD'.index(answer)}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
task: own_texts
"""
_WRITTEN = r"""
dataset_path: json
dataset_kwargs:
  data_files: {{test: {svamp}/test.jsonl}}
test_split: test
output_type: generate_until
generation_kwargs: {{until: ["\n"], max_gen_toks: 4, do_sample: false}}
doc_to_text: "Question: {{{{Body}}}} {{{{Question}}}}\nAnswer:"
doc_to_target: "{{{{Answer}}}}"
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
filter_list:
  - name: first
    filter:
      - {{function: regex, regex_pattern: "(the|for)", fallback: "none"}}
      - {{function: take_first}}
  - name: second
    filter:
      - {{function: take_first}}
task: own_written
"""
_LOWER = r"""
dataset_path: json
dataset_kwargs:
  data_files: {{test: {svamp}/test.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{Body}}}}"
metric_list:
  - metric: word_perplexity
task: own_lower
"""
_GROUP = """
group: own_group
task: [own_philosophy, own_nutrition]
aggregate_metric_list:
  - metric: acc
    weight_by_size: true
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks on the tables of other tests."""
    data, folder = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("tasks")
    for split in ("dev", "test"):
        header, *rows = (MMLU / f"{split}.csv").read_text().splitlines()
        for loaded in ("philosophy", "nutrition"):
            own = [header, *(row for row in rows if row.startswith(loaded))]
            own = own[:-2] if (loaded, split) == ("nutrition", "test") else own
            (data / f"{loaded}_{split}.csv").write_text("\n".join(own) + "\n")
    options = {"folder": data, "svamp": SVAMP}
    for loaded in ("philosophy", "nutrition"):
        text = _LETTERS.format(loaded=loaded, words=loaded, **options)
        (folder / f"{loaded}.yaml").write_text(text)
    for name, text in (("texts", _TEXTS), ("written", _WRITTEN), ("lower", _LOWER)):
        (folder / f"{name}.yaml").write_text(text.format(**options))
    (folder / "group.yaml").write_text(_GROUP)
    shutil.copy(data / "philosophy_test.csv", folder / "philosophy_test.csv")
    return folder


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint(demo.model_folder(), trust_remote_code=True)


class LoadedModel:
    """The demo, as a metric sees it."""

    def __init__(self) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            demo.model_folder(), dtype=torch.float32
        ).eval()


@pytest.fixture(scope="module")
def loaded() -> Any:
    return LoadedModel()


@pytest.fixture(autouse=True)
def only_own_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness reads its 13,000 task files for each manager, which takes long."""
    import lm_eval.tasks

    real = lm_eval.tasks.TaskManager

    def manager(include_path: list[str]) -> Any:
        return real(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", manager)


def prepared(checkpoint: Checkpoint, tasks: Path, names: str, **options: Any) -> HarnessMetric:
    settings = EvalSettings(f"harness:{names}", (str(tasks),), **options)
    metric = prepare(checkpoint, settings)
    assert isinstance(metric, HarnessMetric)
    return metric


def own_run(model: Any, specs: list[Any], folders: list[Path], **options: Any) -> dict[str, Any]:
    """The harness' own results on a model that transformers loaded."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)
    found: dict[str, Any] = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, max_length=2048),
        tasks=specs,
        task_manager=TaskManager(include_path=list(map(str, folders))),
        bootstrap_iters=0,
        log_samples=True,
        **options,
    )
    return found


def compact(samples: list[dict[str, Any]], score: str) -> list[tuple[Any, float]]:
    """What the model gave each sample, and its score by the last filter."""
    last = [one for one in samples if one["filter"] == samples[-1]["filter"]]
    return [(one["resps"], float(one[score])) for one in sorted(last, key=lambda s: s["doc_id"])]


_ASKED = {"question": "Sam had 9 apples and lost 4. How many are left?", "subject": "philosophy"}
_CHOSEN = [
    _ASKED | {"choices": ["3", "four", "5", "13"], "answer": 2},
    _ASKED | {"question": "Who wrote it?", "choices": ["Hume", "Plato", "Kant", "Me"], "answer": 0},
    _ASKED | {"question": "In the beginning was", "choices": ["the word", "x", "a", "b"],
              "answer": 0},
]  # fmt: skip
_LABELLED = [
    {"question": one["question"], "answerKey": "ABCD"[one["answer"]],
     "choices": {"text": one["choices"], "label": list("ABCD")}}
    for one in _CHOSEN
]  # fmt: skip
_SOLVED = [
    {"question": "A box holds 6 eggs. How many eggs are in 7 boxes?", "answer": "6*7=42\n#### 42"},
    {"question": _ASKED["question"], "answer": "9-4=5\n#### 5"},
    {"question": "What is $2.50 and $2.50?", "answer": "#### 5"},
]
_SVAMP = [json.loads(line) for line in (SVAMP / "test.jsonl").read_text().splitlines()[:3]]
_MAWPS = [
    {"question": one["question"], "result_float": float(one["answer"].rpartition(" ")[2]),
     "result": one["answer"].rpartition(" ")[2], "equation": "x=1"}
    for one in _SOLVED
]  # fmt: skip
SHIPPED = {
    # Task, its folder, our metric, rows, examples.
    "mmlu": ("mmlu_philosophy", "mmlu/default", "choice", _CHOSEN, 0),
    "mmlu, 2 shots": ("mmlu_philosophy", "mmlu/default", "choice", _CHOSEN, 2),
    "arc": ("arc_easy", "arc", "choice", _LABELLED, 0),
    "gsm8k": ("gsm8k", "gsm8k", "arithmetic", _SOLVED, 0),
    "svamp": ("svamp", None, "arithmetic", _SVAMP, 0),
    "mawps": ("mawps", None, "arithmetic", _MAWPS, 0),
}


MADE = ("mmlu, 2 shots", "arc", "svamp", "mawps")


@pytest.mark.real
@pytest.mark.parametrize(
    ("model", "case"),
    [
        *few([("demo", case) for case in SHIPPED], *(("demo", case) for case in MADE)),
        *(pytest.param("smollm2", case, marks=pytest.mark.full) for case in SHIPPED),
    ],
)
def test_metrics_are_the_harness_own_tasks(
    real_model: Callable[[str], Path], tmp_path: Path, model: str, case: str
) -> None:
    """Sample by sample: what the model gives, and the score."""
    name, where, metric, rows, shots = SHIPPED[case]
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "dev", "test"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (data / f"{split}.jsonl").write_text(text)
    files = {one: str(data / f"{one}.jsonl") for one in ("train", "dev", "test")}
    folder = Path(lm_eval.__file__).parent / "tasks" / where if where else OWN_TASKS
    local = {
        "include": str(folder / f"{name}.yaml"),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files | {"validation": files["dev"]}},
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local.yaml").write_text(yaml.safe_dump(local))
    model_folder = demo.model_folder() if model == "demo" else real_model(model)
    plain = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    limits: dict[str, Any] = {"max_new_tokens": 6} if metric == "arithmetic" else {}
    theirs = own_run(
        plain, [name], [tmp_path / "tasks"], num_fewshot=shots,
        gen_kwargs={"max_gen_toks": 6, "do_sample": False} if limits else None,
    )["samples"][name]  # fmt: skip

    settings = EvalSettings(metric, (str(data),), shots=shots, batch_size=3, **limits)
    ours = prepare(open_checkpoint(model_folder), settings)
    assert isinstance(ours, HarnessMetric)
    ((key, part),) = ours.parts.items()
    found = compact(ours.run(plain)["samples"][key], part.score)
    want = compact(theirs, part.score)
    assert [score for _, score in found] == [score for _, score in want]
    for (one, _), (other, _) in zip(found, want, strict=True):
        if metric == "arithmetic":
            assert one == other
        else:  # (log likelihood, whether it is the likeliest) of each option
            assert np.array(one) == pytest.approx(np.array(other), abs=1e-4)


def test_scores_are_those_of_the_harness(checkpoint: Checkpoint, tasks: Path, loaded: Any) -> None:
    metric = prepared(checkpoint, tasks, "own_group,own_texts,own_written")
    own = own_run(loaded.model, ["own_group", "own_texts", "own_written"], [tasks])
    results = own["results"]
    score = metric.score(loaded)
    scored = {"own_philosophy": "acc", "own_nutrition": "acc", "own_texts": "acc_norm"}
    values = [
        float(one[key]) for name, key in scored.items()
        for one in sorted(own["samples"][name], key=lambda one: one["doc_id"])
    ]  # fmt: skip
    assert score.values[: len(values), 0].tolist() == values
    assert score.parts == {
        "own_philosophy": pytest.approx(results["own_philosophy"]["acc,none"]),
        "own_nutrition": pytest.approx(results["own_nutrition"]["acc,none"]),
        "own_texts": pytest.approx(results["own_texts"]["acc_norm,none"]),
        "own_written": pytest.approx(results["own_written"]["exact_match,first"]),
    }
    named = [
        results["own_group"]["acc,none"],
        results["own_texts"]["acc_norm,none"],
        results["own_written"]["exact_match,first"],
    ]
    assert score.value == pytest.approx(np.mean(named))
    assert metric.samples == len(score.values) == 5 + 3 + 5 + 8


def test_a_head_of_its_own_stays(tasks: Path, tmp_path: Path) -> None:
    """The harness ties weights by the config; a checkpoint's own head is not tied again."""
    model = AutoModelForCausalLM.from_pretrained(demo.model_folder(), dtype=torch.float32)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().flip(0))
    before = model.lm_head.weight.clone()
    prepared(open_checkpoint("demo", trust_remote_code=True), tasks, "own_texts").run(model)
    assert model.config.tie_word_embeddings
    assert torch.equal(model.lm_head.weight, before)


def test_the_whole_verb(checkpoint: Checkpoint, tasks: Path) -> None:
    events: list[Any] = []
    settings = EvalSettings("harness:own_philosophy,own_texts", (str(tasks),), samples=4, shots=1)
    result = evaluate(checkpoint, settings, on_event=events.append)
    assert result.metric == "harness"
    assert result.samples == 8
    assert result.interval is not None
    assert result.record["metric"] == "harness:own_philosophy,own_texts"
    assert result.record["harness"] == lm_eval.__version__
    described = result.record["tasks"]["own_philosophy"]
    assert described["score"] == "acc"
    assert described["version"] == "7.0"
    assert (described["shots"], described["samples"], described["samples_available"]) == (1, 4, 5)
    assert len(described["blake3"]) == 64
    json.dumps(result.to_json())
    started = sum(isinstance(one, PhaseStarted) for one in events)
    assert started == sum(isinstance(one, PhaseDone) for one in events) > 0
    assert any(isinstance(one, Advanced) for one in events)


def test_a_task_of_another_prompt_is_another_record(
    checkpoint: Checkpoint, tasks: Path, tmp_path: Path
) -> None:
    """Its rows and its version may be the same."""
    own = tmp_path / "own"
    own.mkdir()
    text = (tasks / "texts.yaml").read_text()
    records = []
    for one in (text, text, text.replace("Answer:", "The answer is")):
        (own / "texts.yaml").write_text(one)
        records.append(prepared(checkpoint, own, "own_texts").record)
    assert records[0] == records[1] == prepared(checkpoint, tasks, "own_texts").record
    assert records[2] != records[0]


def test_nothing_is_printed(
    checkpoint: Checkpoint, tasks: Path, loaded: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    prepared(checkpoint, tasks, "own_philosophy,own_written").score(loaded)
    for metric, data in (("choice", MMLU), ("arithmetic", SVAMP)):
        settings = EvalSettings(metric, (str(data),), samples=2)
        prepare(checkpoint, settings).score(loaded, seed=0)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_memory_that_is_full_halves_the_batch(
    checkpoint: Checkpoint, tasks: Path, loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = prepared(checkpoint, tasks, "own_philosophy", batch_size=4)
    want = metric.score(loaded).values.tolist()
    real = loaded.model.forward

    def small(input_ids: torch.Tensor, *rest: Any, **options: Any) -> Any:
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(input_ids, *rest, **options)

    monkeypatch.setattr(loaded.model, "forward", small)
    events: list[Any] = []
    assert metric.score(loaded, on_event=events.append).values.tolist() == want
    notes = [one.text for one in events if isinstance(one, Note)]
    assert [int(text.split()[3]) for text in notes] == [2, 1]


def test_tasks_that_do_not_fit(
    checkpoint: Checkpoint, tasks: Path, tiny: Callable[[str], Path]
) -> None:
    with pytest.raises(MetricMismatch, match=r"'own_lower' is a mean .*\(word_perplexity") as why:
        prepared(checkpoint, tasks, "own_lower")
    assert "lm-eval run" in why.value.hint
    with pytest.raises(InvalidOption, match="no task 'own_filosofy'") as near:
        prepared(checkpoint, tasks, "own_filosofy")
    assert "own_philosophy" in near.value.hint
    with pytest.raises(InvalidOption, match="task 'own_philosophy' is in it twice"):
        prepared(checkpoint, tasks, "own_philosophy,own_group")
    with pytest.raises(InvalidOption, match="--metric harness: names no task"):
        prepared(checkpoint, tasks, "")
    with pytest.raises(MetricMismatch, match="of kind encoder"):
        prepare(open_checkpoint(tiny("bert")), EvalSettings("harness:own_texts", (str(tasks),)))


def test_tasks_are_programs_of_somebody(tasks: Path, checkpoint: Checkpoint) -> None:
    settings = EvalSettings("harness:own_texts", (str(tasks),))
    with pytest.raises(InvalidOption, match="may run any code") as caught:
        prepare(open_checkpoint("demo"), settings)
    assert prepare(open_checkpoint("demo", trust_remote_code=True), settings).samples == 5
    assert "--trust-remote-code" in caught.value.hint
    with pytest.raises(InvalidOption, match="is no folder of tasks"):
        prepare(checkpoint, EvalSettings("harness:own_texts", (str(tasks / "texts.yaml"),)))


def test_data_that_are_not_there(checkpoint: Checkpoint, tasks: Path, tmp_path: Path) -> None:
    text = (tasks / "texts.yaml").read_text().replace("philosophy_test.csv", "nothing.csv")
    (tmp_path / "texts.yaml").write_text(text)
    with pytest.raises(BadData, match=r"own_texts \(harness\)"):
        prepared(checkpoint, tmp_path, "own_texts")


def test_outputs_that_are_no_numbers(checkpoint: Checkpoint, tasks: Path) -> None:
    broken = LoadedModel()
    with torch.no_grad():
        broken.model.get_input_embeddings().weight.fill_(math.nan)
    for name in ("own_philosophy", "own_written"):
        metric = prepared(checkpoint, tasks, name)
        with pytest.raises(EvaluationFailed, match="the model's outputs are NaN"):
            metric.score(broken)  # type: ignore[arg-type]


def test_without_the_harness(
    checkpoint: Checkpoint, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [one for one in sys.modules if one.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for name in ("harness:own_texts", "choice", "arithmetic"):
        data = tasks if name.startswith("harness") else MMLU
        with pytest.raises(MissingLibrary, match=f"^--metric {name} needs .*'lm-eval'") as caught:
            prepare(checkpoint, EvalSettings(name, (str(data),)))
        assert caught.value.hint == "pip install 'prunectl[harness]'"
    assert harness_run.BATCH == 8
