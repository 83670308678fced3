"""Settings of a prune: sparsity, pattern, scope, selectors, rules, calibration."""

from __future__ import annotations

import numbers
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from prunectl.errors import InvalidOption, InvalidPattern, InvalidSparsity
from prunectl.methods.table import CALIBRATED, DEFAULT, UPDATING
from prunectl.methods.table import Method as Method
from prunectl.numbers import listed
from prunectl.option import CALIBRATION, DTYPES, PRUNING, Explained, Option
from prunectl.pattern import COMMON_PATTERNS, NM, Pattern, Unstructured, parse_pattern
from prunectl.pattern import Scope as Scope
from prunectl.plan.selectors import check_selector

ROW_BLOCK = 16
"""Rows that take a pattern together or stay dense together, as sparse kernels need."""


class Budget(Explained):
    """What takes an N:M pattern if the sparsity is below the pattern's own."""

    MATRIX = "matrix", "whole matrices take the pattern"
    ROWS = "rows", f"blocks of {ROW_BLOCK} rows in every matrix take it"


def _usual_scopes() -> str:
    """The scope of the default method, and those of the methods that have another."""
    others = dict.fromkeys(method.spec.scope for method in Method)
    del others[DEFAULT.spec.scope]
    users = {scope: [one for one in Method if one.spec.scope is scope] for scope in others}
    of_others = [f"{scope} for {listed(methods, 'and')}" for scope, methods in users.items()]
    return ", ".join([DEFAULT.spec.scope, *of_others])


