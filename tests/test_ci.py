"""The pieces for CI systems: they are valid, they run, and what people type into them does nothing.

The step of the Action is run as GitHub's runner does: its script by bash, its inputs put into the
environment, and files for outputs and summary.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from full import few
from hubserver import WRITER, serve
from safetensors.torch import load_file

import action
import prunectl

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
SCHEMAS = {
    "action.yml": "vendor.github-actions",
    ".github/ISSUE_TEMPLATE/bug.yml": "vendor.github-issue-forms",
    ".github/workflows/ci.yml": "vendor.github-workflows",
    ".github/workflows/lowest.yml": "vendor.github-workflows",
    ".github/workflows/release.yml": "vendor.github-workflows",
    "docs/ci/github-workflow.yml": "vendor.github-workflows",
    "docs/ci/gitlab-ci.yml": "vendor.gitlab-ci",
}


# --- the files are what their readers expect ----------------------------------------------------


def check_schema(file: Path, schema: str) -> subprocess.CompletedProcess[str]:
    command = [BIN / "check-jsonschema", "--builtin-schema", schema, file]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.full
@pytest.mark.parametrize("name", SCHEMAS)
def test_files_follow_the_schemas_of_their_systems(name: str, tmp_path: Path) -> None:
    done = check_schema(ROOT / name, SCHEMAS[name])
    assert done.returncode == 0, done.stdout + done.stderr
    # The check sees a misspelled key.
    text = (ROOT / name).read_text(encoding="utf-8")
    broken = tmp_path / Path(name).name
    for key in ("using:", "runs-on:", "image:", "body:"):
        text = text.replace(key, f"x-{key}")
    broken.write_text(text, encoding="utf-8")
    assert check_schema(broken, SCHEMAS[name]).returncode == 1


def test_every_workflow_is_checked() -> None:
    files = [*(ROOT / ".github").rglob("*.yml"), *(ROOT / "docs" / "ci").iterdir()]
    assert {path.relative_to(ROOT).as_posix() for path in files} | {"action.yml"} == set(SCHEMAS)


def test_the_dockerfile_has_no_faults(tmp_path: Path) -> None:
    for text, code in (
        ((ROOT / "Dockerfile").read_text(encoding="utf-8"), 0),
        ("FROM python\nRUN cd /x && sudo pip install y\nENTRYPOINT prunectl\n", 1),
    ):
        (tmp_path / "Dockerfile").write_text(text, encoding="utf-8")
        done = subprocess.run(
            [BIN / "hadolint", "--no-color", tmp_path / "Dockerfile"],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr


def instructions(name: str) -> list[list[str]]:
    """Words of the Dockerfile's lines that begin with an instruction."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    return [line.split()[1:] for line in lines if line.startswith(f"{name} ")]


def test_the_image_runs_prunectl_as_nobody_special() -> None:
    assert instructions("ENTRYPOINT") == [['["prunectl"]']]
    ((user,),) = instructions("USER")
    assert int(user) > 0


def copied_into_the_image() -> list[str]:
    return [name for words in instructions("COPY") if not words[0].startswith("--")
            for name in words[:-1]]  # fmt: skip


def test_the_build_sees_what_it_copies_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert sorted(rule[1:] for rule in rules if rule[0] == "!") == sorted(copied_into_the_image())


@pytest.mark.wheel
def test_what_the_image_copies_is_enough_to_install(tmp_path: Path) -> None:
    source = tmp_path / "build"
    source.mkdir()
    for name in copied_into_the_image():
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path)]
    subprocess.run([*pip, str(source)], check=True)
    assert list(tmp_path.glob("prunectl-*.whl"))


# --- the Action ---------------------------------------------------------------------------------

STEPS = ACTION["runs"]["steps"]
(PRUNE,) = (step for step in STEPS if step.get("id") == "prune")


