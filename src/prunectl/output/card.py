"""The model card: the source's card, with new metadata and a section about the pruning.

The card of an output shows how to load the model from a folder. When it is pushed to the Hub, it
names the repository instead and is merged with the card there, whose text belongs to its authors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

from prunectl.output.frontmatter import SplitCard, split_card, update_yaml
from prunectl.output.records import Count
from prunectl.output.target import MANIFEST_NAME

START = "<!-- prunectl:start -->"
END = "<!-- prunectl:end -->"
_HEADING = "## Pruned with prunectl"

_FOLDER = "path/to/this/folder"
"""Placeholder for the folder in the lines that load it; on the Hub, the repository replaces it."""

# Only a section with our heading right after the marker is ours; a card may mention the markers.
SECTION = re.compile(
    rf"^{re.escape(START)}\r?\n{re.escape(_HEADING)}\r?\n"
    rf"(?:(?!{re.escape(START)})[\s\S])*?^{re.escape(END)}[ \t]*(?:\r?\n|\Z)",
    re.MULTILINE,
)
_MADE_WITH = "Made with:"
_BASH = re.compile(r"(`{3,})bash")
_SPARSITY_TAG = re.compile(r"sparsity-([0-9]+(-[0-9]+(-rows)?)?|unstructured)")
_COMPRESSED = (
    "The weights are compressed; nothing is lost. prunectl decodes them, and teaches transformers "
    "to:"
)


@dataclass(frozen=True, slots=True)
class RoleRow:
    """Totals of the tensors of one role."""

    role: str
    tensors: int
    count: Count


class CountedTensor(Protocol):
    """One tensor to sum up: its role and its weights."""

    @property
    def role(self) -> str: ...
    @property
    def numel(self) -> int: ...
    @property
    def zeros_before(self) -> int: ...
    @property
    def zeros(self) -> int: ...


def role_rows(tensors: Iterable[CountedTensor]) -> list[RoleRow]:
    """Return a row for each role, in the order of first appearance."""
    roles: dict[str, list[tuple[int, int, int]]] = {}
    for one in tensors:
        roles.setdefault(one.role, []).append((one.numel, one.zeros_before, one.zeros))
    return [
        RoleRow(role, len(members), Count.of(*map(sum, zip(*members, strict=True))))
        for role, members in roles.items()
    ]


@dataclass(frozen=True, slots=True)
class CardFacts:
    """The facts of the section.

    Attributes:
        model: the source as the user gave it.
        repo_id, commit: of a Hub source, else None.
        version: the version of prunectl.
        method: for example ``one-shot magnitude pruning``; '' if this command pruned nothing.
        pattern, scope: as in the arguments; '' if they do not apply.
        prunable, overall: totals; ``prunable.requested`` is the requested sparsity.
        roles: one row for each role, in display order.
        command: the exact commands, one per line; the caller leaves tokens out.
        auto_class: the transformers class that loads the folder, for example
            ``AutoModelForCausalLM``.
        layout: the layout of compressed weights; '' if all weights are dense.
        dense_bytes, stored_bytes: size of all weights when dense, and of the files that hold them.
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


# --- the card of an output ------------------------------------------------------------------------


def model_card(source_card: str | None, facts: CardFacts) -> str:
    """Return the text of README.md for the output.

    The source's text is kept byte for byte, except for a byte order mark. Our section, between
    markers, comes before it or replaces an earlier section. In the metadata, tags are added to
    ``tags``, ``base_model`` names a Hub source, and ``model-index`` is removed, since its scores
    are of the dense model. A front matter that is not valid YAML is kept as text, and the metadata
    start empty.

    Args:
        source_card: the source's README.md, read with ``newline=""``; None if it has none.
        facts: the facts of our section.
    """
    card = split_card(source_card or "")
    newline = _newline(source_card or "")
    changes: dict[str, Any] = {}
    remove = {"model-index"}
    if facts.repo_id is not None:
        changes["base_model"] = facts.repo_id
        # The Hub knows the relations adapter, merge, quantized and finetune; pruning is none of
        # them, and the source's own value is about another base.
        remove.add("base_model_relation")
    tags = _tags(card)
    if "prunectl" in tags:  # of an earlier run
        tags = [tag for tag in tags if not _SPARSITY_TAG.fullmatch(tag)]
    if facts.method:
        tags += ["pruned", "prunectl", f"sparsity-{round(100 * facts.prunable.achieved)}"]
    changes["tags"] = list(dict.fromkeys([*tags, "prunectl"]))
    body = _placed(_section(facts, card), card.body, newline)
    return _joined(update_yaml(card, changes, remove), body, newline)


def earlier_commands(source_card: str | None) -> tuple[str, ...]:
    """Return the commands in our section of a card, which led to these weights, in order."""
    lines = section_of(source_card or "").splitlines()
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


