"""Tells transformers of compressed folders as soon as it is imported, and not before.

``import prunectl`` must cost nothing, so transformers is not imported here: what is registered is
registered when somebody else imports ``transformers.quantizers.auto``, or at once if that has
happened.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_MODULE = "transformers.quantizers.auto"


def install() -> None:
    """Arrange the registration; a second call does nothing."""
    if _MODULE in sys.modules:
        _register(sys.modules[_MODULE])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register(module: ModuleType) -> None:
    # Somebody who only uses transformers must not fail because of us.
    try:
        from prunectl.loading.quantizer import register

        register(module)
    except Exception as error:
        warnings.warn(
            f"prunectl could not register with this transformers: {error!r}. Compressed folders "
            "load by prunectl.load_state_dict only.",
            RuntimeWarning,
            stacklevel=2,
        )


class _Finder(MetaPathFinder):
    """Finds the one module like everybody else, and adds a step after its import."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _MODULE:
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    def __init__(self, inner: Loader) -> None:
        self._inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._inner
        module.__loader__ = self._inner
        self._inner.exec_module(module)
        _register(module)
