"""The YAML front matter of a model card, changed without touching any other line.

Loading and dumping would damage cards: YAML 1.1 reads ``language: no`` as False. So changed members
are cut out by their position in the text, and new ones are added at the end.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from textwrap import shorten
from typing import Any

YAML_BLOCK = re.compile(r"^(\s*---(?:\r\n|\r|\n))([\S\s]*?)((?:\r\n|\r|\n)---[ \t]*(\r\n|\n|$))")
"""huggingface_hub's ``repocard.REGEX_YAML_BLOCK``, which takes a quarter of a second to import."""

_MOST_VALUES = 200_000
"""Several times the number in a megabyte of results; reading these takes half a minute."""

_DEEPEST = 60
_LONG_NUMBER = re.compile(r"[-+]?[0-9][0-9A-Fa-fx_:]{1000}")
"""The time to read a number grows with the square of its digits; Python may refuse to write it."""

_LONGEST_REASON = 200

_TAG_FAILURES = (LookupError, AttributeError, TypeError, ArithmeticError)
"""Errors of YAML's reader for tags such as ``!!bool x`` and ``!!int ''``."""


@dataclass(frozen=True, slots=True)
class SplitCard:
    """A card in two parts.

    Attributes:
        yaml: text between the ``---`` lines; empty if there is no readable front matter.
        members: the members of the YAML text.
        body: everything after it, byte for byte.
        broken: why the front matter could not be read; it is then still in ``body``.
    """

    yaml: str
    members: dict[str, Any]
    body: str
    broken: str = ""


@lru_cache(maxsize=4)
def split_card(text: str) -> SplitCard:
    """Split a card by the Hub's own rule. Cached: a push splits several times, and YAML is slow."""
    import yaml

    text = text.removeprefix("\ufeff")
    match = YAML_BLOCK.search(text)
    if match is None:
        return SplitCard("", {}, text)
    try:
        members = None if (broken := _too_much(match[2])) else yaml.safe_load(match[2])
    except (yaml.YAMLError, ValueError) as error:
        broken = shorten(str(error).partition("\n")[0], _LONGEST_REASON) or "it is not YAML"
    except _TAG_FAILURES:
        broken = "a value does not match its tag"
    if broken:
        return SplitCard("", {}, text, broken=broken)
    if members is None:
        members = {}
    if not isinstance(members, dict) or not all(isinstance(key, str) for key in members):
        return SplitCard("", {}, text, broken="it is not a list of 'key: value' lines")
    return SplitCard(match[2], members, text[match.end() :])


def _too_much(text: str) -> str:
    """Return why the YAML would take too long to read and compare, or cannot be written; else ''.

    An alias counts as all the values it refers to: 500 bytes of aliases can expand to 10^18 values.
    """
    import yaml

    sizes: dict[str | None, int] = {}
    around: list[tuple[str | None, int]] = []
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        size = 1
        if isinstance(event, yaml.CollectionStartEvent):
            around.append((event.anchor, 1))
            if len(around) > _DEEPEST:
                return f"its lists and mappings are nested more than {_DEEPEST} deep"
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = around.pop()
            sizes[anchor] = size
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in around):
                return "a part of it holds itself"
            size = sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            sizes[event.anchor] = 1
            if _LONG_NUMBER.match(event.value):
                return "it holds a number of more than a thousand digits"
        if around:
            anchor, inside = around[-1]
            around[-1] = anchor, inside + size
            if inside + size > _MOST_VALUES:
                return f"it holds more than {_MOST_VALUES:,} values"
    return ""


def update_yaml(card: SplitCard, changes: dict[str, Any], remove: set[str]) -> str:
    """Return the front matter with some members set and some removed; it ends with a newline.

    Args:
        card: from :func:`split_card`.
        changes: members to set; they come last, in this order.
        remove: members to leave out.
    """
    import yaml

    gone = remove | changes.keys()
    expected = {key: value for key, value in card.members.items() if key not in gone} | changes
    added = str(yaml.dump(changes, allow_unicode=True, sort_keys=False)) if changes else ""
    kept = _without_members(card.yaml, gone)
    text = kept + ("\n" if kept and not kept.endswith("\n") else "") + added
    with suppress(yaml.YAMLError, ValueError, *_TAG_FAILURES):
        if yaml.safe_load(text) == expected:
            return text
    # A flow mapping, or an anchor that was cut away: the text cannot be kept.
    return str(yaml.safe_dump(expected, allow_unicode=True, sort_keys=False))


def _without_members(text: str, names: set[str]) -> str:
    """Cut top-level members out of a block mapping, each up to the start of the next."""
    import yaml

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        return text
    starts = [key.start_mark.index for key, _ in root.value]
    ends = [*starts[1:], len(text)]
    parts = [text[: starts[0]]] if starts else [text]
    for (key, _), start, end in zip(root.value, starts, ends, strict=True):
        if key.value not in names:
            parts.append(text[start:end])
    return "".join(parts)
