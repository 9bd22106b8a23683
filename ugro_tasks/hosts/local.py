"""This machine as a host."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Sequence

from ..cluster.model import Node
from ..errors import HostUnreachable, NodeFault
from .host import ANSWER_LIMIT_BYTES, Stream, answer_too_long, stdout_of
from .pipes import Pipes


class LocalHost:
    """This machine as a node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.round_trip_seconds = 0.0

    def run(
        self, argv: Sequence[str], stdin: bytes = b"", timeout_seconds: float = 30.0
    ) -> bytes:
        """Run a command; see `Host.run`."""
        try:
            done = subprocess.run(
                argv,
                input=stdin,
                capture_output=True,
                timeout=timeout_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            what = f"{argv[0]} did not end within {timeout_seconds:g} s"
            raise NodeFault(self.node.name, what) from error
        except OSError as error:
            raise NodeFault(self.node.name, f"{argv[0]}: {error.strerror}") from error
        if len(done.stdout) > ANSWER_LIMIT_BYTES:
            raise answer_too_long(self.node, argv)
        return stdout_of(self.node, argv, done.returncode, done.stdout, done.stderr)

    def stream(self, argv: Sequence[str], stdin: bytes | None = b"") -> Stream:
        """Start a command; see `Host.stream`."""
        return _LocalStream(self.node, argv, stdin)

    def rsync_remote(self) -> None:
        """Return None: files of this machine need no rsync."""

    def close(self) -> None:
        """Do nothing: there is no connection."""


class _LocalStream:
    """A running command on this machine."""

    def __init__(self, node: Node, argv: Sequence[str], stdin: bytes | None) -> None:
        self.node = node
        try:
            self.pipes = Pipes(argv, stderr=subprocess.DEVNULL)
        except OSError as error:
            raise NodeFault(node.name, f"{argv[0]}: {error.strerror}") from error
        if stdin is not None:
            self._feed(stdin)

    def _feed(self, stdin: bytes) -> None:
        """Write all of the command's stdin and close it; the command need not read it."""
        try:
            with contextlib.suppress(BrokenPipeError):
                self.pipes.write(stdin)
            self.pipes.end_input()
        except TimeoutError as error:
            self.close()
            raise HostUnreachable(self.node.name, "it does not listen") from error

    def read(self, silence_seconds: float) -> bytes:
        """Return the next bytes; see `Stream.read`."""
        try:
            return self.pipes.read(time.monotonic() + silence_seconds)
        except TimeoutError as error:
            what = f"no word for {silence_seconds:g} s"
            raise HostUnreachable(self.node.name, what) from error

    def write(self, data: bytes) -> None:
        """Write to the command's stdin; see `Stream.write`."""
        try:
            self.pipes.write(data)
        except OSError as error:
            raise HostUnreachable(self.node.name, "it has stopped listening") from error

    def close(self) -> None:
        """End the command; see `Stream.close`."""
        self.pipes.close()
