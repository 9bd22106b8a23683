"""A host over SSH: a Fabric Connection that verifies host keys, has a limit on every wait, and carries raw bytes.

Whatever goes wrong on the way becomes a `HostError` that says which host, what was tried and what to do. An argv is
quoted here and nowhere else.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import socket
import struct
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import paramiko
from fabric import Config, Connection

from ..cluster.model import Node
from ..errors import HostUnreachable, NodeFault
from .host import ANSWER_LIMIT_BYTES, READ_BYTES, answer_too_long, stdout_of
from .known_hosts import Refuse, known_hosts, load_host_keys
from .ssh_config import alias_of, openssh_options, ssh_config_faults, user_ssh_config
from .ssh_errors import explained

KEEPALIVE_SECONDS = 15
# What paramiko lets through while it logs in or opens a channel: its own, and where the other side talks nonsense,
# whatever its parser stumbled over.
BROKEN_OFF = (
    paramiko.SSHException, OSError, EOFError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError,
    AssertionError, struct.error,
)  # fmt: skip


WRITE_SECONDS = 30.0  # for a node to take the next piece of what it is given

# Whatever goes wrong is told as a HostError; paramiko would tell it a second time, on stderr.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False


class SshHost(Connection):  # type: ignore[misc]
    """A Fabric Connection that verifies host keys, has a limit on every wait, and carries raw bytes."""

    # Declared on the class: Fabric's Connection would otherwise take them for configuration.
    node: Node
    round_trip_seconds: float = 0.0
    _alias: str | None = None
    _opening: Any = None

    def __init__(self, node: Node, connect_seconds: float) -> None:
        with ssh_config_faults():
            config = Config(ssh_config=user_ssh_config())
            alias = alias_of(config.base_ssh_config, node)
            super().__init__(
                alias or node.address,
                user=node.user,
                port=node.ssh_port,
                gateway=Connection(node.jump, config=config.clone()) if node.jump else None,
                config=config,
            )
        object.__setattr__(self, "node", node)
        object.__setattr__(self, "_alias", alias)
        object.__setattr__(self, "_opening", threading.Lock())
        for connection in _hops(self):
            _be_strict(connection, connect_seconds)

    def open(self) -> None:
        """Log in where not yet done, on every hop of the way; raises HostError."""
        with self._opening:
            for connection in _hops(self):
                if connection.is_connected:
                    continue
                try:
                    # Anew each time: who runs for days shall learn of a key that the user came to trust meanwhile.
                    connection.client.get_host_keys().clear()
                    load_host_keys(connection.client, Path("/etc/ssh/ssh_known_hosts"), known_hosts())
                    if not connection.gateway:
                        socket_ = _PromptSocket.to(
                            connection.host, connection.port, connection.connect_timeout
                        )
                        connection.connect_kwargs["sock"] = socket_
                    # Not self.open(): Fabric's own, for the host as for its jump hosts.
                    Connection.open(connection)
                except BROKEN_OFF as error:
                    connection.client.close()  # Fabric's close() passes over a login that failed half way
                    raise explained(
                        self.node.name, connection, error, is_jump_host=connection is not self
                    ) from error
                connection.transport.set_keepalive(KEEPALIVE_SECONDS)

    def run(self, argv: Sequence[str], stdin: bytes = b"", timeout_seconds: float = 30.0) -> bytes:
        """See Host."""
        deadline = time.monotonic() + timeout_seconds
        with contextlib.closing(self._execute(argv, stdin, timeout_seconds)) as channel:
            complaint = _Tail(channel)
            output = bytearray()
            try:
                while chunk := _receive(channel, deadline):
                    output += chunk
                    if time.monotonic() > deadline:  # it sends a byte now and then
                        raise TimeoutError
                    if len(output) > ANSWER_LIMIT_BYTES:
                        raise answer_too_long(self.node, argv)
                if not channel.status_event.wait(max(0.1, deadline - time.monotonic())):
                    raise TimeoutError
                complaint.thread.join(max(0.1, deadline - time.monotonic()))
            except TimeoutError as error:
                self.close()  # it may be the command that hangs, or the network that is gone
                what = f"{argv[0]} did not end within {timeout_seconds:g} s"
                raise HostUnreachable(
                    self.node.name, what, "is the machine overloaded, or the network gone?"
                ) from error
            except (paramiko.SSHException, OSError, EOFError) as error:
                self.close()
                raise explained(self.node.name, self, error) from error
            if channel.exit_status < 0:
                if self.transport.is_active():
                    raise NodeFault(self.node.name, f"{argv[0]} was ended by a signal")
                self.close()
                raise explained(self.node.name, self, EOFError())
        return stdout_of(self.node, argv, channel.exit_status, bytes(output), complaint.last)

    def stream(self, argv: Sequence[str], stdin: bytes | None = b"") -> _SshStream:
        """See Host."""
        return _SshStream(self, self._execute(argv, stdin, timeout_seconds=30.0))

    def rsync_remote(self) -> tuple[list[str], str]:
        """See Host."""
        shell = shlex.join(["ssh", *openssh_options(self.node)])
        user = f"{self.node.user}@" if self.node.user else ""
        name = self._alias or (f"[{self.node.address}]" if ":" in self.node.address else self.node.address)
        return ["-e", shell], f"{user}{name}:"

    def _execute(self, argv: Sequence[str], stdin: bytes | None, timeout_seconds: float) -> paramiko.Channel:
        """The channel of the started command, fed in the background. A connection found dead is opened anew, once."""
        warm = self.is_connected
        self.open()
        begun = time.monotonic()
        try:
            channel: paramiko.Channel = self.transport.open_session(timeout=timeout_seconds)
        except BROKEN_OFF as error:
            self.close()
            if warm:
                return self._execute(argv, stdin, timeout_seconds)
            raise explained(self.node.name, self, error) from error
        object.__setattr__(self, "round_trip_seconds", time.monotonic() - begun)
        if isinstance(self.transport.sock, _PromptSocket):
            self.transport.sock.prompt = False
        try:
            channel.settimeout(timeout_seconds)
            channel.exec_command(shlex.join(argv))
        except BROKEN_OFF as error:
            self.close()
            raise explained(self.node.name, self, error) from error
        if stdin is not None:
            threading.Thread(target=_feed, args=(channel, stdin), daemon=True).start()
        return channel


def _feed(channel: paramiko.Channel, stdin: bytes) -> None:
    # A command need not read all that it is given; whatever else is wrong shows where its output is read.
    with contextlib.suppress(OSError, EOFError):
        channel.sendall(stdin)
        channel.shutdown_write()


class _Tail:
    """The last of a command's stderr, read as it comes: unread, it would hold up stdout, too."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self.last = b""
        self.thread = threading.Thread(target=self._read, args=(channel,), daemon=True)
        self.thread.start()

    def _read(self, channel: paramiko.Channel) -> None:
        with contextlib.suppress(OSError):
            while received := channel.recv_stderr(READ_BYTES):
                self.last = (self.last + received)[-READ_BYTES:]


