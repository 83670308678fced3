"""Where the package names an extension outside of the extension's own files."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "src" / "prunectl"


def foreign_mentions(names: Iterable[str], own_files: Iterable[Path]) -> list[str]:
    """``file:line: mention`` for each mention of an extension in any other file.

    A mention is a string that is one of ``names``, an attribute or a class's name of it in capitals
    (a member of an enum), or an import of one of ``own_files``. Docstrings do not count.
    """
    own = {path.resolve() for path in own_files}
    known = set(names)
    modules = {
        ".".join(path.relative_to(HOUSE.parent.resolve()).with_suffix("").parts) for path in own
    }
    found = []
    for path in sorted(HOUSE.rglob("*.py")):
        if path.resolve() not in own:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            where = path.relative_to(HOUSE).as_posix()
            found += [f"{where}:{line}: {what}" for line, what in _mentions(tree, known, modules)]
    return found


def _mentions(tree: ast.AST, names: set[str], modules: set[str]) -> Iterator[tuple[int, str]]:
    members = {name.upper() for name in names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in names:
            yield node.lineno, repr(node.value)
        elif isinstance(node, ast.Attribute) and node.attr in members:
            yield node.lineno, f".{node.attr}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in modules:
                    yield node.lineno, f"import {alias.name}"
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if {node.module, f"{node.module}.{alias.name}"} & modules:
                    yield node.lineno, f"from {node.module} import {alias.name}"
