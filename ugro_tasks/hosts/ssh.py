"""A host over SSH: commands and raw bytes through a Fabric connection.

Every failure on the way becomes a `HostError` with the host, the attempt and a remedy. An argv is
quoted here and nowhere else.
"""

from __future__ import annotations

import contextlib
import shlex
import threading
import time
from collections.abc import Sequence
from typing import Any

import paramiko
from fabric import Config, Connection

from ..cluster.model import Node
from ..errors import HostUnreachable, NodeFault
from .host import (
    ANSWER_LIMIT_BYTES,
    READ_BYTES,
    WRITE_SECONDS,
    answer_too_long,
    stdout_of,
)
from .ssh_config import alias_of, openssh_options, ssh_config_faults, user_ssh_config
from .ssh_errors import explained
from .transport import BROKEN_OFF, after_login, hops_to, log_in, make_strict

# For a node to start a command with a stream as its output.
START_SECONDS = 30.0
# For the exit status of a command, if its time is over when its output ends.
LAST_WAIT_SECONDS = 0.1


class SshHost:
    """A node over SSH.

    Fabric's connection reads the user's configuration, goes through jump hosts and logs in; here it
    is also made to verify host keys and to limit every wait. Commands use channels of its
    transport.
    """

    def __init__(self, node: Node, connect_seconds: float) -> None:
        self.node = node
        self.round_trip_seconds = 0.0
        self._opening = threading.Lock()
        with ssh_config_faults():
            config = Config(ssh_config=user_ssh_config())
            self._alias = alias_of(config.base_ssh_config, node)
            gateway = None
            if node.jump:
                gateway = Connection(node.jump, config=config.clone())
            self.connection = Connection(
                self._alias or node.address,
                user=node.user,
                port=node.ssh_port,
                gateway=gateway,
                config=config,
            )
        for hop in hops_to(self.connection):
            make_strict(hop, connect_seconds, _transport)

    def open(self) -> None:
        """Log in on every hop of the way, if not done yet; raises HostError."""
        with self._opening:
            for hop in hops_to(self.connection):
                if hop.is_connected:
                    continue
                try:
                    log_in(hop)
                except BROKEN_OFF as error:
                    is_jump_host = hop is not self.connection
                    raise explained(
                        self.node.name, hop, error, is_jump_host=is_jump_host
                    ) from error

    def close(self) -> None:
        """Close the connections to the host and to its jump hosts."""
        # The jump hosts' connections are this host's own: a dead one would block the next login.
        for hop in reversed(hops_to(self.connection)):
            hop.close()

    def run(
        self, argv: Sequence[str], stdin: bytes = b"", timeout_seconds: float = 30.0
    ) -> bytes:
        """Run a command; see `Host.run`."""
        deadline = time.monotonic() + timeout_seconds
        with contextlib.closing(self._execute(argv, stdin, timeout_seconds)) as channel:
            complaint = _Tail(channel)
            try:
                output = self._output(channel, argv, deadline)
                if not channel.status_event.wait(_seconds_left(deadline)):
                    raise TimeoutError
                complaint.thread.join(_seconds_left(deadline))
            except TimeoutError as error:
                # Either the command hangs, or the network is gone.
                self.close()
                what = f"{argv[0]} did not end within {timeout_seconds:g} s"
                fix = "is the machine overloaded, or the network gone?"
                raise HostUnreachable(self.node.name, what, fix) from error
            except (paramiko.SSHException, OSError, EOFError) as error:
                self.close()
                raise explained(self.node.name, self.connection, error) from error
            if channel.exit_status < 0:
                if self.connection.transport.is_active():
                    raise NodeFault(self.node.name, f"{argv[0]} was ended by a signal")
                self.close()
                raise explained(self.node.name, self.connection, EOFError())
        return stdout_of(self.node, argv, channel.exit_status, output, complaint.last)

    def stream(self, argv: Sequence[str], stdin: bytes | None = b"") -> _SshStream:
        """Start a command; see `Host.stream`."""
        return _SshStream(self, self._execute(argv, stdin, START_SECONDS))

    def rsync_remote(self) -> tuple[list[str], str]:
        """Return rsync's options and prefix; see `Host.rsync_remote`."""
        node = self.node
        shell = shlex.join(["ssh", *openssh_options(node)])
        host = node.address
        # rsync takes an IPv6 address in brackets.
        if ":" in host:
            host = f"[{host}]"
        host = self._alias or host
        if node.user:
            host = f"{node.user}@{host}"
        return ["-e", shell], f"{host}:"

    def _output(
        self, channel: paramiko.Channel, argv: Sequence[str], deadline: float
    ) -> bytes:
        """Read all output of a command; raises TimeoutError, and NodeFault if it is too long."""
        output = bytearray()
        while True:
            received = _receive(channel, deadline)
            if not received:
                return bytes(output)
            output += received
            # Checked here too: a command may send a byte now and then.
            if time.monotonic() > deadline:
                raise TimeoutError
            if len(output) > ANSWER_LIMIT_BYTES:
                raise answer_too_long(self.node, argv)

    def _execute(
        self, argv: Sequence[str], stdin: bytes | None, timeout_seconds: float
    ) -> paramiko.Channel:
        """Start a command and feed its stdin in a thread; return its channel. Raises HostError."""
        channel = self._open_channel(timeout_seconds)
        try:
            channel.settimeout(timeout_seconds)
            channel.exec_command(shlex.join(argv))
        except BROKEN_OFF as error:
            self.close()
            raise explained(self.node.name, self.connection, error) from error
        if stdin is not None:
            threading.Thread(target=_feed, args=(channel, stdin), daemon=True).start()
        return channel

    def _open_channel(self, timeout_seconds: float) -> paramiko.Channel:
        """Open a channel, logging in if needed; reconnect once if the connection turns out dead."""
        was_connected = self.connection.is_connected
        self.open()
        begun = time.monotonic()
        try:
            channel: paramiko.Channel = self.connection.transport.open_session(
                timeout=timeout_seconds
            )
        except BROKEN_OFF as error:
            self.close()
            if was_connected:
                return self._open_channel(timeout_seconds)
            raise explained(self.node.name, self.connection, error) from error
        self.round_trip_seconds = time.monotonic() - begun
        after_login(self.connection.transport)
        return channel


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


