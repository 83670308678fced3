"""Tasks of lm-evaluation-harness by their names, and users' own tasks.

Of a task with several metrics, the first of ``acc_norm``, ``acc`` and ``exact_match`` is taken,
else the first that is a mean over samples and better if higher; of several filters, the first.
Tasks that were named count alike; inside a group, samples count alike.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blake3 import blake3

from prunectl.checkpoint.model_kind import Kind
from prunectl.data.datasets import dataset_errors
from prunectl.data.errors import BadData
from prunectl.data.source import DataSource, SourceKind
from prunectl.data.tables import digest_rows
from prunectl.errors import InvalidOption
from prunectl.evaluation import prompts
from prunectl.evaluation.harness_run import (
    BATCH,
    OWN_TASKS,
    HarnessMetric,
    Part,
    harness_version,
    open_tokenizer,
    quiet_harness,
)
from prunectl.evaluation.metric import Request
from prunectl.evaluation.metrics import suggested
from prunectl.userdirs import expanded

PREFERRED = ("acc_norm", "acc", "exact_match")
SEED = 1234
"""The harness' own seed of few-shot examples."""
_WHERE = ("dataset_path", "dataset_name", "dataset_kwargs", "metadata")


def prepare(request: Request) -> HarnessMetric:
    """Load the tasks and their data.

    Raises:
        MissingLibrary: lm-evaluation-harness is not installed.
        MetricMismatch: the model does not generate text, or a task has no score that fits.
        InvalidOption: no task, or one that is not known.
        BadData, HubUnreachable, AccessDenied: a task's data cannot be read.
    """
    settings, kind = request.settings, request.model_kind.kind
    names = [one.strip() for one in settings.metric.partition(":")[2].split(",") if one.strip()]
    if not names:
        raise InvalidOption(
            f"--metric {settings.metric} names no task",
            hint="for example --metric harness:arc_easy",
        )
    if kind not in (Kind.CAUSAL_LM, Kind.SEQ2SEQ):
        raise request.mismatch(
            f"tasks of the harness are for models that write text, and this one is of kind {kind}",
            hint=suggested(kind),
        )
    folder = _task_folder(request)
    with quiet_harness(settings.metric):
        parts = _parts(request, names, [OWN_TASKS, *folder])
    tokenizer = open_tokenizer(request)
    room = prompts.room(request, tokenizer)
    record = {
        "metric": settings.metric,
        "harness": harness_version(),
        "tasks": {key: _described(part) for key, part in parts.items()},
        "sequence_length": room,
        "seed": settings.seed,
    }
    return HarnessMetric(
        "harness",
        "samples",
        parts,
        tokenizer,
        room,
        settings.batch_size or BATCH,
        record,
        tuple(request.notes),
        order=tuple(parts),
    )


def _task_folder(request: Request) -> list[Path]:
    """A folder of the user's own tasks, if one is named."""
    data = request.settings.data
    if not data:
        return []
    folder = expanded(data[0])
    if len(data) > 1 or not folder.is_dir():
        raise InvalidOption(
            f"--data {' and '.join(data)} is no folder of tasks",
            hint="tasks of the harness bring their own data; --data names a folder of own tasks",
        )
    if not request.checkpoint.trust_remote_code:
        raise InvalidOption(
            f"--data {data[0]}: a task of the harness is a program, and may run any code",
            hint="--trust-remote-code, if you trust those who wrote it",
        )
    return [folder]


def _parts(request: Request, names: Sequence[str], folders: Sequence[Path]) -> dict[str, Part]:
    """The tasks of these names, with their data; later folders come first."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=[str(one) for one in folders])
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, 3)
            raise InvalidOption(
                f"lm-evaluation-harness has no task '{name}'",
                hint=f"did you mean {' or '.join(near)}?" if near else "lm-eval ls tasks names all",
            )
    parts: dict[str, Part] = {}
    for place, name in enumerate(dict.fromkeys(names)):
        with dataset_errors(DataSource(SourceKind.HF, (), f"{name} (harness)")):
            tasks = manager.load([name])["tasks"]
        for key, task in tasks.items():
            if key in parts:
                raise InvalidOption(
                    f"--metric {request.settings.metric}: task '{key}' is in it twice"
                )
            parts[key] = _part(request, key, task, place)
    return parts


def _part(request: Request, name: str, task: Any, named: int) -> Part:
    """A task with the number of its examples set, and what of it is scored."""
    settings = request.settings
    own = task.get_config("num_fewshot")
    if settings.shots and own != 0:
        task.set_config(key="num_fewshot", value=settings.shots)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=SEED)
    better = task.higher_is_better()
    fit = [
        key
        for key, combine in task.aggregation().items()
        if better.get(key) and getattr(combine, "__name__", "") == "mean"
    ]
    metric = next((one for one in (*PREFERRED, *fit) if one in fit), None)
    if metric is None:
        raise request.mismatch(
            f"no score of task '{name}' is a mean over samples and better if higher "
            f"({', '.join(task.aggregation())})",
            hint="run the harness itself on the pruned folder: lm-eval run --model hf "
            "--model_args pretrained=DIR --tasks ...",
        )
    available = len(task.eval_docs)
    if not available:
        raise BadData(f"{name} (harness)", "it has no rows")
    indices = prompts.drawn(request, range(available))
    every = len(indices) == available
    return Part(task, metric, (name,) * len(indices), named, None if every else tuple(indices))


def _described(part: Part) -> dict[str, Any]:
    task = part.task
    docs = task.eval_docs
    columns = sorted({key for doc in docs for key in doc})
    return {
        "score": part.score,
        "version": str((task.get_config("metadata") or {}).get("version", "")),
        "shots": task.get_config("num_fewshot"),
        "samples": len(part.groups),
        "samples_available": len(docs),
        "blake3": digest_rows(docs, columns),
        "config_blake3": _digest_of_config(task),
    }


def _digest_of_config(task: Any) -> str:
    """A hash of how prompts are made and answers scored.

    Where the rows lie is left out: their own hash says which they are.
    """
    config = {key: one for key, one in task.dump_config().items() if key not in _WHERE}
    # The harness writes functions as their source, but those deep inside as addresses.
    text = json.dumps(
        config, sort_keys=True, default=lambda one: str(getattr(one, "__qualname__", type(one)))
    )
    return blake3(text.encode("utf-8", "surrogatepass")).hexdigest()
