"""Extensions (methods, layouts, metrics): which modules name one that is not theirs to name, and
a copy of the package with one more, added as CONTRIBUTING.md says."""

from __future__ import annotations

import ast
import functools
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from docs_pages import Block, blocks_of

HOUSE = Path(__file__).parents[1] / "src" / "prunectl"


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def foreign_mentions(
    names: Collection[str],
    own_files: Collection[str],
    *,
    common: Collection[str] = (),
    house: Path = HOUSE,
) -> list[str]:
    """Mentions of extensions outside their own files, as ``file:line: what``.

    A mention is

    - a string constant, a part of an f-string included, that holds a name as a word, in any case.
      A string that stands alone as a statement is a docstring, and is no mention;
    - a member of an enum: ``Kind.NAME``;
    - an import of one of ``own_files``, or of anything in it. The table, a file called
      ``table.py`` or ``__init__.py``, may be imported.

    Args:
        names: of the extensions, as users write them.
        own_files: the files that may mention them, the table included, from the package's folder
            (``methods/wanda.py``).
        common: names that are ordinary words too. In a string such a name counts only where it is
            all of the string, or comes right after an option (``--method magnitude``).
        house: folder of the package.
    """
    modules = {
        "prunectl." + file.removesuffix(".py").replace("/", ".")
        for file in own_files
        if not file.endswith(("/table.py", "/__init__.py"))
    }
    found = []
    for path in sorted(house.rglob("*.py")):
        file = path.relative_to(house).as_posix()
        if file not in own_files:
            mentions = sorted(_mentions(parsed(path), names, common, modules))
            found += [f"{file}:{line}: {what}" for line, what in mentions]
    return found


def _mentions(
    tree: ast.Module, names: Collection[str], common: Collection[str], modules: Collection[str]
) -> Iterator[tuple[int, str]]:
    words = _pattern(names, common)
    members = {name.upper().replace("-", "_") for name in names}
    alone = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            if match := words.search(node.value):
                yield node.lineno, f"the string {match[0]!r}"
        elif isinstance(node, ast.Attribute) and node.attr in members:
            owner = ast.unparse(node.value).rpartition(".")[2]
            if owner[:1].isupper():
                yield node.lineno, f"the member {owner}.{node.attr}"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for name in _imported(node):
                if name in modules or name.rpartition(".")[0] in modules:
                    yield node.lineno, f"an import of {name}"


def _imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    """Dotted names: ``from a import b`` gives ``a.b``."""
    prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
    return [prefix + alias.name for alias in node.names]


def _pattern(names: Collection[str], common: Collection[str]) -> re.Pattern[str]:
    rare = [rf"\b{re.escape(name)}\b" for name in names if name not in common]
    ordinary = [
        rf"\A{re.escape(name)}\Z|(?<=--)[a-z-]+[ =]{re.escape(name)}\b"
        for name in names
        if name in common
    ]
    return re.compile("|".join([*(f"(?i:{one})" for one in rare), *ordinary]))


def package_with(folder: Path, section: str) -> Path:
    """A copy of the package, with what a section of CONTRIBUTING.md adds to it."""
    package = folder / "src" / "prunectl"
    shutil.copytree(HOUSE, package)  # with what numba has compiled
    text = (HOUSE.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = blocks_of(text.partition(f"\n{section}\n")[2].partition("\n## ")[0])
    assert [block.language for block in blocks] == ["python", "diff"], "a file and an entry"
    for block in blocks:
        path = package / block.title
        if block.language == "diff":
            path.write_text(_changed(path.read_text(encoding="utf-8"), block), encoding="utf-8")
        else:
            assert not path.exists()
            path.write_text(block.text, encoding="utf-8")
    return package


def _changed(text: str, block: Block) -> str:
    """A file after a diff whose lines come in pairs: one that is there, and one that is added after
    it or, where the first has a minus, in its place."""
    lines = block.text.splitlines(keepends=True)
    for old, new in zip(lines[::2], lines[1::2], strict=True):
        assert text.count(old[1:]) == 1
        assert new[0] == "+"
        text = text.replace(old[1:], new[1:] if old[0] == "-" else old[1:] + new[1:])
    return text
