"""Registers the loader of compressed folders with transformers, at once or when it is imported.

``import prunectl`` must stay fast, so it does not import transformers. It waits until somebody
else imports ``transformers.quantizers.auto``, where quantization methods are registered.
docs/python.md says what is changed in other libraries, and when.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_MODULE = "transformers.quantizers.auto"


def register() -> None:
    """Let ``from_pretrained`` of transformers load compressed folders; a second call does nothing.

    ``import prunectl`` arranges the same for the moment when transformers is imported, and warns
    where this function raises.

    Raises:
        ImportError, AttributeError, ValueError: this transformers has no such methods, or one of
            the same name.
    """
    from transformers.quantizers import auto

    from prunectl.loading.quantizer import CompressedConfig, CompressedQuantizer
    from prunectl.output.config_json import METHOD

    if METHOD not in auto.AUTO_QUANTIZER_MAPPING:
        auto.register_quantization_config(METHOD)(CompressedConfig)
        auto.register_quantizer(METHOD)(CompressedQuantizer)


def install() -> None:
    """Register now if transformers is imported, else when it is; a second call does nothing."""
    if _MODULE in sys.modules:
        _register_or_warn()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register_or_warn() -> None:
    try:
        register()
    except Exception as error:  # who only uses transformers must not fail because of us
        import warnings

        warnings.warn(
            f"prunectl could not register with this transformers: {error!r}. Compressed folders "
            "load by prunectl.load_state_dict only.",
            RuntimeWarning,
            stacklevel=2,
        )


class _Finder:
    """Finds the one module like everybody else, and adds a step after its import."""

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
