"""Print the lowest releases that pyproject.toml admits, as constraints for pip.

Usage: python scripts/lowest.py [--without NAME] > constraints.txt

For what users install: the dependencies and all extras but those for development and the docs.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
NOT_FOR_USERS = {"dev", "docs"}


def lowest(pyproject: str, without: str = "") -> Iterator[str]:
    """``name==release`` for each requirement with a lower bound."""
    project = tomllib.loads(pyproject)["project"]
    extras = project["optional-dependencies"].items()
    lists = [
        project["dependencies"],
        *(lines for name, lines in extras if name not in NOT_FOR_USERS),
    ]
    for line in (line for lines in lists for line in lines):
        bound = re.match(r"([\w.-]+)>=([\w.]+)", line)
        if bound and bound[1] != without:
            yield f"{bound[1]}=={bound[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--without", default="", metavar="NAME", help="leave this package free")
    print("\n".join(lowest(PYPROJECT.read_text(encoding="utf-8"), parser.parse_args().without)))


if __name__ == "__main__":
    main()