def test_the_action_and_its_script_agree() -> None:
    script = (ROOT / "scripts" / "action.py").read_text(encoding="utf-8")
    read = set(re.findall(r'(?:value|words)_of\(inputs, "([A-Z_]+)"', script))
    read |= set(re.findall(r'"([A-Z]+)"', script.split("for name in (")[1].split(")")[0]))
    named = {f"INPUT_{name.upper().replace('-', '_')}": name for name in ACTION["inputs"]}
    given = {key: f"${{{{ inputs.{name} }}}}" for key, name in named.items()}
    del given["INPUT_PYTHON_VERSION"], given["INPUT_VERSION"]  # for the step that installs
    assert PRUNE["env"] == given
    assert {f"INPUT_{name}" for name in read} == set(given)
    assert tuple(ACTION["outputs"]) == action.OUTPUTS
    for name, output in ACTION["outputs"].items():
        assert output["value"] == f"${{{{ steps.prune.outputs.{name} }}}}"


def test_what_installs_a_release_takes_this_one() -> None:
    version = prunectl.__version__
    assert ACTION["inputs"]["version"]["default"] == version
    assert instructions("ARG")[1] == [f"PRUNECTL=prunectl=={version}"]
    for name in ("docs/ci/gitlab-ci.yml", "docs/ci/github-workflow.yml", "docs/automation.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert set(re.findall(r"(?:prunectl==|ref: v)([\d.]+)", text)) == {version}, name
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{version}] - " in changes


def test_nothing_is_put_into_a_shell_s_text() -> None:
    for name in SCHEMAS:
        document = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
        jobs = document.get("jobs", {"action": document.get("runs", {})}).values()
        scripts = [step.get("run", "") for job in jobs for step in job.get("steps", [])]
        assert not [script for script in scripts if "${{" in script]


class Ran:
    """What a run of the Action's step left behind.

    Attributes:
        code, stdout, stderr: of the step. outputs: by name. summary: the Markdown.
    """

    def __init__(self, folder: Path, env: dict[str, str] | None = None, **inputs: str) -> None:
        """Run it in ``folder``; dashes in the names of inputs are written as underscores."""
        values = {name: str(given.get("default", "")) for name, given in ACTION["inputs"].items()}
        values |= {name.replace("_", "-"): value for name, value in inputs.items()}
        files = {name: folder.parent / f"{folder.name}-{name}" for name in ("output", "summary")}
        # The environment that the step before would have made is this one.
        runner = folder.parent / "runner"
        runner.mkdir(exist_ok=True)
        if not (runner / "prunectl").exists():
            (runner / "prunectl").symlink_to(sys.prefix)
        given = {
            key: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: values[m[1]], expression)
            for key, expression in PRUNE["env"].items()
        }
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", PRUNE["run"]],
            cwd=folder,
            env=os.environ | given | (env or {}) | {
                "RUNNER_TEMP": str(runner),
                "GITHUB_ACTION_PATH": str(ROOT),
                "GITHUB_OUTPUT": str(files["output"]),
                "GITHUB_STEP_SUMMARY": str(files["summary"]),
            },
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )  # fmt: skip
        self.code, self.stdout, self.stderr = done.returncode, done.stdout, done.stderr
        self.outputs = outputs_in(files["output"].read_text() if files["output"].exists() else "")
        self.summary = files["summary"].read_text() if files["summary"].exists() else ""


def outputs_in(text: str) -> dict[str, str]:
    """Read ``$GITHUB_OUTPUT`` as the runner does."""
    found: dict[str, str] = {}
    lines = iter(text.splitlines())
    for line in lines:
        name, separator, end = line.partition("<<")
        assert separator, line
        value: list[str] = []
        while (inner := next(lines)) != end:
            value.append(inner)
        found[name] = "\n".join(value)
    return found


def zeros_in(folder: Path) -> tuple[int, int]:
    """Zeros and weights of the dense checkpoint in a folder."""
    tensors = load_file(folder / "model.safetensors")
    zeros = sum(int((tensor == 0).sum()) for tensor in tensors.values())
    return zeros, sum(tensor.numel() for tensor in tensors.values())


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where measurements are kept from run to run, as on a runner that is used again."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def workspace(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRUNECTL_CACHE_DIR", str(kept))
    folder = tmp_path / "workspace"
    folder.mkdir()
    return folder


