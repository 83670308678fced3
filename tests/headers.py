"""What tests need to know of a folder's weights without the package: names, dtypes and shapes."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from prunectl.tensorspec import DTYPES, TensorSpec


def specs_of(folder: Path) -> list[TensorSpec]:
    """The headers of all safetensors files of a folder."""
    specs = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (the handle is no mapping)
                part = file.get_slice(name)
                dtype = DTYPES[part.get_dtype()]
                specs.append(TensorSpec(name, dtype, tuple(part.get_shape())))
    return specs
