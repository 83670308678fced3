"""Write the scripts that complete prunectl in a shell to ``completions/``.

Usage: python scripts/make_completions.py
"""

from __future__ import annotations

from pathlib import Path

from prunectl.cli.shells import SCRIPTS, Shell

FOLDER = Path(__file__).parents[1] / "completions"

# The names under which shells look for them, but for bash and PowerShell, where any will do.
FILES = {
    Shell.BASH: "prunectl.bash",
    Shell.ZSH: "_prunectl",
    Shell.FISH: "prunectl.fish",
    Shell.POWERSHELL: "prunectl.ps1",
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for shell, name in FILES.items():
        (FOLDER / name).write_text(SCRIPTS[shell], encoding="utf-8", newline="\n")
        print(FOLDER / name)


if __name__ == "__main__":
    main()
