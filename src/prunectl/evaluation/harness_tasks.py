"""Tasks of lm-evaluation-harness: found, loaded, and what of each is scored."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from prunectl.data.datasets import dataset_errors
from prunectl.data.errors import BadData
from prunectl.data.source import DataSource, SourceKind
from prunectl.data.tables import digest_rows
from prunectl.errors import InvalidOption
from prunectl.evaluation import prompts
from prunectl.evaluation.errors import MetricMismatch
from prunectl.evaluation.metric import Request
from prunectl.userdirs import expanded

PREFERRED = ("acc_norm", "acc", "exact_match")
SEED = 1234
"""The harness's own seed of few-shot examples."""
_MEAN = "mean"
_WHERE = ("dataset_path", "dataset_name", "dataset_kwargs", "metadata")


@dataclass(frozen=True, slots=True)
class Part:
    """One task.

    Attributes:
        task: the harness's object. metric: of it, the one that is the score.
        named: place of what the user named among all that were named.
        indices: the samples that are run; all, if None.
    """

    task: Any
    metric: str
    named: int
    indices: tuple[int, ...] | None
    samples: int


def task_folder(request: Request) -> Path | None:
    """A folder of the user's own tasks.

    Raises:
        InvalidOption: it is none, or its code is not trusted.
    """
    data = request.settings.data
    if not data:
        return None
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
    return folder


def check_names(names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3)
            raise InvalidOption(
                f"lm-evaluation-harness has no task '{name}'",
                hint=f"did you mean {' or '.join(near)}?" if near else "lm-eval ls tasks names all",
            )


def load(manager: Any, name: str) -> dict[str, Any]:
    """The tasks behind a name, with their data."""
    source = DataSource(SourceKind.HF, (), f"{name} (harness)")
    with dataset_errors(source):
        found: dict[str, Any] = manager.load([name])
    return found


def part_of(request: Request, name: str, task: Any, named: int) -> Part:
    """A task with the number of its examples set, and what of it is scored.

    Raises:
        MetricMismatch: none of its metrics is a mean over samples.
    """
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
        if better.get(key) and getattr(combine, "__name__", "") == _MEAN
    ]
    metric = next((one for one in (*PREFERRED, *fit) if one in fit), None)
    if metric is None:
        raise MetricMismatch(
            settings.metric,
            request.checkpoint.model,
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
    return Part(task, metric, named, None if every else tuple(indices), len(indices))


def described(part: Part) -> dict[str, Any]:
    task = part.task
    docs = task.eval_docs
    columns = sorted({key for doc in docs for key in doc})
    return {
        "score": part.metric,
        "version": str((task.get_config("metadata") or {}).get("version", "")),
        "shots": task.get_config("num_fewshot"),
        "samples": part.samples,
        "samples_available": len(docs),
        "blake3": digest_rows(docs, columns),
        "config_blake3": _digest_of_config(task),
    }


def _digest_of_config(task: Any) -> str:
    """A hash of how prompts are made and answers scored; of where rows lie, the rows tell."""
    config = {key: one for key, one in task.dump_config().items() if key not in _WHERE}
    # Functions are their source in it but for some deep inside, whose addresses say nothing.
    text = json.dumps(
        config, sort_keys=True, default=lambda one: str(getattr(one, "__qualname__", type(one)))
    )
    return blake3(text.encode("utf-8", "surrogatepass")).hexdigest()


def values_of(samples: Sequence[Mapping[str, Any]], metric: str) -> list[float]:
    """A metric's value of each sample, in their order, by the first filter that has it."""
    having = [one for one in samples if metric in one]
    first = [one for one in having if one["filter"] == having[0]["filter"]]
    return [float(one[metric]) for one in sorted(first, key=lambda one: one["doc_id"])]
