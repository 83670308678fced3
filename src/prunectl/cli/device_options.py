"""``--device``: where a command computes."""

from __future__ import annotations

from typing import Annotated

import typer

from prunectl.device import check_device


def there(device: str | None) -> str | None:
    """Refuse a device that is not there while options are read: before a model is fetched."""
    if device is not None:
        check_device(device)
    return device


Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        callback=there,
        help="Where it computes: auto (CUDA if there is any), cpu, cuda or cuda:N.",
    ),
]
SpreadDevice = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        callback=there,
        help="Where it computes: auto (CUDA if there is any; all GPUs, where one does not hold the "
        "model), cpu, cuda or cuda:N.",
    ),
]
CountingDevice = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        callback=there,
        help="Where weights of 8 and 16 bits are counted, with the same results: auto (the CPU), "
        "cpu, cuda or cuda:N. fp32 and fp64 stay with the CPU.",
    ),
]
PruneDevice = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        callback=there,
        help="Where it computes: auto (calibration: CUDA if there is any; magnitudes: the CPU), "
        "cpu, cuda or cuda:N.",
        show_default=False,
    ),
]
