"""Draw docs/images/*.svg: what `analyze`, `prune` and `verify` print for the model `demo`.

The commands' own screens are drawn by rich's own export. Times, which differ between runs, are cut
out, and the fonts are the reader's own: the pictures fetch nothing.

    python scripts/make_screens.py            write them
    python scripts/make_screens.py --check    exit with 1 if they are not what would be written
"""

from __future__ import annotations

import argparse
import html
import os
import re
import sys
import tempfile
from collections.abc import Iterable
from io import StringIO
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT  # noqa: TID251
from rich.console import Console, RenderableType  # noqa: TID251
from rich.text import Text  # noqa: TID251

FOLDER = Path(__file__).parents[1] / "docs" / "images"
WIDTH = 92
MODEL, PRUNED = "demo", "out"

# Rich's frame without its web fonts; every line states its length, so any monospace font fits.
_FRAME = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
    "Fira Code, monospace", "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
)
_TIMES = re.compile(r" in [\d.]+ (?:s|min \d\d s)(?=\.)|^ *time .*\n", re.MULTILINE)
_SHORT = ("Magnitudes", "One threshold", "N kept", "Next:")
"""Parts of the analysis that the picture shows, by how they begin; the others become an ellipsis"""


def screens() -> dict[str, str]:
    """Text of each picture, with the colours of a terminal: what is typed, and what is printed."""
    import prunectl
    from prunectl.cli.analyze_screen import analysis_screen
    from prunectl.cli.prune_screen import prune_screen
    from prunectl.cli.verify import verify_screen

    checkpoint = prunectl.open_checkpoint(MODEL)
    analysis = prunectl.analyze(checkpoint)
    settings = prunectl.PruneSettings(sparsity=0.4, pattern=prunectl.parse_pattern("2:4"))
    result = prunectl.prune(checkpoint, Path(PRUNED), settings)
    report = prunectl.verify(Path(PRUNED))
    return {
        "analyze": session(f"analyze {MODEL}", shortened(drawn(analysis_screen(analysis)))),
        "prune": session(
            f"prune {MODEL} --sparsity 0.4 --pattern 2:4 -o {PRUNED}", drawn(prune_screen(result))
        ),
        "verify": session(f"verify {PRUNED}", drawn(verify_screen(report))),
    }


def drawn(parts: Iterable[RenderableType]) -> str:
    """A screen as a terminal gets it, without times and without blanks at the ends of lines."""
    console = Console(file=StringIO(), width=WIDTH, force_terminal=True, color_system="truecolor",
                      markup=False, emoji=False, highlight=False, legacy_windows=False,
                      _environ={})  # fmt: skip
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    lines = [line.rstrip() for line in captured.get().lstrip("\n").splitlines()]
    return _TIMES.sub("", "\n".join(lines) + "\n")


def shortened(text: str) -> str:
    """The head of an analysis and its most telling tables; an ellipsis for what was left out."""
    first, *others = text.split("\n\n")
    kept = [first]
    for block in others:
        if Text.from_ansi(block).plain.lstrip().startswith(_SHORT):
            kept.append(block)
        elif kept[-1] != "...":
            kept.append("...")
    return "\n\n".join(kept)


def session(command: str, output: str) -> str:
    return f"\x1b[1m$ prunectl {command}\x1b[0m\n{output.rstrip()}"


def svg(name: str, text: str) -> str:
    """One picture; the same text gives the same bytes."""
    console = Console(file=StringIO(), width=WIDTH, record=True, force_terminal=True,
                      color_system="truecolor", highlight=False, _environ={})  # fmt: skip
    console.print(Text.from_ansi(text))
    return console.export_svg(title="prunectl", code_format=_FRAME, unique_id=f"prunectl-{name}")


def words(picture: str) -> list[str]:
    """The lines of text in a picture, whatever the frame around them looks like."""
    by_line: dict[float, str] = {}
    for y, text in re.findall(r'<text[^>]* y="([\d.]+)"[^>]*>(.*?)</text>', picture):
        by_line[float(y)] = by_line.get(float(y), "") + html.unescape(text).replace("\xa0", " ")
    return [by_line[y].rstrip() for y in sorted(by_line)]


def pictures() -> dict[str, str]:
    """Name and SVG of each picture, drawn in a temporary folder with caches of its own."""
    home = Path.cwd()
    kept = os.environ.get("PRUNECTL_CACHE_DIR")
    with tempfile.TemporaryDirectory() as work:
        os.environ["PRUNECTL_CACHE_DIR"] = str(Path(work) / "cache")
        os.chdir(work)
        try:
            return {name: svg(name, text) for name, text in screens().items()}
        finally:
            os.chdir(home)
            os.environ.pop("PRUNECTL_CACHE_DIR")
            if kept is not None:
                os.environ["PRUNECTL_CACHE_DIR"] = kept


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw docs/images/*.svg from the commands.")
    parser.add_argument("--check", action="store_true", help="only compare; 1 if one is stale")
    args = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    for name, picture in pictures().items():
        path = FOLDER / f"{name}.svg"
        if not args.check:
            path.write_text(picture, encoding="utf-8")
        elif not path.exists() or words(path.read_text(encoding="utf-8")) != words(picture):
            sys.exit(f"{path} is stale: run make screens")


if __name__ == "__main__":
    main()
