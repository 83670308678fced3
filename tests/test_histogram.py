"""Histograms: counting, selecting, refining, merging, and records from damaged caches."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from magnitude_reference import FLOATS, seeds, weights

from prunectl.magnitude.codes import CodeFormat, code_format
from prunectl.magnitude.histogram import Histogram
from prunectl.magnitude.store import HistogramStore
from prunectl.tensorspec import DTYPES, DType

dtypes = st.sampled_from(FLOATS)


@np.errstate(over="ignore")
def histogram_of(format: CodeFormat, magnitudes: np.ndarray, log: int) -> Histogram:
    """The plain way, all bins 2**log wide."""
    starts, counts = np.unique(magnitudes.astype(np.uint64) >> log << log, return_counts=True)
    values = format.values(magnitudes.astype(format.uint)) ** 2
    energies = [values[magnitudes.astype(np.uint64) >> log << log == s].sum() for s in starts]
    logs = np.full(starts.size, log, np.uint8)
    return Histogram(format, starts, logs, counts, np.array(energies, float))


def magnitudes_of(dtype: DType, size: int, seed: int) -> tuple[CodeFormat, np.ndarray]:
    f = code_format(dtype)
    return f, np.sort((weights(dtype, size, seed) & f.uint.type(f.mask)).astype(np.uint64))


def same(a: Histogram, b: Histogram) -> bool:
    pairs = ((a.starts, b.starts), (a.log2_widths, b.log2_widths), (a.counts, b.counts))
    return a.format == b.format and all(np.array_equal(x, y) for x, y in pairs)


@given(dtype=dtypes, size=st.integers(1, 3000), seed=seeds)
def test_exact_histogram_counts_and_selects(dtype: DType, size: int, seed: int) -> None:
    f, m = magnitudes_of(dtype, size, seed)
    h = histogram_of(f, m, 0)
    assert h.numel == size
    for code in {int(m[0]), int(m[-1]), int(m[size // 2]), int(m[size // 2]) + 1, f.mask}:
        assert h.count_below(code) == (m < code).sum()
        assert h.count_at(code) == (m == code).sum()
        low = f.values(m[m < code].astype(f.uint))
        with np.errstate(over="ignore"):
            assert h.energy_below(code) == pytest.approx((low**2).sum(), rel=1e-12)
    for k in {1, size, (size + 1) // 2}:
        chosen = h.select(k)
        assert (chosen.start, chosen.log2_width) == (m[k - 1], 0)
        assert chosen.below == (m < m[k - 1]).sum()
    for k in (0, size + 1):
        with pytest.raises(ValueError, match="rank"):
            h.select(k)


@given(dtype=dtypes, size=st.integers(1, 3000), seed=seeds, log=st.integers(1, 6))
def test_wide_bins_refuse_what_they_do_not_know(dtype, size, seed, log) -> None:
    f, m = magnitudes_of(dtype, size, seed)
    h = histogram_of(f, m, log)
    start = int(h.starts[0])
    assert h.count_below(start) == 0
    with pytest.raises(ValueError, match="inside"):
        h.count_below(start + 1)
    with pytest.raises(ValueError, match="many codes"):
        h.count_at(start)
    k = h.numel
    chosen = h.select(k)
    assert chosen.start <= m[k - 1] < chosen.start + (1 << chosen.log2_width)


@given(dtype=dtypes, size=st.integers(1, 2000), seed=seeds, log=st.integers(1, 6))
def test_refined_is_the_exact_one(dtype, size, seed, log) -> None:
    f, m = magnitudes_of(dtype, size, seed)
    h = histogram_of(f, m, log)
    assert same(h.refined(histogram_of(f, m, 0)), histogram_of(f, m, 0))
    one = m[m >> log == m[size // 2] >> log]
    mixed = h.refined(histogram_of(f, one, 0))
    assert mixed.numel == size
    assert mixed.count_at(int(one[0])) == (m == one[0]).sum()
    with pytest.raises(ValueError, match="add up"):
        h.refined(histogram_of(f, np.append(one, one[-1]), 0))


@given(dtype=dtypes, size=st.integers(0, 3000), seed=seeds)
def test_octaves(dtype: DType, size: int, seed: int) -> None:
    f = code_format(dtype)
    codes = weights(dtype, size, seed, inf=True)
    m = codes & f.uint.type(f.mask)
    values = f.values(m)
    got = histogram_of(f, m, 0).octaves()
    real = values[(values > 0) & np.isfinite(values)]
    exponents, counts = np.unique(np.frexp(real)[1] - 1, return_counts=True)
    assert (got.zeros, got.infs) == ((values == 0).sum(), np.isinf(values).sum())
    assert np.array_equal(got.exponents, exponents)
    assert np.array_equal(got.counts, counts)


@given(dtype=dtypes, size=st.integers(0, 3000), seed=seeds, log=st.sampled_from([0, 3]))
def test_bytes_round_trip(dtype, size, seed, log) -> None:
    f, m = magnitudes_of(dtype, size, seed)
    h = histogram_of(f, m, log)
    back = Histogram.from_bytes(h.to_bytes())
    assert same(h, back)
    assert h.energies.tobytes() == back.energies.tobytes()


def test_huge_counts_survive() -> None:
    f = code_format(DTYPES["BF16"])
    h = Histogram(f, np.array([3, 9]), np.zeros(2), np.array([2**61, 5]), np.zeros(2))
    assert Histogram.from_bytes(h.to_bytes()).count_below(9) == 2**61


@given(seed=seeds, at=st.integers(0, 10**6), bit=st.integers(0, 7), cut=st.booleans())
def test_damaged_bytes_are_refused(seed: int, at: int, bit: int, cut: bool) -> None:
    f, m = magnitudes_of(DTYPES["F32"], 300, seed)
    data = bytearray(histogram_of(f, m, 15).to_bytes())
    at %= len(data)
    if cut:
        del data[at:]
    else:
        data[at] ^= 1 << bit
    with pytest.raises(ValueError, match="damaged"):
        Histogram.from_bytes(bytes(data))


@pytest.mark.parametrize(
    ("starts", "logs", "counts", "energies", "why"),
    [
        ([4, 3], [0, 0], [1, 1], [0, 0], "order"),
        ([4, 4], [0, 0], [1, 1], [0, 0], "order"),
        ([4, 5], [1, 0], [1, 1], [0, 0], "overlap"),
        ([3], [1], [1], [0], "multiple"),
        ([3], [0], [0], [0], "empty"),
        ([4], [1], [1], [np.nan], "energy"),
        ([4], [1], [1], [-1.0], "energy"),
        ([0x7F81], [0], [1], [0], "outside"),
        ([0], [16], [1], [0], "outside"),
        ([1, 2], [0], [1], [0], "shape"),
    ],
)
def test_impossible_histograms(starts, logs, counts, energies, why) -> None:
    f = code_format(DTYPES["BF16"])
    with pytest.raises(ValueError, match=why):
        Histogram(f, *(np.array(a) for a in (starts, logs, counts, energies)))


def test_histograms_are_immutable() -> None:
    f, m = magnitudes_of(DTYPES["BF16"], 100, 0)
    with pytest.raises(ValueError, match="read-only"):
        histogram_of(f, m, 0).counts[0] = 7


def filled_store() -> tuple[HistogramStore, dict[str, Histogram]]:
    store, all_of_them = HistogramStore(), {}
    for i, dtype in enumerate(FLOATS * 3):
        f, m = magnitudes_of(dtype, 50 * i, i)
        all_of_them[f"layer.{i}"] = histogram_of(f, m, i % 2)
        store.append(f"layer.{i}", all_of_them[f"layer.{i}"])
    return store, all_of_them


def test_store_gives_back_and_dumps() -> None:
    store, want = filled_store()
    file = io.BytesIO()
    with store:
        assert list(store.names) == list(want)
        assert all(same(store.get(n), h) for n, h in want.items())
        with pytest.raises(ValueError, match="already"):
            store.append("layer.0", want["layer.0"])
        store.dump(file)
    file.seek(0)
    with HistogramStore.load(file) as loaded:
        assert len(loaded) == len(want)
        assert all(same(loaded.get(n), h) for n, h in want.items())
        with pytest.raises(KeyError):
            loaded.get("layer.x")


@given(at=st.integers(0, 10**6), change=st.sampled_from(["flip", "cut", "append"]))
def test_damaged_store_is_refused(at: int, change: str) -> None:
    store, _ = filled_store()
    file = io.BytesIO()
    with store:
        store.dump(file)
    data = bytearray(file.getvalue())
    names = data.index(b"[[")
    at %= len(data)
    if change == "flip":
        while names <= at < data.index(b"]]"):  # a name may be any text
            at += 1
        data[at] ^= 4
    elif change == "cut":
        del data[at:]
    else:
        data += b"x"
    with pytest.raises(ValueError, match=r"damaged|not a histogram"):
        HistogramStore.load(io.BytesIO(bytes(data)))


def test_an_impossible_record_with_a_right_checksum_is_refused_at_loading() -> None:
    f = code_format(DTYPES["BF16"])
    columns = (np.array([5, 5], np.uint64), np.zeros(2, np.uint8), np.array([1, 1]), np.zeros(2))
    file = io.BytesIO()
    with HistogramStore() as store:
        store.append("a", Histogram.trusted(f, *columns))
        store.dump(file)
    file.seek(0)
    with pytest.raises(ValueError, match="bins overlap"):
        HistogramStore.load(file)


def test_a_replaced_histogram_is_the_one_that_is_given_and_dumped() -> None:
    f, m = magnitudes_of(DTYPES["F32"], 500, 3)
    coarse, fine = histogram_of(f, m, 4), histogram_of(f, m, 0)
    file = io.BytesIO()
    with HistogramStore() as store:
        store.append("a", coarse)
        store.append("b", coarse)
        assert same(store.get("a"), coarse)
        store.replace("a", fine)
        assert list(store.names) == ["a", "b"]
        assert same(store.get("a"), fine)
        assert same(store.get("b"), coarse)
        with pytest.raises(KeyError):
            store.replace("c", fine)
        store.dump(file)
    file.seek(0)
    with HistogramStore.load(file) as loaded:
        assert same(loaded.get("a"), fine)
        assert same(loaded.get("b"), coarse)
