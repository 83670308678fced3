"""Completion: what is offered where, and bash, zsh and fish pressing the key for real."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from full import few
from terminal import Terminal, is_installed
from typer.core import TyperArgument
from typer.main import get_command

import make_completions
from prunectl.cli.app import app
from prunectl.cli.completion import SOURCES, complete
from prunectl.cli.run import run
from prunectl.cli.shells import SCRIPTS, VARIABLE, Shell, bash_words, quoted_for_bash
from prunectl.data.source import PAIRS, TABLES, SourceKind
from prunectl.layouts.table import LAYOUTS
from prunectl.pattern import COMMON_NMS_OR_NONE, COMMON_PATTERNS, parse_pattern
from prunectl.plan.settings import Budget, Method, Scope

ROOT = Path(__file__).parents[1]
REPOS: dict[str, dict[str, str]] = {
    "org/tiny-bert": {"main": "a" * 40, "v1.0": "b" * 40, "refs/pr/1": "c" * 40},
    "org/other": {},
    "gpt2": {"main": "d" * 40},
}

SCOPES = {str(one): one.meaning for one in Scope}

TEXTS = ["a:b@c/", "my model/", "notes.txt", "out/", "recipes/"]


def hub_cache(folder: Path) -> Path:
    """A cache as huggingface_hub lays it out, as far as completion looks at it."""
    for repo, refs in REPOS.items():
        home = folder / f"models--{repo.replace('/', '--')}"
        (home / "refs").mkdir(parents=True)
        for name, commit in refs.items():
            (home / "refs" / name).parent.mkdir(parents=True, exist_ok=True)
            (home / "refs" / name).write_text(commit)
    (folder / "datasets--org--words").mkdir()
    (folder / ".locks").mkdir()
    return folder


def some_files(folder: Path) -> None:
    """Names that are hard to quote, folders, and files of each kind."""
    for name in ("my model", "a:b@c", "out", ".hidden", "recipes"):
        (folder / name).mkdir()
    for name in ("my model/it's $x.safetensors", "w.bin", "notes.txt", "recipes/r.toml"):
        (folder / name).touch()
    (folder / "a.json").touch()
    os.mkdir(os.fsencode(folder / "bad") + b"\xff")  # noqa: PTH102 - a name that is no text
    (folder / "bad\nname").mkdir()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with some files in it; the Hub's cache is elsewhere."""
    folder = tmp_path / "here"
    folder.mkdir()
    some_files(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("HF_HUB_CACHE", str(hub_cache(tmp_path / "hub")))
    return folder


def values(*words: str) -> list[str]:
    return [candidate.value for candidate in complete(words)]


# --- what is offered --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["v"], ["verify"]),
        (["--ver"], ["--version"]),
        (["--show-completion", ""], ["bash", "zsh", "fish", "powershell"]),
        (["nonsense", ""], []),
        (["prune", "--pat"], ["--pattern"]),
        (["prune", "-"], None),
        (["prune", "-p", ""], ["unstructured", "2:4", "4:8", "1:2", "1:4"]),
        (["prune", "--pattern=2:"], ["--pattern=2:4"]),
        (["prune", "--no-such=2:"], []),
        (["prune", "-qp", "u"], ["unstructured"]),
        (["prune", "-s0.5", "--scope", "t"], ["tensor"]),
        (["analyze", "-p", "n"], ["none"]),
        (["prune", "--sparsity", ""], []),
        (["prune", "-h"], ["-h"]),
        (["prune", "--calibration", "p"], ["pairs:"]),
        (["prune", "--calibration", "text:"], [f"text:{n}" for n in TEXTS]),
        (["prune", "--calibration", "images:o"], ["images:out/"]),
        (["prune", "--calibration", "hf:no/such"], []),
        (["prune", "--calibration", "nonsense:o"], []),
        (["verify", "o"], ["out/"]),
        (["verify", "out", ""], []),
        (["verify", "out", "--source", "gp"], ["gpt2"]),
        (["verify", "--source", "gpt2", "--revision", ""], ["main"]),
        (["prune", "gpt2", "-o", "o"], ["out/"]),
        (["prune", "org/t"], ["org/tiny-bert"]),
        (
            ["prune", "org/tiny-bert@"],
            [f"org/tiny-bert@{r}" for r in ("main", "refs/pr/1", "v1.0")],
        ),
        (["prune", "org/tiny-bert@v"], ["org/tiny-bert@v1.0"]),
        (["prune", "org/tiny-bert", "--revision", "r"], ["refs/pr/1"]),
        (["prune", "org/absent@"], []),
        (["prune", "--", "-"], []),
        (["prune", "-p", "2:4", "--pa"], []),
        (["analyze", "-p", "4:8", "--p"], ["--pattern"]),
        (["prune", "--recipe", "recipes/"], ["recipes/r.toml"]),
        (["prune", "--recipe", "w"], []),
        (["analyze", "gpt2", "-o", "a."], ["a.json"]),
        (["prune", "w"], ["w.bin"]),
        (["prune", "."], [".hidden/"]),
        (["prune", "~"], ["~/"]),
        (["prune", "~/ou"], ["~/out/"]),
        (["prune", "absent/folder/"], []),
    ],
)
def test_what_is_offered(here: Path, words: list[str], expected: list[str] | None) -> None:
    found = values(*words)
    if expected is None:
        assert {"--pattern", "-p", "--help", "-h", "--json"} <= set(found)
    else:
        assert found == expected


