"""What the screens show, from hand-made results, at 80 and 120 columns and in a pipe."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace

import cli_results
import pytest
import wide_results
from rich.console import RenderableType

from prunectl.checkpoint.roles import Role, TensorRole
from prunectl.cli import tables
from prunectl.cli.analyze_screen import analysis_screen
from prunectl.cli.bench_screen import bench_screen, comparison_screen
from prunectl.cli.lottery import lottery_screen
from prunectl.cli.output import Output, screen
from prunectl.cli.progress import LineProgress
from prunectl.cli.prune_screen import plan_screen, prune_screen
from prunectl.cli.sweep_screen import sweep_screen
from prunectl.cli.trace import trace_screen
from prunectl.cli.verify import verify_screen
from prunectl.events import Advanced, Note, PhaseDone, PhaseStarted
from prunectl.pattern import NM
from prunectl.plan.plan import Plan, make_plan
from prunectl.plan.settings import PruneSettings, Rule
from prunectl.tensorspec import DTYPES, TensorSpec


@pytest.fixture(params=[80, 120, None], ids=["80", "120", "pipe"])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    if request.param:
        monkeypatch.setenv("COLUMNS", str(request.param))
    else:
        monkeypatch.delenv("COLUMNS", raising=False)
    width: int | None = request.param
    return width


def shown(parts: Iterable[RenderableType], monkeypatch: pytest.MonkeyPatch) -> str:
    stdout = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stdout)
    Output().show(*parts)
    return stdout.getvalue()


def check_lines(text: str, width: int | None) -> None:
    """Plain text that fits and has no escape codes, box lines, or blanks at the ends of lines."""
    assert not set(text) & set("\x1b│─┌└╭╰━┃…")
    for line in text.splitlines():
        assert line == line.rstrip()
        assert len(line) <= (width or 200)


def row(text: str, start: str) -> list[str]:
    """The cells of the only line that starts with a word, blanks between them dropped."""
    (line,) = [line for line in text.splitlines() if line.strip().startswith(start)]
    return line.split()


# --- wide tables ----------------------------------------------------------------------------

WIDE: dict[str, Callable[[], Iterable[RenderableType]]] = {
    "trace": lambda: trace_screen(wide_results.trace()),
    "lottery": lambda: lottery_screen(wide_results.lottery()),
    "sweep": lambda: sweep_screen(wide_results.sweep()),
    "bench": lambda: bench_screen(wide_results.bench(), everything=True),
    "bench --compare": lambda: comparison_screen(wide_results.comparison(), "old.json"),
}


def cells(text: str) -> set[str]:
    """The numbers, whole, and the short words."""
    return {word for word in text.split() if re.match(r"[<>+-]?\d", word) or len(word) <= 8}


@pytest.mark.parametrize("screen_of", WIDE.values(), ids=WIDE)
@pytest.mark.parametrize("columns", ["80", "100"])
def test_a_wide_table_loses_no_column_and_no_digit(
    screen_of: Callable[[], Iterable[RenderableType]],
    columns: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    wide = shown(screen_of(), monkeypatch)
    monkeypatch.setenv("COLUMNS", columns)
    text = shown(screen_of(), monkeypatch)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= int(columns)
    assert cells(wide) <= cells(text)


@pytest.mark.parametrize(
    ("mode", "change", "text"),
    [
        ("relative", 0.0099, "+0.99%"),
        ("relative", 0.0101, "+1.01%"),
        ("relative", 0.009996, "+0.9996%"),
        ("absolute", 0.01002, "+0.01002"),
        ("absolute", 0.0102, "+0.0102"),
    ],
)
def test_a_loss_next_to_the_tolerance_is_told_from_it(
    mode: str, change: float, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = wide_results.sweep()
    (curve,) = result.curves
    points = (curve.points[0], replace(curve.points[2], change=change))
    settings = result.settings | {"epsilon_mode": mode}
    result = replace(result, curves=(replace(curve, points=points),), settings=settings)
    monkeypatch.delenv("COLUMNS", raising=False)
    (line,) = [
        line for line in shown(sweep_screen(result), monkeypatch).splitlines()
        if line.startswith("  50.0%")
    ]  # fmt: skip
    assert line.split()[6] == text


@pytest.mark.parametrize(
    ("name", "header", "key"),
    [("trace", "step", "1,000,001"), ("lottery", "sparsity", "36.0%"), ("sweep", "sparsity", "12")],
)
def test_each_part_of_a_wide_table_begins_with_its_key(
    name: str, header: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = [line.strip() for line in shown(WIDE[name](), monkeypatch).splitlines()]
    parts = [line for line in lines if line.startswith(f"{header} ")]
    rows = [line for line in lines if line.startswith(key) and "one-shot" not in line]
    assert len(parts) == len(rows) >= 2


def test_columns_that_belong_together_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    cells = ("k", *(letter * 20 for letter in "abcd"))
    greedy = shown([tables.columns("01234", [cells])], monkeypatch).split("\n\n")
    assert [set(table) & set("abcd") for table in greedy] == [{"a", "b", "c"}, {"d"}]
    joined = shown([tables.columns("01234", [cells], joined=(2, 4))], monkeypatch).split("\n\n")
    assert [set(table) & set("abcd") for table in joined] == [{"a", "b"}, {"c", "d"}]
    assert all("k" in table for table in (*greedy, *joined))


# --- analyze --------------------------------------------------------------------------------


def test_analysis_screen(width: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(analysis_screen(cli_results.analysis()), monkeypatch)
    check_lines(text, width)
    assert "2.00 M, 1.00 M prunable (50.0%)" in text
    assert "bf16 (95.0%), fp32 (5.0%)" in text
    assert "4.20 MB in 2 safetensors files, 41 tensors" in text
    assert "org/tiny at main (commit 0123456789ab)" in text
    assert row(text, "block linear")[2:] == (
        ["4", "1.00", "M", "2.00", "MB", "0.1%", "1.1%", "0.0500", "1.50"]
    )
    assert row(text, "40%  ") == ["40%", "0.0400", "400", "k", "93.60%", "20.0%", "40.0%"]
    assert row(text, "2:4 ") == ["2:4", "49.0%", "91.30%", "3", "1"]
    assert "2:4: 1 tensor left dense: input dimension 6 is not divisible by 4" in text
    assert row(text, "dense (zeros")[-3:] == ["4.20", "MB", "100.0%"]
    assert row(text, "40% unstructured, as a bitmask")[-3:] == ["3.50", "MB", "83.3%"]
    assert row(text, "2:4, as values and positions")[-3:] == ["2.70", "MB", "64.3%"]
    assert row(text, "packed@new")[-3:] == ["1.00", "MB", "23.8%"]
    assert text.endswith("Next: Try --sparsity 0.3 first.\n")
    assert "mlp.up_proj.weight" not in text


@pytest.mark.parametrize("columns", ["0", "wide", "\u00b2"])
def test_columns_that_make_no_sense_count_as_unknown(
    columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    unknown = shown(analysis_screen(cli_results.analysis()), monkeypatch)
    monkeypatch.setenv("COLUMNS", columns)
    assert shown(analysis_screen(cli_results.analysis()), monkeypatch) == unknown


@pytest.mark.parametrize("columns", ["0", "wide"])
def test_a_terminal_of_unknown_width_has_eighty_columns(
    columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert screen(Terminal()).width == 80


def test_a_narrow_terminal_loses_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for parts in (
        lambda: analysis_screen(cli_results.analysis(), everything=True),
        lambda: prune_screen(cli_results.prune_result()),
        lambda: verify_screen(cli_results.verify_report(30)),
    ):
        monkeypatch.setenv("COLUMNS", "80")
        wide = shown(parts(), monkeypatch)
        for columns in ("1", "20"):
            monkeypatch.setenv("COLUMNS", columns)
            assert shown(parts(), monkeypatch) == wide


def test_histogram_marks_thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(analysis_screen(cli_results.analysis()), monkeypatch)
    # Thresholds are s/10, so 0.04 .. 0.06 lie between 2^-5 and 2^-4.
    assert row(text, "2^-5")[-3:] == ["40%", "..", "60%"]
    assert row(text, "2^-7")[-1] == "10%"
    assert row(text, "below 2^-7")[-2:] == ["<0.1%", "0.1%"]


def test_many_layers_are_condensed(width: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = cli_results.analysis(32)
    middle = {**analysis.thresholds[9].layers, "model.layers.17": 0.999}
    thresholds = list(analysis.thresholds)
    thresholds[9] = replace(thresholds[9], layers=middle)
    assert thresholds[9].sparsity == 0.5
    text = shown(analysis_screen(replace(analysis, thresholds=tuple(thresholds))), monkeypatch)
    check_lines(text, width)
    table = text.partition("By layer of model.layers (")[2].partition("left out")[0].splitlines()
    numbers = [line.split()[0] for line in table[2:]]
    assert numbers == ["0", "1", "2", "...", "17", "...", "29", "30", "31", "25"]
    assert "25 of 32 layers are left out; --all shows them" in text


def test_all_shows_every_layer_threshold_and_tensor(
    width: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(analysis_screen(cli_results.analysis(32), everything=True), monkeypatch)
    check_lines(text, width)
    assert "left out" not in text
    assert row(text, "31 ")[0] == "31"
    assert row(text, "95%")[0] == "95%"
    joined = "".join(text.split())
    assert "model.layers.1.self_attn.[q].weight" in joined or width == 80
    if width is None:
        assert row(text, "model.layers.0.mlp.up_proj.weight")[-1] == "50.0%"


def test_a_model_with_nothing_prunable(width: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = replace(
        cli_results.analysis(),
        source=replace(cli_results.SOURCE, prunable_weights=0, layers=0),
        thresholds=(),
        patterns=(),
        layers={},
        octaves={},
        prunable_zeros=0,
    )
    text = shown(analysis_screen(empty), monkeypatch)
    check_lines(text, width)
    assert "0 prunable (0.0%)" in text
    assert "Magnitudes" not in text
    assert "By layer" not in text


def test_it_is_said_what_the_columns_by_layer_are_of(
    width: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    analysis = cli_results.analysis()
    assert "share: of all" not in shown(analysis_screen(analysis), monkeypatch)
    layers = {name: cli_results.group(100, prunable=90, zeros=1) for name in analysis.layers}
    text = shown(analysis_screen(replace(analysis, layers=layers)), monkeypatch)
    check_lines(text, width)
    assert (
        "\n  std, max |w|, zero, norm share: of all tensors; the others: of prunable ones\n" in text
    )
    assert row(text, "layer ")[1:4] == ["prunable", "at", "50%"]
    # Prunable, at 50%, 2:4 keeps; std, max |w|, zero, norm share.
    assert row(text, "1  ")[1:] == ["90", "50.0%", "90.0%", "0.0500", "1.50", "1.0%", "50.0%"]


# --- prune ----------------------------------------------------------------------------------


def test_prune_screen(width: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(prune_screen(cli_results.prune_result()), monkeypatch)
    check_lines(text, width)
    assert row(text, "of the prunable")[4:] == ["40.00%", "40.00%", "400,000", "1,000,000"]
    assert row(text, "overall")[1:] == ["20.01%", "400,123", "2,000,000"]
    assert "|w| up to 0.0312" in text
    assert "4.00 GB in 2 files, 1 of them kept from before" in text
    assert "4.0 s, 1.00 GB/s" in text
    affected = [line.split()[0] for line in text.splitlines() if line.strip().startswith("t")]
    # Seven are pruned; t0 is mostly zero, but was so before.
    assert affected[affected.index("t6.weight") :] == [f"t{i}.weight" for i in (6, 5, 4, 3, 2)]
    assert "make neither the files smaller nor the model faster" in " ".join(text.split())
    assert text.endswith("Next: prunectl verify 'my out'\n")


def test_no_tensor_is_called_most_affected_where_all_are_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Counts that only differ by rounding, as of rows of several widths.
    tensors = tuple(cli_results.outcome(f"t{i}.weight", 500 + i % 3) for i in range(7))
    result = replace(cli_results.prune_result(), tensors=tensors)
    assert "Most affected" not in shown(prune_screen(result), monkeypatch)
    assert "t6.weight" in shown(prune_screen(result, everything=True), monkeypatch)
    lost = [replace(one, norm_lost=0.1 * i) for i, one in enumerate(tensors)]
    text = shown(prune_screen(replace(result, tensors=tuple(lost))), monkeypatch)
    assert "Most affected tensors (of 7)" in text
    alike = [replace(one, norm_lost=0.1) for one in tensors]
    text = shown(prune_screen(replace(result, tensors=tuple(alike))), monkeypatch)
    assert "Most affected" not in text


def test_pools_are_shown_where_there_are_several(
    width: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools = (
        cli_results.pool(),
        cli_results.pool(
            label="*.mlp.*",
            pattern="2:4",
            achieved=0.41,
            threshold=None,
            budget=True,
            pruned_tensors=3,
            dense_tensors=1,
        ),
    )
    text = shown(prune_screen(cli_results.prune_result(*pools)), monkeypatch)
    check_lines(text, width)
    assert row(text, "*.mlp.*") == ["*.mlp.*", "2:4", "3", "of", "4", "40.0%", "41.0%"]
    assert row(text, "all others")[2:4] == ["unstructured", "global"]


# --- verify ---------------------------------------------------------------------------------


def test_verify_screen(width: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(verify_screen(cli_results.verify_report()), monkeypatch)
    check_lines(text, width)
    assert row(text, "hashes") == ["hashes", "ok", "2", "files"]
    assert row(text, "source") == ["source", "not", "possible", "org/tiny:", "offline"]
    assert "41 tensors with 400,123 zeros checked in 1.2 s. 1 check could not" in (
        " ".join(text.split())
    )
    assert "Differences" not in text


def test_differences_are_counted_and_shown_up_to_twenty(
    width: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = cli_results.verify_report(differences=23)
    text = shown(verify_screen(report), monkeypatch)
    check_lines(text, width)
    assert [line.split() for line in text.splitlines() if line.endswith("FAILED")] == (
        [["zeros", "FAILED"]]
    )
    assert text.count("the manifest says 4") == 20
    assert "... and 3 more; -v shows them." in text
    assert "FAILED: 23 differences" in text
    everything = shown(verify_screen(report, everything=True), monkeypatch)
    assert everything.count("the manifest says 4") == 23
    assert "more; -v" not in everything


# --- the plan -------------------------------------------------------------------------------


def small_plan(settings: PruneSettings) -> Plan:
    roles = {
        "embed.weight": TensorRole(Role.EMBEDDING),
        "layers.0.up.weight": TensorRole(Role.LINEAR, "layers", 0, "up", 1),
        "layers.0.odd.weight": TensorRole(Role.LINEAR, "layers", 0, "odd", 1),
        "norm.weight": TensorRole(Role.NORM),
    }
    shapes = {"embed": (50, 8), "layers.0.up": (10, 8), "layers.0.odd": (10, 6), "norm": (8,)}
    specs = [TensorSpec(name, DTYPES["BF16"], shapes[name[:-7]]) for name in roles]
    return make_plan(specs, roles, settings)


def test_plan_screen(width: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan(PruneSettings(pattern=NM(2, 4)))
    text = shown(plan_screen(plan, "my-model"), monkeypatch)
    check_lines(text, width)
    assert row(text, "all prunable") == (
        ["all", "prunable", "2:4", "all", "that", "fit", "140", "40"]
    )
    assert row(text, "prune 2:4") == ["prune", "2:4", "1", "80", "160", "B"]
    assert "copy: input dimension 6 is not divisible by 4" in text
    assert "copy: embedding is not pruned by default" in text
    assert "layers.0" not in text


def test_plan_of_every_tensor(width: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = PruneSettings(sparsity=0.3, rules=(Rule(("re:up",), sparsity=0.5),))
    text = shown(plan_screen(small_plan(settings), "my-model", everything=True), monkeypatch)
    check_lines(text, width)
    assert row(text, "layers.0.up.weight")[1:] == ["10x8", "prune", "unstructured", "(re:up)"]
    assert row(text, "layers.0.odd.weight")[1:] == ["10x6", "prune", "unstructured", "(default)"]


def test_plan_document_has_exact_numbers() -> None:
    document = small_plan(PruneSettings(sparsity=0.4)).to_json()
    (pool,) = document["pools"]
    assert (pool["weights"], pool["zeros"], pool["scope"]) == (140, 56, "global")
    assert document["weights"] == 400 + 140 + 8
    assert [t["action"] for t in document["tensors"]] == ["copy", "prune", "prune", "copy"]
    budget = small_plan(PruneSettings(sparsity=0.2, pattern=NM(2, 4))).to_json()
    assert budget["pools"][0]["zeros"] == 28
    # Only the 80 weights of one matrix fit 2:4, so 40 zeros are the most there can be.
    most = small_plan(PruneSettings(sparsity=0.49, pattern=NM(2, 4))).to_json()
    assert most["pools"][0]["zeros"] == 40


# --- progress -------------------------------------------------------------------------------


def test_lines_of_progress_come_once_a_minute() -> None:
    said: list[str] = []
    told: list[Note] = []
    clock = [0.0]
    listen = LineProgress(said.append, told.append, clock=lambda: clock[0])
    listen(PhaseStarted("reading", 4_000_000_000))
    for clock[0] in range(0, 200, 5):
        listen(Advanced("reading", 100_000_000, "a.weight"))
    assert said == [
        "reading: 1.30 GB of 4.00 GB (32%), 21.7 MB/s, 2 min 05 s left",
        "reading: 2.50 GB of 4.00 GB (62%), 20.8 MB/s, 1 min 12 s left",
        "reading: 3.70 GB of 4.00 GB (92%), 20.6 MB/s, 15 s left",
    ]
    listen(PhaseDone("reading"))
    clock[0] = 1000
    listen(Advanced("reading", 1))
    assert len(said) == 3
    listen(Note("odd", warning=True))
    assert told == [Note("odd", warning=True)]


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Replace stderr; not a fixture, since pytest replaces it again before the test itself."""
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    return stderr


