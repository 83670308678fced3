"""Measuring, refining and selecting against concatenation and sorting."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
from full import drawn
from hypothesis import given, settings
from hypothesis import strategies as st
from magnitude_reference import FLOATS, blocks, seeds, sizes, torch_values, weights
from test_masks import nm_reference

from prunectl.magnitude.codes import code_format
from prunectl.magnitude.histogram import Histogram, Spans
from prunectl.magnitude.measure import Measurement, PatternMeasure, TensorMeasure
from prunectl.magnitude.refine import Refiner
from prunectl.magnitude.select import cut_for, quantile_bins, quantiles, resolve
from prunectl.pattern import NM
from prunectl.tensorspec import DTYPES, DType

dtypes = st.sampled_from(FLOATS)


def measured(dtype: DType, parts: list[np.ndarray]) -> Measurement:
    measure = TensorMeasure(dtype)
    for part in parts:
        measure.update(part)
    return measure.finish()


def refined(dtype: DType, parts: list[np.ndarray], bins: Spans) -> Histogram:
    refiner = Refiner(dtype, bins)
    for part in parts:
        refiner.update(part)
    return refiner.finish()


def refined_fully(dtype: DType, codes: np.ndarray) -> Histogram:
    h = measured(dtype, [codes]).histogram
    while wide := [(int(s), int(w)) for s, w in zip(h.starts, h.log2_widths, strict=True) if w]:
        for i in range(0, len(wide), 64):
            h = h.refined(refined(dtype, [codes], wide[i : i + 64]))
    return h


@given(dtype=dtypes, size=sizes, seed=seeds, inf=st.booleans(), nan=st.booleans())
def test_measurement(dtype: DType, size: int, seed: int, inf: bool, nan: bool) -> None:
    codes = weights(dtype, size, seed, inf=inf, nan=nan)
    found = measured(dtype, blocks(codes, seed))
    got = found.facts
    values = torch_values(dtype, codes)
    finite, real = values[np.isfinite(values)], values[~np.isnan(values)]
    assert (got.numel, got.zeros) == (size, (values == 0).sum())
    assert (got.nans, got.infs) == (np.isnan(values).sum(), np.isinf(values).sum())
    assert found.histogram.numel == real.size
    if real.size:
        assert (got.minimum, got.maximum) == (real.min(), real.max())
    else:
        assert math.isnan(got.minimum)
        assert math.isnan(got.maximum)
    if not finite.size:
        assert (got.mean, got.std) == (0.0, 0.0)
        return
    scale = math.fsum(np.abs(finite))
    assert got.sum == pytest.approx(math.fsum(finite), rel=1e-12, abs=1e-13 * scale)
    assert got.norm_squared == pytest.approx(math.fsum(finite**2), rel=1e-12)
    assert got.norm_squared == pytest.approx(found.histogram.energies.sum(), rel=1e-12)
    variance = np.var(finite / scale) * scale**2 if scale else 0.0
    assert got.std**2 == pytest.approx(variance, rel=1e-9, abs=1e-9 * got.norm_squared)


def test_fp64_sums_may_overflow_but_not_fail() -> None:
    codes = np.array([1e300, -1e300, 1e308, 1e308, 1.0]).view(np.uint64)
    got = measured(DTYPES["F64"], [codes]).facts
    assert got.norm_squared == math.inf
    assert got.maximum == 1e308
    assert refined_fully(DTYPES["F64"], codes).numel == 5


@given(dtype=st.sampled_from([d for d in FLOATS if d.bits <= 16]), size=sizes, seed=seeds)
def test_narrow_measurements_do_not_depend_on_blocks(dtype, size, seed) -> None:
    codes = weights(dtype, size, seed)
    a, b = measured(dtype, [codes]), measured(dtype, blocks(codes, seed)[::-1])
    facts = [(m.sum, m.norm_squared, m.minimum, m.maximum) for m in (a.facts, b.facts)]
    if size:
        assert facts[0] == facts[1]
    assert a.histogram.to_bytes() == b.histogram.to_bytes()


@given(
    dtype=drawn(FLOATS, *(one for one in FLOATS if one.bits < 64)), size=sizes, seed=seeds,
    inf=st.booleans(), nan=st.booleans(),
)  # fmt: skip
def test_refining_ends_in_exact_counts(dtype, size, seed, inf, nan) -> None:
    codes = weights(dtype, size, seed, inf=inf, nan=nan)
    f = code_format(dtype)
    m = (codes & f.uint.type(f.mask)).astype(np.uint64)
    starts, counts = np.unique(m[m < f.nan_code], return_counts=True)
    h = refined_fully(dtype, codes)
    assert np.array_equal(h.starts, starts)
    assert np.array_equal(h.counts, counts)


@given(dtype=st.sampled_from([DTYPES["F32"], DTYPES["F64"]]), seed=seeds)
@settings(max_examples=20)
def test_refiner_of_many_hits_equals_that_of_few(dtype: DType, seed: int) -> None:
    codes = weights(dtype, 150_000, seed, nan=True)
    h = measured(dtype, [codes]).histogram
    bins = list(zip(h.starts.tolist(), h.log2_widths.tolist(), strict=True))
    bins = [b for b in bins if b[1]][:64]
    fine = refined(dtype, blocks(codes, seed), bins)
    known = [refined(dtype, [p], bins) for p in np.array_split(codes, 9)]
    assert fine.numel == sum(k.numel for k in known)
    for start, log in bins:
        inside = (fine.starts >= start) & (fine.starts < start + (1 << log))
        at = int(np.searchsorted(h.starts, start))
        assert fine.counts[inside].sum() == h.counts[at]
        assert np.sum(fine.energies[inside]) == pytest.approx(h.energies[at], rel=1e-9)


def test_refiner_refuses_bins_it_cannot_split() -> None:
    for bins in ([(0, 0)], [(1, 15)], [(0, 16)], [(0, 15), (0, 14)]):
        with pytest.raises(ValueError, match="refine"):
            Refiner(DTYPES["F32"], bins)


class Model:
    """Tensors in memory, seen through the interface of a store; counts the passes."""

    def __init__(self, tensors: dict[str, tuple[DType, np.ndarray]]) -> None:
        self.tensors = tensors
        self.passes = 0
        self.names = list(tensors)

    def get(self, name: str) -> Histogram:
        dtype, codes = self.tensors[name]
        return measured(dtype, [codes]).histogram

    def refine(self, bins: dict[str, Spans]) -> Iterator[tuple[str, Histogram]]:
        self.passes += 1
        for name, spans in bins.items():
            assert spans
            dtype, codes = self.tensors[name]
            yield name, refined(dtype, [codes], spans)


@given(
    kinds=st.lists(st.tuples(dtypes, st.integers(0, 4000)), min_size=1, max_size=5),
    seed=seeds,
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=5),
    inf=st.booleans(),
)
def test_resolve_is_the_sorted_concatenation(kinds, seed, shares, inf) -> None:
    model = Model(
        {
            f"t{i}": (dtype, weights(dtype, size, seed + i, inf=inf))
            for i, (dtype, size) in enumerate(kinds)
        }
    )
    values = {n: np.abs(torch_values(*t)) for n, t in model.tensors.items()}
    everything = np.sort(np.concatenate(list(values.values())))
    if not everything.size:
        return
    ranks = [max(1, round(s * everything.size)) for s in shares]
    for k, got in zip(ranks, resolve(model, ranks, model.refine), strict=True):
        want = everything[k - 1]
        assert got.value == want
        assert (got.below, got.at) == ((everything < want).sum(), (everything == want).sum())
        for name, (dtype, codes) in model.tensors.items():
            f = code_format(dtype)
            code, has_ties = cut_for(got, f)
            m = codes & f.uint.type(f.mask)
            assert np.array_equal(m < code, values[name] < want)
            assert np.array_equal((m == code) & has_ties, values[name] == want)
    present = {d.bits for d, _ in kinds}
    if max(present) <= 16:
        assert model.passes == 0
    elif {d.name for d, _ in kinds} == {"F32"}:
        assert model.passes <= 1
    elif {d.name for d, _ in kinds} == {"F64"}:
        assert model.passes <= 3


def test_resolve_refuses_ranks_and_lies() -> None:
    codes = weights(DTYPES["F32"], 1000, 2)
    model = Model({"a": (DTYPES["F32"], codes)})
    for rank in (0, 1001):
        with pytest.raises(ValueError, match="ranks"):
            resolve(model, [rank], model.refine)
    assert resolve(model, [], model.refine) == []
    with pytest.raises(ValueError, match="coarse"):
        resolve(model, [500], lambda bins: iter(()))


def test_resolve_starts_from_histograms_that_are_refined_in_part() -> None:
    dtype = DTYPES["F32"]
    model = Model({n: (dtype, weights(dtype, 5000, i)) for i, n in ((2, "a"), (4, "b"))})
    exact = refined_fully(*model.tensors["a"])
    plain = model.get
    model.get = lambda name: exact if name == "a" else plain(name)  # type: ignore[method-assign]
    everything = np.sort(np.abs(np.concatenate([torch_values(*t) for t in model.tensors.values()])))
    (got,) = resolve(model, [6000], model.refine)
    assert got.value == everything[5999]
    assert got.below == (everything < got.value).sum()


@given(dtype=dtypes, size=st.integers(1, 5000), seed=seeds, qs=st.lists(st.floats(0, 1)))
def test_quantiles(dtype: DType, size: int, seed: int, qs: list[float]) -> None:
    codes = weights(dtype, size, seed)
    qs = [*qs, 0.0, 0.1, 0.5, 1.0]
    h = measured(dtype, [codes]).histogram
    while bins := quantile_bins(h, qs):
        with pytest.raises(ValueError, match="refine"):
            quantiles(h, qs)
        h = h.refined(refined(dtype, [codes], bins))
    ordered = np.sort(np.abs(torch_values(dtype, codes)))
    got = quantiles(h, qs)
    assert got[-3:] == [ordered[k - 1] for k in ((size + 9) // 10, (size + 1) // 2, size)]
    assert got == np.quantile(ordered, qs, method="inverted_cdf").tolist() or size > 9


@given(
    kind=drawn(
        [(dtype, nm) for dtype in FLOATS for nm in (NM(2, 4), NM(1, 3), NM(4, 8))],
        (DTYPES["BF16"], NM(2, 4)), (DTYPES["BF16"], NM(4, 8)), (DTYPES["F32"], NM(2, 4)),
    ),
    inner=st.sampled_from([0, 1, 3, 700]),
    groups=st.sampled_from([1, 5, 130]),
    seed=seeds,
)  # fmt: skip
def test_pattern_measure_says_what_nm_does(kind, inner, groups, seed) -> None:
    dtype, pattern = kind
    axis, inner = groups * pattern.m, max(1, inner)
    codes = weights(dtype, 2 * axis * inner, seed, inf=True).reshape(2, axis, inner)
    measure = PatternMeasure(dtype, pattern)
    for block in codes:
        measure.update(block[None])
    got = measure.finish()
    after = nm_reference(codes, pattern.n, pattern.m)
    lost = torch_values(dtype, codes[after != codes])
    energy = (lost[np.isfinite(lost)] ** 2).sum()
    assert got.groups == 2 * groups * inner
    assert got.zeros_after == (torch_values(dtype, after) == 0).sum()
    assert got.lost_energy == pytest.approx(energy, rel=1e-12)


def test_pattern_measure_wants_whole_groups() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        PatternMeasure(DTYPES["BF16"], NM(2, 4)).update(np.zeros((1, 6, 1), np.uint16))
