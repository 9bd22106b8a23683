"""A login by Fabric and paramiko that does as OpenSSH would: its way, its keys, no host key unverified.

Fabric by itself reads the configuration in its own way, trusts every host key and waits without
limit.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import shutil
import socket
import struct
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import paramiko
from fabric import Config, Connection
from paramiko.ssh_exception import IncompatiblePeer

from ...errors import HostError
from ..host import READ_BYTES, WRITE_SECONDS
from .config import SshConfig, digest_of
from .errors import explained
from .known_hosts import HostKey, KnownKeys, UnverifiedKey, known_keys
from .login_keys import LoginBrokenOff, LoginKeys
from .openssh_options import openssh_options
from .proxy_command import ProxySocket
from .transport import NotStarted, seconds_left

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


class OpenSshWanted(paramiko.SSHException):
    """The login needs what only OpenSSH can do."""

    def __init__(self, what: str) -> None:
        super().__init__(f"paramiko cannot do this: {what}; OpenSSH can")


# What paramiko may fail at where OpenSSH does not; a network that fails is none of these.
ABOUT_THE_LOGIN = (
    OpenSshWanted,
    IncompatiblePeer,
    LoginBrokenOff,
    paramiko.AuthenticationException,
)


class Hop(NamedTuple):
    """A jump host or the host itself: the connection to it, and OpenSSH's answer for it."""

    config: SshConfig
    connection: Connection


class ParamikoTransport:
    """A login in this process. Commands use channels of one connection to the host."""

    def __init__(
        self, name: str, way: Sequence[SshConfig], connect_seconds: float
    ) -> None:
        self.round_trip_seconds = 0.0
        self.hops = hops_of(way, connect_seconds)
        """The way: jump hosts first, the host last."""
        self._name = name
        self._connect_seconds = connect_seconds

    @classmethod
    def logged_in(
        cls, name: str, way: Sequence[SshConfig], connect_seconds: float
    ) -> ParamikoTransport:
        """Log in on every hop of a node's way; raises HostError, caused by one of BROKEN_OFF."""
        made = cls(name, way, connect_seconds)
        for hop in made.hops:
            try:
                log_in(hop)
            except BROKEN_OFF as error:
                made.close()
                raise made.explained(error, hop) from error
        return made

    @property
    def is_open(self) -> bool:
        """Tell whether the whole way is logged in to; see `Transport.is_open`."""
        return all(hop.connection.is_connected for hop in self.hops)

    def close(self) -> None:
        """Close the connections to the host and to its jump hosts."""
        # The jump hosts' connections are this login's own: a dead one would block the next login.
        for hop in reversed(self.hops):
            hop.connection.close()

    def explained(self, error: Exception, hop: Hop | None = None) -> HostError:
        """Make the HostError for an exception, at the node itself unless another hop is given."""
        where = hop or self.hops[-1]
        return explained(
            self._name,
            where.config,
            error,
            is_jump_host=where is not self.hops[-1],
            is_behind_one=self.hops[0] is not where,
        )

    def start(self, argv: Sequence[str], timeout_seconds: float) -> _ChannelSession:
        """Start a command on a channel of its own; see `Transport.start`."""
        begun = time.monotonic()
        try:
            channel: paramiko.Channel = self.hops[-1].connection.transport.open_session(
                timeout=timeout_seconds
            )
        except BROKEN_OFF as error:
            raise NotStarted(self.explained(error)) from error
        self.round_trip_seconds = time.monotonic() - begun
        _after_login(channel.get_transport())
        try:
            channel.settimeout(timeout_seconds)
            channel.exec_command(shlex.join(argv))
        except BROKEN_OFF as error:
            raise self.explained(error) from error
        return _ChannelSession(self, channel)

    def rsync_shell(self) -> tuple[list[str], str]:
        """Return OpenSSH with the answers of this login; see `Transport.rsync_shell`."""
        way = [hop.config for hop in self.hops]
        options = openssh_options(way, self._connect_seconds)
        return ["ssh", *options], way[-1].words[-1]

    def rsync_way(self) -> str:
        """Return a name of OpenSSH's way to the host; see `Transport.rsync_way`."""
        key = self.hops[-1].connection.transport.get_remote_server_key()
        program = shutil.which("rsync") or ""
        changed = Path(program).stat().st_mtime_ns if program else 0
        answer = digest_of([hop.config for hop in self.hops])
        return f"{answer} {key.get_base64()} {program} {changed}"