TOUCH = "touch pwned"


@pytest.mark.full
def test_the_action_prunes_and_says_what_came_out(workspace: Path) -> None:
    # A folder with an odd name is a folder.
    name = f"$({TOUCH}) | <b>`x`"
    ran = Ran(workspace, model="demo", sparsity="0.3", output=name,
              args="--exclude '*.down_proj.weight'")  # fmt: skip
    assert ran.code == 0, ran.stderr
    assert [path.name for path in workspace.iterdir()] == [name]
    assert json.loads(ran.stdout)["folder"] == ran.outputs["folder"] == name
    assert tuple(ran.outputs) == action.OUTPUTS
    assert float(ran.outputs["sparsity"]) == pytest.approx(0.3, abs=1e-5)
    zeros, weights = zeros_in(workspace / name)
    assert float(ran.outputs["overall-sparsity"]) == zeros / weights
    size = (workspace / name / "model.safetensors").stat().st_size
    assert ran.outputs["bytes"] == str(size)
    assert ran.outputs["commit-url"] == ""
    assert "| model | demo |" in ran.summary
    assert "| zeros in the prunable weights | 30.00% |" in ran.summary
    assert f"| weight files | {size:,} bytes, 100.0% of the source's |" in ran.summary
    assert "| published | no |" in ran.summary
    manifest = json.loads((workspace / name / "prunectl.json").read_text())
    assert "*.down_proj.weight" in json.dumps(manifest)
    assert "$ prunectl verify " in ran.stderr


@pytest.mark.parametrize(
    ("inputs", "code"),
    few(
        [
            ({"model": f"x; {TOUCH}"}, 1),
            ({"model": f'x" || {TOUCH} "$({TOUCH})`{TOUCH}`'}, 1),
            ({"model": f"x\n{TOUCH}"}, 2),
            ({"model": "--version"}, 2),
            ({"sparsity": f"0.3; {TOUCH}"}, 2),
            ({"pattern": f"2:4 && {TOUCH}"}, 2),
            ({"args": f"; {TOUCH}"}, 2),
            ({"args": "--exclude 'open"}, 2),
            ({"args": "--dry-run"}, 2),
            ({"args": "--output elsewhere"}, 2),
        ],
        ({"model": f"x; {TOUCH}"}, 1),
    ),
)
def test_what_is_typed_into_inputs_is_never_run(
    workspace: Path, inputs: dict[str, str], code: int
) -> None:
    ran = Ran(workspace, **{"model": "demo", "sparsity": "0.3"} | inputs)
    assert ran.code == code, ran.stderr
    assert not list(workspace.parent.rglob("pwned"))
    assert ran.outputs == {}
    assert ran.stdout == ""
    assert "error: " in ran.stderr
    assert "Traceback" not in ran.stderr
    assert f"failed with exit code {code}; the log says why" in ran.summary