class _SshStream:
    """A running command at the other end of a channel."""

    def __init__(self, host: SshHost, channel: paramiko.Channel) -> None:
        self.host = host
        self.channel = channel

    def read(self, silence_seconds: float) -> bytes:
        """Return the next bytes; see `Stream.read`."""
        try:
            return _receive(self.channel, time.monotonic() + silence_seconds)
        except (paramiko.SSHException, OSError) as error:
            raise explained(self.host.node.name, self.host.connection, error) from error

    def write(self, data: bytes) -> None:
        """Write to the command's stdin; see `Stream.write`."""
        try:
            self.channel.settimeout(WRITE_SECONDS)
            self.channel.sendall(data)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise explained(self.host.node.name, self.host.connection, error) from error

    def close(self) -> None:
        """End the command; see `Stream.close`."""
        self.channel.close()


def _feed(channel: paramiko.Channel, stdin: bytes) -> None:
    # A command need not read all of its stdin; any other error appears when its output is read.
    with contextlib.suppress(OSError, EOFError):
        channel.sendall(stdin)
        channel.shutdown_write()


def _receive(channel: paramiko.Channel, deadline: float) -> bytes:
    channel.settimeout(max(0.01, deadline - time.monotonic()))
    received: bytes = channel.recv(READ_BYTES)
    return received


def _seconds_left(deadline: float) -> float:
    return max(LAST_WAIT_SECONDS, deadline - time.monotonic())


def _transport(socket_: Any, **options: Any) -> paramiko.Transport:
    """Make paramiko's transport with the AES-GCM ciphers first.

    They need no separate MAC, so a byte costs a quarter less.
    """
    made = paramiko.Transport(socket_, **options)
    algorithms = made.get_security_options()
    algorithms.ciphers = sorted(algorithms.ciphers, key=lambda name: "gcm" not in name)
    return made
