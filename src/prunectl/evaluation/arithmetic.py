"""Arithmetic in words: how often the number that a model writes is the right one.

The prompt is ``Question: ...`` and ``Answer:``, behind solved examples if any are asked for. The
model continues it greedily; of what it writes before a further ``Question:``, the last number is
its answer (as in the ``flexible-extract`` of lm-evaluation-harness), so that both a bare number and
a worked solution count. Data are those of MAWPS (Koncel-Kedziorski et al., 2016), ASDiv (Miao et
al., arXiv 2106.15772) and SVAMP (Patel et al., arXiv 2103.07191), or of their shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from prunectl.data.errors import BadData
from prunectl.data.tables import Table, digest_rows
from prunectl.data.tokens import Ids, Tokenizer, load_tokenizer
from prunectl.errors import InvalidOption
from prunectl.evaluation import prompts
from prunectl.evaluation.batches import in_batches
from prunectl.evaluation.errors import EvaluationFailed
from prunectl.evaluation.generation import continue_greedily
from prunectl.evaluation.metric import MAJORITY, Head, Request, Score, majority
from prunectl.evaluation.numerals import TOLERANCE, equal, numbers_in, written
from prunectl.evaluation.sources import splits_of, the_data
from prunectl.evaluation.word_problems import (
    ANSWER,
    EQUATION,
    Problem,
    columns_of,
    problems_of,
)
from prunectl.events import OnEvent, ignore_events

if TYPE_CHECKING:
    from prunectl.evaluation.loaded_model import LoadedModel
    from prunectl.evaluation.metric import Values

BATCH = 16
NEW_TOKENS = 64
STOP = "Question:"
PROMPT = "Question: {question}\nAnswer:"


@dataclass(frozen=True, slots=True, eq=False)
class Arithmetic:
    """See :class:`prunectl.evaluation.metric.Metric`; a sample is a problem: (1 if the model's
    number is the right one, else 0)."""

    problems: tuple[Problem, ...]
    texts: tuple[Ids, ...]
    tokenizer: Tokenizer
    new_tokens: int
    batch_size: int
    record: dict[str, Any]
    notes: tuple[str, ...] = ()
    name: str = "arithmetic"
    unit: str = "problems"
    higher_is_better: bool = True
    trains: bool = False
    head: Head | None = None

    @property
    def samples(self) -> int:
        return len(self.problems)

    def tolerates(self, parameter: str) -> bool:
        return False

    def statistic(self, values: Values) -> float:
        """The share that is right."""
        return float(values[:, 0].mean())

    def score(
        self, loaded: LoadedModel, *, seed: int = 0, on_event: OnEvent = ignore_events
    ) -> Score:
        """Have the model write its answers.

        Raises:
            EvaluationFailed: its outputs are NaN.
        """
        written = self.answers(loaded.model, on_event)
        if bad := sum(one is None for one in written):
            raise EvaluationFailed(self.name, f"the outputs for {bad} problems are NaN")
        right = [is_right(one or "", p) for one, p in zip(written, self.problems, strict=True)]
        values = np.array(right, np.float64)[:, None]
        kinds = [one.kind for one in self.problems]
        parts = prompts.shares(kinds, values[:, 0])
        parts[MAJORITY] = majority([one.answer for one in self.problems])
        return Score(self.statistic(values), values, parts)

    def answers(self, model: Any, on_event: OnEvent = ignore_events) -> list[str | None]:
        """What the model writes for each problem; None where its outputs are NaN."""
        # Of like length, so that there is little padding; the longest first, for their memory.
        order = sorted(range(len(self.texts)), key=lambda one: -len(self.texts[one]))
        found = in_batches(
            [self.texts[one] for one in order],
            self.batch_size,
            partial(
                continue_greedily, model, self.tokenizer, new_tokens=self.new_tokens, stop=STOP
            ),
            phase=self.name,
            unit=self.unit,
            on_event=on_event,
        )
        texts: list[str | None] = [None] * len(order)
        for at, one in zip(order, found, strict=True):
            texts[at] = one
        return texts


def is_right(text: str, problem: Problem) -> bool:
    """Whether the last number of a text, before a further question, is a problem's answer."""
    numbers = numbers_in(text.partition(STOP)[0])
    return bool(numbers) and equal(numbers[-1], problem.answer)