# --- with a Hub ---------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.real
def test_the_action_publishes_a_real_model_once(
    workspace: Path, real_model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = real_model("minilm")
    files: dict[str, bytes | Path | None] = {
        path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()
    }
    with serve(tmp_path / "hub") as hub:
        hub.put("org/minilm", files)
        env = hub.environment(WRITER) | {"HF_HOME": str(tmp_path / "hf")}
        given = {"model": "org/minilm", "sparsity": "0.3", "push_to": "org/minilm-pruned"}
        first = Ran(workspace, env, **given, push_args="--private")
        assert first.code == 0, first.stderr
        repo = hub.repo("org/minilm-pruned")
        assert repo.private
        head = repo.resolve("main")
        assert head is not None
        assert first.outputs["commit-url"].endswith(f"/org/minilm-pruned/commit/{head.oid}")
        assert "org/minilm-pruned: published, commit http" in first.summary
        published = hub.files("org/minilm-pruned")
        local = (workspace / "pruned" / "model.safetensors").read_bytes()
        assert published["model.safetensors"] == local
        assert published["tokenizer.json"] == (folder / "tokenizer.json").read_bytes()

        second = Ran(workspace, env, **given, push_args="--private")
        assert second.code == 0, second.stderr
        assert repo.resolve("main") == head, "nothing has changed, so nothing is committed"
        assert second.outputs == first.outputs
        assert "org/minilm-pruned: nothing to change, commit http" in second.summary
        for ran in (first, second):
            assert WRITER not in ran.stdout + ran.stderr + ran.summary + str(ran.outputs)


@pytest.mark.full
def test_the_example_for_gitlab_runs(workspace: Path, tmp_path: Path) -> None:
    example = yaml.safe_load((ROOT / "docs" / "ci" / "gitlab-ci.yml").read_text(encoding="utf-8"))
    with serve(tmp_path / "hub") as hub:
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", "\n".join(example["prune"]["script"])],
            cwd=workspace,
            env=os.environ | example["variables"] | hub.environment(WRITER) | {
                "HF_HOME": str(tmp_path / "hf"),
                "MODEL": "demo",
                "TARGET": "org/demo-pruned",
                "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            },
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "prunectl.json" in hub.files("org/demo-pruned")
    for artifact in example["prune"]["artifacts"]["paths"]:
        assert json.loads((workspace / artifact).read_text())


def test_workflows_use_inputs_and_outputs_that_the_action_has() -> None:
    for name in (".github/workflows/ci.yml", "docs/ci/github-workflow.yml"):
        text = (ROOT / name).read_text(encoding="utf-8")
        steps = [step for job in yaml.safe_load(text)["jobs"].values() for step in job["steps"]]
        (used,) = [step for step in steps if str(step.get("uses")).startswith("./")]
        assert set(used["with"]) <= set(ACTION["inputs"])
        read = set(re.findall(r"steps\.prune\.outputs\.([\w-]+)", text))
        assert read <= set(ACTION["outputs"])
        assert read


RESULTS: dict[str, Any] = {
    "sparsity": 0.3,
    "overall-sparsity": 0.25,
    "bytes": 50,
    "folder": "out\nbytes<<x\n0\nx",
    "commit-url": "http://127.0.0.1/org/name/commit/abc",
    "model": "<img src=x> | `a` [b](c)",
    "layout": "dense",
    "source-bytes": 100,
    "push-to": "org/name",
    "changed": True,
    "pools": [{"label": "a, b", "pattern": "2:4", "requested": None, "achieved": 0.5, "zeros": 7}],
    "warnings": ["3 weights are Inf\n# not a title"],
}


def test_no_value_ends_its_own_block() -> None:
    found = outputs_in(action.output_lines(RESULTS))
    assert found == {name: str(RESULTS[name]) for name in action.OUTPUTS}


def test_the_summary_shows_what_it_is_given_and_no_more() -> None:
    text = action.summary(RESULTS)
    assert r"| model | &lt;img src=x> \| \`a\` \[b\](c) |" in text
    where = "commit http://127.0.0.1/org/name/commit/abc |"
    assert f"| published | org/name: published, {where}" in text
    assert "| a, b | 2:4 |  | 50.00% | 7 |" in text
    assert "- 3 weights are Inf \\# not a title" in text
    assert "50 bytes, 50.0% of the source's" in text
    unchanged = action.summary(RESULTS | {"changed": False})
    assert f"| published | org/name: nothing to change, {where}" in unchanged


def test_words_are_split_as_by_a_shell_that_expands_nothing() -> None:
    given = {"INPUT_ARGS": "--exclude '*.a b' --include \"$HOME\" ~"}
    assert action.words_of(given, "ARGS") == shlex.split(given["INPUT_ARGS"])
    assert "$HOME" in action.words_of(given, "ARGS")