def work(out: Output) -> None:
    with out.progress() as on_event:
        on_event(PhaseStarted("reading [x]", 4_000_000))
        on_event(Advanced("reading [x]", 1_000_000, "a.weight"))
        on_event(Note("half of it is odd", warning=True))
        on_event(Advanced("reading [x]", 3_000_000))
        on_event(PhaseDone("reading [x]"))


def test_a_terminal_shows_a_bar_with_bytes_and_the_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    work(Output())
    drawn = terminal.getvalue()
    assert "reading [x]" in drawn
    assert "of 4.00 MB" in drawn
    assert "warning: half of it is odd\n" in drawn


def test_the_bar_says_what_is_done_before_anything_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    phase = "writing weights"
    terminal = on_a_terminal(monkeypatch)
    told = Note("look at the screen")  # a note makes rich draw at once
    with Output().progress() as on_event:
        on_event(told)
        assert "preparing" in terminal.getvalue()
        terminal.truncate(terminal.seek(0))
        on_event(PhaseStarted(phase, 4_000_000))
        on_event(told)
        assert phase in terminal.getvalue()
        assert "preparing" not in terminal.getvalue()
        on_event(Advanced(phase, 4_000_000))
        on_event(PhaseDone(phase))
        terminal.truncate(terminal.seek(0))
        on_event(told)
        assert "working" in terminal.getvalue()
        assert phase not in terminal.getvalue()


@pytest.mark.parametrize(
    ("variable", "value"), [("HF_HUB_DISABLE_PROGRESS_BARS", "1"), ("TERM", "dumb")]
)
def test_bars_can_be_switched_off(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = on_a_terminal(monkeypatch)
    monkeypatch.setenv(variable, value)
    work(Output())
    assert terminal.getvalue() == "warning: half of it is odd\n"


def test_no_color_draws_bars_without_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    work(Output())
    assert "\x1b[32m" in terminal.getvalue()
    terminal.truncate(0)
    monkeypatch.setenv("NO_COLOR", "1")
    work(Output())
    assert "of 4.00 MB" in terminal.getvalue()
    assert "\x1b[32m" not in terminal.getvalue()


def test_quiet_and_pipes_draw_no_bars(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = on_a_terminal(monkeypatch)
    work(Output(quiet=True))
    assert terminal.getvalue() == "warning: half of it is odd\n"
    monkeypatch.undo()
    work(Output())
    assert capsys.readouterr() == ("", "warning: half of it is odd\n")
