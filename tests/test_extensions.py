"""A method, a layout and a metric are named by their own files and one table, nowhere else."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from extension_walk import HOUSE, foreign_mentions, package_with, parsed

from prunectl.cli.completion import complete
from prunectl.errors import InvalidOption
from prunectl.evaluation import metrics
from prunectl.evaluation.metric import Request
from prunectl.evaluation.metrics import METRICS
from prunectl.evaluation.settings import EvalSettings
from prunectl.evaluation.verb import evaluate
from prunectl.layouts.table import DENSE, LAYOUTS
from prunectl.methods.spec import Needs
from prunectl.methods.table import DEFAULT, Method

ROOT = Path(__file__).parents[1]


def test_nobody_else_names_a_method() -> None:
    """See :func:`extension_walk.foreign_mentions` for what is a mention."""
    files = ["methods/table.py", *(f"methods/{method}.py" for method in Method)]
    assert not foreign_mentions(list(map(str, Method)), files, common=["magnitude"])


def test_every_method_has_its_row_in_the_tables_for_users() -> None:
    for page in ("README.md", "docs/calibration.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        missing = [one for one in Method if not re.search(rf"^\| `{one}`", text, re.M)]
        assert not missing, f"{page} has no row for {missing}"


def test_only_the_default_method_does_without_calibration() -> None:
    """It is what streams; any other method runs with the samples of a calibration."""
    assert [method for method in Method if method.spec.needs is Needs.NOTHING] == [DEFAULT]


ADDED_METHOD = """
import sys
from pathlib import Path
import prunectl
from prunectl.cli.run import run

