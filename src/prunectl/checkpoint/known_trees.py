"""Roles of tensors of the most common architectures, without building their module trees.

Importing torch and transformers to build a tree takes seconds, longer than reading a small model. A
table, made from the module trees by ``scripts/make_known_trees.py``, lists for each class the
tensor names (with ``*`` for numbers) and their roles. It has only entries that hold for all flags
of a config. The table does not answer for a checkpoint with another name, another rank, code of its
own or more layers than its config states.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from prunectl.checkpoint.roles import Role, RoleMap, TensorRole, roles_from_headers
from prunectl.tensorspec import TensorSpec

TABLE = "known_trees.json"


def roles_from_table(config: Mapping[str, Any], specs: Sequence[TensorSpec]) -> RoleMap | None:
    """The role of every tensor, as the module tree would give it; None if the table does not tell.

    Args:
        config: the parsed config.json.
        specs: all tensors of the checkpoint, by their names in the file.
    """
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or "auto_map" in config:
        return None
    table = _table()
    known = table["classes"].get(str(names[0]))
    if known is None or known["model_type"] != config.get("model_type"):
        return None
    tie = config.get("tie_word_embeddings", known["tie"])
    counts = {key: config.get(key, default) for key, default in known["counts"].items()}
    if type(tie) is not bool or any(type(count) is not int for count in counts.values()):
        return None
    numbers = known["tensors"] | known["tied" if tie else "untied"]
    # integer tensors are not part of these classes, but remain in old files
    is_left = any(not spec.dtype.is_float for spec in specs)
    left = roles_from_headers(specs).roles if is_left else {}
    roles = {}
    for spec in specs:
        number = numbers.get(pattern_of(spec.name))
        role = None if number is None else _role(spec, table["entries"][number], counts)
        if not spec.dtype.is_float:
            if role is not None and role.role is Role.LINEAR:
                return None  # a quantized weight
            role = left[spec.name]
        if role is None:
            return None
        roles[spec.name] = role
    return RoleMap(roles, origin="modules", detail=str(names[0]))


def pattern_of(name: str) -> str:
    """A name with ``*`` for its numbers."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def role_of(entry: Sequence[Any], name: str) -> TensorRole:
    """The role of a tensor, from an entry of the table.

    Args:
        entry: role, dimensions, parts of the path of its stack (None: not in a block), the config's
            key for the number of blocks in the stack, input axis, tied.
    """
    role, _, parts, _, axis, tied = entry
    path = name.split(".")
    if parts is None:
        return TensorRole(Role(role), component=name.removesuffix(".weight"), tied=tied)
    component = ".".join(path[parts + 1 :]).removesuffix(".weight")
    return TensorRole(
        Role(role), ".".join(path[:parts]), int(path[parts]), component, axis, tied=tied
    )


def _role(spec: TensorSpec, entry: Sequence[Any], counts: Mapping[str, int]) -> TensorRole | None:
    """A tensor's role from an entry; None if rank or layer do not fit the entry."""
    _, dimensions, _, key, _, _ = entry
    if dimensions != len(spec.shape):
        return None
    role = role_of(entry, spec.name)
    return None if role.layer is not None and role.layer >= counts[key] else role


@functools.cache
def _table() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        resources.files("prunectl.checkpoint").joinpath(TABLE).read_bytes()
    )
    return found
