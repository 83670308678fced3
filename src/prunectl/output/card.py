"""The model card: the source's own card, kept, with metadata and a section on what was done."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

from prunectl.output.frontmatter import SplitCard, split_card, update_yaml
from prunectl.output.markdown import code, fenced, plain
from prunectl.output.records import Count
from prunectl.output.target import MANIFEST_NAME

START = "<!-- prunectl:start -->"
END = "<!-- prunectl:end -->"
_HEADING = "## Pruned with prunectl"

THIS_FOLDER = "path/to/this/folder"
"""Stands for the folder in the lines that load it; the Hub's name of it replaces it there."""

# Only a section with our heading right after the marker is ours; a card may talk about the markers.
SECTION = re.compile(
    rf"^{re.escape(START)}\r?\n{re.escape(_HEADING)}\r?\n"
    rf"(?:(?!{re.escape(START)})[\s\S])*?^{re.escape(END)}[ \t]*(?:\r?\n|\Z)",
    re.MULTILINE,
)
_MADE_WITH = "Made with:"
_BASH = re.compile(r"(`{3,})bash")
SPARSITY_TAG = re.compile(r"sparsity-([0-9]+(-[0-9]+(-rows)?)?|unstructured)")


@dataclass(frozen=True, slots=True)
class RoleRow:
    """Totals of the tensors of one role."""

    role: str
    tensors: int
    count: Count


class CountedTensor(Protocol):
    """What a row is summed up from: a tensor's role and its weights."""

    @property
    def role(self) -> str: ...
    @property
    def numel(self) -> int: ...
    @property
    def zeros_before(self) -> int: ...
    @property
    def zeros(self) -> int: ...