def prepare(request: Request) -> Arithmetic:
    """Read the problems and write the prompts.

    Raises:
        MetricMismatch: the model does not continue text.
        NoData, BadData, MissingColumn, BadTokenizer, WrongTokenizer, InvalidOption: see there.
    """
    prompts.continues_text(request)
    settings, name = request.settings, the_data(request)
    splits = splits_of(request, name)
    table = prompts.scored_split(splits, (*ANSWER, *EQUATION), name)
    every = problems_of(table)
    prompts.enough(len(every), "problems", table.name)
    problems, counts = prompts.taken(request, every, "problems")
    new_tokens = settings.max_new_tokens or NEW_TOKENS
    record: dict[str, Any] = {
        "metric": "arithmetic",
        **{key: value for key, value in table.facts.items() if key not in ("rows", "classes")},
        "blake3": digest_rows(table.rows, columns_of(table)),
        "prompt": PROMPT,
        "shots": settings.shots,
        "decoding": "greedy",
        "max_new_tokens": new_tokens,
        "answer": f"last number before '{STOP}'",
        "tolerance": TOLERANCE,
    }
    solved: list[Problem] = []
    if settings.shots:
        source = prompts.examples_split(splits, table, name)
        solved = _examples(source, settings.shots)
        record["examples"] = f"the first of {source.facts['split']}"
        record["examples_blake3"] = digest_rows(source.rows, columns_of(source))
    tokenizer = load_tokenizer(request.checkpoint)
    texts, changed = _texts(request, tokenizer, problems, solved, new_tokens)
    record |= counts | changed
    return Arithmetic(
        tuple(problems),
        tuple(texts),
        tokenizer,
        new_tokens,
        settings.batch_size or BATCH,
        record,
        tuple(request.notes),
    )


def _examples(source: Table, shots: int) -> list[Problem]:
    found = problems_of(source)[:shots]
    if len(found) < shots:
        raise BadData(source.name, f"it has {len(found)} examples, and --shots asks for {shots}")
    return found


def prompt(problem: Problem, solved: Sequence[Problem]) -> str:
    """All that stands before the answer."""
    examples = [f"{PROMPT.format(question=one.text)} {written(one.answer)}\n\n" for one in solved]
    return "".join([*examples, PROMPT.format(question=problem.text)])


def _texts(
    request: Request,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    solved: Sequence[Problem],
    new_tokens: int,
) -> tuple[list[Ids], dict[str, int | None]]:
    """The prompts as tokens, with as many examples as leave room for the answer; and for a record,
    how many tokens fit with it, how many prompts have fewer examples, or are cut at their
    beginning."""
    room = prompts.room(request, tokenizer)
    if room is not None and room <= new_tokens:
        raise InvalidOption(
            f"--max-new-tokens {new_tokens} leaves no room for a question in {room:,} tokens",
            hint=f"fewer, such as --max-new-tokens {max(1, room // 2)}",
        )
    space = None if room is None else room - new_tokens
    prefix = np.array(tokenizer.prefix, np.int64)

    def make(indices: Sequence[int], shots: int) -> list[Ids]:
        texts = [prompt(problems[index], solved[:shots]) for index in indices]
        return [np.concatenate([prefix, tokenizer.ids([text])]) for text in texts]

    made, fewer = prompts.with_examples_that_fit(
        len(problems), request.settings.shots, space, make, len
    )
    found = [one if space is None else one[-space:] for one in made]
    cut = sum(len(a) != len(b) for a, b in zip(made, found, strict=True))
    if fewer:
        request.notes.append(f"{fewer:,} problems have fewer than the examples asked for: no room")
    if cut:
        request.notes.append(f"{cut:,} problems lose their beginning: the model takes {room:,}")
    tokenizer.check(found, request.model_kind.vocabulary)
    return found, {
        "sequence_length": room,
        "problems_with_fewer_examples": fewer,
        "problems_cut": cut,
    }
