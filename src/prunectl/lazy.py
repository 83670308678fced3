"""``torch``, imported on first use and not by the import of a module that uses it.

``from prunectl.lazy import torch`` is for modules that the command line imports at its start. Code
that runs while such a module is imported must not use it: decorators, defaults, module constants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch as torch
else:

    class _Torch:
        def __getattr__(self, name: str) -> object:
            import torch

            self.__dict__ = torch.__dict__  # from now on as fast as the module itself
            return getattr(torch, name)

    torch = _Torch()
