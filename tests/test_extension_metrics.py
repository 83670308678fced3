"""A metric is one file and one entry of a table: nothing else names one."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from extension_walk import HOUSE, foreign_mentions

from prunectl.cli.completion import complete
from prunectl.errors import InvalidOption
from prunectl.evaluation import metrics
from prunectl.evaluation.metric import Request
from prunectl.evaluation.metrics import METRICS
from prunectl.evaluation.settings import EvalSettings
from prunectl.evaluation.verb import evaluate

ROOT = Path(__file__).parents[1]
TABLE = "evaluation/metrics.py"
ROOM = "prunectl.evaluation"


def path_of(module: str) -> Path:
    return HOUSE.parent.joinpath(*module.split(".")).with_suffix(".py")


def imported(path: Path) -> set[str]:
    """Modules of the room that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            dotted = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            found |= {one for one in dotted if one.startswith(ROOM) and path_of(one).is_file()}
    return found


def own_files(modules: set[str]) -> set[Path]:
    """Of metrics' modules: the files, and those of the room that nothing else uses."""
    users: dict[str, set[str]] = {}
    for path in HOUSE.rglob("*.py"):
        name = ".".join(path.relative_to(HOUSE.parent).with_suffix("").parts)
        for one in imported(path):
            users.setdefault(one, set()).add(name)
    own = set(modules)
    while more := {one for one, by in users.items() if by <= own} - own:
        own |= more
    return {path_of(one) for one in own}


def test_nothing_else_names_a_metric() -> None:
    own = {
        path.relative_to(HOUSE).as_posix()
        for path in own_files({spec.module for spec in METRICS.values()})
    }
    found = foreign_mentions(METRICS, own, common=METRICS)
    assert [one for one in found if not one.startswith(f"{TABLE}:")] == []
    assert len(found) >= len(METRICS)


@pytest.mark.parametrize("name", METRICS)
def test_an_entry_is_true(name: str) -> None:
    spec = METRICS[name]
    (parameter,) = inspect.signature(import_module(spec.module).prepare).parameters.values()
    assert parameter.annotation == Request.__name__
    assert set(spec.options) <= {one.name for one in fields(EvalSettings)}
    # What trains is given recipes, and only that.
    assert spec.trains == ("training" in spec.options)
    assert bool(spec.tasks) <= ("task" in spec.options)
    assert spec.kinds


def test_completion_offers_what_the_table_has() -> None:
    offered = [one.value for one in complete(["evaluate", "--metric", ""])]
    assert [word.removesuffix(":") for word in offered] == list(METRICS)
    tasks = [task for spec in METRICS.values() for task in spec.tasks]
    assert [one.value for one in complete(["evaluate", "--task", ""])] == tasks
    assert all(task.help for spec in METRICS.values() for task in spec.tasks.values())


def test_the_table_imports_no_metric_and_nothing_heavy() -> None:
    code = (
        "import sys, prunectl.evaluation.metrics as m\n"
        "bad = {'numpy', 'torch', 'transformers'} | {one.module for one in m.METRICS.values()}\n"
        "found = bad & set(sys.modules)\n"
        "sys.exit(repr(found) if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_example_in_contributing_is_a_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = page.partition("## Add a metric\n")[2].partition("\n## ")[0]
    code, entry = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    ((name, spec),) = eval(f"{{{entry}}}", vars(metrics)).items()
    module = ModuleType(spec.module)
    monkeypatch.setitem(sys.modules, spec.module, module)
    exec(compile(code, spec.module, "exec"), vars(module))
    monkeypatch.setitem(METRICS, name, spec)
    found = evaluate("demo", EvalSettings(name, samples=3))
    assert (found.metric, found.samples) == (name, 3)
    assert 0 < found.score < 1
    with pytest.raises(InvalidOption, match=f"--metric {name} does not take --stride"):
        EvalSettings(name, stride=4)
