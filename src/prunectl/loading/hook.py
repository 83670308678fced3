"""Registers the loader of compressed folders with transformers, now or on its import.

``import prunectl`` must stay fast, so it does not import transformers. The hook waits until other
code imports ``transformers.quantizers.auto``, where quantization methods are registered.
docs/python.md documents what is changed in other libraries, and when.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_MODULE = "transformers.quantizers.auto"


def register() -> None:
    """Register compressed folders with ``from_pretrained`` of transformers, once.

    ``import prunectl`` does the same when transformers is imported, and warns where this function
    raises.

    Raises:
        ImportError, AttributeError, ValueError: this transformers has no registry of quantizers, or
            another ``prunectl`` in it.
    """
    from transformers.quantizers import auto

    from prunectl.loading.execution import Compressed
    from prunectl.loading.quantizer import CompressedQuantizer
    from prunectl.output.config_json import METHOD

    if METHOD not in auto.AUTO_QUANTIZER_MAPPING:
        auto.register_quantization_config(METHOD)(Compressed)
        auto.register_quantizer(METHOD)(CompressedQuantizer)
        # a user's execution replaces that in a compressed folder's config
        auto.LOADING_ATTRIBUTES_CONFIG_TYPES += (Compressed,)


def install() -> None:
    """Register now if transformers is imported, else on its import; once."""
    if _MODULE in sys.modules:
        _register_or_warn()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register_or_warn() -> None:
    try:
        register()
    except Exception as error:  # code that only uses transformers must not fail because of prunectl
        import warnings

        warnings.warn(
            f"prunectl could not register with this transformers: {error!r}. Compressed folders "
            "load only with prunectl.load_state_dict.",
            RuntimeWarning,
            stacklevel=2,
        )


class _Finder:
    """Finds one module through the other finders, and adds a step after its import."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _MODULE or self not in sys.meta_path:
            return None
        from importlib.util import find_spec

        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and (loader := spec.loader) is not None:
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                del loader.__dict__["exec_module"]
                execute(module)
                _register_or_warn()

            loader.__dict__["exec_module"] = exec_module
        return spec