def role_rows(tensors: Iterable[CountedTensor]) -> list[RoleRow]:
    """A row for each role, in the order in which they come."""
    roles: dict[str, list[CountedTensor]] = {}
    for one in tensors:
        roles.setdefault(one.role, []).append(one)
    return [
        RoleRow(
            role,
            len(members),
            Count.of(
                sum(one.numel for one in members),
                sum(one.zeros_before for one in members),
                sum(one.zeros for one in members),
            ),
        )
        for role, members in roles.items()
    ]


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What the section says.

    Attributes:
        model: the source as the user gave it.
        repo_id, commit: of a Hub source, else None.
        version: of prunectl.
        method: for example ``one-shot magnitude pruning``; '' where nothing was pruned here.
        pattern, scope: as in the arguments; '' where they have no meaning.
        prunable, overall: totals; ``prunable.requested`` is the sparsity asked for.
        roles: a row a role, in the order to show.
        command: the exact command lines, one a line; the caller leaves tokens out.
        auto_class: the transformers class that loads the folder, for example
            ``AutoModelForCausalLM``.
        layout: how compressed weights are stored; '' if they are stored as everything loads them.
        dense_bytes, stored_bytes: of all weights dense, and of the files that hold them.
    """

    model: str
    version: str
    method: str
    pattern: str
    scope: str
    prunable: Count
    overall: Count
    roles: Sequence[RoleRow]
    command: str
    repo_id: str | None = None
    commit: str | None = None
    auto_class: str = "AutoModel"
    layout: str = ""
    dense_bytes: int = 0
    stored_bytes: int = 0


def earlier_commands(source_card: str | None) -> tuple[str, ...]:
    """The commands in our own section of a card: those that led to these weights, in order."""
    earlier = SECTION.search(split_card(source_card or "").body)
    return _commands(earlier[0].splitlines()) if earlier else ()


def _commands(lines: Sequence[str]) -> tuple[str, ...]:
    """What stands in the fence under the first line that announces commands."""
    announced = (number for number, line in enumerate(lines) if line.rstrip() == _MADE_WITH)
    start = next(announced, len(lines)) + 1
    while start < len(lines) and not lines[start].strip():
        start += 1
    fence = _BASH.fullmatch(lines[start]) if start < len(lines) else None
    if fence is None:
        return ()
    for end in range(start + 1, len(lines)):
        if lines[end].startswith(fence[1]):
            return tuple(lines[start + 1 : end])
    return ()


def model_card(source_card: str | None, facts: CardFacts) -> str:
    """The text of README.md for the output.

    The source's text stays byte for byte, apart from a byte order mark; our section stands between
    markers before it, or where an earlier one stood. In the metadata ``tags`` grow, ``base_model``
    names a Hub source, and ``model-index`` goes, since its scores are of the dense model. A front
    matter that is not valid YAML stays in the text, and the metadata starts anew.

    Args:
        source_card: the source's README.md, read with ``newline=""``; None if it has none.
        facts: what was done.
    """
    card = split_card(source_card or "")
    newline = "\r\n" if "\r\n" in (source_card or "") else "\n"
    changes: dict[str, object] = {}
    remove = {"model-index"}
    if facts.repo_id is not None:
        changes["base_model"] = facts.repo_id
        # The Hub knows the relations adapter, merge, quantized and finetune; pruning is none of
        # them, and the source's own value is about another base.
        remove.add("base_model_relation")
    changes["tags"] = _tags(card, facts)
    front = update_yaml(card, changes, remove)
    section = _section(facts, card)
    if newline != "\n":
        front = re.sub(r"\r?\n", newline, front)
        section = section.replace("\n", newline)
    return f"---{newline}{front}---{newline}{place(section, card.body, newline)}"


def written_tags(card: SplitCard) -> list[str]:
    """The tags as they are written: YAML 1.1 takes ``no`` for False and ``2024`` for a number."""
    import yaml

    members = yaml.load(card.yaml, Loader=yaml.BaseLoader) if "tags" in card.members else {}
    given = members.get("tags")
    tags = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    return [tag for tag in tags if isinstance(tag, str) and tag]


def _tags(card: SplitCard, facts: CardFacts) -> list[str]:
    kept = written_tags(card)
    if "prunectl" in kept:  # ours, of an earlier run
        kept = [tag for tag in kept if not SPARSITY_TAG.fullmatch(tag)]
    ours = ["prunectl"]
    if facts.method:
        ours = ["pruned", "prunectl", f"sparsity-{round(100 * facts.prunable.achieved)}"]
    return list(dict.fromkeys(kept + ours))


def place(section: str, body: str, newline: str) -> str:
    """The text with our section where an earlier one stood, else before everything."""
    earlier = SECTION.search(body)
    if earlier is not None:
        return body[: earlier.start()] + section + body[earlier.end() :]
    # The blank line belongs to our front matter, not to the section: a later run keeps it.
    gap = "" if not body or body.startswith(("\n", "\r")) else newline
    return newline + section + gap + body


def _section(facts: CardFacts, card: SplitCard) -> str:
    source = code(facts.model) if facts.repo_id is None else _hub_link(facts)
    lines = [
        START,
        _HEADING,
        "",
        _what(facts, source),
        "",
        "| sparsity | requested | achieved | zeros | weights |",
        "|---|---:|---:|---:|---:|",
        _total_row("of the prunable weights", facts.prunable),
        _total_row("overall", facts.overall),
        "",
        "| role | tensors | weights | zeros | sparsity |",
        "|---|---:|---:|---:|---:|",
        *map(_role_row, facts.roles),
        "",
        _MADE_WITH,
        "",
        *fenced("bash", facts.command),
        "",
        _COMPRESSED if facts.layout else "Load it as any other checkpoint:",
        "",
        *fenced("python", _load_snippet(facts)),
        "",
        _limits(facts),
    ]
    if card.broken:
        lines += [
            "",
            "The metadata of the source's card could not be read "
            f"({plain(card.broken)}); it is kept as text below.",
        ]
    if "model-index" in card.members:
        lines += ["", "The source's evaluation metadata (`model-index`) was left out."]
    return "\n".join([*lines, END, ""])


_COMPRESSED = (
    "The weights are compressed; nothing is lost. prunectl decodes them, and teaches transformers "
    "to:"
)


def _what(facts: CardFacts, source: str) -> str:
    """The first sentences: what these weights are."""
    version = f"prunectl {plain(facts.version)}"
    lists = f"`{MANIFEST_NAME}` lists what was done to every tensor."
    stored = ""
    if facts.layout:
        share = facts.stored_bytes / facts.dense_bytes if facts.dense_bytes else 1.0
        stored = (
            f" They are stored in layout {code(facts.layout)}: {facts.stored_bytes:,} bytes, "
            f"{share:.1%} of the {facts.dense_bytes:,} that they take densely."
        )
    if not facts.method:
        return f"These are the weights of {source}, bit for bit ({version}).{stored} {lists}"
    details = "".join(
        f"{sign} {name} {code(value)}"
        for sign, name, value in ((";", "pattern", facts.pattern), (",", "scope", facts.scope))
        if value
    )
    return (
        f"These are the weights of {source} after {plain(facts.method)}, without any training "
        f"({version}{details}).{stored} {lists}"
    )


def _limits(facts: CardFacts) -> str:
    if facts.layout:
        return (
            "Limits: the files are smaller, the loaded model is not: it is dense in memory, and "
            "by itself no faster. Any evaluation results below are those of the source."
        )
    return (
        "Limits: the zeros are stored densely. By themselves they change neither the size of the "
        "files nor the speed. Any evaluation results below are those of the source, not of these "
        "weights."
    )


def _hub_link(facts: CardFacts) -> str:
    commit = f" at commit {code(facts.commit)}" if facts.commit else ""
    repo_id = facts.repo_id or ""
    return f"[{plain(repo_id)}](https://huggingface.co/{quote(repo_id)}){commit}"


def _total_row(label: str, count: Count) -> str:
    requested = "" if count.requested is None else f"{count.requested:.4%}"
    return f"| {label} | {requested} | {count.achieved:.4%} | {count.zeros:,} | {count.weights:,} |"


def _role_row(row: RoleRow) -> str:
    count = row.count
    return (
        f"| {plain(row.role)} | {row.tensors:,} | {count.weights:,} | {count.zeros:,} "
        f"| {count.achieved:.2%} |"
    )


def _load_snippet(facts: CardFacts) -> str:
    auto_class = facts.auto_class
    plug_in = "import prunectl  # registers with transformers\n" if facts.layout else ""
    return (
        f"{plug_in}from transformers import {auto_class}\n\n"
        f'model = {auto_class}.from_pretrained("{THIS_FOLDER}", dtype="auto")'
    )