assert Path(prunectl.__file__).is_relative_to(Path.cwd()), prunectl.__file__
SMALL = ["--samples", "2", "--sequence-length", "32", "-q"]
for words in (
    ["prune", "--help"],
    ["prune", "demo", "-s", "0.5", "--method", "ria", *SMALL, "-o", "pruned"],
    ["verify", "pruned", "-q"],
    ["export", "pruned", "--layout", "bitmask", "-o", "packed", "-q"],
    ["verify", "packed", "-q"],
):
    code = run(words)
    if code:
        sys.exit(f"{words}: exit code {code}")
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("packed")
weight = model.model.layers[0].mlp.up_proj.weight
zeros = (weight == 0).sum(1)
assert (zeros == weight.shape[1] // 2).all(), zeros
"""


@pytest.mark.full
def test_a_method_is_added_as_contributing_says(tmp_path: Path) -> None:
    package = package_with(tmp_path, "## Add a method")
    done = subprocess.run(
        [sys.executable, "-c", ADDED_METHOD],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(package.parent), "COLUMNS": "200"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "wanda, sparsegpt, admm or ria" in done.stdout
    assert "row for wanda and ria" in done.stdout
    for folder in ("pruned", "packed"):
        card = (tmp_path / folder / "README.md").read_text(encoding="utf-8")
        assert "one-shot pruning by RIA (ICLR 2024), calibrated on 2 samples of demo" in card
        assert "scope `row`" in card


WALKED = '''"""About wanda, in a docstring."""
from prunectl.methods.table import METHODS
from prunectl.methods.wanda import wanda
import prunectl.methods.wanda
from prunectl.methods import wanda as other

LIMIT = 3
"""What wanda takes."""
TEXT = f"run {LIMIT} times by Wanda"
if kind is Method.WANDA or kind == "wanda" or kind is settings.Method.MAGNITUDE:
    print("largest magnitude", "as wandas do", wanda.WANDA)
HINT = "add --method magnitude"
NAME = "magnitude"
'''


def test_every_kind_of_mention_is_found_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "methods").mkdir()
    for file in ("walked.py", "methods/table.py", "methods/wanda.py", "methods/magnitude.py"):
        (tmp_path / file).write_text(WALKED, encoding="utf-8")
    own = ["methods/table.py", "methods/wanda.py", "methods/magnitude.py"]
    found = foreign_mentions(["magnitude", "wanda"], own, common=["magnitude"], house=tmp_path)
    assert found == [
        "walked.py:3: an import of prunectl.methods.wanda.wanda",
        "walked.py:4: an import of prunectl.methods.wanda",
        "walked.py:5: an import of prunectl.methods.wanda",
        "walked.py:9: the string 'Wanda'",
        "walked.py:10: the member Method.MAGNITUDE",
        "walked.py:10: the member Method.WANDA",
        "walked.py:10: the string 'wanda'",
        "walked.py:12: the string 'method magnitude'",
        "walked.py:13: the string 'magnitude'",
    ]


# --- layouts ------------------------------------------------------------------------------------


OWN = [
    "layouts/table.py",
    *(f"layouts/{name}.py" for name in LAYOUTS),
    *(f"layouts/packing/{path.name}" for path in (HOUSE / "layouts" / "packing").glob("*.py")),
]

OTHER_DENSE = {
    "benchmarking": "the kernels of a dense product",
    "checkpoint/opening.py": "a hint, in a room that knows no layouts",
    "report": "the model that was not pruned",
    "runtime/executions.py": "an execution",
    "studies/sweep/result.py": "the model that was not pruned",
    "cli/export.py": "a column of bytes",
    "cli/bench_screen.py": "the kernels of a dense product",
    "benchmarking/settings.py": "the kernels of a dense product",
    "cli/lottery.py": "the model that was not pruned",
    "cli/sweep_screen.py": "the model that was not pruned",
}
"""Where ``dense`` is said for another reason."""


def test_only_its_file_and_the_table_name_a_layout() -> None:
    others = [name for name in LAYOUTS if name != DENSE]
    assert [
        mention
        for mention in foreign_mentions(others, OWN, common=["nm", "packed"])
        if not mention.startswith("runtime/forms.py")  # a form has the name of its like on disk
    ] == []
    assert [
        mention
        for mention in foreign_mentions([DENSE], OWN, common=[DENSE])
        if not mention.startswith(tuple(OTHER_DENSE))
    ] == []


SCRIPT = """
import contextlib, io, json
import torch
from safetensors.torch import load_file
import prunectl
from prunectl.cli.run import run as run_command

def run(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert run_command(arguments) == 0
    return printed.getvalue()

pruned = json.loads(run("prune", "demo", "-o", "pruned", "--sparsity", "0.95", "--json"))
exported = json.loads(run("export", "pruned", "-o", "small", "--layout", "coo", "--json"))
run("verify", "small")
dense, loaded = load_file("pruned/model.safetensors"), prunectl.load_state_dict("small")
same = dense.keys() == loaded.keys() and all(
    torch.equal(dense[name].view(torch.uint8), loaded[name].view(torch.uint8)) for name in dense
)
screens = run("export", "--help"), run("analyze", "pruned")
print(json.dumps([pruned["predicted_bytes"], exported["tensors"], same, *screens]))
"""


@pytest.mark.full
def test_a_layout_is_one_file_and_one_table_entry(tmp_path: Path) -> None:
    copy = package_with(tmp_path, "## Add a layout")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "PYTHONPATH": str(copy.parent), "COLUMNS": "200"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    predicted, tensors, same, usage, analysis = json.loads(done.stdout)
    assert same
    assert sum(tensor["layout"] == "coo" for tensor in tensors) > 10
    nbytes = sum(tensor["stored_bytes"] for tensor in tensors)
    assert abs(predicted["coo"] - nbytes) <= 400 * len(tensors)
    assert "in layout `coo`" in (tmp_path / "small" / "README.md").read_text(encoding="utf-8")
    assert re.search(r"\bcoo\b", usage)
    assert "40% unstructured, as values and places" in analysis


# --- metrics ------------------------------------------------------------------------------------


TABLE = "evaluation/metrics.py"
ROOM = "prunectl.evaluation"


def path_of(module: str) -> Path:
    return HOUSE.parent.joinpath(*module.split(".")).with_suffix(".py")


def imported(path: Path) -> set[str]:
    """Modules of the room that a file imports."""
    found = set()
    for node in ast.walk(parsed(path)):
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
