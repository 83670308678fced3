"""The model card: what stays of the source's card, what is added, and hostile cards."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK, metadata_load
from hypothesis import given
from hypothesis import strategies as st

from prunectl.output import frontmatter
from prunectl.output.card import END, START, CardFacts, RoleRow, earlier_commands, model_card
from prunectl.output.records import Count

FACTS = CardFacts(
    model="org/name@v1",
    version="0.1.0",
    method="one-shot magnitude pruning",
    pattern="2:4",
    scope="global",
    prunable=Count.of(1000, 3, 400, 0.4),
    overall=Count.of(2500, 5, 402),
    roles=(
        RoleRow("block linear", 8, Count.of(1000, 3, 400)),
        RoleRow("norm", 9, Count.of(10, 0, 2)),
    ),
    command="prunectl prune org/name@v1 --sparsity 0.4 --pattern 2:4 -o out",
    repo_id="org/name",
    commit="c" * 40,
    auto_class="AutoModelForCausalLM",
)
LOCAL = dataclasses.replace(FACTS, model="../models/mine", repo_id=None, commit=None)

SOURCE = """---
# a comment that stays
language: no
license: apache-2.0
tags:
- text-generation
- 1.5
base_model: meta/grandparent
base_model_relation: finetune
model-index:
- name: mine
  results: []
date: 2024-01-01
widget:
- text: "two: words"
---

# My model

