"""Ports for tests that must name one before anything listens on it."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

HERE = "127.0.0.1"
KERNELS_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


@contextmanager
def reserved_port() -> Iterator[int]:
    """Give a port of this machine that nobody else is given meanwhile."""
    with reserved_ports(1) as port:
        yield port


@contextmanager
def reserved_ports(count: int) -> Iterator[int]:
    """Give the first of so many ports in a row that nobody else is given meanwhile.

    They are bound, and nothing listens on them, so connections are refused. The kernel gives none of them to who asks
    for any; who names one and sets SO_REUSEADDR, as torch's store does, may listen on it.
    """
    last = int(KERNELS_RANGE.read_text().split()[1])
    while True:
        with ExitStack() as stack:
            first = _hold(stack, 0)
            if first + count - 1 > last:
                continue
            try:
                for ahead in range(1, count):
                    _hold(stack, first + ahead)
            except OSError:  # one of them is somebody's
                continue
            yield first
            return


def _hold(stack: ExitStack, port: int) -> int:
    holder = stack.enter_context(socket.socket())
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind((HERE, port))
    return int(holder.getsockname()[1])