Include = Annotated[
    tuple[str, ...],
    Option(
        "Also prune these tensors: a name, a module, a glob, re:EXPRESSION (repeatable).",
        "NAME",
        PRUNING,
    ),
]
Exclude = Annotated[
    tuple[str, ...],
    Option("Leave these tensors as they are (repeatable).", "NAME", PRUNING),
]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of a recipe; the first rule that matches a tensor decides.

    Attributes:
        match: selectors (see :func:`prunectl.plan.selectors.matches`).
        sparsity, pattern, scope: None means the recipe's or command's default.
        skip: leave these tensors dense.
    """

    match: tuple[str, ...]
    sparsity: float | None = None
    pattern: Pattern | None = None
    scope: Scope | None = None
    skip: bool = False

    def __post_init__(self) -> None:
        _normalise(self, selectors=("match",))


@dataclass(frozen=True, slots=True)
class Calibration:
    """Samples that are run forward, and how.

    Attributes:
        source: as :func:`prunectl.data.source.parse_source` reads it.
        samples: how many; sequence_length: tokens in each, at most what the model takes.
        seed: of the choice of samples.
        damping: added to the diagonal of the inputs' second moments, as a share of its mean; None
            for 0.01, or with ``reconstruct`` :func:`prunectl.calibration.matrix.damping_for`.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: of the forward: ``auto`` (fp32 on the CPU, the checkpoint's own elsewhere) or a name.

    Raises:
        InvalidOption: a number is out of range.
    """

    source: Annotated[
        tuple[str, ...],
        Option(
            "text:FILE, hf:DATASET[:CONFIG[:SPLIT[:COLUMN]]], images:FOLDER, pairs:FILE, random, "
            "or demo (repeatable for text). demo and models made from demo have their own.",
            "SOURCE",
            CALIBRATION,
            "--calibration",
        ),
    ] = ()
    samples: Annotated[int, Option("Calibration samples.", "N", CALIBRATION)] = 128
    sequence_length: Annotated[
        int, Option("Tokens in a sample, at most what the model takes.", "N", CALIBRATION)
    ] = 2048
    seed: Annotated[int, Option("Seed for choosing the samples.", "N", CALIBRATION)] = 0
    damping: Annotated[
        float | None,
        Option(
            "Added to the diagonal of the inputs' second moments, as a share of its mean "
            "(default: 0.01; with --reconstruct 0.01 to 0.2, more if there are fewer tokens).",
            "RATIO",
            CALIBRATION,
        ),
    ] = None
    device: str = "auto"
    dtype: Annotated[
        str,
        Option(
            "dtype the samples are run in; auto: float32 on the CPU, else the checkpoint's.",
            "DTYPE",
            CALIBRATION,
            values=DTYPES,
        ),
    ] = "auto"

    def __post_init__(self) -> None:
        given: object = self.source
        texts = (given,) if isinstance(given, str) else tuple(self.source)
        object.__setattr__(self, "source", texts)
        for name, least in (("samples", 1), ("sequence_length", 2)):
            if getattr(self, name) < least:
                option = name.replace("_", "-")
                raise InvalidOption(f"--{option} must be at least {least}")
        if self.damping is not None and not 0 < self.damping < 100:
            raise InvalidOption("--damping must be above 0 and below 100", hint="usually 0.01")


@dataclass(frozen=True, slots=True)
class PruneSettings:
    """Which weights to prune, and how.

    Values may be given as users write them: ``PruneSettings(sparsity=0.4, pattern="2:4")``,
    ``scope="row"``, one selector or a list of them.

    Attributes:
        sparsity: share of the prunable weights to be zero; None with N:M means all that fit.
        pattern: unstructured or N:M.
        scope: for unstructured pruning.
        include, exclude: selectors that add to, and take from, the prunable tensors; exclude wins.
        rules: a recipe's rules, in order.
        mask: a file of masks (docs/masks.md) that chooses the weights; excludes all of the above.
        method: how weights are chosen. All but the default need calibration.
        refine: change the kept weights so that each layer's output changes least under this mask
            (least squares on the calibration's inputs).
        reconstruct: then fit them to each block's outputs, and to the logits (gradient steps).
        calibration: the samples, for a method or refinement that needs them.
        budget: what takes an N:M pattern if ``sparsity`` is below the pattern's own.

    ``scope`` left out (None) is the method's usual one.

    Raises:
        UsageError: a value is not known, or two of them contradict one another.
    """

    sparsity: Annotated[
        float | None,
        Option(
            "Share of the prunable weights to be zero, 0 < S < 1. With N:M: only as many matrices "
            "take the pattern as that share needs; left out, all that fit.",
            "S",
            PRUNING,
            short="-s",
        ),
    ] = None
    pattern: Annotated[
        Pattern,
        Option(
            "'unstructured', or N:M: at most N kept of every M weights.",
            "PATTERN",
            PRUNING,
            short="-p",
            values=COMMON_PATTERNS,
            read=parse_pattern,
        ),
    ] = field(default_factory=Unstructured)
    scope: Annotated[
        Scope,
        Option(
            f"What is compared together (unstructured only); default: {_usual_scopes()}.",
            heading=PRUNING,
        ),
    ] = None  # type: ignore[assignment]  # the method's usual one
    include: Include = ()
    exclude: Exclude = ()
    rules: tuple[Rule, ...] = ()
    mask: Annotated[
        Path | None,
        Option(
            "Prune what the masks in FILE say, which 'prunectl export --masks-only' wrote.",
            "FILE",
            PRUNING,
            suffix=".safetensors",
        ),
    ] = None
    method: Annotated[
        Method,
        Option(
            f"How weights are chosen: by {DEFAULT}, or with calibration samples by "
            f"{listed(CALIBRATED)} ({listed(UPDATING, 'and')} also change the weights that stay).",
            "METHOD",
            PRUNING,
        ),
    ] = DEFAULT
    refine: Annotated[
        bool,
        Option(
            "After any method or mask, fit the kept weights to the layers' outputs on the "
            "calibration samples.",
            heading=CALIBRATION,
        ),
    ] = False
    reconstruct: Annotated[
        bool,
        Option(
            "After pruning, fit the kept weights by gradient steps: each block to the dense "
            "block's outputs, then a scale for every row and column to the dense logits. Slow.",
            heading=CALIBRATION,
        ),
    ] = False
    calibration: Calibration | None = None
    budget: Annotated[
        Budget,
        Option(
            "N:M with --sparsity: whole matrices take the pattern, or blocks of 16 rows in each.",
            heading=PRUNING,
        ),
    ] = Budget.MATRIX

    def __post_init__(self) -> None:
        for name, kind in (("method", Method), ("budget", Budget)):
            value = getattr(self, name)
            if value not in list(kind):
                hint = f"one of {', '.join(kind)}"
                raise InvalidOption(f"{name} '{value}' is not known", hint=hint)
            object.__setattr__(self, name, kind(value))
        given: object = self.scope
        if given is None:
            object.__setattr__(self, "scope", self.method.spec.scope)
        _normalise(self, selectors=("include", "exclude"))
        _check(self)

    @property
    def needs_calibration(self) -> bool:
        """Whether the settings need calibration samples."""
        return self.method.spec.is_calibrated or self.refine or self.reconstruct


def _normalise(settings: Rule | PruneSettings, selectors: tuple[str, ...]) -> None:
    """Convert values as users write them: ``"2:4"``, ``"row"``, one or more selectors."""

    def put(name: str, value: object) -> None:
        object.__setattr__(settings, name, value)  # frozen, but still being made

    given: object = settings.pattern
    if isinstance(given, str):
        put("pattern", parse_pattern(given))
    elif given is not None and not isinstance(given, Unstructured | NM):
        raise InvalidPattern(repr(given), "it is neither 'unstructured' nor N:M such as 2:4")
    if settings.scope is not None:
        try:
            put("scope", Scope(settings.scope))
        except ValueError:
            raise InvalidOption(
                f"scope '{settings.scope}' is not known", hint=f"one of {', '.join(Scope)}"
            ) from None
    value: object = settings.sparsity
    if value is not None:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise InvalidSparsity(repr(value), "it must be a number")
        put("sparsity", float(value))
    for name in selectors:
        given = getattr(settings, name)
        assert isinstance(given, Iterable)
        put(name, (given,) if isinstance(given, str) else tuple(given))
    if isinstance(settings, PruneSettings):
        put("rules", tuple(settings.rules))
        if settings.mask is not None:
            put("mask", Path(os.fspath(settings.mask)))


def check_sparsity(value: float, pattern: Pattern) -> None:
    """Raise InvalidSparsity unless ``0 < value < 1`` and the pattern can reach it."""
    if not 0 < value < 1:
        percent = 1 < value < 100
        hint = f"a share between 0 and 1; did you mean {value / 100:g}?" if percent else ""
        raise InvalidSparsity(f"{value:g}", "it must lie between 0 and 1, exclusive", hint=hint)
    if isinstance(pattern, NM) and value > pattern.sparsity + 1e-9:
        raise InvalidSparsity(
            f"{value:g}",
            f"pattern {pattern} keeps {pattern.n} of every {pattern.m} weights, "
            f"so it reaches at most {pattern.sparsity:g}",
            hint=f"lower --sparsity to {pattern.sparsity:g} or less, or choose another --pattern",
        )


def distinct_sparsities(given: Iterable[float]) -> tuple[float, ...]:
    """Sparsities of unstructured pruning: each once, the lowest first.

    Raises:
        InvalidSparsity: one does not lie between 0 and 1.
    """
    sparsities = tuple(sorted(set(given)))
    for sparsity in sparsities:
        check_sparsity(sparsity, Unstructured())
    return sparsities


def check_complete(settings: PruneSettings) -> None:
    """Raise InvalidOption unless the settings say how many weights to prune, or which.

    Settings may be made without, since a sweep fills in one sparsity after another.
    """
    patterned = isinstance(settings.pattern, NM) or any(
        isinstance(rule.pattern, NM) for rule in settings.rules
    )
    if settings.budget is Budget.ROWS and not patterned:
        by_mask = settings.mask is not None
        hint = "leave it out: the masks decide" if by_mask else "add --pattern such as 2:4"
        raise InvalidOption("--budget rows is for N:M patterns", hint=hint)
    if settings.mask is not None:
        return
    # Tensors that no rule matches stay dense where there is no sparsity.
    parts = [rule_target(rule, settings) for rule in settings.rules if not rule.skip]
    if not settings.rules:
        parts.append((settings.sparsity, settings.pattern, settings.scope))
    for sparsity, pattern, _ in parts:
        if sparsity is None and isinstance(pattern, Unstructured):
            raise InvalidOption(
                "no sparsity given",
                hint="add --sparsity S (0 < S < 1), or a --pattern such as 2:4 that implies one",
            )


def _check(settings: PruneSettings) -> None:
    """Raise a UsageError for settings that contradict themselves."""
    _check_method(settings)
    if settings.mask is not None:
        check_mask_alone(
            sparsity=settings.sparsity,
            pattern=None if isinstance(settings.pattern, Unstructured) else settings.pattern,
            scope=None if settings.scope is settings.method.spec.scope else settings.scope,
            include=settings.include,
            exclude=settings.exclude,
            recipe=settings.rules,
            method=None if settings.method is DEFAULT else settings.method,
        )
        return
    for selector in (
        *settings.include,
        *settings.exclude,
        *(selector for rule in settings.rules for selector in rule.match),
    ):
        check_selector(selector)
    usual = settings.method.spec.scope
    _check_target(settings.sparsity, settings.pattern, settings.scope, usual)
    for rule in settings.rules:
        if not rule.skip:
            _check_target(*rule_target(rule, settings), usual)


CALIBRATED_INSTEAD = f"choose --method {listed(CALIBRATED)}, or add --refine or --reconstruct"
"""A hint for calibration options without a calibration."""


def _check_method(settings: PruneSettings) -> None:
    calibration = settings.calibration
    if settings.needs_calibration and (calibration is None or not calibration.source):
        if settings.method.spec.is_calibrated:
            what = f"method {settings.method}"
        else:
            what = "refine" if settings.refine else "reconstruct"
        raise InvalidOption(
            f"{what} needs calibration samples",
            hint="add --calibration text:FILE (or hf:DATASET, images:FOLDER, pairs:FILE)",
        )
    if calibration is not None and not settings.needs_calibration:
        raise InvalidOption(
            f"calibration samples are given, and method {settings.method} uses none",
            hint=CALIBRATED_INSTEAD,
        )


def check_mask_alone(**others: object) -> None:
    """Raise InvalidOption where something else is set together with a mask.

    Args:
        others: by option name; None and empty collections are not set.
    """
    given = [f"--{name}" for name, value in others.items() if value is not None and value != ()]
    if given:
        raise InvalidOption(
            f"--mask and {', '.join(given)} are given together",
            hint="a mask alone says which weights go; leave one of them out",
        )


def _check_target(sparsity: float | None, pattern: Pattern, scope: Scope, usual: Scope) -> None:
    if sparsity is not None:
        check_sparsity(sparsity, pattern)
    if isinstance(pattern, NM) and scope is not usual:
        raise InvalidOption(
            f"scope '{scope}' has no meaning with pattern {pattern}",
            hint="N:M compares weights inside each group; leave --scope out",
        )


def rule_target(rule: Rule, settings: PruneSettings) -> tuple[float | None, Pattern, Scope]:
    """A rule's sparsity, pattern and scope, with defaults filled in.

    A default sparsity is not carried over to a rule that names another N:M pattern and no sparsity,
    nor a default scope to a rule that names N:M, which has none.
    """
    pattern = rule.pattern or settings.pattern
    sparsity = rule.sparsity
    if sparsity is None and (isinstance(pattern, Unstructured) or pattern == settings.pattern):
        sparsity = settings.sparsity
    usual = settings.method.spec.scope
    scope = usual if isinstance(rule.pattern, NM) else settings.scope
    return sparsity, pattern, rule.scope or scope
