"""The public names: one list, what the commands use, a page that has them; register()."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from children import child

import prunectl
from prunectl.cli.run import run

ROOT = Path(__file__).parents[1]
CLI = ROOT / "src" / "prunectl" / "cli"
VERBS = {
    "analysis",
    "pruning",
    "exporting",
    "verification",
    "publishing",
    "benchmarking",
    "loading",
    "evaluation",
    "studies",
    "report",
}
ONLY_FOR_OPTIONS = {
    "check_libraries",  # before the work, what the pages check themselves
    "check_push",
    "is_mask_path",  # compare() takes the path of a file of masks itself
    "dense_view",  # open_model() without the words on the screen
    "stored_as",  # a cell of a table
}
"""What the command line does for its screens and for early errors."""


def _room(module: str | None) -> str:
    return (module or "").removeprefix("prunectl.").partition(".")[0]


def test_every_name_is_what_its_module_calls_it() -> None:
    names = prunectl.__all__
    assert len(names) == len(set(names)) > 50
    assert dir(prunectl) == names == sorted(names)
    for name in set(names) - {"__version__", "Event", "OnEvent"}:
        found = getattr(prunectl, name)
        assert found.__name__ == name
        assert found.__doc__, name


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'prunectl' has no attribute 'prnue'"):
        _ = prunectl.prnue  # type: ignore[attr-defined,unused-ignore]
    with pytest.raises(ImportError, match="prnue"):
        exec("from prunectl import prnue")


@pytest.mark.full
def test_type_checkers_see_the_names_and_no_others(tmp_path: Path) -> None:
    """Every name has its own type, and a name that is not there is an error."""
    names = [name for name in prunectl.__all__ if name != "__version__"]
    source = "import prunectl\n" + "".join(f"prunectl.{name}\n" for name in names)
    use = tmp_path / "use.py"
    use.write_text(source + "reveal_type(prunectl.prune)\nprunectl.prnue\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", use],  # with the settings and the cache of make lint
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in done.stdout.splitlines() if "error:" in line]
    assert len(errors) == 1, done.stdout
    assert '"prnue"' in errors[0]
    assert "-> prunectl.pruning.result.PruneResult" in done.stdout


def test_star_imports_all_of_them() -> None:
    space: dict[str, Any] = {}
    exec("from prunectl import *", space)
    assert set(prunectl.__all__) <= set(space)


def test_the_library_can_what_the_command_line_can() -> None:
    used = set()
    for path in CLI.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and _room(node.module) in VERBS:
                used |= {alias.name for alias in node.names}
    functions = {name for name in used if name.islower()}
    assert functions - set(prunectl.__all__) == ONLY_FOR_OPTIONS


def test_the_page_has_every_name_and_no_other() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    table = page.partition("## All names")[2].partition("\n## ")[0]
    cells = [line.split("|")[2:] for line in table.splitlines() if line.startswith("| ")][1:]
    named = {name for row in cells for cell in row for name in re.findall(r"`(\w+)`", cell)}
    assert named == set(prunectl.__all__) - {"__version__"}


def test_a_plan_as_a_document_is_that_of_a_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    settings = prunectl.PruneSettings(sparsity=0.25, pattern=prunectl.NM(2, 4), exclude=("*.0.*",))
    document = prunectl.plan_prune("demo", settings).to_json()
    words = "prune demo --dry-run --json -s 0.25 -p 2:4 --exclude *.0.*"
    assert run(words.split()) == 0
    assert json.loads(capsys.readouterr().out) == {"dry_run": True, "model": "demo", **document}


# --- register -----------------------------------------------------------------------------------

LOADS = """
def total(folder):
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(folder)
    return sum(float(one.float().abs().sum()) for one in model.parameters())
"""
NO_HOOK = """
import sys
import prunectl
sys.meta_path[:] = [one for one in sys.meta_path if "prunectl" not in type(one).__module__]
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    prunectl.prune("demo", folder / "pruned", prunectl.PruneSettings(sparsity=0.5))
    prunectl.export(folder / "pruned", folder / "small")
    return folder / "small"


@pytest.mark.full
def test_registered_by_hand_without_the_hook(small: Path) -> None:
    code = (
        NO_HOOK
        + LOADS
        + (
            "refused = ''\n"
            "try:\n    total(sys.argv[1])\nexcept OSError as error:\n    refused = str(error)\n"
            "assert 'no file named' in refused, refused\n"
            "prunectl.register()\nprunectl.register()\n"
            "assert total(sys.argv[1]) == total(sys.argv[2]) > 0\n"
        )
    )
    done = child(code, small, small.parent / "pruned")
    assert done.returncode == 0, done.stderr


@pytest.mark.full
def test_registered_by_hand_and_by_the_hook(small: Path) -> None:
    """The hook runs inside of the explicit call, which is what imports transformers."""
    code = "import sys, prunectl\nassert 'transformers' not in sys.modules\nprunectl.register()\n"
    done = child(code + LOADS + "assert total(sys.argv[1]) > 0", small)
    assert done.returncode == 0, done.stderr


@pytest.mark.full
def test_our_own_loader_needs_no_hook(small: Path) -> None:
    done = child(NO_HOOK + "prunectl.load_model(sys.argv[1])", small)
    assert done.returncode == 0, done.stderr


@pytest.mark.full
def test_by_hand_errors_are_raised() -> None:
    code = (
        "import transformers.quantizers.auto as auto\n"
        "def refuse(name): raise RuntimeError('no more methods')\n"
        "auto.register_quantization_config = refuse\n"
    )
    done = child(NO_HOOK + code + "prunectl.register()")
    assert "RuntimeError: no more methods" in done.stderr
