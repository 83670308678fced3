"""The three commands as a user types them, on a small checkpoint saved by transformers."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import typer
from full import few
from safetensors.numpy import load_file, save_file
from typer.main import get_command
from typer.testing import CliRunner

from prunectl._version import __version__
from prunectl.checkpoint import opening as checkpoint_module
from prunectl.cli.app import app
from prunectl.data.source import parse_source
from prunectl.option import HEADINGS
from prunectl.userdirs import cache_dir

TOKEN = "hf_" + "a1B2c3D4" * 4
Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "bert"
    tiny_models.build("bert", folder)
    return folder


def one_document(text: str) -> dict[str, Any]:
    document, end = json.JSONDecoder().raw_decode(text)
    assert text[end:] == "\n"
    assert isinstance(document, dict)
    return document


# --- help -----------------------------------------------------------------------------------


def help_of(*command: str) -> str:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    return result.output


def test_version_and_help() -> None:
    version = CliRunner().invoke(app, ["--version"])
    assert (version.exit_code, version.output) == (0, f"prunectl {__version__}\n")
    assert CliRunner().invoke(app, ["prune", "-h"]).output == help_of("prune")


@pytest.mark.parametrize("command", ["bench", "compare", "lottery", "prune", "sweep", "trace"])
def test_no_default_is_shown_in_parentheses(command: str) -> None:
    assert "default: (" not in " ".join(help_of(command).split())


def test_help_stands_under_headings_and_is_as_it_was_written() -> None:
    text = help_of("prune")
    found = [line[:-1] for line in text.splitlines() if re.fullmatch(r"\w[^:]*:", line)]
    assert found == ["Arguments", *(one for one in HEADINGS if one in found), "Examples"]
    assert {"What to prune", "Calibration", "Output", "Publishing", "Hub", "Device"} <= set(found)
    words = " ".join(text.split())
    group: Any = get_command(app)
    for option in group.commands["prune"].params:
        assert " ".join(option.help.split()) in words
        assert all(name in words for name in option.opts if name.startswith("-"))
    assert max(map(len, text.splitlines())) <= 100


def examples_in(text: str) -> list[str]:
    _, found, tail = text.partition("Examples:\n\n")
    assert found
    lines = tail.rstrip("\n").splitlines()
    assert all(line.strip().startswith("prunectl ") for line in lines)
    return [line.strip() for line in lines]


@pytest.mark.parametrize("command", [(), ("analyze",), ("prune",), ("verify",)])
def test_every_help_ends_with_examples_that_parse(command: tuple[str, ...]) -> None:
    examples = examples_in(help_of(*command))
    assert len(examples) >= 3
    group = get_command(app)
    for example in examples:
        # What follows a pipe or && is the shell's.
        name, *rest = shlex.split(example.split(" | ")[0].split(" && ")[0])[1:]
        assert name == command[0] if command else name in ("analyze", "prune", "verify")
        with typer.Context(group, info_name="prunectl") as context:  # type: ignore[attr-defined]
            found = group.commands[name]  # type: ignore[attr-defined]
            found.make_context(name, rest, parent=context)


# --- analyze, prune, verify --------------------------------------------------------------------


def test_the_three_commands_one_after_the_other(
    typed: Typed, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, shown, err = typed("analyze", bert)
    assert (code, err) == (0, "")
    assert "By layer of bert.encoder.layer" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "\x1b" not in shown

    # MODEL is left out: the one that was analyzed.
    code, shown, err = typed("prune", "--sparsity", "0.4", "--pattern", "2:4", "-o", "out/")
    assert (code, err) == (0, f"MODEL: {bert} (the one analyzed last)\n")
    assert shown.endswith("Next: prunectl verify out\n")
    assert "whole matrices take 2:4" in shown

    code, shown, err = typed("verify", "out/")
    assert (code, err, "FAILED" in shown) == (0, "", False)

    weights = tmp_path / "out" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 0xFF
    weights.write_bytes(data)
    code, shown, err = typed("verify", "out/")
    assert (code, err, "FAILED" in shown) == (3, "", True)


def test_json_is_one_document_with_exact_numbers(typed: Typed, bert: Path, tmp_path: Path) -> None:
    _, plan, err = typed("prune", bert, "-s", "0.4", "--dry-run", "--json")
    planned = one_document(plan)
    assert err == ""
    assert planned["pools"][0]["zeros"] == (planned["prunable_weights"] * 4 + 5) // 10
    assert list(tmp_path.iterdir()) == []

    argv = ["prune", bert, "-s", "0.4", "-o", "out", "--json", "--token", TOKEN]
    code, pruned, err = typed(*argv)
    assert code == 0, err
    result = one_document(pruned)
    assert result["prunable_zeros"] == planned["pools"][0]["zeros"]
    stored = load_file(tmp_path / "out" / "model.safetensors")
    names = planned["pools"][0]["members"]
    assert sum(int((stored[name] == 0).sum()) for name in names) == result["prunable_zeros"]

    report = one_document(typed("verify", "out", "--json")[1])
    assert report["ok"] is True
    assert report["tensors"] == len(planned["tensors"])

    manifest = (tmp_path / "out" / "prunectl.json").read_text()
    card = (tmp_path / "out" / "README.md").read_text()
    assert TOKEN not in manifest + card
    command = f"prunectl prune {bert.name} -s 0.4 -o out --json"  # without its folder
    assert command in card.splitlines()


def test_saved_and_printed_analysis_are_the_same(typed: Typed, bert: Path, tmp_path: Path) -> None:
    done = typed("analyze", bert, "--json", "-o", "a.json", "-p", "none", "-p", "1:4")
    assert done[0] == 0, done[2]
    assert done[2] == "saved: a.json\n"
    assert (tmp_path / "a.json").read_text() == done[1]
    assert [row["pattern"] for row in one_document(done[1])["patterns"]] == ["1:4"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_quiet_prints_nothing(typed: Typed, bert: Path) -> None:
    for argv in (
        ["analyze", bert, "-q"],
        ["prune", "-s", "0.3", "--dry-run", "-q"],
        ["prune", "-s", "0.3", "-o", "out", "-q"],
        ["verify", "out", "-q"],
    ):
        done = typed(*argv)
        assert done == (0, "", "")


def test_analyze_all_lists_every_tensor_uncut_in_a_pipe(typed: Typed, bert: Path) -> None:
    done = typed("analyze", bert, "--all")
    first_words = {line.split()[0] for line in done[1].splitlines() if line.strip()}
    names = set(load_file(bert / "model.safetensors"))
    assert names <= first_words


def test_a_dry_run_leaves_the_weights_alone(typed: Typed, bert: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "config.json").write_bytes((bert / "config.json").read_bytes())
    data = (bert / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    # All weights are NaN, which prune would refuse.
    (copy / "model.safetensors").write_bytes(data[:header] + b"\xff" * (len(data) - header))
    plan = typed("prune", copy, "-s", "0.4", "--dry-run")
    assert plan[0] == 0, plan[2]
    assert "40.0%" in plan[1]
    real = typed("prune", copy, "-s", "0.4", "-o", "out")
    assert real[0] == 1
    assert real[2].startswith("error: tensor '")
    assert "NaN" in real[2]


def test_an_output_in_the_way_is_kept(typed: Typed, bert: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    done = typed("prune", bert, "-s", "0.4", "-o", "out")
    assert done[0] == 2
    assert "--force" in done[2]
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    inside = typed("prune", bert, "-s", "0.4", "-o", bert / "out")
    assert inside[0] == 2
    assert not (bert / "out").exists()


def test_the_model_is_remembered_by_analyze_only(typed: Typed, bert: Path) -> None:
    typed("prune", bert, "-s", "0.4", "--dry-run")
    assert not (cache_dir() / "last-model.json").exists()
    typed("analyze", bert, "-q")
    document = json.loads((cache_dir() / "last-model.json").read_text())
    assert document == {"model": str(bert.resolve()), "revision": None}


def test_the_recorded_command_names_a_hub_model_that_was_left_out(
    typed: Typed, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = checkpoint_module.open_checkpoint(bert)
    fetched = replace(local, model="org/bert", kind="hub", repo_id="org/bert", commit="0" * 40)
    monkeypatch.setattr(checkpoint_module, "open_checkpoint", lambda model, **options: fetched)
    monkeypatch.setenv("PRUNECTL_MODEL", "org/bert")
    code, _, err = typed("prune", "-s", "0.3", "-o", "out")
    assert code == 0, err
    assert err.splitlines()[0] == "MODEL: org/bert (from $PRUNECTL_MODEL)"
    card = (tmp_path / "out" / "README.md").read_text().splitlines()
    assert "prunectl prune org/bert -s 0.3 -o out" in card


def test_a_path_that_is_no_unicode_is_saved_and_printed(
    typed: Typed, bert: Path, tmp_path: Path
) -> None:
    model = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        shutil.copytree(bert, model)
    except OSError:
        pytest.skip("this file system takes only Unicode names")
    code, out, err = typed("analyze", model, "--json", "-o", "a.json")
    assert code == 0, err
    assert (tmp_path / "a.json").read_text(encoding="ascii") == out
    assert one_document(out)["source"]["model"] == str(model)


def test_a_tilde_means_the_home_folder_everywhere(
    typed: Typed, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "r.toml").write_text("sparsity = 0.3\n")
    monkeypatch.setenv("HOME", str(home))
    for argv in (
        ["analyze", bert, "-q", "-o", "~/a.json"],
        ["prune", bert, "-q", "--recipe", "~/r.toml", "-o", "~/out"],
        ["verify", "~/out", "-q"],
    ):
        assert typed(*argv) == (0, "", "")
    assert {entry.name for entry in home.iterdir()} == {"a.json", "out", "r.toml"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["home"]

    given: list[Path] = []
    opened = checkpoint_module.open_checkpoint

    def open_it(model: str, *, cache_dir: Path, **options: Any) -> checkpoint_module.Checkpoint:
        given.append(cache_dir)
        return opened(model, **options)

    monkeypatch.setattr(checkpoint_module, "open_checkpoint", open_it)
    assert typed("analyze", bert, "-q", "--cache-dir", "~/hub") == (0, "", "")
    assert typed("analyze", bert, "-q", "--cache-dir", "~no-such-user/hub") == (0, "", "")
    assert given == [home / "hub", Path("~no-such-user/hub")]


@pytest.mark.parametrize("folder", few(["~root", "~", "a/~"]))
def test_a_tilde_that_is_not_the_first_character_is_an_ordinary_one(
    typed: Typed, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    home = tmp_path / "home"
    (tmp_path / "here" / folder).mkdir(parents=True)
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / folder / "text.txt").write_text("some words " * 400)
    shutil.copytree(bert, tmp_path / "here" / folder / "bert")
    at = f"./{folder}"
    for argv in (
        ["analyze", f"{at}/bert", "-q", "-o", f"{at}/a.json", "--cache-dir", f"{at}/hub"],
        ["prune", f"{at}/bert", "-q", "-s", "0.3", "-o", f"{at}/out"],
        ["verify", f"{at}/out", "-q"],
        ["verify", f"{at}/out", "--source", f"{at}/bert", "-q"],
        ["compare", f"{at}/bert", f"{at}/out", "-q"],
    ):
        assert typed(*argv) == (0, "", "")
    assert parse_source(f"text:{at}/*.txt", "--data").files[0].exists()
    assert parse_source(f"text:{at}/text.txt", "--data").files[0].exists()
    assert parse_source(f"hf:{at}", "--data").local_dataset
    left = {"text.txt", "bert", "a.json", "out"}
    assert {entry.name for entry in (tmp_path / "here" / folder).iterdir()} == left
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("flags", [["-q"], ["--json"]])
def test_how_a_model_was_opened_is_said_once_on_stderr(
    flags: list[str], typed: Typed, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = "the Hub cannot be reached; using commit 0123456789ab from the cache"
    noted = replace(checkpoint_module.open_checkpoint(bert), notes=(note,))
    monkeypatch.setattr(checkpoint_module, "open_checkpoint", lambda model, **options: noted)
    for argv in (
        ["analyze", bert],
        ["prune", bert, "-s", "0.3", "--dry-run"],
        ["prune", bert, "-s", "0.3", "-o", "out"],
        ["verify", "out", "--source", bert],
    ):
        code, out, err = typed(*argv, *flags)
        assert code == 0, err
        assert err.splitlines().count(f"warning: {note}") == 1
        assert note not in out
        if "--json" in flags:
            one_document(out)


def test_a_warning_of_the_result_is_said_once(typed: Typed, bert: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bert, copy)
    weights = load_file(copy / "model.safetensors")
    name = next(name for name in weights if name.endswith("attention.self.query.weight"))
    weights[name][0, 0] = float("inf")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    code, _, err = typed("prune", copy, "-s", "0.3", "-o", "out")
    assert code == 0, err
    assert len([line for line in err.splitlines() if "Inf" in line]) == 1
