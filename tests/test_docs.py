"""README and docs tell the truth: commands and Python in them run, links and options exist.

``docs_pages`` says how pages are written so that they can be run. ``org/name``, ``my-model`` and a
few more names stand for the reader's models; small checkpoints are in their places.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import yaml
from docs_pages import Call, Reader, blocks_of, call, calls_elsewhere
from full import few
from hubserver import WRITER, Hub, serve
from test_calibration_samples import WORDS, save_tokenizer
from typer.main import get_command

import make_docs
import make_screens
from prunectl.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]
STAND_INS = (
    "org/name",
    "org/name@v1.0",
    "org/name@step1000",
    "org/name@step2000",
    "my-model",
    "sentence-transformers/all-MiniLM-L6-v2",
    "run/checkpoint-10",
    "run/checkpoint-20",
)

# Files that examples of one command take from those of another are in this folder.
SUPPLIES = "supplies"
PREPARED = (
    "prunectl prune org/name --sparsity 0.4 -o prepared",
    f"prunectl export prepared --masks-only -o {SUPPLIES}/masks.safetensors",
)
CACHE = "docs-cache"

# The reader's own text for calibration, which is in every folder; the stand-ins can read it.
TEXTS = ("my-text.txt", "a.txt")
MAILS = "mails.csv"

# The page that is followed with the installed command, in processes of their own.
IN_SHELL = "index.md"

# How many blocks and commands of each page run, so that none stops being run unnoticed.
RUN = {
    "README.md": 12,
    "after.md": 1,
    "automation.md": 7,
    "bench.md": 5,
    "calibration.md": 10,
    "commands.md": 55,
    "compare.md": 5,
    "evaluate.md": 7,
    "faq.md": 5,
    "hub.md": 3,
    "index.md": 3,
    "lottery.md": 3,
    "masks.md": 4,
    "python.md": 3,
    "recipes.md": 1,
    "runtime.md": 2,
    "reports.md": 2,
    "scale.md": 1,
    "serving.md": 2,
    "sweep.md": 3,
    "trace.md": 2,
    "tutorial.md": 8,
}


def name_of(page: Path) -> str:
    return page.name


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stand-ins for the reader's models, text, a recipe, and a file of masks."""
    folder = tmp_path_factory.mktemp("shelf")
    tiny_models.build("llama", folder / STAND_INS[0])
    save_tokenizer(folder / STAND_INS[0])
    for name in TEXTS:
        (folder / name).write_text(" ".join(WORDS * 10), encoding="utf-8")
    rows = [f"{WORDS[at % 2]} {WORDS[at % 7]},{'ham' if at % 2 else 'spam'}" for at in range(12)]
    (folder / MAILS).write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    for name in STAND_INS[1:]:
        shutil.copytree(folder / STAND_INS[0], folder / name)
    supplies = folder / SUPPLIES
    supplies.mkdir()
    (recipe,) = [
        block.text
        for block in blocks_of((ROOT / "docs" / "recipes.md").read_text(encoding="utf-8"))
        if block.title == "recipe.toml"
    ]
    (supplies / "recipe.toml").write_text(recipe, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PRUNECTL_CACHE_DIR", str(folder.parent / CACHE))
        for command in PREPARED:
            assert call(command)[0] == 0
    shutil.rmtree(folder / "prepared")
    return folder


@pytest.fixture(scope="module")
def pushing(shelf: Path) -> Iterator[tuple[Hub, Call]]:
    """A Hub, and what runs commands that push to it."""
    with serve(shelf.parent / "hub") as hub:
        env = {"PRUNECTL_CACHE_DIR": str(shelf.parent / CACHE), "COLUMNS": "100"}
        with calls_elsewhere(hub.environment(WRITER) | env) as push:
            yield hub, push


@pytest.mark.usefixtures("one_thread", "small_products")
@pytest.mark.parametrize("page", few(PAGES, ROOT / "docs" / "automation.md"), ids=name_of)
def test_a_page_can_be_followed(
    page: Path,
    shelf: Path,
    pushing: tuple[Hub, Call],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "reader"
    shutil.copytree(shelf, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "100")
    # What is known of the stand-ins' modules is kept from page to page.
    monkeypatch.setenv("PRUNECTL_CACHE_DIR", str(shelf.parent / CACHE))
    hub, push = pushing
    hub.store.repos.clear()
    in_shell = page.name == IN_SHELL
    reader = Reader(page, folder, folder / SUPPLIES, in_shell=in_shell, push=push)
    reader.follow()
    assert reader.ran == RUN.get(page.name, 0)


def test_every_command_is_in_a_block_that_runs() -> None:
    for block in [block for page in PAGES for block in blocks_of(page.read_text(encoding="utf-8"))]:
        if block.language not in ("console", "yaml", "text"):
            lines = [line.removeprefix("$ ") for line in block.text.splitlines()]
            assert not [line for line in lines if line.startswith("prunectl ")], block


def test_the_runner_sees_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    for text, complaint in {
        "```console\n$ prunectl --version\nprunectl 99.9\n```\n": "prints",
        "```console\n$ prunectl analyze missing/folder/here\n```\n": "error",
        "```python\nprint('ppl 12.5 at 30%')\n```\n\n```text\nppl 12.1 at 30%\n```\n": "prints",
    }.items():
        page.write_text(text, encoding="utf-8")
        with pytest.raises(AssertionError, match=complaint):
            Reader(page, tmp_path, tmp_path).follow()
    session = (
        "$ prunectl --version\nprunectl ...\n$ prunectl --version | tr a-z A-Z\nPRUNECTL ...\n"
    )
    page.write_text(f"```console\n{session}```\n", encoding="utf-8")
    for in_shell in (True, False):
        reader = Reader(page, tmp_path, tmp_path, in_shell=in_shell)
        reader.follow()
        assert reader.ran == 2


# --- links, options, names ---------------------------------------------------------------------


def prose_of(text: str) -> str:
    """A page without its blocks."""
    return re.sub(r"^(```+).*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors_of(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", prose_of(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_relative_link_leads_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", prose_of(page.read_text(encoding="utf-8"))):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), (page, link)
            assert not anchor or anchor in anchors_of(target), (page, link)


def options_in(prose: str) -> set[str]:
    """Options that a text names, but for those in code that calls another program."""
    others = "python|make|pip|mkdocs|cp|git|hf|torchrun|accelerate|vllm serve|trtllm-build"
    own = re.sub(rf"`(?:{others})\s[^`]*`", "", prose)
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", own))


def every_option() -> set[str]:
    group: Any = get_command(app)
    commands = [group, *group.commands.values()]
    return {
        name
        for command in commands
        for option in command.params
        for name in (*option.opts, *option.secondary_opts)
    }


def test_every_option_in_the_prose_exists() -> None:
    assert options_in("`--sparsty 0.3`, `pip install --quiet x`, a -- b, --json.") == {
        "--sparsty",
        "--json",
    }
    prose = " ".join(prose_of(page.read_text(encoding="utf-8")) for page in PAGES)
    assert not options_in(prose) - every_option() - {"--help"}


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    named = {
        target
        for page in PAGES
        for target in re.findall(r"(?:^|`)make ([a-z]+)", page.read_text("utf-8"), re.MULTILINE)
    }
    assert {"demo", "test"} <= named <= targets


# --- generated pages and the site --------------------------------------------------------------


def test_the_command_reference_is_current() -> None:
    assert make_docs.PAGE.read_text(encoding="utf-8") == make_docs.page()


def test_the_pictures_are_current() -> None:
    drawn = make_screens.pictures()
    assert {path.stem for path in make_screens.FOLDER.glob("*.svg")} == set(drawn)
    for name, picture in drawn.items():
        stored = (make_screens.FOLDER / f"{name}.svg").read_text(encoding="utf-8")
        assert make_screens.words(stored) == make_screens.words(picture)
        assert "http" not in re.sub(r'xmlns="[^"]*"|<!--.*?-->', "", stored), "it fetches something"


def test_every_command_is_in_the_readme_and_on_the_site() -> None:
    for page in ("README.md", "docs/index.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert not [command for command in COMMANDS if f"| `prunectl {command}" not in text]


def pages_in(nav: list[Any]) -> Iterator[str]:
    for entry in nav:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        if isinstance(value, list):
            yield from pages_in(value)
        else:
            yield value


def test_the_navigation_has_every_page_once() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = sorted(page.name for page in (ROOT / "docs").glob("*.md"))
    assert sorted(pages_in(site["nav"])) == pages
