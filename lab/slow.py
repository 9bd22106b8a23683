"""A slow and lossy piece of wire: forwards frames between two interfaces, late, and drops some.

    python slow.py PORT_A PORT_B DELAY_MS LOSS_PERCENT SWITCH_PID

Each frame, in either direction, arrives DELAY_MS later. It replaces `tc netem`, which many small
kernels lack. It ends when a port is deleted or process SWITCH_PID ends.
"""

import errno
import os
import random
import selectors
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import cast

ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_VNET_HDR = 15
PACKET_IGNORE_OUTGOING = 23
# A frame may be a whole 64 KiB segment, left by the sender for the "card" to split.
LARGEST = 80 * 1024


@dataclass
class Port:
    """One interface, and the frames waiting to be sent out of it, each with its due time."""

    name: str
    index: int
    socket: socket.socket
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)

    def exists(self) -> bool:
        try:
            return socket.if_nametoindex(self.name) == self.index
        except OSError:
            return False


def open_port(name: str) -> Port:
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    # The header of each frame tells the checksum and segmentation left to the card.
    raw.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    raw.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * 1024 * 1024)
    raw.bind((name, ETH_P_ALL))
    raw.setblocking(False)
    return Port(name, socket.if_nametoindex(name), raw)


def receive(port: Port) -> bytes | None:
    """Return the next frame, None without one; a port that is down has none."""
    try:
        return port.socket.recv(LARGEST)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno != errno.ENETDOWN:
            raise
        return None


def send_due(port: Port, now: float) -> None:
    while port.waiting and port.waiting[0][0] <= now:
        _, frame = port.waiting.popleft()
        try:
            port.socket.send(frame)
        except OSError as error:
            # A wire drops frames if the port is down or its queue is full.
            if error.errno not in (
                errno.ENETDOWN,
                errno.ENOBUFS,
                errno.EAGAIN,
                errno.ENXIO,
            ):
                raise


def main() -> None:
    name_a, name_b, delay_ms, loss_percent, switch_pid = sys.argv[1:]
    delay_seconds = float(delay_ms) / 1000
    loss = float(loss_percent) / 100
    a = open_port(name_a)
    b = open_port(name_b)
    selector = selectors.DefaultSelector()
    selector.register(a.socket, selectors.EVENT_READ, (a, b))
    selector.register(b.socket, selectors.EVENT_READ, (b, a))
    selector.register(os.pidfd_open(int(switch_pid)), selectors.EVENT_READ, None)
    print("ready", flush=True)
    os.dup2(2, 1)  # the starter reads that line to the end of the stream
    while a.exists() and b.exists():
        due = [port.waiting[0][0] for port in (a, b) if port.waiting]
        # At most a second, because no event tells of the deletion of a port that is down.
        timeout = max(0.0, min(due) - time.monotonic()) if due else 1.0
        for key, _ in selector.select(timeout):
            if key.data is None:
                return
            source, target = cast(tuple[Port, Port], key.data)
            while frame := receive(source):
                if random.random() >= loss:
                    target.waiting.append((time.monotonic() + delay_seconds, frame))
        now = time.monotonic()
        send_due(a, now)
        send_due(b, now)


if __name__ == "__main__":
    main()
