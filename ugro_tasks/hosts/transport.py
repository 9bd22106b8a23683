"""A Fabric connection that does as OpenSSH would: its way, its keys, and no host key unverified.

Fabric by itself reads the configuration in its own way, trusts every host key and waits without
limit.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import paramiko
from fabric import Config, Connection

from .known_hosts import KnownKeys, UnverifiedKey, known_keys
from .login_keys import LoginKeys
from .proxy_command import ProxySocket
from .ssh_config import SshConfig

KEEPALIVE_SECONDS = 15
# For sent data to be acknowledged. Without it, a write to a dead link waits for the kernel's 15
# minutes: a channel's own limit does not count while the socket accepts nothing.
UNACKNOWLEDGED_SECONDS = 120
# {signature algorithm: the type of its keys}
KEY_TYPES = {"rsa-sha2-512": "ssh-rsa", "rsa-sha2-256": "ssh-rsa"}
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


class Hop(NamedTuple):
    """A jump host or the host itself: the connection to it, and OpenSSH's answer for it."""

    config: SshConfig
    connection: Connection


def hops_of(way: Sequence[SshConfig], connect_seconds: float) -> list[Hop]:
    """Make the connections along a way, each through the one before it; nothing is contacted."""
    hops: list[Hop] = []
    for config in way:
        gateway = hops[-1].connection if hops else None
        connection = Connection(
            config.host,
            user=config.user,
            port=config.port,
            gateway=gateway,
            # An empty one, so that Fabric reads none itself.
            config=Config(ssh_config=paramiko.SSHConfig()),
            forward_agent=False,
            connect_timeout=max(1, round(connect_seconds)),
            connect_kwargs={
                "banner_timeout": 2 * connect_seconds,
                "auth_timeout": 2 * connect_seconds,
                "channel_timeout": 2 * connect_seconds,
            },
        )
        hops.append(Hop(config, connection))
    return hops


def log_in(hop: Hop) -> None:
    """Connect to one hop; the hops before it are connected. Raises one of BROKEN_OFF."""
    config, connection = hop
    known = known_keys(config)
    connection.connect_kwargs |= {
        "auth_strategy": LoginKeys(config),
        "transport_factory": partial(_transport, config, known.types),
    }
    connection.client.set_missing_host_key_policy(_OnlyKnownKeys(config, known))
    proxy = None
    try:
        if config.proxy_command and not connection.gateway:
            proxy = ProxySocket.of(config.proxy_command)
            connection.connect_kwargs["sock"] = proxy
        elif not connection.gateway:
            connection.connect_kwargs["sock"] = _PromptSocket.to(
                connection.host, connection.port, connection.connect_timeout
            )
        connection.open()
    except BROKEN_OFF as error:
        words = proxy.last_words() if proxy else ""
        # Fabric's close() ignores a login that failed half way.
        connection.client.close()
        if proxy:
            proxy.close()
        if words and not isinstance(
            error, paramiko.AuthenticationException | UnverifiedKey
        ):
            raise paramiko.SSHException(f"its ProxyCommand says: {words}") from error
        raise
    connection.transport.set_keepalive(KEEPALIVE_SECONDS)


class _OnlyKnownKeys(paramiko.MissingHostKeyPolicy):
    """The policy for host keys; paramiko's own lists stay empty, so it is asked about each."""

    def __init__(self, config: SshConfig, known: KnownKeys) -> None:
        self.config = config
        self.known = known

    def missing_host_key(
        self,
        client: paramiko.SSHClient,  # noqa: ARG002
        hostname: str,  # noqa: ARG002
        key: paramiko.PKey,
    ) -> None:
        """Raise UnverifiedKey unless the key is known."""
        self.known.verify(self.config, key)


def _transport(
    config: SshConfig, key_types: Sequence[str], socket_: Any, **options: Any
) -> paramiko.Transport:
    """Make paramiko's transport with the algorithms that the configuration allows.

    Types of known host keys come first, so that the host shows one of these. So do the AES-GCM
    ciphers: they need no separate MAC, so a byte costs a quarter less.
    """
    made = paramiko.Transport(socket_, **options)
    algorithms = made.get_security_options()
    ciphers = _allowed(algorithms.ciphers, config, "ciphers")
    algorithms.ciphers = sorted(ciphers, key=lambda name: "gcm" not in name)
    algorithms.kex = _allowed(algorithms.kex, config, "kexalgorithms")
    if not all("gcm" in name for name in ciphers):
        algorithms.digests = _allowed(algorithms.digests, config, "macs")
    host_keys = _allowed(algorithms.key_types, config, "hostkeyalgorithms")
    algorithms.key_types = sorted(
        host_keys, key=lambda name: KEY_TYPES.get(name, name) not in key_types
    )
    return made


def _allowed(names: Sequence[str], config: SshConfig, keyword: str) -> Sequence[str]:
    """Return the algorithms in OpenSSH's list; raises SSHException if there is none."""
    allowed = config.one(keyword).split(",")
    chosen = [name for name in names if name in allowed]
    if not chosen:
        raise paramiko.SSHException(
            f"{keyword} in the ssh configuration: UGRO has none of {', '.join(allowed)}"
        )
    return chosen


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