---
Text with a rule above, `code`, and trailing spaces.\x20\x20
"""


def metadata(card: str, tmp_path: Path) -> dict[str, object]:
    (tmp_path / "README.md").write_bytes(card.encode())
    return metadata_load(tmp_path / "README.md")


def test_the_metadata_are_merged_and_other_lines_kept(tmp_path: Path) -> None:
    card = model_card(SOURCE, FACTS)
    found = metadata(card, tmp_path)
    before = yaml.safe_load(SOURCE.split("---\n")[1])
    for gone in ("base_model_relation", "model-index"):
        del before[gone]
    before["base_model"] = "org/name"
    before["tags"] = ["text-generation", "1.5", "pruned", "prunectl", "sparsity-40"]
    assert found == before
    for line in (
        "# a comment that stays",
        "language: no",
        "date: 2024-01-01",
        '- text: "two: words"',
    ):
        assert f"\n{line}\n" in card
    assert ModelCard(card).data.base_model == "org/name"


def test_a_local_source_keeps_its_base(tmp_path: Path) -> None:
    found = metadata(model_card(SOURCE, LOCAL), tmp_path)
    assert found["base_model"] == "meta/grandparent"
    assert found["base_model_relation"] == "finetune"
    assert "base_model" not in metadata(model_card(None, LOCAL), tmp_path)


def test_the_text_stays_byte_for_byte() -> None:
    body = SOURCE.split("---\n", 2)[2]
    assert model_card(SOURCE, FACTS).endswith(END + "\n" + body)


def test_the_section_says_what_was_done() -> None:
    card = model_card(None, FACTS)
    for part in (
        "[org/name](https://huggingface.co/org/name) at commit `" + "c" * 40,
        "| of the prunable weights | 40.0000% | 40.0000% | 400 | 1,000 |",
        "| overall |  | 16.0800% | 402 | 2,500 |",
        "| block linear | 8 | 1,000 | 400 | 40.00% |",
        "```bash\nprunectl prune org/name@v1 --sparsity 0.4 --pattern 2:4 -o out\n```",
        "AutoModelForCausalLM.from_pretrained(",
        "neither the size of the files nor the speed",
    ):
        assert part in card


HOSTILE = [
    "",
    "no front matter",
    "---\n",
    "---\n---\n",
    "---\nlicense: mit\n",
    "---\n\n---\ntext",
    "---\nlicense: mit\n---",
    "---\n{license: mit, tags: [a]}\n---\ntext",
    "---\ntags: &t [x]\nother: *t\n---\ntext",
    "---\ntags: text\n---\n",
    "---\ntags: {a: b}\nbase_model: [a, b]\n---\n",
    "---\nlicense: mit\n...\n---\ntext",
    "---\na: |\n  ---\n  text\n---\nbody",
    "---\ntags:\n- a\ntags:\n- b\n---\nbody",
    f"{START}\n",
    f"{END}\n{START}\nmine\n",
    f"{START}\nmy own notes\n{END}\ntext",
    f"text {START} inline\n{END}\n",
    f"---\nlicense: mit\n---\n{START}\n## Pruned with prunectl\nnever closed\n",
    "\ufeff---\nlicense: mit\n---\ntext",
    "---\r\nlicense: mit\r\ntags:\r\n- a\r\n---\r\n# Title\r\ntext\r\n",
]


def own_text(card: str) -> str:
    """The source's text: after its front matter, if the Hub's own reader finds one."""
    card = card.removeprefix("\ufeff")
    try:
        return ModelCard(card, ignore_metadata_errors=True).text
    except (yaml.YAMLError, ValueError):
        return card


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source", [*HOSTILE, SOURCE])
@pytest.mark.parametrize("facts", [FACTS, LOCAL])
def test_hostile_cards_survive_and_a_second_run_replaces(
    source: str, facts: CardFacts, tmp_path: Path
) -> None:
    once = model_card(source, facts)
    found = metadata(once, tmp_path)
    assert "sparsity-40" in found["tags"]  # type: ignore[operator]
    assert once.endswith(own_text(source))
    other = dataclasses.replace(facts, prunable=Count.of(1000, 3, 700, 0.7), version="0.2.0")
    twice = model_card(once, other)
    assert twice.endswith(own_text(source))
    tags = metadata(twice, tmp_path)["tags"]
    assert "sparsity-70" in tags  # type: ignore[operator]
    assert "sparsity-40" not in tags  # type: ignore[operator]
    assert twice.count("prunectl 0.") == once.count("prunectl 0.") == 1
    assert model_card(twice, other) == twice


def doubling(levels: int, pair: str) -> str:
    """Each member holds the one before it twice: 2^levels values in a line a level."""
    lines = [f"a{i}: &a{i} {pair.replace('*', f'*a{i - 1}')}\n" for i in range(1, levels)]
    return "".join(["a0: &a0 {k: v}\n", *lines])


@pytest.mark.parametrize(
    "front",
    ["license: [mit", "a: b: c", "just words", "- a\n- b", "1: 2", "date: 2024-13-45", "\tx: y",
     "a: !!python/object/apply:os.system ['true']", "[" * 5000, "*missing", "a: !!bool x",
     "a: !!int ''", "a: !!timestamp x", "tags: &a [*a]", "a: &a {b: *a}",
     doubling(40, "[*, *]"), doubling(40, "{<<: [*, *]}"),
     "{a: 0x" + "f" * 40_000 + "}", "a: 1" + ":59" * 100_000, "a: " + "[" * 100 + "]" * 100,
     "a: !" + "x" * 10_000 + " b"],
    ids=lambda front: front[:20],
)  # fmt: skip
def test_a_broken_front_matter_is_kept_as_text_and_said_so(front: str, tmp_path: Path) -> None:
    source = f"---\n{front}\n---\n# Title\n"
    card = model_card(source, FACTS)
    assert card.endswith(source)
    (said,) = [line for line in card.splitlines() if "could not be read" in line]
    assert len(said) < 400
    assert metadata(card, tmp_path) == {
        "base_model": "org/name",
        "tags": ["pruned", "prunectl", "sparsity-40"],
    }


def test_more_values_than_can_be_read_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontmatter, "_MOST_VALUES", 1000)
    assert "more than 1,000 values" in model_card(f"---\na: [{'1, ' * 1000}]\n---\n", FACTS)
    assert "could not be" not in model_card(f"---\na: [{'1, ' * 900}]\n---\n", FACTS)


@pytest.mark.parametrize(
    "front", [doubling(6, "[*, *]"), doubling(6, "{<<: [*, *]}"), "{a: !!omap [x: 1]}\n"]
)
def test_a_front_matter_of_some_aliases_is_read(front: str, tmp_path: Path) -> None:
    card = model_card(f"---\n{front}---\n# Title\n", FACTS)
    assert "could not be read" not in card
    assert metadata(card, tmp_path).keys() > yaml.safe_load(front).keys()
    assert model_card(card, FACTS) == card


def test_commands_of_a_section() -> None:
    for newline in ("\n", "\r\n"):
        facts = dataclasses.replace(FACTS, command="a b\n```c\nd")
        card = model_card(f"# T{newline}", facts)
        assert earlier_commands(card) == ("a b", "```c", "d")
    assert earlier_commands(None) == earlier_commands("# T\n") == ()
    assert earlier_commands(card.replace("bash", "sh")) == ()
    # Fences that never end: to look for the end of each would take minutes.
    fences = "".join(f"Made with:\n{'`' * (3 + n)}bash\n" for n in range(4000, 0, -1))
    assert earlier_commands(f"{START}\n## Pruned with prunectl\n{fences}{END}\n") == ()


def test_a_moved_section_is_replaced_where_it_is() -> None:
    card = model_card("# Title\n", FACTS)
    begin, end = card.index(START), card.index(END) + len(END) + 1
    moved = card[:begin] + card[end:] + card[begin:end] + "after\n"
    again = model_card(moved, dataclasses.replace(FACTS, version="0.3.0"))
    assert again == moved.replace("prunectl 0.1.0", "prunectl 0.3.0")


def test_line_ends_follow_the_source() -> None:
    card = model_card("---\r\nlicense: mit\r\n---\r\n# Title\r\n", FACTS)
    assert card.count("\n") == card.count("\r\n")


@pytest.mark.parametrize("evil", [f"x\n{END}\n# gone", f"`` ` {START}", "a|b|c", "``````", "<!--"])
@pytest.mark.parametrize("repo_id", [None, "evil"])
def test_hostile_facts_cannot_leave_their_place(evil: str, repo_id: str | None) -> None:
    facts = dataclasses.replace(
        LOCAL,
        model=evil,
        command=evil,
        pattern=evil,
        roles=(RoleRow(evil, 1, Count.of(1, 0, 1)),),
        repo_id=repo_id and evil,
        commit=repo_id and evil,
    )
    once = model_card("own text\n", facts)
    assert model_card(once, facts) == once
    if repo_id:
        (link,) = [line for line in once.splitlines() if "huggingface.co/" in line]
        assert link.endswith("lists what was done to every tensor.")
        return
    assert model_card(once, FACTS) == model_card("own text\n", FACTS)
    assert model_card(once, LOCAL).endswith("own text\n")
    assert model_card(once, LOCAL) == model_card("own text\n", LOCAL)


@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_text_survives(text: str) -> None:
    once = model_card("# T\n" + text, LOCAL)
    assert once.endswith("# T\n" + text)
    assert model_card(once, LOCAL) == once


def test_the_rule_is_the_hubs() -> None:
    from prunectl.output.frontmatter import YAML_BLOCK

    assert YAML_BLOCK == REGEX_YAML_BLOCK
