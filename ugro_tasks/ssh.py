"""A host over SSH: a Fabric Connection that verifies host keys, has a limit on every wait, and carries raw bytes.

Whatever goes wrong on the way becomes a `HostError` that says which host, what was tried and what to do. An argv is
quoted here and nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import shlex
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import paramiko
from fabric import Config, Connection

from .cluster import Node
from .errors import (
    HostError,
    HostKeyChanged,
    HostKeyUnknown,
    HostUnreachable,
    LoginRefused,
    NodeFault,
)
from .host_keys import NewKey, Refuse, UnknownKey, fingerprint, known_hosts, load_host_keys
from .ssh_config import alias_of, openssh_options, ssh_config_faults, user_ssh_config

T = TypeVar("T")
READ_BYTES = 1 << 18
# More than any answer needs: a node must not fill the controller's memory.
ANSWER_LIMIT_BYTES = 16 << 20
KEEPALIVE_SECONDS = 15
# What paramiko lets through while it logs in or opens a channel: its own, and where the other side talks nonsense,
# whatever its parser stumbled over.
BROKEN_OFF = (
    paramiko.SSHException, OSError, EOFError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError,
    AssertionError, struct.error,
)  # fmt: skip
LAST_WORDS_CHARACTERS = 500  # of a command that failed
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
                    raise _explained(self, error, connection) from error
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
                raise _explained(self, error) from error
            if channel.exit_status < 0:
                if self.transport.is_active():
                    raise NodeFault(self.node.name, f"{argv[0]} was ended by a signal")
                self.close()
                raise _explained(self, EOFError())
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

    def call(self, function: Callable[[Self], T]) -> T:
        """See Host."""
        return function(self)

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
            raise _explained(self, error) from error
        object.__setattr__(self, "round_trip_seconds", time.monotonic() - begun)
        if isinstance(self.transport.sock, _PromptSocket):
            self.transport.sock.prompt = False
        try:
            channel.settimeout(timeout_seconds)
            channel.exec_command(shlex.join(argv))
        except BROKEN_OFF as error:
            self.close()
            raise _explained(self, error) from error
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
            raise _explained(self.host, error) from error

    def write(self, data: bytes) -> None:
        try:
            self.channel.settimeout(WRITE_SECONDS)
            self.channel.sendall(data)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise _explained(self.host, error) from error

    def close(self) -> None:
        self.channel.close()


def _receive(channel: paramiko.Channel, deadline: float) -> bytes:
    channel.settimeout(max(0.01, deadline - time.monotonic()))
    received: bytes = channel.recv(READ_BYTES)
    return received


def stdout_of(node: Node, argv: Sequence[str], code: int, out: bytes, err: bytes) -> bytes:
    """The output of a command that has ended; raises NodeFault with its last words where it failed."""
    if code == 0:
        return out
    last = err.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"exit code {code}"]
    if code == 127:
        last = [f"{argv[0]} was not found (a non-interactive login reads no profile)"]
        raise NodeFault(node.name, last[0], f"give its path as `python` of {node.name} in the cluster file")
    raise NodeFault(node.name, last[0][:LAST_WORDS_CHARACTERS])


def answer_too_long(node: Node, argv: Sequence[str]) -> NodeFault:
    """For more output than any answer has."""
    return NodeFault(node.name, f"{argv[0]} sent more than {ANSWER_LIMIT_BYTES >> 20} MiB")


def new_key_of(node: Node, connect_seconds: float) -> NewKey | None:
    """The key that has to be trusted before the node can be reached, its jump host's first; None where none has.

    Raises HostError for anything else that is in the way.
    """
    if node.transport == "local":
        return None
    host = SshHost(node, connect_seconds)
    try:
        host.open()
    except HostKeyUnknown as error:
        unknown = error.__cause__
        if isinstance(unknown, UnknownKey):
            return NewKey(unknown.name, unknown.key)
        raise
    finally:
        host.close()
    return None


# ---- what went wrong, in words ----

_BY_ERRNO = {
    errno.ECONNREFUSED: ("the connection was refused", "is sshd running there, and on this port?"),
    errno.EHOSTUNREACH: ("no route to it", "is the machine on, and in this network?"),
    errno.ENETUNREACH: ("no route to its network", "is this machine online?"),
    errno.ETIMEDOUT: ("no answer", "is the machine on, and does its firewall let SSH through?"),
    errno.ECONNRESET: ("the connection was reset", "see the log of sshd there: journalctl -u ssh"),
}


_BY_PARAMIKO = {
    "Error reading SSH protocol banner": "it answers, but not as an SSH server does",
    "No existing session": "it answers, but does not go on with the login",
    "Timeout opening channel": "it takes no more commands",
    "Connect failed": "it takes no more commands",
}


def _explained(host: SshHost, error: Exception, hop: Connection | None = None) -> HostError:
    """The HostError for an exception of paramiko or the socket layer, on the way to the host or to a hop before it."""
    hop = hop or host
    name, where = host.node.name, f"{hop.user}@{hop.host} port {hop.port}"
    if hop is not host:
        where = f"jump host {where}"
    if isinstance(error, paramiko.BadHostKeyException):
        return HostKeyChanged(
            name,
            f"its host key has changed ({where}): it shows {fingerprint(error.key)}, "
            f"known_hosts has {fingerprint(error.expected_key)}",
            f"if the machine was set up anew: ssh-keygen -R {_known_name(hop)}, then: inv init; "
            "if not, somebody may be in between",
        )
    if isinstance(error, UnknownKey):
        return HostKeyUnknown(
            name,
            f"its host key is not in known_hosts: {error.name} shows {fingerprint(error.key)}",
            "compare it on the machine (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then: inv init",
        )
    if isinstance(error, paramiko.PasswordRequiredException):
        return LoginRefused(name, f"the key for {where} has a passphrase", "load it once: ssh-add")
    if isinstance(error, paramiko.AuthenticationException) or "authentication methods" in str(error):
        return LoginRefused(name, f"{where} accepts none of your keys", f"put one there: {_copy_id(hop)}")
    if isinstance(error, socket.gaierror):
        return HostUnreachable(
            name, f"the name {hop.host} cannot be resolved", "check the cluster file and DNS"
        )
    if isinstance(error, paramiko.ChannelException) and hop.gateway:
        return HostUnreachable(
            name, f"the jump host cannot reach {where}", "is the machine on, and sshd running?"
        )
    number = errno.ETIMEDOUT if isinstance(error, TimeoutError) else getattr(error, "errno", None)
    if number in _BY_ERRNO:
        what, fix = _BY_ERRNO[number]
        return HostUnreachable(name, f"{where}: {what}", fix)
    said = str(error)[:LAST_WORDS_CHARACTERS]
    what = next((words for known, words in _BY_PARAMIKO.items() if known in said), said)
    return HostUnreachable(
        name, f"{where}: {what or 'the connection broke off'}", "see its log: journalctl -u ssh"
    )


def _known_name(host: Connection) -> str:
    return shlex.quote(host.host if host.port == 22 else f"[{host.host}]:{host.port}")


def _copy_id(host: Connection) -> str:
    port = [] if host.port == 22 else ["-p", str(host.port)]
    return shlex.join(["ssh-copy-id", *port, f"{host.user}@{host.host}"])
