"""Machines to run things on: what a host is, this machine as one, and `Fleet` for all of them at once."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from fabric.exceptions import GroupException
from fabric.group import ThreadingGroup

from .cluster import Cluster, Node
from .errors import HostError, HostUnreachable, NodeFault
from .ssh import ANSWER_LIMIT_BYTES, READ_BYTES, SshHost, answer_too_long, stdout_of

T = TypeVar("T")


class Stream(Protocol):
    """The stdout of a command that goes on."""

    def read(self, silence_seconds: float) -> bytes:
        """What has come, b"" at the end; raises HostUnreachable after that long without a byte."""

    def write(self, data: bytes) -> None:
        """Give the command more to read, where its stdin was left open; raises HostUnreachable."""

    def close(self) -> None:
        """End it; the command gets a closed pipe."""


class Host(Protocol):
    """The seam between a node and everything above."""

    node: Node

    @property
    def round_trip_seconds(self) -> float:
        """The time that the last session took to open: one round trip and sshd's own work."""

    def run(self, argv: Sequence[str], stdin: bytes = b"", timeout_seconds: float = 30.0) -> bytes:
        """The command's stdout; raises HostError, NodeFault where the exit code is not 0."""

    def stream(self, argv: Sequence[str], stdin: bytes | None = b"") -> Stream:
        """The command's stdout as it comes. With None its stdin stays open, for `Stream.write`."""

    def rsync_remote(self) -> tuple[list[str], str] | None:
        """What rsync needs to reach the host: its options, and what stands before a path.

        None where files need no rsync.
        """

    def call(self, function: Callable[[Host], T]) -> T:
        """`function(self)`; what `Fleet.map` calls on each member."""

    def close(self) -> None:
        """Drop the connection; the next command opens it again."""


def connect(node: Node, connect_seconds: float) -> Host:
    """The host of a node; nothing is contacted yet."""
    return LocalHost(node) if node.transport == "local" else SshHost(node, connect_seconds)


# ---- a group of hosts ----


class Fleet(ThreadingGroup):  # type: ignore[misc]
    """All hosts of a cluster, in the order of their ranks."""

    @classmethod
    def of(cls, cluster: Cluster) -> Fleet:
        """The hosts of the cluster's nodes."""
        hosts = [connect(node, cluster.timeouts.connect_seconds) for node in cluster.nodes]
        fleet: Fleet = cls.from_connections(hosts)
        return fleet

    def map(self, function: Callable[[Host], T]) -> dict[str, T | HostError]:
        """`function(host)` on all hosts at once: {node name: its result or the HostError that it met}.

        Partial failure is data. Any other exception is a bug and is raised.
        """
        try:
            results: Mapping[Host, Any] = self._do("call", function)
        except GroupException as group:
            results = group.result
        for result in results.values():
            if isinstance(result, BaseException) and not isinstance(result, HostError):
                raise result
        return {host.node.name: results[host] for host in self}


# ---- this machine ----


class LocalHost:
    """This machine as a node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.round_trip_seconds = 0.0

    def run(self, argv: Sequence[str], stdin: bytes = b"", timeout_seconds: float = 30.0) -> bytes:
        """See Host."""
        try:
            done = subprocess.run(
                argv, input=stdin, capture_output=True, timeout=timeout_seconds, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise NodeFault(self.node.name, f"{argv[0]} did not end within {timeout_seconds:g} s") from error
        except OSError as error:
            raise NodeFault(self.node.name, f"{argv[0]}: {error.strerror}") from error
        if len(done.stdout) > ANSWER_LIMIT_BYTES:
            raise answer_too_long(self.node, argv)
        return stdout_of(self.node, argv, done.returncode, done.stdout, done.stderr)

    def stream(self, argv: Sequence[str], stdin: bytes | None = b"") -> Stream:
        """See Host."""
        return _LocalStream(self.node, argv, stdin)

    def rsync_remote(self) -> None:
        """See Host. Files of this machine need no rsync."""

    def call(self, function: Callable[[Host], T]) -> T:
        """See Host."""
        return function(self)

    def close(self) -> None:
        """See Host."""


class _LocalStream:
    def __init__(self, node: Node, argv: Sequence[str], stdin: bytes | None) -> None:
        self.node = node
        try:
            process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
            )
        except OSError as error:
            raise NodeFault(node.name, f"{argv[0]}: {error.strerror}") from error
        assert process.stdin is not None  # noqa: S101
        assert process.stdout is not None  # noqa: S101
        self.process, self.stdin, self.stdout = process, process.stdin, process.stdout
        if stdin is not None:
            with contextlib.suppress(BrokenPipeError), self.stdin:
                _write_all(self.stdin.fileno(), stdin)

    def read(self, silence_seconds: float) -> bytes:
        if not select.select([self.stdout], [], [], silence_seconds)[0]:
            raise HostUnreachable(self.node.name, f"no word for {silence_seconds:g} s")
        return os.read(self.stdout.fileno(), READ_BYTES)

    def write(self, data: bytes) -> None:
        try:
            _write_all(self.stdin.fileno(), data)
        except OSError as error:
            raise HostUnreachable(self.node.name, "it has stopped listening") from error

    def close(self) -> None:
        self.stdin.close()
        self.stdout.close()
        self.process.kill()
        self.process.wait()


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
