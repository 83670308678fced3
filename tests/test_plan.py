"""Plans: what happens to every tensor, from names and shapes alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunectl.checkpoint.roles import Role, TensorRole
from prunectl.errors import (
    InvalidOption,
    InvalidSparsity,
    NothingPrunable,
    UsageError,
)
from prunectl.pattern import NM, Unstructured
from prunectl.plan.plan import Plan, make_plan
from prunectl.plan.selectors import matches
from prunectl.plan.settings import PruneSettings, Rule, Scope, check_complete, check_sparsity
from prunectl.tensorspec import DTYPES, TensorSpec

NM24 = NM(2, 4)


def spec(name: str, shape: tuple[int, ...] = (8, 8), dtype: str = "F32") -> TensorSpec:
    return TensorSpec(name, DTYPES[dtype], shape)


def linear(axis: int | None = 1) -> TensorRole:
    return TensorRole(Role.LINEAR, input_axis=axis)


# Two blocks of two matrices, and what is around them.
MODEL: list[tuple[TensorSpec, TensorRole]] = [
    (spec("embed.weight", (100, 8)), TensorRole(Role.EMBEDDING)),
    (spec("layers.0.attn.q.weight"), linear()),
    (spec("layers.0.mlp.up.weight", (16, 8)), linear()),
    (spec("layers.0.norm.weight", (8,)), TensorRole(Role.NORM)),
    (spec("layers.1.attn.q.weight"), linear()),
    (spec("layers.1.mlp.up.weight", (16, 8)), linear()),
    (spec("layers.1.mlp.up.bias", (16,)), TensorRole(Role.BIAS)),
    (spec("head.weight", (100, 8)), TensorRole(Role.HEAD)),
]
QS = ("layers.0.attn.q.weight", "layers.1.attn.q.weight")
UPS = ("layers.0.mlp.up.weight", "layers.1.mlp.up.weight")
LINEARS = (QS[0], UPS[0], QS[1], UPS[1])


def plan(model: list[tuple[TensorSpec, TensorRole]] = MODEL, **settings: Any) -> Plan:
    settings = {"sparsity": 0.5} | settings
    return make_plan(
        [spec for spec, _ in model],
        {spec.name: role for spec, role in model},
        PruneSettings(**settings),
    )


def reasons(made: Plan) -> dict[str, str]:
    return {entry.spec.name: entry.reason for entry in made.tensors}


def pruned(made: Plan) -> set[str]:
    return {entry.spec.name for entry in made.tensors if entry.pool is not None}


# --- what is pruned ---------------------------------------------------------------------------


def test_block_linears_are_pruned_and_the_rest_says_why_not() -> None:
    made = plan()
    assert [entry.spec.name for entry in made.tensors] == [spec.name for spec, _ in MODEL]
    assert pruned(made) == set(LINEARS)
    assert reasons(made) == dict.fromkeys(LINEARS, "") | {
        "embed.weight": "embedding is not pruned by default",
        "layers.0.norm.weight": "norm is not pruned by default",
        "layers.1.mlp.up.bias": "bias is not pruned by default",
        "head.weight": "head is not pruned by default",
    }
    assert made.prunable_weights == 2 * (64 + 128)
    assert made.weights == 2 * (64 + 128) + 1600 + 24
    (pool,) = made.pools
    assert (pool.label, pool.members, pool.weights) == ("default", LINEARS, 384)
    assert (pool.pattern, pool.scope, pool.sparsity) == (Unstructured(), Scope.GLOBAL, 0.5)
    assert pool.target_zeros == 192
    assert not pool.is_budget


@pytest.mark.parametrize(
    ("selector", "name", "matched"),
    [
        ("layers.0.attn.q.weight", "layers.0.attn.q.weight", True),
        ("layers.0", "layers.0.attn.q.weight", True),
        ("layers.0", "layers.01.attn.q.weight", False),
        ("layers", "layers.0", True),
        ("attn", "layers.0.attn.q.weight", False),
        ("*.attn.*", "layers.0.attn.q.weight", True),
        ("*attn*", "layers.0.attn.q.weight", True),
        ("layers.?.attn*", "layers.10.attn.q.weight", False),
        ("layers.[01].*", "layers.1.x", True),
        ("LAYERS.0", "layers.0.x", False),
        ("re:attn", "layers.0.attn.q.weight", True),
        ("re:^attn", "layers.0.attn.q.weight", False),
        (r"re:layers\.\d+\.", "layers.12.x", True),
        (r"re:layers\.[0-3]\.", "layers.12.x", False),
        (r"re:^layers\.(?!0\.)\d+", "layers.0.x", False),
        (r"re:(\d)\.\1", "layers.1.1.x", True),
        (r"re:a\{9999999\}", "a{9999999}.x", True),
    ],
)
def test_selectors(selector: str, name: str, matched: bool) -> None:
    assert matches(selector, name) == matched


def test_include_adds_and_exclude_takes_and_wins() -> None:
    made = plan(include=("embed.weight", "head.weight"), exclude=("head.weight", "layers.1"))
    assert pruned(made) == {"embed.weight", LINEARS[0], LINEARS[1]}
    assert reasons(made)["head.weight"] == "excluded"
    assert reasons(made)[UPS[1]] == "excluded"
    assert made.prunable_weights == 800 + 64 + 128


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (spec("x", (8, 8), "I8"), "int8 has no magnitudes"),
        (spec("x", (8, 8), "F8_E4M3"), "fp8-e4m3 can be analyzed, not pruned"),
        (spec("x", (8, 8), "F8_E5M2FNUZ"), "fp8-e5m2fnuz has no magnitudes"),
        (spec("x", (0, 8)), "empty"),
        (spec("x", (8,)), "not a matrix"),
    ],
)
def test_linears_that_cannot_be_pruned(tensor: TensorSpec, reason: str) -> None:
    made = plan([*MODEL, (tensor, linear())])
    assert reasons(made)["x"] == reason
    assert "x" not in made.pools[0].members
    # Whether fp8 or empty, include changes nothing of it.
    if reason != "not a matrix":
        assert reasons(plan([*MODEL, (tensor, linear())], include=("x",)))["x"] == reason


# --- N:M --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "axis", "pattern", "reason"),
    [
        ((5, 8), 1, NM24, ""),
        ((8, 5), 0, NM24, ""),
        ((8, 5), 1, NM24, "input dimension 5 is not divisible by 4"),
        ((5, 8), 0, NM24, "input dimension 5 is not divisible by 4"),
        ((8, 2), 1, NM24, "input dimension 2 is smaller than 4"),
        ((8, 16), 1, NM(8, 16), ""),
        ((8, 8), 1, NM(8, 16), "input dimension 8 is smaller than 16"),
        ((3, 4, 7), 1, NM24, ""),
        ((3, 4, 7), 2, NM24, "input dimension 7 is not divisible by 4"),
        ((8, 8), None, NM24, ""),
        ((8, 5), None, NM24, "input dimension 5 is not divisible by 4"),
        ((2, 8, 8), None, NM24, "its input dimension is unknown, which N:M needs"),
        ((8, 5), 1, Unstructured(), ""),
    ],
)
def test_which_matrices_fit_a_pattern(
    shape: tuple[int, ...], axis: int | None, pattern: Any, reason: str
) -> None:
    model = [(spec("fits", (16, 16)), linear()), (spec("x", shape), linear(axis))]
    sparsity = 0.5 if pattern == Unstructured() else None
    made = plan(model, sparsity=sparsity, pattern=pattern)
    entry = made.tensors[1]
    assert entry.reason == reason
    assert entry.prunable
    assert (entry.pool, entry.pattern) == ((None, None) if reason else (0, pattern))
    # Misfits stay in the denominator: the sparsity is one of all prunable weights.
    assert made.pools[0].members == ("fits", "x")
    assert made.pools[0].weights == 256 + math.prod(shape) == made.prunable_weights


@pytest.mark.parametrize(
    ("sparsity", "pattern", "zeros", "budget"),
    [
        (None, NM24, 192, False),
        (0.5, NM24, 192, False),
        (0.4, NM24, 154, True),
        (0.25, NM24, 96, True),
        (None, NM(1, 4), 288, False),
        (0.7, NM(1, 4), 269, True),
        (0.4, Unstructured(), 154, False),
    ],
)
def test_targets_and_budgets(
    sparsity: float | None, pattern: Any, zeros: int, budget: bool
) -> None:
    (pool,) = plan(sparsity=sparsity, pattern=pattern).pools
    assert (pool.target_zeros, pool.is_budget) == (zeros, budget)


# --- recipes ----------------------------------------------------------------------------------


def test_the_first_rule_that_matches_decides() -> None:
    made = plan(
        sparsity=0.5,
        rules=(
            Rule(("layers.1.mlp",), skip=True),
            Rule(("*.mlp.*",), sparsity=0.25),
            Rule(("layers.1",), sparsity=0.75),
        ),
    )
    assert reasons(made)[UPS[1]] == "skipped by the recipe"
    assert [(p.label, p.sparsity, p.members) for p in made.pools] == [
        ("*.mlp.*", 0.25, (UPS[0],)),
        ("layers.1", 0.75, (QS[1],)),
        ("default", 0.5, (QS[0],)),
    ]
    by_name = {e.spec.name: e.pool for e in made.tensors}
    assert (by_name[UPS[0]], by_name[QS[1]], by_name[QS[0]], by_name[UPS[1]]) == (0, 1, 2, None)
    # Skipped tensors are not prunable any more: the sparsity is one of the rest.
    assert made.prunable_weights == 128 + 64 + 64


def test_pools_without_members_are_left_out() -> None:
    made = plan(rules=(Rule(("head",), sparsity=0.1), Rule(("*.q.*",), sparsity=0.3)))
    assert [pool.label for pool in made.pools] == ["*.q.*", "default"]
    assert {e.pool for e in made.tensors if e.spec.name in QS} == {0}
    assert {e.pool for e in made.tensors if e.spec.name in UPS} == {1}


def test_without_a_default_only_rules_prune() -> None:
    made = plan(sparsity=None, rules=(Rule(("*.q.*",), sparsity=0.3),))
    assert pruned(made) == set(QS)
    assert reasons(made)[UPS[0]] == "no rule matches it"


@pytest.mark.parametrize(
    ("settings", "rule", "expected"),
    [
        ({"sparsity": 0.4}, {}, (0.4, Unstructured(), Scope.GLOBAL)),
        ({"sparsity": 0.4, "scope": Scope.ROW}, {}, (0.4, Unstructured(), Scope.ROW)),
        ({"sparsity": 0.4}, {"scope": Scope.TENSOR}, (0.4, Unstructured(), Scope.TENSOR)),
        ({"sparsity": 0.6}, {"pattern": NM24}, (None, NM24, Scope.GLOBAL)),
        ({"sparsity": 0.6, "scope": Scope.ROW}, {"pattern": NM24}, (None, NM24, Scope.GLOBAL)),
        ({"sparsity": 0.6}, {"pattern": NM24, "sparsity": 0.3}, (0.3, NM24, Scope.GLOBAL)),
        ({"sparsity": 0.4, "pattern": NM24}, {}, (0.4, NM24, Scope.GLOBAL)),
        ({"sparsity": 0.4, "pattern": NM24}, {"pattern": Unstructured()},
         (0.4, Unstructured(), Scope.GLOBAL)),
        ({"sparsity": 0.4, "pattern": NM24}, {"pattern": NM24}, (0.4, NM24, Scope.GLOBAL)),
        ({"sparsity": 0.4, "pattern": NM24}, {"pattern": NM(1, 4)}, (None, NM(1, 4), Scope.GLOBAL)),
        ({"sparsity": None, "pattern": NM24}, {"sparsity": 0.2}, (0.2, NM24, Scope.GLOBAL)),
    ],
)  # fmt: skip
def test_what_a_rule_takes_from_the_defaults(
    settings: dict[str, Any], rule: dict[str, Any], expected: Any
) -> None:
    pool = plan(**settings, rules=(Rule(("*.q.*",), **rule),)).pools[0]
    assert pool.label == "*.q.*"
    assert (pool.sparsity, pool.pattern, pool.scope) == expected


@given(st.lists(st.sampled_from(["*.q.*", "*.up.*", "layers.0", "layers.1", "head"]), max_size=4),
       st.integers(0, 4))  # fmt: skip
def test_every_prunable_tensor_is_in_one_pool(selectors: list[str], skipped: int) -> None:
    rules = tuple(
        Rule((s,), skip=True) if i == skipped else Rule((s,), sparsity=0.1 * (i + 1))
        for i, s in enumerate(selectors)
    )
    try:
        made = plan(rules=rules)
    except NothingPrunable:
        return
    members = [name for pool in made.pools for name in pool.members]
    assert len(members) == len(set(members))
    assert set(members) == {e.spec.name for e in made.tensors if e.prunable}
    assert sum(pool.weights for pool in made.pools) == made.prunable_weights
    for entry in made.tensors:
        assert (entry.pool is None) == bool(entry.reason)
        if entry.pool is not None:
            first = next((r for r in rules if matches(r.match[0], entry.spec.name)), None)
            assert made.pools[entry.pool].label == (first.match[0] if first else "default")


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0, 1, -0.1, 40, 1.5, math.nan, math.inf, -math.inf, -0.0])
@pytest.mark.parametrize("pattern", [Unstructured(), NM24])
def test_sparsities_out_of_range(sparsity: float, pattern: Any) -> None:
    with pytest.raises(InvalidSparsity, match="between 0 and 1") as caught:
        plan(sparsity=sparsity, pattern=pattern)
    assert caught.value.exit_code == 2
    assert ("did you mean 0.4?" in caught.value.hint) == (sparsity == 40)


@pytest.mark.parametrize(
    ("sparsity", "pattern", "most"),
    [
        (0.6, NM24, "0.5"),
        (0.5001, NM24, "0.5"),
        (0.8, NM(1, 4), "0.75"),
        (0.1, NM(63, 64), "0.0156"),
    ],
)
def test_more_than_a_pattern_reaches(sparsity: float, pattern: NM, most: str) -> None:
    with pytest.raises(InvalidSparsity, match=f"pattern {pattern} .* at most {most}") as caught:
        plan(sparsity=sparsity, pattern=pattern)
    assert most in caught.value.hint


@pytest.mark.parametrize("pattern", [NM(1, 3), NM(2, 3), NM(1, 7), NM24, NM(63, 64)])
def test_exactly_what_a_pattern_reaches_is_fine(pattern: NM) -> None:
    check_sparsity(pattern.sparsity, pattern)
    check_sparsity(1 - pattern.n / pattern.m, pattern)


@pytest.mark.parametrize("scope", [Scope.TENSOR, Scope.ROW])
def test_a_scope_means_nothing_to_a_pattern(scope: Scope) -> None:
    with pytest.raises(InvalidOption, match=f"scope '{scope}' has no meaning with pattern 2:4"):
        plan(sparsity=None, pattern=NM24, scope=scope)
    with pytest.raises(InvalidOption, match=f"scope '{scope}'"):
        plan(rules=(Rule(("layers.0",), pattern=NM24, scope=scope),))


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        (Rule(("layers.0",), sparsity=0.0), InvalidSparsity),
        (Rule(("layers.0",), sparsity=math.nan), InvalidSparsity),
        (Rule(("layers.0",), sparsity=0.6, pattern=NM24), InvalidSparsity),
        (Rule(("layers.0",)), InvalidOption),
        (Rule(("layers.0", "layers.7"), sparsity=0.2), InvalidOption),
        (Rule(("re:[",), sparsity=0.2), InvalidOption),
        (Rule(("",), sparsity=0.2), InvalidOption),
    ],
)
def test_rules_that_cannot_be_meant(rule: Rule, error: type[UsageError]) -> None:
    with pytest.raises(error):
        plan(sparsity=None, rules=(rule,))


def test_no_target_at_all() -> None:
    with pytest.raises(InvalidOption, match="no sparsity given") as caught:
        plan(sparsity=None)
    assert "--sparsity" in caught.value.hint
    check_complete(PruneSettings(pattern=NM24))


@pytest.mark.parametrize(
    ("settings", "origin"),
    [
        ({"include": ("layers.7",)}, "--include: 'layers.7'"),
        ({"exclude": ("*.qq.*",)}, "--exclude: '*.qq.*'"),
        ({"exclude": ("layers.0", "re:zzz")}, "--exclude: 're:zzz'"),
        ({"rules": (Rule(("nothing",), skip=True),)}, "a recipe rule: 'nothing'"),
    ],
)
def test_a_selector_that_matches_nothing(settings: dict[str, Any], origin: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        plan(**settings)
    assert str(caught.value) == f"{origin} matches no tensor"


@pytest.mark.parametrize(
    "selector",
    [
        "",
        "re:",
        "re:(",
        "re:[a",
        "re:*",
        "re:x{99999999999}",
        "re:x{" + "9" * 5000 + "}",
        "re:(?a)(?u)x",
        "re:" + "(" * 5000 + ")" * 5000,
        # Two that an expression's matcher would take tens of gigabytes for.
        "re:x{99999999}",
        r"re:((\\{1000}){1000}){1000}",
        "re:a{0}|(?:x{1000}){1000}",
        "re:a{0,1}(?:(?:x{1,1000}){100}){100}",
        # Not Python's, though the matcher knows them.
        r"re:\p{L}",
        "re:(?R)",
    ],
    ids=lambda selector: selector[:20],
)
def test_selectors_that_are_none(selector: str) -> None:
    for place in ("include", "exclude"):
        with pytest.raises(InvalidOption, match=r"selector|regular expression"):
            PruneSettings(0.5, **{place: (selector,)})


@pytest.mark.parametrize("place", ["include", "exclude", "rules"])
def test_a_selector_that_takes_forever(place: str) -> None:
    selector = r"re:(\w|.|..)*[XYZ]"
    given = (Rule((selector,), sparsity=0.5),) if place == "rules" else (selector,)
    with pytest.raises(InvalidOption) as caught:
        plan(**{place: given})
    assert caught.value.message.startswith(f"'{selector}' takes more than ")
    assert "layers.0." in caught.value.message


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"exclude": ("layers",)}, "filters excluded all of them"),
        ({"rules": (Rule(("layers",), skip=True),)}, "filters excluded all of them"),
        ({"sparsity": None, "pattern": NM(8, 16)}, "input dimension 8 is smaller than 16"),
        (
            {"sparsity": None, "rules": (Rule(("head",), sparsity=0.5),)},
            "filters excluded all of them",
        ),
    ],
)
def test_nothing_left_to_prune(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(NothingPrunable, match="nothing to prune") as caught:
        plan(**settings)
    assert why in caught.value.why
    assert caught.value.exit_code == 2


def test_a_model_without_tensors_or_blocks() -> None:
    with pytest.raises(NothingPrunable):
        plan([])
    with pytest.raises(NothingPrunable):
        plan([MODEL[0]])
