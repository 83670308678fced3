"""The Hub's look at the front matter of a model card, as far as it is written down.

https://huggingface.co/docs/hub/model-cards names the members and their values.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

LICENSES = {
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "bsd-3-clause", "cc-by-4.0",
    "cc-by-nc-4.0", "cc-by-sa-4.0", "cc0-1.0", "gpl-3.0", "llama2", "llama3", "gemma", "other",
    "unknown", "unlicense",
}  # fmt: skip
RELATIONS = {"adapter", "merge", "quantized", "finetune"}
_FRONT = re.compile(r"\ufeff?---[ \t]*\r?\n(.*?)(?:\r?\n)?^---[ \t]*$", re.DOTALL | re.MULTILINE)
_REPO = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|code|multilingual")


def check_card(text: str) -> tuple[list[str], list[str]]:
    """Errors and warnings on a card."""
    found = _FRONT.match(text)
    if found is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        # YAML 1.2, as the Hub reads it: only true and false are booleans, a date is a text.
        members = yaml.load(found[1], Loader=_Texts)
    except yaml.YAMLError as error:
        return [f"bad YAML: {error}"], []
    if members is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(members, dict):
        return ["the metadata is not an object"], []
    return [error for check in _CHECKS for error in check(members)], []


class _Texts(yaml.SafeLoader):
    """Scalars stay as they are written, but for null, true, false and numbers of JSON."""


_Texts.yaml_implicit_resolvers = {}
for _kind, _pattern, _first in (
    ("bool", r"true|false", "tf"),
    ("int", r"-?[0-9]+", "-0123456789"),
    ("float", r"-?[0-9]+\.[0-9]+", "-0123456789"),
    ("null", r"null|~|", ["n", "~", ""]),
):
    _Texts.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), list(_first)
    )


def _texts(members: dict[str, Any], name: str) -> list[Any]:
    value = members.get(name)
    return value if isinstance(value, list) else [] if value is None else [value]


def _check_license(members: dict[str, Any]) -> list[str]:
    bad = [value for value in _texts(members, "license") if value not in LICENSES]
    return [f'"license" must be one of {sorted(LICENSES)}, not {value!r}' for value in bad]


def _check_tags(members: dict[str, Any]) -> list[str]:
    tags = members.get("tags")
    if tags is None:
        return []
    if not isinstance(tags, list) or not all(isinstance(tag, str) and tag for tag in tags):
        return ['"tags" must be an array of strings']
    # Tags with a colon (license:mit, region:us) are the Hub's own; no card of ours needs one.
    return [f'"tags" holds the reserved "{tag}"' for tag in tags if ":" in tag or len(tag) > 96]


def _check_base(members: dict[str, Any]) -> list[str]:
    bad = [
        value
        for value in _texts(members, "base_model")
        if not isinstance(value, str) or not _REPO.fullmatch(value)
    ]
    errors = [f'"base_model" must be a model id, not {value!r}' for value in bad]
    if members.get("base_model_relation", "merge") not in RELATIONS:
        errors.append(f'"base_model_relation" must be one of {sorted(RELATIONS)}')
    return errors


def _check_language(members: dict[str, Any]) -> list[str]:
    bad = [
        value
        for value in _texts(members, "language")
        if not isinstance(value, str) or not _LANGUAGE.fullmatch(value)
    ]
    return [f'"language" must be an ISO 639 code, not {value!r}' for value in bad]


def _check_library(members: dict[str, Any]) -> list[str]:
    value = members.get("library_name", "x")
    return [] if isinstance(value, str) else ['"library_name" must be a string']


_CHECKS = (_check_license, _check_tags, _check_base, _check_language, _check_library)
