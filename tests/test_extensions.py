"""A method, a layout and a metric are named by their own files and one table, nowhere else."""

from __future__ import annotations

from pathlib import Path

from extension_walk import foreign_mentions

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