def _section(facts: CardFacts, card: SplitCard) -> str:
    lines = [
        START,
        _HEADING,
        "",
        _summary(facts),
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
        *_fenced("bash", facts.command),
        "",
        _COMPRESSED if facts.layout else "Load it as any other checkpoint:",
        "",
        *_fenced("python", _load_snippet(facts)),
        "",
        _limits(facts),
    ]
    if card.broken:
        lines += [
            "",
            "The metadata of the source's card could not be read "
            f"({_plain(card.broken)}); it is kept as text below.",
        ]
    if "model-index" in card.members:
        lines += ["", "The source's evaluation metadata (`model-index`) was left out."]
    return "\n".join([*lines, END, ""])


def _summary(facts: CardFacts) -> str:
    """Return the first sentences, which say what the weights are."""
    source = code(facts.model)
    if facts.repo_id is not None:
        commit = f" at commit {code(facts.commit)}" if facts.commit else ""
        address = f"https://huggingface.co/{quote(facts.repo_id)}"
        source = f"[{_plain(facts.repo_id)}]({address}){commit}"
    version = f"prunectl {_plain(facts.version)}"
    end = f" `{MANIFEST_NAME}` lists what was done to every tensor."
    if facts.layout:
        share = facts.stored_bytes / facts.dense_bytes if facts.dense_bytes else 1.0
        end = (
            f" They are stored in layout {code(facts.layout)}: {facts.stored_bytes:,} bytes, "
            f"{share:.1%} of the {facts.dense_bytes:,} that they take densely.{end}"
        )
    if not facts.method:
        return f"These are the weights of {source}, bit for bit ({version}).{end}"
    pattern = f"; pattern {code(facts.pattern)}" if facts.pattern else ""
    scope = f", scope {code(facts.scope)}" if facts.scope else ""
    return (
        f"These are the weights of {source} after {_plain(facts.method)}, without any training "
        f"({version}{pattern}{scope}).{end}"
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


def _total_row(label: str, count: Count) -> str:
    requested = "" if count.requested is None else f"{count.requested:.4%}"
    return f"| {label} | {requested} | {count.achieved:.4%} | {count.zeros:,} | {count.weights:,} |"


def _role_row(row: RoleRow) -> str:
    count = row.count
    return (
        f"| {_plain(row.role)} | {row.tensors:,} | {count.weights:,} | {count.zeros:,} "
        f"| {count.achieved:.2%} |"
    )


def _load_snippet(facts: CardFacts) -> str:
    auto_class = facts.auto_class
    plug_in = "import prunectl  # registers with transformers\n" if facts.layout else ""
    return (
        f"{plug_in}from transformers import {auto_class}\n\n"
        f'model = {auto_class}.from_pretrained("{_FOLDER}", dtype="auto")'
    )


# --- the card on the Hub --------------------------------------------------------------------------


def hub_card(
    ours: str,
    repo_id: str,
    *,
    patterns: Iterable[str],
    library: str | None,
    measured: Sequence[str] = (),
) -> str:
    """Return the card of an output, with the additions for the Hub.

    The section loads the model from the repository instead of from a folder, ``tags`` name the
    patterns, and ``library_name`` is set if the source's card has none.

    Args:
        ours: the text of README.md in the folder.
        repo_id: the target repository.
        patterns: the patterns of the tensors, such as ``unstructured`` or ``2:4``; ``2:4-rows`` if
            only some of their rows follow the pattern.
        library: the library that loads the model, by its name on the Hub; None if unknown.
        measured: the last lines of the section, with the results saved next to the weights.
    """
    card = split_card(ours)
    # A colon in a tag has another meaning on the Hub.
    wanted = [f"sparsity-{pattern.replace(':', '-')}" for pattern in sorted(patterns)]
    changes: dict[str, Any] = {"tags": list(dict.fromkeys(_tags(card) + wanted))}
    if library is not None and "library_name" not in card.members:
        changes["library_name"] = library

    def on_hub(section: re.Match[str]) -> str:
        head, end, tail = section[0].replace(f'"{_FOLDER}"', f'"{repo_id}"').rpartition(END)
        added = _newline(section[0]).join(["", *measured, "", ""]) if measured else ""
        return head + added + end + tail

    return _updated(ours, card, SECTION.sub(on_hub, card.body, count=1), changes)


def merged_card(ours: str, theirs: str | None) -> str:
    """Return the card on the Hub with our section and metadata updated.

    The text on the Hub is kept byte for byte, except for our section, which is replaced in place or
    added before everything. In the metadata, tags are added to ``tags`` (those of an earlier
    sparsity are removed) and ``base_model`` names the source. If the card had no section yet,
    members that only our card has, such as ``license``, are added too; later, somebody may have
    deleted them on purpose.

    Args:
        ours: from :func:`hub_card`.
        theirs: the text of README.md on the Hub; None if there is none.
    """
    section = section_of(ours)
    if theirs is None or not section:
        return ours if theirs is None else theirs
    new, old, newline = split_card(ours), split_card(theirs), _newline(theirs)
    is_first = SECTION.search(old.body) is None
    changes: dict[str, Any] = {"tags": _merged_tags(_tags(new), _tags(old), is_first)}
    base, there = new.members.get("base_model"), old.members.get("base_model")
    if base is not None and base != there and not (isinstance(there, list) and base in there):
        changes["base_model"] = base
    body = _placed(section, old.body, newline)
    if is_first:
        changes |= {key: new.members[key] for key in new.members.keys() - old.members.keys()}
        body = body.removeprefix(newline)  # _updated adds the blank line
    return _updated(theirs, old, body, changes)


def section_of(card: str) -> str:
    """Return our section of a card; '' if there is none."""
    found = SECTION.search(split_card(card).body)
    return found[0] if found else ""


def sections(card: str) -> int:
    """Count our sections in a card: somebody may have merged two cards."""
    return len(SECTION.findall(split_card(card).body))


def same_text(one: str, other: str) -> bool:
    """Return whether two cards are equal outside metadata and our section."""
    bodies = [SECTION.sub("", split_card(card).body) for card in (one, other)]
    return bodies[0].split() == bodies[1].split()


def _merged_tags(ours: list[str], theirs: list[str], is_first: bool) -> list[str]:
    if not is_first:
        ours = [tag for tag in ours if tag in ("pruned", "prunectl") or _SPARSITY_TAG.match(tag)]
    if "prunectl" in theirs:
        theirs = [tag for tag in theirs if not _SPARSITY_TAG.fullmatch(tag) or tag in ours]
    return list(dict.fromkeys(theirs + ours))


# --- parts of a card ------------------------------------------------------------------------------


def _tags(card: SplitCard) -> list[str]:
    """Return the tags as written: YAML 1.1 reads ``no`` as False and ``2024`` as a number."""
    import yaml

    members = yaml.load(card.yaml, Loader=yaml.BaseLoader) if "tags" in card.members else {}
    given = members.get("tags")
    tags = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    return [tag for tag in tags if isinstance(tag, str) and tag]


def _placed(section: str, body: str, newline: str) -> str:
    """Return the text with our section in place of an earlier one, else before everything."""
    section = re.sub(r"\r?\n", newline, section)
    earlier = SECTION.search(body)
    if earlier is not None:
        return body[: earlier.start()] + section + body[earlier.end() :]
    # The blank line belongs to our front matter, not to the section, so a later run keeps it.
    return newline + section + _gap(body, newline) + body


def _updated(text: str, card: SplitCard, body: str, changes: dict[str, Any]) -> str:
    """Return a card with members changed; the same bytes if they already have these values."""
    changes = {key: value for key, value in changes.items() if card.members.get(key) != value}
    if not changes:
        return text[: len(text) - len(card.body)] + body
    newline = _newline(text)
    front = update_yaml(card, dict(sorted(changes.items())), set())
    return _joined(front, _gap(body, newline) + body, newline)


def _joined(front: str, body: str, newline: str) -> str:
    front = re.sub(r"\r?\n", newline, front)
    return f"---{newline}{front}---{newline}{body}"


def _gap(body: str, newline: str) -> str:
    """Return the blank line before a text that does not begin with one."""
    return "" if not body or body.startswith(("\n", "\r")) else newline


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


# --- text from elsewhere, shown in Markdown without any effect ------------------------------------


def code(text: str) -> str:
    """Return inline code, whatever the text contains."""
    flat = " ".join(text.split())
    longest = max((len(run) for run in re.findall(r"`+", flat)), default=0)
    fence, pad = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{pad}{flat.replace('<!--', '< !--')}{pad}{fence}"


def cell(text: str, longest: int = 60) -> str:
    """Return inline code for a table, on one line and of bounded length."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    short = flat if len(flat) <= longest else f"{flat[: longest - 1]}\u2026"
    return code(short).replace("|", "\\|") if short else ""


def _plain(text: str) -> str:
    """Return one line of text that cannot end a table cell, a comment or our section."""
    flat = " ".join(text.split()).replace("|", "\\|")
    return flat.replace("<", "&lt;").replace(">", "&gt;")


def _fenced(language: str, text: str) -> list[str]:
    """Return a fenced block, whatever the text contains; it cannot contain one of our markers."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", text.replace("<!-- prunectl:", "<!-- prunectl :"), fence]
