"""Draw docs/images/page-*.png: parts of the pages of `analyze` and `sweep`, seen in a browser.

Needs Chromium, which playwright drives. The sweep is the one that the tests keep.

    python scripts/make_page_screens.py [--folder DIR] [--browser PROGRAM]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

import prunectl
from prunectl.report.analyze_page import analyze_page
from prunectl.report.sweep_page import sweep_page

ROOT = Path(__file__).parents[1]
SWEEP = ROOT / "tests" / "data" / "sweep" / "demo.json"
PARTS = {"page-analyze": "Global magnitude pruning", "page-sweep": "Quality"}
"""The section of each page that is drawn."""
_WIDTH = 860
_ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def pages() -> dict[str, str]:
    """The pages by the names of their pictures."""
    return {
        "page-analyze": analyze_page(prunectl.analyze("demo"), "prunectl analyze demo"),
        "page-sweep": sweep_page(json.loads(SWEEP.read_text(encoding="utf-8"))),
    }


def draw(folder: Path, browser: str) -> None:
    """Write one PNG for each page."""
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as temporary:
        running = playwright.chromium.launch(executable_path=browser, args=_ARGUMENTS)
        view = running.new_page(viewport={"width": _WIDTH, "height": 900}, color_scheme="light")
        for name, text in pages().items():
            path = Path(temporary, f"{name}.html")
            path.write_text(text, encoding="utf-8")
            view.goto(path.as_uri())
            view.wait_for_function("document.documentElement.dataset.drawn")
            part = view.locator("section").filter(has=view.get_by_role("heading", name=PARTS[name]))
            part.screenshot(path=folder / f"{name}.png")
        running.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw parts of the pages for the documentation.")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--browser", default=shutil.which("chromium") or "google-chrome")
    args = parser.parse_args()
    draw(args.folder, args.browser)


if __name__ == "__main__":
    main()
