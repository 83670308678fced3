"""The house stands as CONTRIBUTING.md draws it: who imports whom, what loads at startup, sizes."""

from __future__ import annotations

import ast
import functools
import graphlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "src" / "prunectl"
MODULES = sorted(HOUSE.rglob("*.py"))

# Top floor first. A floor imports only floors below it; on one floor nobody imports in a circle.
FLOORS: dict[str, set[str]] = {
    "door": {"__init__", "__main__"},
    "cli": {"cli"},
    "report": {"report"},
    "studies": {"studies"},
    "release": {"publishing"},
    "verbs": {
        "analysis",
        "pruning",
        "exporting",
        "verification",
        "benchmarking",
        "evaluation",
    },
    "work": {"calibration", "loading", "measure", "transform"},
    "plan": {"plan", "data", "parallel", "runtime"},
    "rooms": {"checkpoint", "magnitude", "methods", "layouts", "output"},
    "outside": {"hub"},
    "ground": {
        "pattern",
        "tensorspec",
        "geometry",
        "cpu",
        "errors",
        "events",
        "device",
        "disks",
        "jit",
        "numbers",
        "option",
        "to_json",
        "documents",
        "userdirs",
        "_version",
        "lazy",
        "demo",
    },
}
HEIGHT = {room: height for height, rooms in enumerate(reversed(FLOORS.values())) for room in rooms}

# Parts of huggingface_hub that never touch the network.
HUB_OFFLINE = {
    "split_state_dict_into_shards_factory",
}

MAX_MODULE_LINES = 450
MAX_FUNCTION_LINES = 60


def name_of(path: Path) -> str:
    return path.relative_to(HOUSE).as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@functools.cache
def imports_of(tree: ast.AST) -> set[str]:
    """Dotted names of all that a module imports, also inside functions and for types only.

    ``from a import b`` gives ``a.b``, whether ``b`` is a module or a name in ``a``.
    """
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            found |= {f"{prefix}.{alias.name}" for alias in node.names}
    return found


def libraries_of(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports_of(parse(path))}


def rooms_used_by(path: Path) -> set[str]:
    """Rooms that a module imports, other than its own."""
    used = set()
    for name in imports_of(parse(path)):
        parts = name.split(".")
        if parts[0] != "prunectl":
            continue
        # `from prunectl import x` means the room x if there is one, else a name of __init__.
        used.add(parts[1] if len(parts) > 1 and parts[1] in HEIGHT else "__init__")
    return used - {room_of(path)}


def test_imports_are_read_from_every_kind_of_statement() -> None:
    source = """
import a.b
from c import d as e
def f():
    from g.h import i
    import j
"""
    assert imports_of(ast.parse(source)) == {"a.b", "c.d", "g.h.i", "j"}


def test_home_folders_are_expanded_in_one_place() -> None:
    """Elsewhere a Path has dropped the ``./`` of ``./~``, and it would be written to a home."""
    named = [name_of(path) for path in MODULES if "expanduser" in path.read_text(encoding="utf-8")]
    assert named == ["userdirs.py"]


def test_every_room_has_a_floor_and_is_in_the_picture() -> None:
    rooms = {room_of(path) for path in MODULES}
    assert rooms <= set(HEIGHT), "give these a floor in FLOORS and a place in CONTRIBUTING.md"
    picture = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    missing = {room for room in rooms if room not in picture}
    assert not missing, f"not in the picture of CONTRIBUTING.md: {missing}"


def test_a_module_imports_only_floors_below() -> None:
    for path in MODULES:
        used, own = rooms_used_by(path), HEIGHT[room_of(path)]
        assert not {room for room in used if HEIGHT[room] > own}, path
        if room_of(path) in FLOORS["rooms"]:
            assert not used & FLOORS["rooms"], f"{path}: rooms do not know each other"


def test_no_rooms_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        graph.setdefault(room_of(path), set()).update(rooms_used_by(path))
    graphlib.TopologicalSorter(graph).prepare()


def test_no_modules_import_each_other_in_a_circle() -> None:
    """At their top, also for types only; an import inside a function waits until it is called."""
    known = {
        "prunectl." + name_of(path).removesuffix(".py").replace("/", "."): path for path in MODULES
    }
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        found: set[str] = set()
        for node in parse(path).body:
            if isinstance(node, ast.Import | ast.ImportFrom | ast.If):
                found |= imports_of(node)
        graph[name] = ({*found, *(one.rpartition(".")[0] for one in found)} & known.keys()) - {name}
    graphlib.TopologicalSorter(graph).prepare()


def test_only_the_command_line_knows_typer_and_rich() -> None:
    for path in MODULES:
        libraries = libraries_of(path)
        assert "click" not in libraries, f"{path}: typer has its own copy of click"
        assert room_of(path) == "cli" or not libraries & {"typer", "rich"}, path


def test_only_one_room_talks_to_the_hub() -> None:
    for path in MODULES:
        used = {name for name in imports_of(parse(path)) if name.startswith("huggingface_hub")}
        online = {
            name
            for name in used
            if name.removeprefix("huggingface_hub.") not in HUB_OFFLINE
            and not name.startswith(("huggingface_hub.errors", "huggingface_hub.constants"))
        }
        assert room_of(path) == "hub" or not online, path


def test_modules_and_functions_are_short() -> None:
    long = {}
    for path in MODULES:
        long[path] = len(path.read_text(encoding="utf-8").splitlines()) - MAX_MODULE_LINES
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                # Neither the docstring nor the options of a command, its arguments, count.
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
                long[path, node.name] = lines - MAX_FUNCTION_LINES
    assert not {what: lines for what, lines in long.items() if lines > 0}


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after it has run ``code``."""
    report = (
        "import atexit, json, sys\n"
        "atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", report + code],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}


HEAVY = {
    "torch", "transformers", "accelerate", "numba", "numpy", "huggingface_hub", "safetensors",
    "altair", "vl_convert", "jinja2",
}  # fmt: skip


def test_importing_the_library_loads_nothing_heavy() -> None:
    loaded = loaded_by("import prunectl")
    assert "prunectl" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("options", [["--help"], ["--version"], []])
def test_help_version_and_the_beginning_load_nothing_heavy(options: list[str]) -> None:
    if not (HOUSE / "__main__.py").exists():
        pytest.skip("the command line is not there yet")
    loaded = loaded_by(
        f"sys.argv = ['prunectl', *{options}]\nfrom prunectl.__main__ import main\nsys.exit(main())"
    )
    assert "typer" in loaded
    assert not loaded & HEAVY


def test_no_module_is_a_drawer_for_leftovers() -> None:
    assert not [name_of(path) for path in MODULES if path.stem in {"utils", "helpers", "common"}]