def test_models_are_the_demo_the_cache_and_local_paths(here: Path) -> None:
    assert values("analyze", "") == [
        *("demo", "gpt2", "org/other", "org/tiny-bert"),
        *("a:b@c/", "my model/", "out/", "recipes/", "w.bin"),
    ]  # names that cannot be said in a line of text are left out


def test_the_cache_that_is_named_is_looked_into(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "other cache" / "models--in--here").mkdir(parents=True)
    assert values("prune", "--cache-dir", "~/other cache", "in") == ["in/here"]
    assert values("prune", f"--cache-dir={here}/other cache", "in") == ["in/here"]
    monkeypatch.delenv("HF_HUB_CACHE")
    for variable, under in (("HF_HOME", "hub"), ("XDG_CACHE_HOME", "huggingface/hub")):
        monkeypatch.delenv("HF_HOME", raising=False)
        monkeypatch.setenv(variable, str(here / variable))
        (here / variable / under / f"models--by--{variable}").mkdir(parents=True)
        assert values("prune", "by/") == [f"by/{variable}"]


def test_values_mean_what_the_commands_accept() -> None:
    assert {name.rstrip(":") for name in SOURCES} == set(SourceKind)
    assert (SOURCES["hf:"][1], SOURCES["pairs:"][1]) == (TABLES, PAIRS)
    assert values("export", "--layout", "") == ["auto", *LAYOUTS]
    for pattern in {*COMMON_PATTERNS, *COMMON_NMS_OR_NONE} - {"none"}:
        assert str(parse_pattern(pattern)) == pattern
    for option, kind in (("--scope", Scope), ("--method", Method), ("--budget", Budget)):
        offered = complete(["prune", option, ""])
        assert [(one.value, one.help) for one in offered] == [(k.value, k.meaning) for k in kind]


# Values that nobody can guess.
FREE = {"S", "NAME", "SIZE", "N", "X", "SHARE", "N,N...", "N[,N]", "REV", "REV,REV...", "RATIO"}
FREE |= {"TOKEN", "ORG/NAME", "BRANCH", "TEXT", "GLOB"}


def test_every_option_with_a_value_offers_some_with_their_meanings(here: Path) -> None:
    for ending in (".toml", ".txt", ".csv", ".html", ".png", ".svg"):
        (here / f"file{ending}").touch()
    for name, command in {"": get_command(app), **get_command(app).commands}.items():  # type: ignore[attr-defined]
        for option in command.params:
            if isinstance(option, TyperArgument) or option.is_flag or option.metavar in FREE:
                continue
            offered = complete([*filter(None, [name]), option.opts[0], ""])
            assert offered, option.opts
            named = option.metavar in ("MODEL", "DIR", "FILE")
            assert named or all(one.help for one in offered), option.opts


def test_help_is_one_line_and_as_it_was_written(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, "fish")
    assert run(["prune", "--sp"]) == 0
    value, _, meaning = capsys.readouterr().out.partition("\t")
    assert value == "--sparsity"
    assert "With N:M: only as" in meaning
    assert meaning.count("\n") == 1


def test_powershell_marks_the_unfinished_word(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, "powershell")
    assert run(["prune", "--pattern", ".2:"]) == 0
    assert capsys.readouterr().out.startswith("2:4\tkeeps 2 of every 4")
    assert run(["prune", ".."]) == 0
    assert capsys.readouterr().out == ".hidden/\n"


