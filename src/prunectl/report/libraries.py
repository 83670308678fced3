"""The libraries that draw, which prunectl does without until a report is asked for."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from prunectl.errors import MissingLibrary

_PACKAGES = {"altair": "altair", "vl_convert": "vl-convert-python", "jinja2": "jinja2"}
"""By module: the package that brings it."""


def check_libraries(what: str) -> None:
    """Find out before the work whether a report can be made; loads nothing.

    Args:
        what: needs them, for the error.

    Raises:
        MissingLibrary: one is not installed.
    """
    for module, package in _PACKAGES.items():
        if find_spec(module) is None:
            raise MissingLibrary(package, what, extra="report")


def load(module: str) -> Any:
    """One of the libraries.

    Raises:
        MissingLibrary: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError:
        raise MissingLibrary(_PACKAGES[module], "a report", extra="report") from None


def chart_version() -> str | None:
    """The version of Vega-Lite that charts are written in, as vl-convert names it.

    None, its newest, where it has not that one.
    """
    version = str(load("altair").SCHEMA_VERSION).removeprefix("v")
    short = ".".join(version.split(".")[:2])
    return short if short in load("vl_convert").get_vegalite_versions() else None
