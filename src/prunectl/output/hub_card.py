"""The model card as it goes to the Hub, where people may have edited the one that is there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from prunectl.output.card import END, SECTION, SPARSITY_TAG, THIS_FOLDER, place, written_tags
from prunectl.output.frontmatter import SplitCard, split_card, update_yaml


def hub_card(
    ours: str,
    repo_id: str,
    *,
    patterns: Iterable[str],
    library: str | None,
    measured: Sequence[str] = (),
) -> str:
    """The card of a folder, with what only matters on the Hub.

    Its section loads from the repository instead of from a folder; ``tags`` name the patterns, and
    ``library_name`` is set where the source's card had none.

    Args:
        ours: README.md of the folder.
        repo_id: where it goes.
        patterns: what tensors follow: ``unstructured``, ``2:4``; ``2:4-rows`` where some of their
            rows do.
        library: what loads it, in the Hub's words; None if that is not known.
        measured: lines that end the section: what results beside the weights say.
    """
    card = split_card(ours)
    tags = written_tags(card)
    # A colon in a tag means something else to the Hub.
    wanted = [f"sparsity-{pattern.replace(':', '-')}" for pattern in sorted(patterns)]
    changes: dict[str, object] = {"tags": list(dict.fromkeys(tags + wanted))}
    if library is not None and "library_name" not in card.members:
        changes["library_name"] = library
    section = SECTION.search(card.body)
    body = card.body
    if section is not None:
        loads = section[0].replace(f'"{THIS_FOLDER}"', f'"{repo_id}"')
        if measured:
            newline = _newline(section[0])
            head, end, tail = loads.rpartition(END)
            loads = (
                head + newline + "".join(line + newline for line in (*measured, "")) + end + tail
            )
        body = body[: section.start()] + loads + body[section.end() :]
    return _with_front(ours, card, body, changes)


def merged_card(ours: str, theirs: str | None) -> str:
    """The card on the Hub with our section and metadata brought up to date.

    The text there stays byte for byte, but for our section, which is replaced where it stands, or
    put before everything. In the metadata, ``tags`` grow (those of an earlier sparsity go) and
    ``base_model`` names the source. Where there was no section yet, members that only our card
    has, such as ``license``, are added too; later, somebody may have deleted them on purpose.

    Args:
        ours: from :func:`hub_card`.
        theirs: README.md on the Hub; None if there is none.
    """
    if theirs is None:
        return ours
    new, old = split_card(ours), split_card(theirs)
    section = SECTION.search(new.body)
    if section is None:
        return theirs
    is_first = SECTION.search(old.body) is None
    changes: dict[str, object] = {"tags": _merged_tags(new, old, is_first)}
    base = new.members.get("base_model")
    if base is not None and base not in _texts(old.members.get("base_model")):
        changes["base_model"] = base
    if is_first:
        changes |= {key: new.members[key] for key in new.members.keys() - old.members.keys()}
    newline = _newline(theirs)
    body = place(re.sub(r"\r?\n", newline, section[0]), old.body, newline)
    if is_first:
        body = body.removeprefix(newline)  # _with_front sees to the blank line
    return _with_front(theirs, old, body, changes)


def section_of(card: str) -> str:
    """Our own section; '' if there is none."""
    found = SECTION.search(split_card(card).body)
    return found[0] if found else ""


def sections(card: str) -> int:
    """How many sections of ours a card has: somebody may have put two cards together."""
    return len(SECTION.findall(split_card(card).body))


def same_text(one: str, other: str) -> bool:
    """Whether two cards say the same outside of metadata and our section."""
    bodies = [SECTION.sub("", split_card(card).body) for card in (one, other)]
    return bodies[0].split() == bodies[1].split()


def _merged_tags(ours: SplitCard, theirs: SplitCard, is_first: bool) -> list[str]:
    added, kept = written_tags(ours), written_tags(theirs)
    if not is_first:
        added = [tag for tag in added if tag in ("pruned", "prunectl") or SPARSITY_TAG.match(tag)]
    if "prunectl" in kept:
        kept = [tag for tag in kept if not SPARSITY_TAG.fullmatch(tag) or tag in added]
    return list(dict.fromkeys(kept + added))


def _with_front(text: str, card: SplitCard, body: str, changes: dict[str, object]) -> str:
    """A card with members changed; where they already are what they should be, byte for byte."""
    changes = {key: value for key, value in changes.items() if card.members.get(key) != value}
    if not changes:
        start = text[: len(text) - len(card.body)]
        return start + body
    newline = _newline(text)
    front = re.sub(r"\r?\n", newline, update_yaml(card, dict(sorted(changes.items())), set()))
    gap = "" if not body or body.startswith(("\n", "\r")) else newline
    return f"---{newline}{front}---{newline}{gap}{body}"


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _texts(value: object) -> list[str]:
    values = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [item for item in values if isinstance(item, str)]
