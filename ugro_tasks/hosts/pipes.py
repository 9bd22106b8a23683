"""A program started on this machine, with pipes to it."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import IO

from .host import READ_BYTES, WRITE_SECONDS


class Pipes:
    """A running program. Ctrl-C does not end it; closing does."""

    def __init__(self, argv: Sequence[str], *, stderr: int | IO[bytes]) -> None:
        """Start it; raises OSError."""
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            bufsize=0,
            start_new_session=True,
        )
        self.last_words = b""
        """The end of its stderr, as far as it was read, if that is a pipe."""
        assert self.process.stdin is not None  # noqa: S101
        assert self.process.stdout is not None  # noqa: S101
        self._stdin = self.process.stdin
        self._stdout = self.process.stdout
        self._stderr = self.process.stderr
        self._input = threading.Lock()
        os.set_blocking(self._stdin.fileno(), False)

    def read(self, deadline: float) -> bytes:
        """Return the next bytes of its stdout, b"" at the end.

        Raises TimeoutError at the deadline, by `time.monotonic`.
        """
        while not self._stdout.closed:
            wait = max(0.01, deadline - time.monotonic())
            pipes = [self._stdout, self._stderr] if self._stderr else [self._stdout]
            try:
                readable, _, _ = select.select(pipes, [], [], wait)
                if self._stdout in readable:
                    return os.read(self._stdout.fileno(), READ_BYTES)
            except ValueError:
                # Closed by another thread: so the loop ends.
                continue
            if not readable:
                raise TimeoutError
            self._take_complaint()
        return b""

    def write(self, data: bytes) -> None:
        """Write to its stdin; raises OSError, as TimeoutError if it takes nothing for WRITE_SECONDS."""
        with self._input:
            if self._stdin.closed:
                raise BrokenPipeError
            # One of our own: another thread may close the pipe, and its number would be another's.
            descriptor = os.dup(self._stdin.fileno())
        try:
            left = memoryview(data)
            while left:
                _, writable, _ = select.select([], [descriptor], [], WRITE_SECONDS)
                if not writable:
                    raise TimeoutError
                with contextlib.suppress(BlockingIOError):
                    count = os.write(descriptor, left)
                    left = left[count:]
        finally:
            os.close(descriptor)

    def end_input(self) -> None:
        """Close its stdin."""
        with self._input:
            self._stdin.close()

    def exit_code(self, limit_seconds: float) -> int:
        """Wait for its end, and read what is left of its stderr; raises TimeoutError."""
        try:
            code = self.process.wait(limit_seconds)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError from error
        while self._stderr and select.select([self._stderr], [], [], 0)[0]:
            self._take_complaint()
        return code

    def close(self) -> None:
        """Close its pipes and kill it."""
        self.end_input()
        self._stdout.close()
        if self._stderr:
            self._stderr.close()
        self.process.kill()
        self.process.wait()

    def _take_complaint(self) -> None:
        """Read a piece of stderr; at its end it is closed."""
        assert self._stderr is not None  # noqa: S101
        received = os.read(self._stderr.fileno(), READ_BYTES)
        self.last_words = (self.last_words + received)[-READ_BYTES:]
        if not received:
            self._stderr.close()
            self._stderr = None
