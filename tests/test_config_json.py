"""config.json of a compressed folder: marked for the loader, and back to the very same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunectl.output import config_json
from prunectl.output.config_json import is_markable, mark, unmark

WEIGHTS = "model.prunectl.safetensors"
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text().filter(lambda key: key != "quantization_config"), VALUES, max_size=4),
    st.sampled_from([None, 0, 2, "\t"]),
    st.sampled_from(["", "\n", " \r\n"]),
    st.booleans(),
)
def test_marked_and_unmarked_are_the_same_bytes(
    members: dict[str, object], indent: int | str | None, end: str, ascii_only: bool
) -> None:
    text = json.dumps(members, indent=indent, ensure_ascii=ascii_only) + end
    config = text.encode("utf-8", "surrogatepass")
    if not is_markable(config):
        assert not ascii_only
        return
    marked = mark(config, WEIGHTS)
    assert json.loads(marked) == {
        **members,
        "quantization_config": {"quant_method": "prunectl", "weights": WEIGHTS},
    }
    assert unmark(marked) == config


def test_a_long_run_of_spaces_takes_no_longer_than_other_bytes() -> None:
    spaces = b" " * 4_000_000  # with the square of them, this would not end
    for config in (b"{" + spaces + b"}", b'{"a": 1}' + spaces, b'{"a":' + spaces + b"1}"):
        assert unmark(mark(config, WEIGHTS)) == config
    saved = b'{"quantization_config": {"quant_method": "prunectl"},' + spaces + b'"a": 1}'
    assert json.loads(unmark(saved)) == {"a": 1}


def test_many_lookalikes_are_not_all_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = []
    read = config_json._document
    monkeypatch.setattr(config_json, "_document", lambda c: readings.append(1) or read(c))
    one = b'{"quantization_config": {"quant_method": "prunectl", "weights": "x"}}'
    config = b'{"a": [' + b", ".join([one] * 5_000) + b"]}"
    assert unmark(mark(config, WEIGHTS)) == config
    saved = json.dumps(json.loads(mark(config, WEIGHTS)), sort_keys=True, indent=1).encode()
    assert json.loads(unmark(saved)) == json.loads(config)
    # Here the member is not among the last of its kind: the file loses its format.
    one_line = b'{"quantization_config": {"quant_method": "prunectl"}, ' + config[1:]
    assert json.loads(unmark(one_line)) == json.loads(config)
    assert len(readings) < 60


@pytest.mark.real
def test_a_real_config(real_model: object) -> None:
    folder: Path = real_model("smollm2")  # type: ignore[operator]
    config = (folder / "config.json").read_bytes()
    assert unmark(mark(config, WEIGHTS)) == config


def test_a_config_that_was_saved_again_keeps_its_members() -> None:
    marked = mark(b'{"a": 1, "b": {"quantization_config": 2}}', WEIGHTS)
    saved = json.dumps(json.loads(marked), sort_keys=True, indent=4).encode()
    assert json.loads(unmark(saved)) == {"a": 1, "b": {"quantization_config": 2}}


def test_a_lookalike_deeper_inside_is_left_alone() -> None:
    config = b'{"x": {"y": 1, "quantization_config": {"quant_method": "prunectl"}}}'
    assert unmark(config) == config
    assert unmark(mark(config, WEIGHTS)) == config


@pytest.mark.parametrize(
    "config",
    [b"", b"[]", b"{", b"\xff\xfe{}", b'{"quantization_config": {"quant_method": "gptq"}}'],
)
def test_what_cannot_be_marked_is_said_and_left(config: bytes) -> None:
    assert not is_markable(config)
    assert unmark(config) == config
