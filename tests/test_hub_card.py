"""The model card on its way to the Hub: what is added, and what of others' cards stays."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hubserver.cards import check_card
from huggingface_hub.repocard import metadata_load
from hypothesis import given
from hypothesis import strategies as st
from test_sink_card import FACTS, HOSTILE, LOCAL, SOURCE, own_text

from prunectl.output.card import END, START, hub_card, merged_card, model_card, same_text
from prunectl.output.records import Count

OURS = hub_card(model_card(SOURCE, FACTS), "org/new", patterns=("2:4",), library="transformers")
LATER = hub_card(
    model_card(SOURCE, dataclasses.replace(FACTS, prunable=Count.of(1000, 3, 700, 0.7))),
    "org/new",
    patterns=("unstructured", "4:8"),
    library="transformers",
)


def metadata(card: str, tmp_path: Path) -> dict[str, object]:
    (tmp_path / "README.md").write_bytes(card.encode())
    found = metadata_load(tmp_path / "README.md")
    assert found is not None
    return found


def test_tags_library_and_the_name_are_added(tmp_path: Path) -> None:
    before, after = model_card(SOURCE, FACTS), OURS
    added = metadata(before, tmp_path) | {
        "library_name": "transformers",
        "tags": ["text-generation", "1.5", "pruned", "prunectl", "sparsity-40", "sparsity-2-4"],
    }
    assert metadata(after, tmp_path) == added
    assert after.split(START)[1] == before.split(START)[1].replace("path/to/this/folder", "org/new")


def test_a_library_that_is_named_stays(tmp_path: Path) -> None:
    card = model_card("---\nlibrary_name: timm\n---\n", LOCAL)
    found = metadata(hub_card(card, "o/n", patterns=(), library="transformers"), tmp_path)
    assert found["library_name"] == "timm"
    assert "library_name" not in metadata(
        hub_card(model_card(None, LOCAL), "o/n", patterns=(), library=None), tmp_path
    )


def test_only_what_people_call_the_folder_is_renamed() -> None:
    card = model_card('load "path/to/this/folder"\n', LOCAL)
    sent = hub_card(card, "o/n", patterns=(), library=None)
    assert sent.endswith('load "path/to/this/folder"\n')
    assert 'from_pretrained("o/n"' in sent


def test_a_later_sparsity_replaces_the_earlier_one(tmp_path: Path) -> None:
    merged = merged_card(LATER, OURS)
    assert metadata(merged, tmp_path)["tags"] == [
        *("text-generation", "1.5", "pruned", "prunectl"),
        *("sparsity-70", "sparsity-4-8", "sparsity-unstructured"),
    ]
    assert "40.0000%" not in merged.split(START)[1].split(END)[0]


def test_a_tag_of_rows_is_replaced_too(tmp_path: Path) -> None:
    """As any tag of an earlier sparsity, and one that people gave it stays."""
    rows = hub_card(model_card(SOURCE, FACTS), "org/new", patterns=("2:4-rows",), library=None)
    tags = ["text-generation", "1.5", "pruned", "prunectl", "sparsity-40", "sparsity-2-4-rows"]
    assert metadata(rows, tmp_path)["tags"] == tags
    theirs = rows.replace("- pruned\n", "- sparsity-2-4-rows-of-mine\n- pruned\n")
    assert metadata(merged_card(OURS, theirs), tmp_path)["tags"] == [
        *("text-generation", "1.5", "sparsity-2-4-rows-of-mine", "pruned", "prunectl"),
        *("sparsity-40", "sparsity-2-4"),
    ]


def test_a_base_that_people_have_made_a_list_stays(tmp_path: Path) -> None:
    theirs = OURS.replace("base_model: org/name\n", "base_model:\n- org/name\n- org/other\n")
    assert metadata(merged_card(LATER, theirs), tmp_path)["base_model"] == ["org/name", "org/other"]
    moved = OURS.replace("base_model: org/name\n", "base_model: org/wrong\n")
    assert metadata(merged_card(LATER, moved), tmp_path)["base_model"] == "org/name"


def test_without_a_section_of_ours_the_hub_s_card_stays_as_it_is() -> None:
    assert merged_card("# a card that somebody wrote anew\n", "theirs\n") == "theirs\n"
    assert merged_card(OURS, None) == OURS


def test_whether_the_texts_are_the_same() -> None:
    assert same_text(OURS, LATER)
    assert same_text(OURS, OURS.replace("license: apache-2.0", "license: mit"))
    assert not same_text(OURS, OURS + "more\n")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("theirs", [*HOSTILE, SOURCE, OURS])
def test_hostile_cards_keep_their_text_and_settle(theirs: str, tmp_path: Path) -> None:
    once = merged_card(OURS, theirs)
    assert merged_card(OURS, once) == once
    assert once.count('from_pretrained("org/new"') == 1
    assert "sparsity-2-4" in metadata(once, tmp_path)["tags"]  # type: ignore[operator]
    text = own_text(theirs)
    assert once.endswith(text.split(END)[-1] if theirs is OURS else text)
    assert not [error for error in check_card(once)[0] if "tags" in error]


@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_text_stays(text: str) -> None:
    once = merged_card(OURS, "# T\n" + text)
    assert once.endswith("# T\n" + text)
    assert merged_card(OURS, once) == once
