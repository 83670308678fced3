"""The console command: ``prunectl`` and ``python -m prunectl``."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line on ``sys.argv``; returns the exit code."""
    from prunectl.cli.run import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
