"""``config.json`` of a compressed output: the model's own text with one more member.

The member ``quantization_config`` names the loader: after ``import prunectl``, transformers reads
the folder; without it, transformers reports an unknown method and finds no weights.
"""

from __future__ import annotations

import json

from prunectl.documents import parse_json

CONFIG_NAME = "config.json"
METHOD = "prunectl"
KEY = "quantization_config"

_LITERAL = f'"{KEY}": {{"quant_method": "{METHOD}"'.encode()
"""How the member begins."""

_MOST_LOOKALIKES = 16
"""Only the last members that begin this way are tried: each attempt parses the whole text."""


def is_markable(config: bytes) -> bool:
    """Return whether a config.json is a JSON object in UTF-8 that no other loader claims."""
    document = _document(config)
    return document is not None and KEY not in document


def mark(config: bytes, weights: str) -> bytes:
    """Add the member that names the loader; all other bytes are kept.

    Args:
        config: bytes for which :func:`is_markable` is true.
        weights: file name of the compressed weights, or of their index.
    """
    # No regular expression: on long runs of spaces its time grows with the square of the length.
    last = len(config.rstrip()) - 1
    assert config[last:].startswith(b"}")
    value = json.dumps({"quant_method": METHOD, "weights": weights})
    before = config[:last].rstrip()
    comma = b"," if _document(config) else b""
    return before + comma + f'\n  "{KEY}": {value}'.encode() + config[len(before) :]


def unmark(config: bytes) -> bytes:
    """Return the bytes before :func:`mark`; the given bytes if they are not marked.

    A file that another program has saved since then keeps its members and loses its formatting.
    """
    document = _document(config)
    value = document.get(KEY) if document else None
    if document is None or not isinstance(value, dict) or value.get("quant_method") != METHOD:
        return config
    rest = {key: member for key, member in document.items() if key != KEY}
    start = config.rfind(_LITERAL)
    for _ in range(_MOST_LOOKALIKES):
        text = b"" if start < 0 else _without(config, start)
        if _document(text) == rest:
            return text
        start = config.rfind(_LITERAL, 0, max(start, 0))
    return (json.dumps(rest, indent=2) + "\n").encode()


def _without(config: bytes, start: int) -> bytes:
    """Return the bytes without the member at ``start`` and its separator."""
    first = start + len(_LITERAL)
    inside, closing, after = config[first:].partition(b"}")
    if not closing or b"{" in inside:
        return b""
    return config[:start].rstrip().removesuffix(b",") + after


def _document(config: bytes) -> dict[str, object] | None:
    try:
        document = parse_json(config.decode())
    except ValueError:
        return None
    return document if isinstance(document, dict) else None
