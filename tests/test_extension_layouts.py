"""A layout is named by its own file and the table, nowhere else; and one can be added by these."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from extension_walk import HOUSE, foreign_mentions, package_with

from prunectl.layouts.table import DENSE, LAYOUTS

OWN = [
    "layouts/table.py",
    *(f"layouts/{name}.py" for name in LAYOUTS),
    *(f"layouts/packing/{path.name}" for path in (HOUSE / "layouts" / "packing").glob("*.py")),
]

OTHER_DENSE = {
    "benchmarking": "the kernels of a dense product",
    "checkpoint/opening.py": "a hint, in a room that knows no layouts",
    "report": "the model that was not pruned",
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
    assert foreign_mentions(others, OWN, common=["nm", "packed"]) == []
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
