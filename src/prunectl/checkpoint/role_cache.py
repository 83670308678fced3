"""Roles of a checkpoint's tensors, cached between runs.

Importing transformers to build the module tree takes seconds, more than analyzing a small model.
The roles depend only on config.json, the headers and the versions of both libraries, so they are
cached under a hash of these.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING

import blake3

from prunectl._version import __version__
from prunectl.checkpoint.known_trees import roles_from_table
from prunectl.checkpoint.roles import RoleMap, TensorRole, roles_from_headers
from prunectl.documents import convert, parse_json
from prunectl.errors import UnknownArchitecture
from prunectl.tensorspec import TensorSpec
from prunectl.userdirs import cache_dir, write_cache_file

if TYPE_CHECKING:
    from prunectl.checkpoint.checkpoint import Checkpoint


def load_roles(checkpoint: Checkpoint) -> RoleMap:
    """Roles from the table of known classes, else the cache, the module tree, or the headers.

    Without config.json, the module tree is not built.
    """
    specs = [tensor.spec for tensor in checkpoint.tensors]
    if not (checkpoint.folder / "config.json").is_file():
        found = roles_from_headers(specs)
        return RoleMap(found.roles, found.origin, "there is no config.json")
    if checkpoint.trust_remote_code:
        # the model's own code may change, so its result is not cached
        return _build(checkpoint)
    known = roles_from_table(checkpoint.config, specs)
    if known is not None:
        return known
    name = f"roles-{_key(checkpoint)}.json"
    remembered = _read(name, specs)
    if remembered is not None:
        return remembered
    found = _build(checkpoint)
    if found.origin != "modules":
        # a failure may be temporary: a missing package, an incomplete download
        return found
    write_cache_file(name, lambda file: file.write(json.dumps(asdict(found)).encode()))
    return found


def _build(checkpoint: Checkpoint) -> RoleMap:
    from prunectl.checkpoint.modules import roles_from_modules

    specs = [tensor.spec for tensor in checkpoint.tensors]
    try:
        return roles_from_modules(
            checkpoint.folder, specs, trust_remote_code=checkpoint.trust_remote_code
        )
    except UnknownArchitecture as error:
        found = roles_from_headers(specs)
        return RoleMap(found.roles, found.origin, error.why)


def _key(checkpoint: Checkpoint) -> str:
    facts = {
        "versions": [__version__, version("transformers"), version("accelerate")],
        "config": (checkpoint.folder / "config.json").read_bytes().hex(),
        "tensors": [[t.name, t.spec.dtype.name, t.spec.shape] for t in checkpoint.tensors],
        "aliases": checkpoint.aliases,
    }
    return blake3.blake3(json.dumps(facts).encode()).hexdigest(length=16)


def _read(name: str, specs: list[TensorSpec]) -> RoleMap | None:
    """The cached roles; None if there are none, or if they are damaged."""
    try:
        found = convert(parse_json((cache_dir() / name).read_bytes()), RoleMap)
    except (OSError, ValueError):
        return None
    shapes = {spec.name: spec.shape for spec in specs}
    is_whole = found.origin == "modules" and found.roles.keys() == shapes.keys()
    fits = is_whole and all(_fits(role, shapes[name]) for name, role in found.roles.items())
    return found if fits else None


def _fits(role: TensorRole, shape: tuple[int, ...]) -> bool:
    """Whether a cached role is possible for a tensor of this shape."""
    axis, layer = role.input_axis, role.layer
    return (layer is None or layer >= 0) and (axis is None or 0 <= axis < len(shape))
