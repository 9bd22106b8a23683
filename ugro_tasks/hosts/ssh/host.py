"""A host over SSH: commands and raw bytes, by whichever transport its way needs.

Every failure on the way becomes a `HostError` with the host, the attempt and a remedy. An argv is
quoted by the transports and nowhere else.
"""

from __future__ import annotations

import contextlib
import shlex
import threading
import time
from collections.abc import Sequence

from ...cluster.model import Node
from ...errors import HostError, HostUnreachable, NodeFault
from ..host import ANSWER_LIMIT_BYTES, answer_too_long, stdout_of
from .login import log_in
from .transport import NotStarted, Session, Transport

# For a node to start a command with a stream as its output.
START_SECONDS = 30.0


class SshHost:
    """A node over SSH.

    `ssh -G` says how the node is reached, and is asked anew before each login.
    """

    def __init__(self, node: Node, connect_seconds: float) -> None:
        self.node = node
        self.connect_seconds = connect_seconds
        self.transport: Transport | None = None
        """The newest login; None before the first."""
        self._opening = threading.Lock()

    def open(self) -> Transport:
        """Log in, if not done yet; raises HostError."""
        with self._opening:
            transport = self.transport
            if transport is None or not transport.is_open:
                self.close()
                transport = self.transport = log_in(self.node, self.connect_seconds)
            return transport

    @property
    def round_trip_seconds(self) -> float:
        """Return the time of a round trip; see `Host.round_trip_seconds`."""
        return self.transport.round_trip_seconds if self.transport else 0.0

    def close(self) -> None:
        """Log out."""
        transport, self.transport = self.transport, None
        if transport:
            transport.close()

    def _drop(self, transport: Transport) -> None:
        """Close a login that failed; another thread may have a newer one by now."""
        if self.transport is transport:
            self.transport = None
        transport.close()

    def run(
        self, argv: Sequence[str], stdin: bytes = b"", timeout_seconds: float = 30.0
    ) -> bytes:
        """Run a command; see `Host.run`."""
        deadline = time.monotonic() + timeout_seconds
        transport, session = self._start(argv, stdin, timeout_seconds)
        with contextlib.closing(session):
            try:
                output = self._output(session, argv, deadline)
                code = session.exit_code(deadline)
            except TimeoutError as error:
                # Either the command hangs, or the network is gone.
                self._drop(transport)
                what = f"{argv[0]} did not end within {timeout_seconds:g} s"
                fix = "is the machine overloaded, or the network gone?"
                raise HostUnreachable(self.node.name, what, fix) from error
            except HostUnreachable:
                self._drop(transport)
                raise
            if code < 0:
                raise NodeFault(self.node.name, f"{argv[0]} was ended by a signal")
            return stdout_of(self.node, argv, code, output, session.last_words)

    def stream(self, argv: Sequence[str], stdin: bytes | None = b"") -> _SshStream:
        """Start a command; see `Host.stream`."""
        _, session = self._start(argv, stdin, START_SECONDS)
        return _SshStream(self.node, session)

    def rsync_remote(self) -> tuple[list[str], str]:
        """Return rsync's options and prefix; see `Host.rsync_remote`."""
        shell, host = self.open().rsync_shell()
        # rsync takes an IPv6 address in brackets.
        if ":" in host:
            host = f"[{host}]"
        return ["-e", shlex.join(shell)], f"{host}:"

    def rsync_way(self) -> str | None:
        """Return a name of the way that rsync takes; None if it shares this host's own connection."""
        return self.open().rsync_way()

    def _output(self, session: Session, argv: Sequence[str], deadline: float) -> bytes:
        """Read all output of a command; raises TimeoutError, and NodeFault if it is too long."""
        output = bytearray()
        while True:
            received = session.read(deadline)
            if not received:
                return bytes(output)
            output += received
            # Checked here too: a command may send a byte now and then.
            if time.monotonic() > deadline:
                raise TimeoutError
            if len(output) > ANSWER_LIMIT_BYTES:
                raise answer_too_long(self.node, argv)

    def _start(
        self, argv: Sequence[str], stdin: bytes | None, timeout_seconds: float
    ) -> tuple[Transport, Session]:
        """Start a command and feed its stdin in a thread; log in once more if the login was dead."""
        before = self.transport
        transport = self.open()
        try:
            session = transport.start(argv, timeout_seconds)
        except NotStarted as failed:
            self._drop(transport)
            if transport is before:
                return self._start(argv, stdin, timeout_seconds)
            raise failed.error from failed
        except HostUnreachable:
            self._drop(transport)
            raise
        if stdin is not None:
            threading.Thread(target=_feed, args=(session, stdin), daemon=True).start()
        return transport, session


class _SshStream:
    """The stdout of a running command, and its stdin."""

    def __init__(self, node: Node, session: Session) -> None:
        self.node = node
        self.session = session

    def read(self, silence_seconds: float) -> bytes:
        """Return the next bytes; see `Stream.read`."""
        try:
            return self.session.read(time.monotonic() + silence_seconds)
        except TimeoutError as error:
            what = f"no word for {silence_seconds:g} s"
            fix = "is the machine on, and the network up?"
            raise HostUnreachable(self.node.name, what, fix) from error

    def write(self, data: bytes) -> None:
        """Write to the command's stdin; see `Stream.write`."""
        self.session.write(data)

    def close(self) -> None:
        """End the command; see `Stream.close`."""
        self.session.close()


def _feed(session: Session, stdin: bytes) -> None:
    # A command need not read all of its stdin; any other error appears when its output is read.
    with contextlib.suppress(HostError):
        session.write(stdin)
        session.end_input()
