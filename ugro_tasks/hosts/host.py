"""The interface of a host, common to local ones and those over SSH."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from ..cluster.model import Node
from ..errors import NodeFault

T = TypeVar("T")

READ_BYTES = 1 << 18
# More than any answer needs: a node must not fill the controller's memory.
ANSWER_LIMIT_BYTES = 16 << 20
# Of a failed command's stderr.
LAST_WORDS_CHARACTERS = 500
# For a command to read the next piece of its stdin.
WRITE_SECONDS = 30.0
# The remedy for a transfer that broke off.
ARRIVED_STAYS = "what arrived stays; try again"


class Stream(Protocol):
    """The stdout of a running command, and its stdin."""

    def read(self, silence_seconds: float) -> bytes:
        """Return the next bytes, b"" at the end; raises HostUnreachable after this silence."""

    def write(self, data: bytes) -> None:
        """Write to the command's stdin, if it was left open; raises HostUnreachable."""

    def close(self) -> None:
        """End the command by closing its pipes."""


class Host(Protocol):
    """A machine to run commands on."""

    node: Node

    @property
    def round_trip_seconds(self) -> float:
        """Return the time taken by opening the last session: one round trip and sshd's own work."""

    def run(
        self, argv: Sequence[str], stdin: bytes = b"", timeout_seconds: float = 30.0
    ) -> bytes:
        """Run a command and return its stdout.

        Raises HostError, and NodeFault if the exit code is not 0.
        """

    def stream(self, argv: Sequence[str], stdin: bytes | None = b"") -> Stream:
        """Start a command and return its stdout as a stream.

        With `stdin` None, its stdin stays open for `Stream.write`.
        """

    def rsync_remote(self) -> tuple[list[str], str] | None:
        """Return rsync's options to reach the host, and the prefix of a path there.

        None if files need no rsync.
        """

    def close(self) -> None:
        """Drop the connection; the next command opens it again."""


def stdout_of(
    node: Node, argv: Sequence[str], code: int, out: bytes, err: bytes
) -> bytes:
    """Return the output of a finished command; raises NodeFault with its last line if it failed."""
    if code == 0:
        return out
    if code == 127:
        what = f"{argv[0]} was not found (a non-interactive login reads no profile)"
        fix = f"give its path as `python` of {node.name} in the cluster file"
        raise NodeFault(node.name, what, fix)
    lines = err.decode("utf-8", "replace").strip().splitlines()
    last = lines[-1] if lines else f"exit code {code}"
    raise NodeFault(node.name, last[:LAST_WORDS_CHARACTERS])


def answer_too_long(node: Node, argv: Sequence[str]) -> NodeFault:
    """Make the error for output longer than any answer."""
    limit_mib = ANSWER_LIMIT_BYTES >> 20
    return NodeFault(node.name, f"{argv[0]} sent more than {limit_mib} MiB")
