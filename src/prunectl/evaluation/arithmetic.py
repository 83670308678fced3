"""Arithmetic in words: how often the number that a model writes is the right one.

The problems become a task of lm-evaluation-harness, described by ``own_tasks/_word_problems_yaml``:
the model continues ``Question: ...`` and ``Answer:``, after solved examples if any are asked for,
and of what it writes before a further ``Question:`` the last number is its answer, compared as the
harness' ``gsm8k`` does (``flexible-extract``). Data are those of MAWPS (Koncel-Kedziorski et al.,
NAACL 2016), ASDiv (Miao et al., arXiv 2106.15772), SVAMP (Patel et al., arXiv 2103.07191) and GSM8K
(Cobbe et al., arXiv 2110.14168), or of their shape.
"""

from __future__ import annotations

from typing import Any

import yaml

from prunectl.data.errors import BadData
from prunectl.data.tables import digest_rows
from prunectl.evaluation import prompts
from prunectl.evaluation.examples import facts_of
from prunectl.evaluation.harness_run import (
    OWN_TASKS,
    HarnessMetric,
    Part,
    own_metric,
    own_task,
    quiet_harness,
)
from prunectl.evaluation.metric import Request
from prunectl.evaluation.sources import splits_of, the_data
from prunectl.evaluation.word_problems import ANSWER, EQUATION, columns_of, problems_of


def prepare(request: Request) -> HarnessMetric:
    """Read the problems, and make a task of them.

    Raises:
        MetricMismatch: the model does not continue text.
        MissingLibrary: lm-evaluation-harness is not installed.
        NoData, BadData, MissingColumn, BadTokenizer, WrongTokenizer, InvalidOption: see there.
    """
    prompts.continues_text(request)
    with quiet_harness(request.settings.metric):
        return _prepared(request)


def _prepared(request: Request) -> HarnessMetric:
    settings, name = request.settings, the_data(request)
    splits = splits_of(request, name)
    table = prompts.scored_split(splits, (*ANSWER, *EQUATION), name)
    every = problems_of(table)
    prompts.enough(len(every), "problems", table.name)
    problems, counts = prompts.taken(request, every, "problems")
    config = yaml.safe_load((OWN_TASKS / "_word_problems_yaml").read_text(encoding="utf-8"))
    generation = config["generation_kwargs"]
    generation["max_gen_toks"] = settings.max_new_tokens or generation["max_gen_toks"]
    record: dict[str, Any] = {
        **facts_of(table),
        "blake3": digest_rows(table.rows, columns_of(table)),
        "prompt": config["doc_to_text"],
        "shots": settings.shots,
        "decoding": "greedy",
        "max_new_tokens": generation["max_gen_toks"],
        "answer": f"last number before '{generation['until'][0]}'",
        "tolerance": 0.0,
    }
    examples = []
    if settings.shots:
        source = prompts.examples_split(splits, table, name)
        examples = problems_of(source)[: settings.shots]
        if len(examples) < settings.shots:
            what = f"it has {len(examples)} examples, and --shots asks for {settings.shots}"
            raise BadData(source.name, what)
        record["examples"] = f"the first of {source.facts['split']}"
        record["examples_blake3"] = digest_rows(source.rows, columns_of(source))
    task = own_task(config, problems, examples)
    return own_metric(
        request,
        "problems",
        {"problems": Part(task, "exact_match", tuple(one["kind"] for one in problems))},
        [one["answer"] for one in problems],
        record | counts,
        new_tokens=generation["max_gen_toks"],
    )
