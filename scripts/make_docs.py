"""Write docs/commands.md, the command reference, from the application's own help.

python scripts/make_docs.py            write it
python scripts/make_docs.py --check    exit with 1 if it is not what would be written
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer  # noqa: TID251
from typer.main import get_command  # noqa: TID251

from prunectl.cli.app import app
from prunectl.cli.help import rows_of

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"

INTRODUCTION = """\
<!-- Written by scripts/make_docs.py from the help of the commands: change it there. -->

# Commands

The text of `prunectl COMMAND --help`. The examples are run by the tests, with small models in the
places of `org/name` and `./my-model`.

Data goes to stdout, everything else to stderr. Exit codes:

| code | meaning |
|---:|---|
| 0 | done |
| 1 | failed; one or two lines on stderr say what, where, and what to do |
| 2 | usage: an option that does not exist, or options that contradict each other |
| 3 | `verify` found a difference |
| 130 | interrupted |

Environment:

| variable | meaning |
|---|---|
| `PRUNECTL_MODEL` | the model where MODEL is left out |
| `PRUNECTL_CACHE_DIR` | where measurements are kept; deleting them costs only time |
| `PRUNECTL_DEBUG` | `1` shows the traceback of an error |
| `HF_TOKEN`, `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_HUB_OFFLINE` | as for `hf` |
| `HF_HUB_DISABLE_PROGRESS_BARS` | `1` prints lines instead of progress bars |
| `NO_COLOR`, `COLUMNS` | as for other programs: no colours; width of the tables |
"""


def page() -> str:
    """The Markdown of the whole page."""
    group: Any = get_command(app)
    with typer.Context(group, info_name="prunectl", **group.context_settings) as context:
        parts = [INTRODUCTION, *_section(group, context)]
        for name, command in group.commands.items():
            settings = command.context_settings
            with typer.Context(command, info_name=name, parent=context, **settings) as inner:
                parts += _section(command, inner)
    return "\n".join(parts)


def _section(command: Any, context: typer.Context) -> Iterator[str]:
    """Title, description, parameters and examples of one command; each part ends with a newline."""
    yield f"## {context.command_path}\n"
    yield f"{command.help.strip()}\n"
    yield f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n"
    for heading, rows in rows_of(command, context).items():
        yield f"{heading}:\n\n| parameter | meaning |\n|---|---|"
        for name, text in rows:
            yield f"| {_parameter(name)} | {_cell(text)} |"
        yield ""
    if commands := getattr(command, "commands", None):
        yield "| command | what for |\n|---|---|"
        for name, inner in commands.items():
            link = f"[`{context.command_path} {name}`](#{context.command_path}-{name})"
            yield f"| {link} | {_cell(inner.get_short_help_str(limit=200))} |"
        yield ""
    examples = _examples(command.epilog or "")
    if examples:
        lines = "\n".join(f"$ {line}" for line in examples)
        yield f"Examples:\n\n```console\n{lines}\n```\n"


def _parameter(name: str) -> str:
    """``-s, --sparsity S`` as two spans of code."""
    spellings = name.split(", ")
    return ", ".join(f"`{spelling}`" for spelling in spellings).replace("|", "\\|")


def _cell(text: str) -> str:
    """Words of the help in a cell of a table; options in them are set as code."""
    plain = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return re.sub(r"(?<![\w`-])--?[a-z][a-z-]*\b", r"`\g<0>`", plain)


def _examples(epilog: str) -> list[str]:
    return [line.strip() for line in epilog.splitlines() if line.strip().startswith("prunectl ")]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/commands.md from the commands' help.")
    parser.add_argument("--check", action="store_true", help="only compare; 1 if it is stale")
    args = parser.parse_args()
    text = page()
    if not args.check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit(f"{PAGE} is stale: run make screens")


if __name__ == "__main__":
    main()
