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

import paramiko
from fabric import Connection

from ..cluster.model import Node
from ..errors import HostError, HostUnreachable, NodeFault
from .host import (
    ANSWER_LIMIT_BYTES,
    READ_BYTES,
    WRITE_SECONDS,
    answer_too_long,
    stdout_of,
)
from .openssh_options import openssh_options
from .ssh_errors import explained
from .ssh_way import way_to
from .transport import BROKEN_OFF, Hop, after_login, hops_of, log_in

# For a node to start a command with a stream as its output.
START_SECONDS = 30.0
# For the exit status of a command, if its time is over when its output ends.
LAST_WAIT_SECONDS = 0.1


class SshHost:
    """A node over SSH.

    `ssh -G` says how the node is reached, and is asked anew before each login. Commands use
    channels of the connection's transport.
    """

    def __init__(self, node: Node, connect_seconds: float) -> None:
        self.node = node
        self.round_trip_seconds = 0.0
        self.connect_seconds = connect_seconds
        self.hops: list[Hop] = []
        """The way at the last login: jump hosts first, the node last; [] before the first."""
        self._opening = threading.Lock()

    def open(self) -> None:
        """Log in on every hop of the way, if not done yet; raises HostError."""
        with self._opening:
            if self.is_open:
                return
            self.close()
            self.hops = hops_of(way_to(self.node), self.connect_seconds)
            for hop in self.hops:
                try:
                    log_in(hop)
                except BROKEN_OFF as error:
                    self.close()
                    raise self.explained(error, hop) from error

    @property
    def connection(self) -> Connection:
        """Return Fabric's connection to the node itself."""
        return self.hops[-1].connection

    @property
    def is_open(self) -> bool:
        """Tell whether the whole way is logged in to, as far as is known here."""
        return bool(self.hops) and all(hop.connection.is_connected for hop in self.hops)

    def close(self) -> None:
        """Close the connections to the host and to its jump hosts."""
        # The jump hosts' connections are this host's own: a dead one would block the next login.
        for hop in reversed(self.hops):
            hop.connection.close()

    def explained(self, error: Exception, hop: Hop | None = None) -> HostError:
        """Make the HostError for an exception, at the node itself unless another hop is given."""
        where = hop or self.hops[-1]
        is_jump_host = where is not self.hops[-1]
        return explained(
            self.node.name,
            where.config,
            error,
            is_jump_host=is_jump_host,
            is_behind_one=self.hops[0] is not where,
        )

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
                raise self.explained(error) from error
            if channel.exit_status < 0:
                if channel.get_transport().is_active():
                    raise NodeFault(self.node.name, f"{argv[0]} was ended by a signal")
                self.close()
                raise self.explained(EOFError())
        return stdout_of(self.node, argv, channel.exit_status, output, complaint.last)

    def stream(self, argv: Sequence[str], stdin: bytes | None = b"") -> _SshStream:
        """Start a command; see `Host.stream`."""
        return _SshStream(self, self._execute(argv, stdin, START_SECONDS))

    def rsync_remote(self) -> tuple[list[str], str]:
        """Return rsync's options and prefix; see `Host.rsync_remote`."""
        # The same answers as the open connection had.
        way = [hop.config for hop in self.hops] if self.is_open else way_to(self.node)
        shell = shlex.join(["ssh", *openssh_options(way)])
        host = way[-1].words[-1]
        # rsync takes an IPv6 address in brackets.
        if ":" in host:
            host = f"[{host}]"
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
            raise self.explained(error) from error
        if stdin is not None:
            threading.Thread(target=_feed, args=(channel, stdin), daemon=True).start()
        return channel

    def _open_channel(self, timeout_seconds: float) -> paramiko.Channel:
        """Open a channel, logging in if needed; reconnect once if the connection turns out dead."""
        was_connected = self.is_open
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
            raise self.explained(error) from error
        self.round_trip_seconds = time.monotonic() - begun
        after_login(channel.get_transport())
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
            raise self.host.explained(error) from error

    def write(self, data: bytes) -> None:
        """Write to the command's stdin; see `Stream.write`."""
        try:
            self.channel.settimeout(WRITE_SECONDS)
            self.channel.sendall(data)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise self.host.explained(error) from error

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
