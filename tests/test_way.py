"""The way of prune, from the command to the bytes, is the one that CONTRIBUTING.md lists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from test_house import HEIGHT, HOUSE, parse, room_of

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"
STEP = re.compile(r"^(\d+\. +)([\w/]+\.py): ([\w.]+)$", re.M)
MOST = 20


def places() -> list[tuple[int, Path, str]]:
    """Indentation, file and function of each place on the list."""
    section = PAGE.read_text(encoding="utf-8").partition("## The way of prune\n")[2]
    found = STEP.findall(section.partition("\n## ")[0])
    return [(len(indent), HOUSE / file, function) for indent, file, function in found]


def functions(path: Path) -> dict[str, ast.AST]:
    """Functions of a module by name, methods as ``Class.method``."""
    found: dict[str, ast.AST] = {}
    for node in parse(path).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.ClassDef):
            inside = [one for one in node.body if isinstance(one, ast.FunctionDef)]
            found |= {f"{node.name}.{one.name}": one for one in inside}
    return found


def called(path: Path, function: str) -> set[str]:
    """Names that a function uses, by itself or through private functions of its module."""
    known, names, todo, seen = functions(path), set[str](), [function], set[str]()
    while todo:
        one = todo.pop()
        seen.add(one)
        nodes = list(ast.walk(known[one]))
        names |= {node.id for node in nodes if isinstance(node, ast.Name)}
        names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        todo += [
            other
            for other in known.keys() - seen
            if other.startswith("_") and names & {other, other.partition(".")[0]}
        ]
    return names


def test_each_place_is_there_and_is_called_by_the_one_above_it() -> None:
    way = places()
    assert 15 <= len(way) <= MOST
    above: list[tuple[int, Path, str]] = []
    for place in way:
        indent, path, function = place
        assert function in functions(path), f"{path.name} has no {function}"
        while above and above[-1][0] >= indent:
            above.pop()
        if above:
            _, caller, by = above[-1]
            assert function.rpartition(".")[2] in called(caller, by), f"not in {by}: {function}"
            assert HEIGHT[room_of(path)] <= HEIGHT[room_of(caller)], f"{by} calls up to {function}"
        above.append(place)
