"""The network that reaches the other processes."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

INTERFACE = "GLOO_SOCKET_IFNAME"


@contextmanager
def on_their_network() -> Iterator[None]:
    """Have gloo tell the others an address of this host that they can reach.

    By itself it takes what the host's own name stands for, which on many systems is the loopback
    address. Inside the block, and unless the user has chosen one, it takes the network interface
    that leads to where the processes meet.
    """
    name = None if os.environ.get(INTERFACE) else _interface(_own_address())
    if name is None:
        yield
        return
    os.environ[INTERFACE] = name
    try:
        yield
    finally:
        del os.environ[INTERFACE]


def _own_address() -> str:
    """This host's address as the meeting place sees it; '' if that is not known."""
    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    with contextlib.suppress(OSError):
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(place)  # of datagrams: nothing is sent
            return str(probe.getsockname()[0])
    return ""


def _interface(address: str) -> str | None:
    """The interface that has an address; None for the loopback, which is no way to other hosts."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in addresses):
            loops = address == "::1" or address.startswith("127.")
            return None if loops else str(name)
    return None
