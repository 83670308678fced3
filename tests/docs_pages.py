"""Pages of the documentation as blocks of code, and a reader who runs them.

How pages are written, so that they can be run:

- ``console`` blocks hold commands after ``$ ``. Each is run in the page's own folder and must
  succeed; lines below it are what it prints on stdout, where ``...`` stands for anything.
- ``python`` blocks of a page share one namespace. A ``text`` block that follows directly is what
  they print; its decimal numbers are compared to 1%, since processors round differently.
- Blocks with ``title="NAME"`` are files in the folder. ``run`` steps of ``yaml`` workflows are run
  where they call prunectl. All other blocks, ``sh`` above all, are only shown.
- Pages show alternatives that write to the same folder; each finds it absent.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prunectl.cli.run import run


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    line: int
    language: str
    title: str
    text: str


def blocks_of(text: str) -> list[Block]:
    found = re.finditer(
        r'^(?P<fence>```+)(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n'
        r"(?P<text>.*?)^(?P=fence)$",
        text,
        flags=re.MULTILINE | re.DOTALL,
    )
    return [
        Block(
            line=text.count("\n", 0, match.start()) + 2,
            language=match["language"],
            title=match["title"] or "",
            text=match["text"],
        )
        for match in found
    ]


def commands_in(session: str) -> list[tuple[str, str]]:
    """Commands of a ``console`` block, each with the output that the page shows for it."""
    parts = re.split(r"^\$ ", session, flags=re.MULTILINE)
    assert parts[0] == "", "a console block begins with a command"
    found = []
    for part in parts[1:]:
        command, _, output = part.replace("\\\n", " ").partition("\n")
        found.append((command, output.strip("\n")))
    return found


def workflow_commands(text: str) -> list[str]:
    """Lines of the ``run`` steps of a GitHub workflow that call prunectl."""
    jobs = yaml.safe_load(text)["jobs"].values()
    lines = [
        line for job in jobs for step in job["steps"] for line in step.get("run", "").split("\n")
    ]
    return [line for line in lines if line.startswith("prunectl ")]


def agree(shown: str, printed: str) -> bool:
    """Whether two texts are the same but for decimal numbers that differ by less than 1%."""
    decimal = re.compile(r"(\d+\.\d+)")
    left, right = (decimal.split(text.strip()) for text in (shown, printed))
    words = [re.sub(" +", " ", word) for word in left[::2]]
    return words == [re.sub(" +", " ", word) for word in right[::2]] and all(
        math.isclose(float(a), float(b), rel_tol=0.01)
        for a, b in zip(left[1::2], right[1::2], strict=True)
    )


def call(command: str) -> tuple[int, str, str]:
    """Run ``prunectl ...`` in this process, and what follows ``|``, ``&&`` or ``>`` in a shell.

    Returns the exit code, stdout and stderr.
    """
    # Models of the Hub are folders here, each revision another; test_paper.py has a Hub for these.
    command = re.sub(r"org/name --revisions (\w+),(\w+)", r"org/name@\1 org/name@\2", command)
    match = re.fullmatch(r"prunectl (.*?)(?: (\||&&|>) (.*))?", command)
    assert match, f"a console block runs prunectl, not {command}"
    arguments, operator, rest = match.groups()
    printed, complaints = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complaints):
        code = run(shlex.split(arguments, comments=True))
    if code or not operator:
        return code, printed.getvalue(), complaints.getvalue()
    if operator == "&&":
        return shell(rest)
    return shell(rest if operator == "|" else f"cat > {rest}", text=printed.getvalue())


Call = Callable[[str], tuple[int, str, str]]

_CALLS = """
import json, os, sys
from docs_pages import call
for line in sys.stdin:
    folder, command = json.loads(line)
    os.chdir(folder)
    print(json.dumps(call(command)), flush=True)
