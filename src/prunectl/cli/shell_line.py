"""A line as it was typed in bash: its words, and how a candidate is inserted into it."""

from __future__ import annotations

import string
from collections.abc import Iterator

_SAFE = frozenset(string.ascii_letters + string.digits + "_-+=:@%,./~")
_SPECIAL_IN_QUOTES = '$`"\\'


def bash_words(line: str) -> tuple[list[str], str]:
    """The words of a command, without quotes, and the last one as it was typed.

    The last one may be empty or unfinished, with a quote that is still open.
    """
    words: list[str] = []
    start: int | None = None
    for at, (character, role) in enumerate(_characters(line)):
        if character in " \t\n" and role == "":
            if start is not None:
                words.append(_unquoted(line[start:at]))
            start = None
        elif start is None:
            start = at
    raw = "" if start is None else line[start:]
    return [*words, _unquoted(raw)], raw


def quoted_for_bash(value: str, raw: str, replaced: str) -> str:
    """What bash has to insert so that the unfinished word becomes ``value``, and a space after it.

    Args:
        value: a candidate; it starts with what ``raw`` means.
        raw: the unfinished word as it was typed.
        replaced: the end of ``raw`` that will be replaced: what follows a quote, ``:`` or ``=``.
    """
    kept = raw.removesuffix(replaced)
    text = value[len(_unquoted(kept)) :]
    quote = _open_quote(kept)
    # Bash itself closes a quote, and puts the space after it.
    if quote == "'":
        return text.replace("'", "'\\''")
    if quote == '"':
        return "".join(f"\\{c}" if c in _SPECIAL_IN_QUOTES else c for c in text)
    text = "".join(c if c in _SAFE or not c.isascii() else f"\\{c}" for c in text)
    return text if text.endswith("/") else f"{text} "


def _characters(text: str) -> Iterator[tuple[str, str]]:
    """Each character and its role.

    ``quote``: it opens or closes one, or is the backslash before a character, and means nothing
    itself. ``quoted``: it only means itself. Empty: a plain one, or a space between words.
    """
    quote, is_escaped = "", False
    for at, character in enumerate(text):
        following = text[at + 1 : at + 2]
        if is_escaped:
            is_escaped = False
            yield character, "quoted"
        elif character == "\\" and (
            not quote or (quote == '"' and following in _SPECIAL_IN_QUOTES)
        ):
            is_escaped = True
            yield character, "quote"
        elif character == quote or (not quote and character in "'\""):
            quote = "" if quote else character
            yield character, "quote"
        else:
            yield character, "quoted" if quote else ""


def _unquoted(text: str) -> str:
    return "".join(character for character, role in _characters(text) if role != "quote")


def _open_quote(text: str) -> str:
    """The quote that is open at the end; empty where none is."""
    quote = ""
    for character, role in _characters(text):
        if role == "quote" and character != "\\":
            quote = "" if quote else character
    return quote
