"""The YAML front matter of a model card, changed without touching the lines that stay.

Loading and dumping would damage cards: YAML 1.1 reads ``language: no`` as False. So the members to
change are cut out by their position in the text, and new ones are added at the end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

YAML_BLOCK = re.compile(r"^(\s*---(?:\r\n|\r|\n))([\S\s]*?)((?:\r\n|\r|\n)---[ \t]*(\r\n|\n|$))")
"""huggingface_hub's ``repocard.REGEX_YAML_BLOCK``, which takes a quarter of a second to import."""


@dataclass(frozen=True, slots=True)
class SplitCard:
    """A card in two parts.

    Attributes:
        yaml: text between the ``---`` lines; empty if there is none that can be read.
        members: what it says.
        body: everything after it, byte for byte.
        broken: why a front matter was there and could not be read; it is then still in ``body``.
    """

    yaml: str
    members: dict[str, Any]
    body: str
    broken: str = ""


def split_card(text: str) -> SplitCard:
    """Split a card by the Hub's own rule."""
    import yaml

    text = text.removeprefix("\ufeff")
    match = YAML_BLOCK.search(text)
    if match is None:
        return SplitCard("", {}, text)
    try:
        members = yaml.safe_load(match[2])
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return SplitCard("", {}, text, broken=str(error).partition("\n")[0])
    if members is None:
        members = {}
    if not isinstance(members, dict) or not all(isinstance(key, str) for key in members):
        return SplitCard("", {}, text, broken="it is not a list of 'key: value' lines")
    return SplitCard(match[2], members, text[match.end() :])


def update_yaml(card: SplitCard, changes: dict[str, Any], remove: set[str]) -> str:
    """The front matter's text with some members set and some removed; always ends with a newline.

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
    try:
        if yaml.safe_load(text) == expected:
            return text
    except (yaml.YAMLError, ValueError, RecursionError):
        pass
    # A flow mapping, or an anchor that was cut away: there the text cannot be kept.
    return str(yaml.dump(expected, allow_unicode=True, sort_keys=False))


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
