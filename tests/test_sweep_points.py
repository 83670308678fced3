"""Points on disk: what was measured is read back, and what is not ours is no point."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked_ranks import ends, start
from hypothesis import given
from hypothesis import strategies as st

import prunectl
from prunectl.cli.output import save_text
from prunectl.documents import convert
from prunectl.errors import CannotWrite
from prunectl.events import Event
from prunectl.parallel.run import Run
from prunectl.studies.sweep import points as module
from prunectl.studies.sweep.points import Point, Points, key_of
from prunectl.studies.sweep.verb import _points

FINE = Point(
    0.3, 0.25, 2.5, np.array([[1.5, 2.0], [3.25, 7.0]]), {"nats per token": 0.9}, 1.25
)  # fmt: skip


def same(one: Point | None, other: Point) -> bool:
    assert one is not None
    if one.values is None or other.values is None:
        return one.values is other.values and one.failed == other.failed
    return np.array_equal(one.values, other.values) and (
        one.sparsity, one.overall, one.score, one.parts, one.seconds, one.failed
    ) == (
        other.sparsity, other.overall, other.score, other.parts, other.seconds, other.failed
    )  # fmt: skip


def line(**changes: Any) -> str:
    document = {
        "key": "k", "sparsity": 0.3, "overall": 0.25, "score": 2.5, "values": [[1.5], [3.25]],
        "parts": {}, "seconds": 1.0, "failed": "",
    }  # fmt: skip
    return json.dumps(document | changes)


def test_what_was_added_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "points.jsonl"
    first = Points(path)
    infinite = Point(0.5, 0.4, math.inf, np.array([[math.inf, 1.0]]), {"f1": math.nan}, 2.0)
    odd = Point(0.1, 0.1, 0.1 + 0.2, np.array([[1 / 3]]), {}, 0.123)
    for key, point in (("a", FINE), ("b", infinite), ("c", odd)):
        first.add(key, point)
        assert first.get(key) is point
    again = Points(path)
    assert same(again.get("a"), FINE)
    assert same(again.get("c"), odd)
    found = again.get("b")
    assert found is not None
    assert found.score == math.inf
    assert math.isnan(found.parts["f1"])
    assert again.get("d") is None
    for text in path.read_text(encoding="utf-8").splitlines():
        json.loads(text, parse_constant=pytest.fail)  # no NaN, no Infinity


@given(
    st.lists(st.lists(st.floats(allow_nan=False), min_size=2, max_size=2), min_size=1, max_size=5),
    st.floats(0, 1),
)
def test_any_numbers_come_back(values: list[list[float]], sparsity: float) -> None:
    point = Point(sparsity, sparsity, values[0][0], np.array(values), {}, 0.5)
    document = json.loads(json.dumps(module._document(point), allow_nan=False))
    assert same(convert(document | {"key": "k"}, module._Line).point(), point)


def test_a_line_that_was_cut_off_costs_one_point(tmp_path: Path) -> None:
    path = tmp_path / "points.jsonl"
    first = Points(path)
    first.add("a", FINE)
    first.add("b", FINE)
    path.write_bytes(path.read_bytes()[:-20])
    second = Points(path)
    assert same(second.get("a"), FINE)
    assert second.get("b") is None
    second.add("b", FINE)  # on a line of its own
    second.add("c", FINE)
    third = Points(path)
    assert all(same(third.get(key), FINE) for key in "abc")
    assert len(path.read_text(encoding="utf-8").splitlines()) == 4


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "not JSON",
        "[]",
        "7",
        "null",
        "{}",
        '"key"',
        "[" * 10_000,
        "\x00\x00",
        '{"key": "k"}',
        line(sparsity=1.5),
        line(sparsity=-0.1),
        line(sparsity="NaN"),
        line(sparsity=True),
        line(sparsity="0.3"),
        line(overall=None),
        line(score=None),
        line(score=[2.5]),
        line(score="2.5"),
        line(score="NaN"),
        line(score=False),
        line(failed="out of memory"),
        line(values=None),
        line(values=[]),
        line(values=[[]]),
        line(values=[1.0, 2.0]),
        line(values=[[1.0], [2.0, 3.0]]),
        line(values=[[1.0], [None]]),
        line(values=[["NaN"]]),
        line(values=[[[1.0]]]),
        line(values="text"),
        line(values={"a": 1}),
        line().replace("2.5,", "1e999,"),
        line(parts=[]),
        line(parts=None),
        line(parts={"f1": [1]}),
        line(seconds="soon"),
        line().replace("0.3", "1e999"),
        line().replace("0.25", "1" * 5000),
        line().replace("0.25", "-1e999"),
        line().replace('"failed": ""', '"fail": ""'),
    ],
)
def test_a_line_that_is_no_point_is_passed_over(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "points.jsonl"
    path.write_text(f"{bad}\n{line(key='good')}\n", encoding="utf-8")
    points = Points(path)
    assert points.get("k") is None
    assert points.get("good") is not None


@pytest.mark.parametrize("data", [b"some text\n", b"\0" * 9, b"{}\n{}\n", b'{"text": "a"}', b"\n"])
def test_a_file_of_something_else_is_left_as_it_is(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(data)
    with pytest.raises(CannotWrite, match="something else than points of a sweep"):
        Points(path)
    assert path.read_bytes() == data
    Points(path, is_cache=True).add("a", FINE)  # our own place, whatever became of it
    assert same(Points(path).get("a"), FINE)
    first = path.read_bytes().splitlines()[-1][:20]  # all that a crash left of the first point
    path.write_bytes(first)
    Points(path).add("b", FINE)
    assert same(Points(path).get("b"), FINE)


@given(st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["key", "sparsity", "overall", "score", "values", "parts", "failed"]),
        inner, max_size=7),
    max_leaves=12,
))  # fmt: skip
def test_any_json_is_a_point_or_none(document: Any) -> None:
    Points(None)._take(json.dumps(document).encode())


def test_bytes_that_are_no_text_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "points.jsonl"
    path.write_bytes(b"\xff\xfe\x00\n" + os.urandom(200).replace(b"\n", b"") + b"\n"
                     + line().encode())  # fmt: skip
    points = Points(path)
    assert points.get("k") is not None
    points.add("new", FINE)
    assert same(Points(path).get("new"), FINE)


def test_a_place_that_cannot_be_written_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CannotWrite, match="no regular file"):
        Points(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(CannotWrite):
        Points(tmp_path / "file" / "points.jsonl")
    with pytest.raises(CannotWrite):
        Points(Path("/proc/no/points.jsonl"))
    with pytest.raises(CannotWrite, match="no regular file"):
        Points(Path("/dev/zero"))  # whose end would be waited for
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(CannotWrite, match="no regular file"):
        Points(pipe)
    monkeypatch.setattr(module, "_LARGEST", 1000)
    large = tmp_path / "large.jsonl"
    large.write_text("\n" * 1001, encoding="utf-8")
    with pytest.raises(CannotWrite, match=r"more than 1\.00 kB"):
        Points(large)


@pytest.mark.skipif(not os.geteuid(), reason="root may write anywhere")
def test_a_file_that_is_read_only_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "points.jsonl"
    path.write_text(line() + "\n", encoding="utf-8")
    path.chmod(0o400)
    with pytest.raises(CannotWrite, match="Permission denied"):
        Points(path)


def test_a_place_that_goes_away_keeps_points_in_memory(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    points = Points(folder / "points.jsonl")
    (folder / "points.jsonl").unlink()
    folder.rmdir()
    with pytest.raises(CannotWrite, match="No such file"):
        points.add("a", FINE)
    assert points.get("a") is FINE
    points.add("b", FINE)
    assert points.get("b") is FINE


def test_keys_tell_all_facts_apart() -> None:
    facts: dict[str, Any] = {"a": 1, "b": {"c": [1.0, None], "d": math.nan}, "p": Path("x")}
    assert key_of(facts) == key_of(dict(reversed(facts.items())))
    assert len(key_of(facts)) == 32
    for other in (facts | {"a": 2}, facts | {"b": {}}, facts | {"p": Path("y")}, {"a": 1}):
        assert key_of(other) != key_of(facts)


def test_of_several_processes_the_first_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each measures every point: it would stand there once for each process."""
    path = tmp_path / "points.jsonl"
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        points = Points(path)
        points.add("a", FINE)
        assert same(points.get("a"), FINE)
        save_text(tmp_path / "page.html", rank)
    assert len(path.read_text().splitlines()) == 1
    assert (tmp_path / "page.html").read_text() == "0"


