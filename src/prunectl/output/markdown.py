"""Text from elsewhere in Markdown: it is shown, and does nothing."""

from __future__ import annotations

import re


def plain(text: str) -> str:
    """One line of text that cannot end a table cell, a comment or our section."""
    flat = " ".join(text.split()).replace("|", "\\|")
    return flat.replace("<", "&lt;").replace(">", "&gt;")


def code(text: str) -> str:
    """Inline code, whatever the text holds."""
    flat = " ".join(text.split())
    longest = max((len(run) for run in re.findall(r"`+", flat)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if longest else ""
    return f"{fence}{pad}{flat.replace('<!--', '< !--')}{pad}{fence}"


def fenced(language: str, text: str) -> list[str]:
    """A fenced block, whatever the text holds; it cannot hold one of our markers."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", text.replace("<!-- prunectl:", "<!-- prunectl :"), fence]


def cell(text: str, longest: int = 60) -> str:
    """Inline code in a table, on one line and of bounded length."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    short = flat if len(flat) <= longest else f"{flat[: longest - 1]}\u2026"
    return code(short).replace("|", "\\|") if short else ""
