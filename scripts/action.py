"""What the GitHub Action runs: prune a model, verify it, store it, publish it, tell what came out.

Each input of ``action.yml`` is a variable of the environment (``INPUT_MODEL``, ``INPUT_PUSH_TO``).
None of them is ever read by a shell, and none that begins with a dash can pass for an option. The
results go to the files that ``$GITHUB_OUTPUT`` and ``$GITHUB_STEP_SUMMARY`` name, where these are
set, and to stdout as one JSON document. The exit code is that of the first command that failed.

    INPUT_MODEL=demo INPUT_SPARSITY=0.3 python scripts/action.py
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

USAGE = 2


class Failed(Exception):
    """A step did not succeed.

    Attributes:
        step: which one. code: the exit code.
    """

    def __init__(self, step: str, code: int) -> None:
        super().__init__(f"{step} failed with exit code {code}")
        self.step, self.code = step, code


def prunectl(*arguments: str) -> dict[str, Any]:
    """Run a command with ``--json``; its messages and progress go to stderr as they come.

    Raises:
        Failed: any exit code but 0, or no result.
    """
    print("$ prunectl", shlex.join(arguments), file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "prunectl", *arguments, "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Failed(f"prunectl {arguments[0]}", done.returncode)
    try:
        document: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        # Further arguments can ask for something else, such as --help.
        print("error: it printed no result; see the further arguments", file=sys.stderr)
        raise Failed(f"prunectl {arguments[0]}", USAGE) from None
    return document


def value_of(inputs: Mapping[str, str], name: str, default: str = "") -> str:
    """An input without the blanks around it.

    Raises:
        Failed: it would be taken for an option, or holds a line break.
    """
    value = inputs.get(f"INPUT_{name}", "").strip() or default
    if value.startswith("-") or not value.isprintable():
        print(f"error: input {name.lower().replace('_', '-')}: not {value!r}", file=sys.stderr)
        raise Failed("reading the inputs", USAGE)
    return value


def words_of(inputs: Mapping[str, str], name: str) -> list[str]:
    """Further arguments: words with quotes as in a shell, but with nothing expanded.

    Raises:
        Failed: a quote is not closed.
    """
    try:
        return shlex.split(inputs.get(f"INPUT_{name}", ""))
    except ValueError as error:
        print(f"error: input {name.lower().replace('_', '-')}: {error}", file=sys.stderr)
        raise Failed("reading the inputs", USAGE) from None


def run(inputs: Mapping[str, str]) -> dict[str, Any]:
    """All steps; returns the outputs of the Action, and what the summary says besides.

    Raises:
        Failed: the first step that does not succeed.
    """
    model, output = value_of(inputs, "MODEL"), value_of(inputs, "OUTPUT", "pruned")
    output = output.rstrip("/") or "/"
    layout, push_to = value_of(inputs, "LAYOUT", "dense"), value_of(inputs, "PUSH_TO")
    if not model:
        print("error: input model is empty", file=sys.stderr)
        raise Failed("reading the inputs", USAGE)
    options = [
        f"--{name.lower()}={value}"
        for name in ("SPARSITY", "PATTERN", "REVISION")
        if (value := value_of(inputs, name))
    ]
    push_args, more = words_of(inputs, "PUSH_ARGS"), words_of(inputs, "ARGS")
    dense = output if layout == "dense" else f"{output}-dense"
    # A runner that is used again has the folder of the run before.
    pruned = prunectl("prune", model, *options, "--output", dense, "--force", *more)
    if _real(pruned.get("output", "")) != _real(dense):
        print(f"error: the further arguments wrote no model into {dense}", file=sys.stderr)
        raise Failed("reading the inputs", USAGE)
    prunectl("verify", dense)
    nbytes = pruned["nbytes"]
    if layout != "dense":
        stored = prunectl("export", dense, "--output", output, "--force", f"--layout={layout}")
        prunectl("verify", output)
        nbytes = stored["nbytes"]
    pushed = prunectl("push", output, push_to, *push_args) if push_to else {"commit_url": ""}
    return {
        "sparsity": pruned["sparsity"],
        "overall-sparsity": pruned["overall_sparsity"],
        "bytes": nbytes,
        "folder": output,
        "commit-url": pushed["commit_url"],
        "model": model,
        "layout": layout,
        "source-bytes": pruned["source_bytes"],
        "push-to": push_to,
        "changed": pushed.get("changed", False),
        "pools": pruned["pools"],
        "warnings": pruned["warnings"],
    }


OUTPUTS = ("sparsity", "overall-sparsity", "bytes", "folder", "commit-url")
"""Of the Action, as action.yml declares them."""


def _real(path: str) -> str:
    return os.path.realpath(os.path.expanduser(path))  # noqa: PTH111 - ./~ is no home folder


def output_lines(results: Mapping[str, Any]) -> str:
    """The outputs as ``$GITHUB_OUTPUT`` takes them; no value can end its own block."""
    end = f"end-{uuid.uuid4()}"
    return "".join(f"{name}<<{end}\n{results[name]}\n{end}\n" for name in OUTPUTS)


def cell(value: object) -> str:
    """A value in a table of Markdown: whatever it holds, it is shown and does nothing."""
    text = str(value).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|~#!" else c for c in text.replace("\n", " "))


def summary(results: Mapping[str, Any]) -> str:
    """The job summary in Markdown."""
    smaller = results["bytes"] / results["source-bytes"] if results["source-bytes"] else 1.0
    rows = [
        ("model", cell(results["model"])),
        ("zeros in the prunable weights", f"{results['sparsity']:.2%}"),
        ("zeros in all weights", f"{results['overall-sparsity']:.2%}"),
        ("layout", cell(results["layout"])),
        ("weight files", f"{results['bytes']:,} bytes, {smaller:.1%} of the source's"),
        ("verified", "yes"),
        ("published", _published(results)),
    ]
    pools = [
        (
            cell("all prunable" if pool["label"] == "default" else pool["label"]),
            cell(pool["pattern"]),
            "" if pool["requested"] is None else f"{pool['requested']:.2%}",
            f"{pool['achieved']:.2%}",
            f"{pool['zeros']:,}",
        )
        for pool in results["pools"]
    ]
    return "\n".join(
        [
            "### prunectl\n",
            *_table(("", ""), rows),
            "",
            *_table(("pool", "pattern", "requested", "achieved", "zeros"), pools),
            "",
            *(f"- {cell(warning)}" for warning in results["warnings"]),
            "",
        ]
    )


def _published(results: Mapping[str, Any]) -> str:
    if not results["push-to"]:
        return "no"
    how = "published" if results["changed"] else "nothing to change"
    return f"{cell(results['push-to'])}: {how}, commit {cell(results['commit-url'])}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def append(variable: str, text: str) -> None:
    """Add text to the file that a variable names, if it names one.

    Raises:
        Failed: that cannot be done, and steps after this one would go on without the text.
    """
    try:
        if path := os.environ.get(variable):
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        print(f"error: ${variable}: {error.strerror}", file=sys.stderr)
        raise Failed(f"writing ${variable}", 1) from None


def main() -> int:
    try:
        results = run(os.environ)
        append("GITHUB_OUTPUT", output_lines(results))
    except Failed as failure:
        tell(f"### prunectl\n\n{failure}; the log says why.\n")
        print(f"error: {failure}", file=sys.stderr)
        return failure.code
    tell(summary(results))
    print(json.dumps({name: results[name] for name in OUTPUTS}, indent=2))
    return 0


def tell(text: str) -> None:
    """Add to the job's summary; what was done stays done where that fails."""
    with contextlib.suppress(Failed):
        append("GITHUB_STEP_SUMMARY", text)


if __name__ == "__main__":
    sys.exit(main())
