"""What UGRO changes in a Fabric connection: keys are verified, each wait has a limit, and no packet is held back.

Fabric by itself trusts every host key, waits without a limit, and fails over a key file that is not there.
"""

from __future__ import annotations

import logging
import socket
import struct
from pathlib import Path
from typing import Any

import paramiko
from fabric import Connection

from .known_hosts import Refuse, known_hosts, load_host_keys

KEEPALIVE_SECONDS = 15
# For what was sent to be acknowledged. Without it a write to a link that was cut waits for the kernel, 15 minutes:
# a channel's own limit does not count while the socket takes nothing.
UNACKNOWLEDGED_SECONDS = 120
SYSTEM_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")
# What paramiko lets through while it logs in or opens a channel: its own, and where the other side talks nonsense,
# whatever its parser stumbled over.
BROKEN_OFF = (
    paramiko.SSHException, OSError, EOFError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError,
    AssertionError, struct.error,
)  # fmt: skip

# Whatever goes wrong is told as a HostError; paramiko would tell it a second time, on stderr.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False


def hops_to(connection: Connection) -> list[Connection]:
    """List the jump hosts on the way, the first one first, and the host itself."""
    if isinstance(connection.gateway, Connection):
        return [*hops_to(connection.gateway), connection]
    return [connection]


def make_strict(connection: Connection, connect_seconds: float) -> None:
    """Verify the host's key, limit each wait, and pass over key files that are not there."""
    key_files = connection.connect_kwargs.get("key_filename", [])
    connection.connect_timeout = max(1, round(connect_seconds))
    # A dict of its own for each: Fabric shares and changes them.
    connection.connect_kwargs = {
        "banner_timeout": 2 * connect_seconds,
        "auth_timeout": 2 * connect_seconds,
        "channel_timeout": 2 * connect_seconds,
        "transport_factory": _transport,
        "key_filename": [
            name for name in key_files if Path(name).expanduser().is_file()
        ],
    }
    connection.client.set_missing_host_key_policy(Refuse())


def log_in(connection: Connection) -> None:
    """Connect to one hop, those before it being connected. Raises one of BROKEN_OFF."""
    try:
        # Anew each time: who runs for days shall learn of a key that the user came to trust meanwhile.
        connection.client.get_host_keys().clear()
        load_host_keys(connection.client, SYSTEM_KNOWN_HOSTS, known_hosts())
        if not connection.gateway:
            connection.connect_kwargs["sock"] = _PromptSocket.to(
                connection.host, connection.port, connection.connect_timeout
            )
        connection.open()
    except BROKEN_OFF:
        connection.client.close()  # Fabric's close() passes over a login that failed half way
        raise
    connection.transport.set_keepalive(KEEPALIVE_SECONDS)


def after_login(transport: paramiko.Transport) -> None:
    """Let the kernel acknowledge as it does: from here on promptness costs more than it gains."""
    if isinstance(transport.sock, _PromptSocket):
        transport.sock.prompt = False


def _transport(socket_: Any, **options: Any) -> paramiko.Transport:
    """Make paramiko's transport with AES-GCM first: without a digest of its own, a byte costs a quarter less."""
    made = paramiko.Transport(socket_, **options)
    algorithms = made.get_security_options()
    algorithms.ciphers = sorted(algorithms.ciphers, key=lambda name: "gcm" not in name)
    return made


class _PromptSocket(socket.socket):
    """A socket that never waits to fill a packet, nor, while logging in, to acknowledge one.

    sshd sends the end of the login in several small packets and waits for our word on the first: 40 ms.
    """

    prompt = hasattr(socket, "TCP_QUICKACK")

    @classmethod
    def to(cls, host: str, port: int, timeout_seconds: float) -> _PromptSocket:
        """Connect; raises OSError."""
        made = socket.create_connection((host, port), timeout_seconds)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
            milliseconds = 1000 * UNACKNOWLEDGED_SECONDS
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        return cls(fileno=made.detach())

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive as a socket does, acknowledging at once while logging in."""
        if self.prompt:
            # The kernel takes it back at each chance.
            self.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return super().recv(size, flags)