def test_completing_loads_nothing_heavy(here: Path) -> None:
    code = (
        "import sys\nfrom prunectl.__main__ import main\n"
        "sys.argv = ['prunectl', 'analyze', '']\nassert main() == 0\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {VARIABLE: "zsh"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    *offered, loaded = done.stdout.splitlines()
    assert "gpt2\tin the Hub's cache" in offered
    assert "typer" in loaded.split()
    heavy = {"torch", "transformers", "huggingface_hub", "numpy", "rich", "yaml", "safetensors"}
    assert not heavy & set(loaded.split())


# --- the scripts ------------------------------------------------------------------------------


def test_the_scripts_are_current() -> None:
    folder = ROOT / "completions"
    assert {path.name for path in folder.iterdir()} == set(make_completions.FILES.values())
    for shell, name in make_completions.FILES.items():
        assert (folder / name).read_text(encoding="utf-8") == SCRIPTS[shell], "make completions"


def test_the_scripts_are_printed_and_packed(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in Shell:
        assert run(["--show-completion", shell]) == 0
        assert capsys.readouterr().out == SCRIPTS[shell]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    targets = project["tool"]["hatch"]["build"]["targets"]
    shared = targets["wheel"]["shared-data"]
    assert set(shared) == {f"completions/{name}" for name in make_completions.FILES.values()}
    assert "completions" in targets["sdist"]["include"]


@pytest.mark.parametrize(
    ("line", "words", "raw"),
    [
        ("prunectl ", ["prunectl", ""], ""),
        ("prunectl  a\tb", ["prunectl", "a", "b"], "b"),
        (r"prunectl my\ mo", ["prunectl", "my mo"], r"my\ mo"),
        ("prunectl 'my mo", ["prunectl", "my mo"], "'my mo"),
        ("prunectl '' ", ["prunectl", "", ""], ""),
        (r'prunectl "a \"b\n$', ["prunectl", r'a "b\n$'], r'"a \"b\n$'),
        (r"prunectl 'a\' b\'", ["prunectl", "a\\", "b'"], r"b\'"),
        ("prunectl a'b c'd", ["prunectl", "ab cd"], "a'b c'd"),
        ("prunectl a\\", ["prunectl", "a"], "a\\"),
    ],
)
def test_a_line_of_bash_is_split_as_bash_does(line: str, words: list[str], raw: str) -> None:
    assert bash_words(line) == (words, raw)


@pytest.mark.parametrize(
    ("value", "raw", "replaced", "expected"),
    [
        ("2:4", "2:", "", "4 "),
        ("--pattern=2:4", "--pattern=2", "2", "2:4 "),
        ("org/name@v1", "org/name@v", "@v", "@v1 "),
        ("my model/", r"my\ mo", r"my\ mo", r"my\ model/"),
        ("it's $x", "'i", "i", r"it'\''s $x"),
        ("it's $x", '"i', "i", r"it's \$x"),
        ("é b", "é", "é", r"é\ b "),
        ("a:b c", "a':b", "b", "b c"),
    ],
)
def test_bash_gets_the_rest_of_the_word_quoted(
    value: str, raw: str, replaced: str, expected: str
) -> None:
    assert quoted_for_bash(value, raw, replaced) == expected


# --- real shells ------------------------------------------------------------------------------

KEYS = {
    "prunectl ver\t": "prunectl verify ",
    "prunectl prune --pattern 2:\t": "prunectl prune --pattern 2:4 ",
    "prunectl prune --pattern=2:\t": "prunectl prune --pattern=2:4 ",
    "prunectl prune --pattern=\tu\t": "prunectl prune --pattern=unstructured ",
    "prunectl prune -p 4\t--scope r\t": "prunectl prune -p 4:8 --scope row ",
    "prunectl prune org/tiny-bert@v\t": "prunectl prune org/tiny-bert@v1.0 ",
    "prunectl prune a:\t": "prunectl prune a:b@c/",
    "prunectl prune my\t\t": r"prunectl prune my\ model/it\'s\ \$x.safetensors ",
    "prunectl prune ~/my\t": r"prunectl prune ~/my\ model/",
    "prunectl prune --output=ou\t": "prunectl prune --output=out/",
    r"prunectl verify my\ model/ --source gp" + "\t": r"prunectl verify my\ model/ --source gpt2 ",
    "prunectl prune --token \t": "prunectl prune --token ",
    "true && X=1 prunectl prune --sc\t": "true && X=1 prunectl prune --scope ",
}
QUOTED = {
    ("bash", "prunectl prune 'my\t"): "prunectl prune 'my model/'",
    ("bash", "prunectl prune 'my\t\t"): r"prunectl prune my\ model/it\'s\ \$x.safetensors ",
    ("bash", 'prunectl prune "my model/\t'): r'''prunectl prune "my model/it's \$x.safetensors"''',
    ("bash", "prunectl prune 'my model/\t"): r"prunectl prune 'my model/it'\''s $x.safetensors'",
    ("zsh", "prunectl prune 'my\t"): "prunectl prune 'my model/",
    ("zsh", 'prunectl prune "my model/\t'): r"""prunectl prune "my model/it's \$x.safetensors" """,
    ("fish", "prunectl prune 'my\t"): "prunectl prune 'my model/",
    ("fish", 'prunectl prune -p "2:\t'): 'prunectl prune -p "2:4" ',
}
CASES = [(shell, keys, line) for shell in ("bash", "zsh", "fish") for keys, line in KEYS.items()]
CASES += [(shell, keys, line) for (shell, keys), line in QUOTED.items()]


@pytest.fixture(scope="module")
def terminals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Terminal]]:
    """Starts a shell once, in a folder with some files, and with a Hub cache."""
    started: dict[str, Terminal] = {}
    scripts = sysconfig.get_path("scripts")
    assert (Path(scripts) / "prunectl").exists(), "prunectl is not installed"

    def terminal(shell: str, loading: str = "") -> Terminal:
        if not is_installed(shell):
            pytest.skip(f"{shell} is not installed")
        if shell not in started:
            folder = tmp_path_factory.mktemp(shell)
            some_files(folder)
            file = ROOT / "completions" / make_completions.FILES[Shell(shell)]
            env = {
                "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
                "HF_HUB_CACHE": str(hub_cache(tmp_path_factory.mktemp("hub"))),
                "LC_ALL": "C.UTF-8",
            }
            started[shell] = Terminal(shell, folder, f"source '{file}'", env)
        return started[shell]

    yield terminal
    for one in started.values():
        one.close()


