"""A method, a layout and a metric are named by their own files and one table, nowhere else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from extension_walk import foreign_mentions, package_with

from prunectl.methods.spec import Needs
from prunectl.methods.table import DEFAULT, Method

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Extensions:
    """A kind of extension: names, the files that may name them, names that are common words, and
    where users read of them."""

    names: list[str]
    files: list[str]
    common: list[str]
    pages: list[str]


KINDS = {
    "methods": Extensions(
        names=[str(method) for method in Method],
        files=["methods/table.py", *(f"methods/{method}.py" for method in Method)],
        common=["magnitude"],
        pages=["README.md", "docs/calibration.md"],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_else_names_an_extension(kind: str) -> None:
    """See :func:`extension_walk.foreign_mentions` for what is a mention."""
    own = KINDS[kind]
    assert not foreign_mentions(own.names, own.files, common=own.common)


@pytest.mark.parametrize("kind", KINDS)
def test_every_extension_has_its_row_in_the_tables_for_users(kind: str) -> None:
    for page in KINDS[kind].pages:
        text = (ROOT / page).read_text(encoding="utf-8")
        missing = [
            name for name in KINDS[kind].names if not re.search(rf"^\| `{name}`", text, re.M)
        ]
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