class _ChannelSession:
    """A command at the other end of a channel."""

    def __init__(self, transport: ParamikoTransport, channel: paramiko.Channel) -> None:
        self._transport = transport
        self._channel = channel
        self._complaint = _Tail(channel)

    def read(self, deadline: float) -> bytes:
        """Return the next bytes; see `Session.read`."""
        self._channel.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            received: bytes = self._channel.recv(READ_BYTES)
        except TimeoutError:
            raise
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise self._transport.explained(error) from error
        return received

    def write(self, data: bytes) -> None:
        """Write to the command's stdin; see `Session.write`."""
        try:
            self._channel.settimeout(WRITE_SECONDS)
            self._channel.sendall(data)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise self._transport.explained(error) from error

    def end_input(self) -> None:
        """Close the command's stdin."""
        # The command may have ended before.
        with contextlib.suppress(OSError, EOFError):
            self._channel.shutdown_write()

    def exit_code(self, deadline: float) -> int:
        """Wait for the end; see `Session.exit_code`."""
        if not self._channel.status_event.wait(seconds_left(deadline)):
            raise TimeoutError
        self._complaint.thread.join(seconds_left(deadline))
        code: int = self._channel.exit_status
        if code < 0 and not self._channel.get_transport().is_active():
            raise self._transport.explained(EOFError())
        return code

    @property
    def last_words(self) -> bytes:
        """Return the end of the command's stderr."""
        return self._complaint.last

    def close(self) -> None:
        """End the command; see `Session.close`."""
        self._channel.close()


class _Tail:
    """The end of a command's stderr, read by a thread: a full pipe would block the command."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self.last = b""
        self.thread = threading.Thread(target=self._read, args=(channel,), daemon=True)
        self.thread.start()

    def _read(self, channel: paramiko.Channel) -> None:
        with contextlib.suppress(OSError):
            while received := channel.recv_stderr(READ_BYTES):
                self.last = (self.last + received)[-READ_BYTES:]


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
    if known.has_authority:
        raise OpenSshWanted("@cert-authority in known_hosts")
    connection.connect_kwargs |= {
        "auth_strategy": LoginKeys(config),
        "transport_factory": partial(_transport, config, known.types),
    }
    connection.client.set_missing_host_key_policy(_OnlyKnownKeys(config, known))
    sock: socket.socket | None = None
    try:
        if connection.gateway:
            pass
        elif config.proxy_command:
            sock = ProxySocket.of(config.proxy_command)
        else:
            sock = _PromptSocket.to(
                connection.host, connection.port, connection.connect_timeout
            )
        if sock:
            connection.connect_kwargs["sock"] = sock
        connection.open()
    except BROKEN_OFF as error:
        words = sock.last_words() if isinstance(sock, ProxySocket) else ""
        # Fabric's close() ignores a login that failed half way.
        connection.client.close()
        if sock:
            sock.close()
        if words and not isinstance(error, (*ABOUT_THE_LOGIN, UnverifiedKey)):
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
        self.known.verify(self.config, HostKey(key.get_name(), key.get_base64()))


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
    """Return the algorithms in OpenSSH's list; raises OpenSshWanted if there is none."""
    allowed = config.one(keyword).split(",")
    chosen = [name for name in names if name in allowed]
    if not chosen:
        raise OpenSshWanted(f"{keyword} of the ssh configuration")
    return chosen


def _after_login(transport: paramiko.Transport) -> None:
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
