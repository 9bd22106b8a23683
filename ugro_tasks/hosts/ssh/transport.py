"""The interface of a login on a host, common to paramiko in this process and OpenSSH's program."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from ...errors import HostError

# For the exit code of a command, if its time is over when its output ends.
LAST_WAIT_SECONDS = 0.1


class NotStarted(Exception):
    """The connection turned out dead before a command was sent."""

    def __init__(self, error: HostError) -> None:
        super().__init__(error.text)
        self.error = error


class Session(Protocol):
    """A command that runs on a host; deadlines are by `time.monotonic`."""

    def read(self, deadline: float) -> bytes:
        """Return the next bytes of its stdout, b"" at the end.

        Raises TimeoutError at the deadline, and HostError.
        """

    def write(self, data: bytes) -> None:
        """Write to its stdin; raises HostError, also if it takes nothing for WRITE_SECONDS."""

    def end_input(self) -> None:
        """Close its stdin."""

    def exit_code(self, deadline: float) -> int:
        """Wait for its end and return its exit code, negative if a signal ended it.

        Raises TimeoutError at the deadline, and HostError if the connection is gone.
        """

    @property
    def last_words(self) -> bytes:
        """Return the end of its stderr."""

    def close(self) -> None:
        """End it by closing its pipes."""


class Transport(Protocol):
    """A login on a host."""

    round_trip_seconds: float

    @property
    def is_open(self) -> bool:
        """Tell whether the whole way is logged in to, as far as is known here."""

    def start(self, argv: Sequence[str], timeout_seconds: float) -> Session:
        """Start a command; raises HostError, and NotStarted if nothing of it was sent."""

    def rsync_shell(self) -> tuple[list[str], str]:
        """Return the argv of rsync's remote shell, and the host's name for it."""

    def rsync_way(self) -> str | None:
        """Return a name of the way that rsync takes, another one after each change of it.

        None if rsync shares this login.
        """

    def close(self) -> None:
        """Log out."""


def seconds_left(deadline: float) -> float:
    """Return the time to wait for the last word of a command whose output has ended."""
    return max(LAST_WAIT_SECONDS, deadline - time.monotonic())
