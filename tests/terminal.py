"""Real shells at a real terminal, for tests: keys are pressed, and the line is read back."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

PATIENCE_S = 300

# A shell needs a controlling terminal; a new session takes the one on its stdin.
_START = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""

COMMANDS = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    # Without this, fish waits for the terminal to answer what kind it is.
    "fish": ["fish", "--no-config", "--features=no-query-term", "-i"],
}
# Control-G saves the line that is being edited, and clears it.
SETUP = {
    "bash": """
save() { printf %s "$READLINE_LINE" >line.new; mv line.new line; READLINE_LINE= READLINE_POINT=0; }
bind -x '"\\C-g": save'
""",
    "zsh": """
autoload -Uz compinit && compinit -u -D
save() { print -rn -- "$BUFFER" >line.new; mv line.new line; BUFFER= }
zle -N save; bindkey '^G' save
""",
    "fish": """
function save; commandline | string collect >line.new; mv line.new line; commandline ''; end
bind \\cg save
""",
}


class Terminal:
    """A shell without the user's settings, in ``folder``, which is its home too.

    Attributes:
        shown: what the shell has written since the last :meth:`press`.
    """

    def __init__(self, shell: str, folder: Path, script: str, env: dict[str, str]) -> None:
        """Start the shell, let it read ``script``, and wait until it has."""
        self.folder, self.shown = folder, ""
        (folder / "setup").write_text(f"{SETUP[shell]}\n{script}\n", encoding="utf-8")
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, *COMMANDS[shell]],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=folder,
            env=os.environ | {"HOME": str(folder), "TERM": "dumb"} | env,
            start_new_session=True,
        )
        os.close(slave)
        os.write(self.master, b"source ./setup; echo >ready\n")
        self._wait_for(folder / "ready")

    def press(self, keys: str) -> str:
        """Press keys (``\\t`` completes) and return the line that is then there, and clear it."""
        self.shown = ""
        line = self.folder / "line"
        os.write(self.master, f"{keys}\a".encode())
        self._wait_for(line)
        text = line.read_text(encoding="utf-8")
        line.unlink()
        return text.removesuffix("\n")  # fish ends its line with one

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)

    def _wait_for(self, file: Path) -> None:
        end = time.monotonic() + PATIENCE_S
        while not file.exists():
            assert time.monotonic() < end, f"no {file.name}; the terminal shows: {self.shown}"
            assert self.process.poll() is None, f"the shell has ended: {self.shown}"
            self._read(0.05)
        self._read(0)

    def _read(self, seconds: float) -> None:
        while select.select([self.master], [], [], seconds)[0]:
            with contextlib.suppress(OSError):
                self.shown += os.read(self.master, 65536).decode(errors="replace")
                continue
            return


def is_installed(shell: str) -> bool:
    return shutil.which(shell) is not None
