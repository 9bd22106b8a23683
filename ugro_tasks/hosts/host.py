"""The seam between a node and everything above: what a host is, and what its kinds have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from ..cluster.model import Node
from ..errors import NodeFault

T = TypeVar("T")

READ_BYTES = 1 << 18
# More than any answer needs: a node must not fill the controller's memory.
ANSWER_LIMIT_BYTES = 16 << 20
LAST_WORDS_CHARACTERS = 500  # of a command that failed
WRITE_SECONDS = 30.0  # for a command to take the next piece of what it is given
ARRIVED_STAYS = "what arrived stays; try again"  # about a transfer that broke off
RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0)


class Stream(Protocol):
    """The stdout of a command that goes on."""

    def read(self, silence_seconds: float) -> bytes:
        """Give what has come, b"" at the end; raises HostUnreachable after that long without a byte."""

    def write(self, data: bytes) -> None:
        """Give the command more to read, where its stdin was left open; raises HostUnreachable."""

    def close(self) -> None:
        """End the command; it gets a closed pipe."""


class Host(Protocol):
    """The seam between a node and everything above."""

    node: Node

    @property
    def round_trip_seconds(self) -> float:
        """Give the time that the last session took to open: one round trip and sshd's own work."""

    def run(
        self, argv: Sequence[str], stdin: bytes = b"", timeout_seconds: float = 30.0
    ) -> bytes:
        """Run a command and give its stdout; raises HostError, NodeFault where the exit code is not 0."""

    def stream(self, argv: Sequence[str], stdin: bytes | None = b"") -> Stream:
        """Start a command and give its stdout as it comes. With None its stdin stays open, for `Stream.write`."""

    def rsync_remote(self) -> tuple[list[str], str] | None:
        """Give what rsync needs to reach the host: its options, and what stands before a path.

        None where files need no rsync.
        """

    def close(self) -> None:
        """Drop the connection; the next command opens it again."""


def stdout_of(
    node: Node, argv: Sequence[str], code: int, out: bytes, err: bytes
) -> bytes:
    """Give the output of a command that has ended; raises NodeFault with its last words where it failed."""
    if code == 0:
        return out
    if code == 127:
        what = f"{argv[0]} was not found (a non-interactive login reads no profile)"
        raise NodeFault(
            node.name,
            what,
            f"give its path as `python` of {node.name} in the cluster file",
        )
    lines = err.decode("utf-8", "replace").strip().splitlines()
    last = lines[-1] if lines else f"exit code {code}"
    raise NodeFault(node.name, last[:LAST_WORDS_CHARACTERS])


def answer_too_long(node: Node, argv: Sequence[str]) -> NodeFault:
    """Make the error for more output than any answer has."""
    return NodeFault(
        node.name, f"{argv[0]} sent more than {ANSWER_LIMIT_BYTES >> 20} MiB"
    )


def retry_pause(attempt: int) -> float:
    """Give the seconds to wait before a node that could not be reached is tried again; `attempt` counts from 0."""
    return RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)]
