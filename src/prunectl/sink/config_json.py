"""``config.json`` of a compressed output: the model's own text and one more member.

The member ``quantization_config`` names the loader: after ``import prunectl``, transformers reads
the folder; without it, transformers says that it knows no such method and finds no weights.
"""

from __future__ import annotations

import json
import re

CONFIG_NAME = "config.json"
METHOD = "prunectl"
KEY = "quantization_config"

_CLOSING = re.compile(rb"(\s*)\}(\s*)\Z")
_MARK = re.compile(
    rb',?\s*"' + KEY.encode() + rb'": \{"quant_method": "' + METHOD.encode() + rb'"[^{}]*\}'
)


def is_markable(config: bytes) -> bool:
    """Whether a config.json is a JSON object in UTF-8 that no other loader claims."""
    document = _document(config)
    return document is not None and KEY not in document


def mark(config: bytes, weights: str) -> bytes:
    """Add the member that names the loader; all other bytes stay.

    Args:
        config: bytes for which :func:`is_markable` is true.
        weights: file name of the compressed weights, or of their index.
    """
    closing = _CLOSING.search(config)
    assert closing is not None
    value = json.dumps({"quant_method": METHOD, "weights": weights})
    before = config[: closing.start()]
    comma = b"," if _document(config) else b""
    return before + comma + f'\n  "{KEY}": {value}'.encode() + config[closing.start() :]


def unmark(config: bytes) -> bytes:
    """The bytes before :func:`mark`; those given where they are not marked.

    A file that was saved by another program since then keeps its members and loses its format.
    """
    document = _document(config)
    value = document.get(KEY) if document else None
    if document is None or not isinstance(value, dict) or value.get("quant_method") != METHOD:
        return config
    rest = {key: member for key, member in document.items() if key != KEY}
    for found in reversed(list(_MARK.finditer(config))):
        text = config[: found.start()] + config[found.end() :]
        if _document(text) == rest:
            return text
    return (json.dumps(rest, indent=2) + "\n").encode()


def _document(config: bytes) -> dict[str, object] | None:
    try:
        document = json.loads(config.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
