"""Cases that only ``make test-all`` goes through, all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st


def few(cases: Iterable[Any], *kept: Any) -> list[Any]:
    """Parameters, of which ``make test`` takes only those in ``kept``, or else the first.

    A case of several parameters is a tuple.
    """
    cases = list(cases)
    kept = kept or tuple(cases[:1])
    assert all(case in cases for case in kept), "there is no such case"
    return [
        case
        if case in kept
        else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.full)
        for case in cases
    ]


def drawn(cases: Iterable[Any], *kept: Any) -> st.SearchStrategy[Any]:
    """One of the cases; in ``make test`` one of those in ``kept``.

    For what compiles a kernel of its own for each case.
    """
    every = settings.get_current_profile_name() == "full"
    return st.sampled_from(list(cases) if every else kept)
