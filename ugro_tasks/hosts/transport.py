"""UGRO's changes to a Fabric connection: verified keys, limited waits, and no delayed packets.

Fabric by itself trusts every host key, waits without limit, and fails if a key file is missing.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import paramiko
from fabric import Connection

from .known_hosts import RejectUnknownKeys, known_hosts, load_host_keys

KEEPALIVE_SECONDS = 15
# For sent data to be acknowledged. Without it, a write to a dead link waits for the kernel's 15
# minutes: a channel's own limit does not count while the socket accepts nothing.
UNACKNOWLEDGED_SECONDS = 120
SYSTEM_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")
# The exceptions of paramiko during a login or while opening a channel: its own, and those of its
# parser if the other side sends nonsense.
BROKEN_OFF = (
    paramiko.SSHException,
    OSError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    struct.error,
)

# Errors are reported as HostError; paramiko would report them again on stderr.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False


def hops_to(connection: Connection) -> list[Connection]:
    """List the connections on the way: the jump hosts in order, and the host itself."""
    if isinstance(connection.gateway, Connection):
        return [*hops_to(connection.gateway), connection]
    return [connection]


def make_strict(
    connection: Connection,
    connect_seconds: float,
    transport_factory: Callable[..., paramiko.Transport],
) -> None:
    """Make a connection verify the host's key, limit each wait, and ignore missing key files."""
    given = connection.connect_kwargs.get("key_filename", [])
    key_files = [name for name in given if Path(name).expanduser().is_file()]
    connection.connect_timeout = max(1, round(connect_seconds))
    # A dict of its own for each: Fabric shares and changes them.
    connection.connect_kwargs = {
        "banner_timeout": 2 * connect_seconds,
        "auth_timeout": 2 * connect_seconds,
        "channel_timeout": 2 * connect_seconds,
        "transport_factory": transport_factory,
        "key_filename": key_files,
    }
    connection.client.set_missing_host_key_policy(RejectUnknownKeys())


def log_in(connection: Connection) -> None:
    """Connect to one hop; the hops before it are connected. Raises one of BROKEN_OFF."""
    try:
        # Read again each time: a process running for days must learn of newly trusted keys.
        connection.client.get_host_keys().clear()
        load_host_keys(connection.client, SYSTEM_KNOWN_HOSTS, known_hosts())
        if not connection.gateway:
            connection.connect_kwargs["sock"] = _PromptSocket.to(
                connection.host, connection.port, connection.connect_timeout
            )
        connection.open()
    except BROKEN_OFF:
        # Fabric's close() ignores a login that failed half way.
        connection.client.close()
        raise
    connection.transport.set_keepalive(KEEPALIVE_SECONDS)


def after_login(transport: paramiko.Transport) -> None:
    """Return to the kernel's delayed acknowledgements, which are cheaper once the login is done."""
    if isinstance(transport.sock, _PromptSocket):
        transport.sock.prompt = False


class _PromptSocket(socket.socket):
    """A socket without delayed packets, and without delayed acknowledgements during the login.

    sshd sends the end of the login in several small packets and waits for an acknowledgement of the
    first, which costs 40 ms otherwise.
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
        """Receive bytes; during the login, acknowledge them at once."""
        if self.prompt:
            # The kernel resets this option by itself, so it is set for each recv.
            self.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return super().recv(size, flags)