def _hops(connection: Connection) -> list[Connection]:
    """The jump hosts on the way, the first one first, and the host itself."""
    before = _hops(connection.gateway) if isinstance(connection.gateway, Connection) else []
    return [*before, connection]


def _be_strict(connection: Connection, connect_seconds: float) -> None:
    """Fabric trusts every key, waits without a limit and stumbles over keys that are not there."""
    connection.connect_timeout = max(1, round(connect_seconds))
    # A dict of its own for each: Fabric shares and changes them.
    connection.connect_kwargs = {
        **dict.fromkeys(("banner_timeout", "auth_timeout", "channel_timeout"), 2 * connect_seconds),
        "transport_factory": _transport,
        "key_filename": [
            name
            for name in connection.connect_kwargs.get("key_filename", [])
            if Path(name).expanduser().is_file()
        ],
    }
    connection.client.set_missing_host_key_policy(Refuse())


def _transport(socket_: Any, **options: Any) -> paramiko.Transport:
    """As paramiko makes it, but AES-GCM comes first: without a digest of its own, a byte costs a quarter less here."""
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
        made = socket.create_connection((host, port), timeout_seconds)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(fileno=made.detach())

    def recv(self, size: int, flags: int = 0) -> bytes:
        if self.prompt:
            # The kernel takes it back at each chance.
            self.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return super().recv(size, flags)


class _SshStream:
    def __init__(self, host: SshHost, channel: paramiko.Channel) -> None:
        self.host, self.channel = host, channel

    def read(self, silence_seconds: float) -> bytes:
        try:
            return _receive(self.channel, time.monotonic() + silence_seconds)
        except (paramiko.SSHException, OSError) as error:
            raise explained(self.host.node.name, self.host, error) from error

    def write(self, data: bytes) -> None:
        try:
            self.channel.settimeout(WRITE_SECONDS)
            self.channel.sendall(data)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise explained(self.host.node.name, self.host, error) from error

    def close(self) -> None:
        self.channel.close()


def _receive(channel: paramiko.Channel, deadline: float) -> bytes:
    channel.settimeout(max(0.01, deadline - time.monotonic()))
    received: bytes = channel.recv(READ_BYTES)
    return received