@pytest.mark.parametrize(
    ("shell", "keys", "line"),
    few(CASES, *CASES[:2], CASES[len(KEYS)], CASES[2 * len(KEYS)]),
)
def test_a_real_shell_completes_the_line(
    terminals: Callable[[str], Terminal], shell: str, keys: str, line: str
) -> None:
    assert terminals(shell).press(keys) == line


def test_bash_lists_what_is_possible(terminals: Callable[[str], Terminal]) -> None:
    terminal = terminals("bash")
    assert terminal.press("prunectl prune --scope \t\t") == "prunectl prune --scope "
    assert terminal.shown.split("\n")[1].split() == ["global", "row", "tensor"]


def test_zsh_says_what_the_values_mean(terminals: Callable[[str], Terminal]) -> None:
    terminal = terminals("zsh")
    terminal.press("prunectl prune --scope \t\t")
    for value, meaning in SCOPES.items():
        assert any(
            line.split() == [value, "--", *meaning.split()] for line in terminal.shown.splitlines()
        ), terminal.shown


@pytest.mark.full
def test_zsh_loads_the_script_from_a_folder_of_functions(
    tmp_path: Path, terminals: Callable[[str], Terminal]
) -> None:
    """As compinit finds it where the wheel puts it: the file's first call is the completion."""
    if not is_installed("zsh"):
        pytest.skip("zsh is not installed")
    env = {"PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"}
    load = f"fpath=('{ROOT}/completions' $fpath); compinit -u -D"
    terminal = Terminal("zsh", tmp_path, load, env)
    try:
        for _ in range(2):
            assert terminal.press("prunectl ver\t") == "prunectl verify "
    finally:
        terminal.close()


@pytest.mark.full
def test_fish_says_what_the_values_mean(here: Path) -> None:
    if not is_installed("fish"):
        pytest.skip("fish is not installed")
    file = ROOT / "completions" / make_completions.FILES[Shell.FISH]
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source '{file}'; complete -C 'prunectl prune --scope '"],
        env=os.environ | {"PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert dict(line.split("\t") for line in done.stdout.splitlines()) == SCOPES