TELLS = """
import os
from pathlib import Path
import prunectl
from prunectl.parallel.run import Run
from prunectl.studies.sweep.verb import _points

host = Path(os.environ["RANK"])
os.environ["PRUNECTL_CACHE_DIR"] = str(host / "cache")
models = [prunectl.open_checkpoint("demo")] * 2
for results, decided in (
    (host / "points.jsonl", 0), (None, 0), (host, 0), (None, host)
):
    try:
        found = _points(models, results, decided, Run(on_event=print), use_cache=True)
    except prunectl.PrunectlError as error:
        print(type(error).__name__)
        continue
    print([sorted(points.known) for points in found])
    found[1].add("new", next(iter(found[0].known.values())))
"""


@pytest.mark.full
def test_all_hosts_know_the_points_of_the_first(tmp_path: Path) -> None:
    """A point that one of them knew would be left out there, and waited for elsewhere."""
    demo = prunectl.open_checkpoint("demo")
    cache = f"cache/sweep-{key_of(demo.identity())}.jsonl"
    for host, (keys, cached) in {"0": ("b", "c"), "1": ("ab", "d")}.items():
        for name, held in (("points.jsonl", keys), (cache, cached)):
            points = Points(tmp_path / host / name)
            for key in held:
                points.add(key, FINE)
    files = [tmp_path / host / name for host in "01" for name in ("points.jsonl", cache)]
    before = [path.read_text() for path in files]
    first, second = ends(start(2, [], tmp_path, TELLS))
    known = "[['b'], ['b']]\n[['c'], ['c']]\n"
    assert (first[:2], second[:2]) == (
        (0, f"{known}CannotWrite\nRanksDiffer\n"),
        (0, f"{known}RankFailed\nRanksDiffer\n"),
    )
    # What is new, the first alone keeps.
    lines = [path.read_text().removeprefix(text) for path, text in zip(files, before, strict=True)]
    assert [text.count("\n") for text in lines] == [1, 1, 0, 0]


def test_one_process_by_itself_has_its_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    demo = prunectl.open_checkpoint("demo")
    monkeypatch.setenv("PRUNECTL_CACHE_DIR", str(tmp_path / "cache"))
    events: list[Event] = []
    run = Run(on_event=events.append)
    assert all(one.is_cache for one in _points([demo], None, 0, run, use_cache=True))
    assert not any(one.is_cache for one in _points([demo], None, 0, run, use_cache=False))
    shared = tmp_path / "shared.jsonl"
    (found,) = _points([demo], shared, 0, run, use_cache=True)
    assert not found.is_cache
    assert shared.exists()
    assert not events