"""


@contextlib.contextmanager
def calls_elsewhere(env: Mapping[str, str]) -> Iterator[Call]:
    """:func:`call` in another process, with other variables: one for all that is pushed, as
    huggingface_hub reads its settings once.
    """
    tests = Path(__file__).parent
    paths = os.pathsep.join(map(str, (tests, tests.parent / "src")))
    with subprocess.Popen(
        [sys.executable, "-c", _CALLS], env=os.environ | env | {"PYTHONPATH": paths},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        to, back = process.stdin, process.stdout

        def call_there(command: str) -> tuple[int, str, str]:
            to.write(json.dumps([str(Path.cwd()), command]) + "\n")
            to.flush()
            code, printed, complaints = json.loads(back.readline())
            return code, printed, complaints

        yield call_there


def shell(
    command: str, text: str = "", env: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line that reads ``text`` from stdin."""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env=env,
        input=text,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


class Reader:
    """Someone who follows a page from top to bottom, in a folder of their own.

    The folder must be the current one.

    Attributes:
        supplies: files that commands name before the page has made them.
        in_shell: commands run in processes of their own, with the installed ``prunectl``; otherwise
            what follows ``prunectl`` is run in this process, which saves seconds of imports each.
        push: runs commands that push.
        ran: how many commands and Python blocks have been run.
    """

    def __init__(
        self,
        page: Path,
        folder: Path,
        supplies: Path,
        *,
        in_shell: bool = False,
        push: Call = call,
    ) -> None:
        self.page, self.folder, self.supplies = page, folder, supplies
        self.in_shell, self.push, self.ran = in_shell, push, 0
        self._namespace: dict[str, Any] = {"__name__": "page"}

    def follow(self) -> None:
        blocks = blocks_of(self.page.read_text(encoding="utf-8"))
        for block, after in zip(blocks, [*blocks, None][1:], strict=True):
            if block.title:
                path = self.folder / block.title
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text, encoding="utf-8")
            elif block.language == "console":
                for command, output in commands_in(block.text):
                    self._type(command, output, block)
            elif block.language == "yaml":
                for command in workflow_commands(block.text):
                    self._type(command, "", block)
            elif block.language == "python":
                shown = after.text if after and self._touches(block, after) else None
                self._run(block, shown)

    def _type(self, command: str, shown: str, block: Block) -> None:
        words = shlex.split(command, comments=True)
        for word in words:
            if (self.supplies / word).is_file() and not (self.folder / word).exists():
                shutil.copyfile(self.supplies / word, self.folder / word)
        if "-o" in words:
            remove(self.folder / words[words.index("-o") + 1])
        pushes = "prunectl push " in command or " --push " in command
        run_it = self._shell if self.in_shell else self.push if pushes else call
        code, printed, complaints = run_it(command)
        where = f"{self.page.name}:{block.line}: $ {command}"
        assert code == 0, f"{where}\n{printed}{complaints}"
        assert not shown or matches(shown, printed), f"{where} prints\n{printed}"
        self.ran += 1

    def _shell(self, command: str) -> tuple[int, str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return shell(command, env=os.environ | {"PATH": path})

    def _run(self, block: Block, shown: str | None) -> None:
        code = compile("\n" * (block.line - 1) + block.text, str(self.page), "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, self._namespace)
        if shown is not None:
            where = f"{self.page.name}:{block.line}"
            assert agree(shown, printed.getvalue()), f"{where} prints\n{printed.getvalue()}"
        self.ran += 1

    def _touches(self, block: Block, after: Block) -> bool:
        """Whether a ``text`` block stands directly below, with one blank line between them."""
        return after.language == "text" and after.line == block.line + block.text.count("\n") + 3


def remove(output: Path) -> None:
    """Make room for what a command writes."""
    if output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink(missing_ok=True)


def matches(shown: str, printed: str) -> bool:
    return doctest.OutputChecker().check_output(
        shown.strip() + "\n", printed.strip() + "\n", doctest.ELLIPSIS
    )
