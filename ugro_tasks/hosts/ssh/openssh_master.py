"""A master connection of OpenSSH to a host, which all its clients share."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Sequence

from ..host import READ_BYTES
from ..pipes import Pipes
from .config import SshConfig
from .control_sockets import control_socket
from .jump_hosts import enter, leave
from .openssh_client import (
    LOGIN_TIMES,
    MasterFailed,
    master_argv,
)

# What `cat` sends back: all before it is said by the login shell.
MARK = b"ugro-is-logged-in\n"
END_SECONDS = 1.0


class Master:
    """A master connection of ours, logged in.

    It runs `cat` on the host, whose stdin is a pipe of this process: however this process ends, the
    master ends, too.
    """

    def __init__(self, way: Sequence[SshConfig], connect_seconds: float) -> None:
        """Log in; raises MasterFailed and OSError."""
        self.control = control_socket()
        self._way = way
        self._talking = threading.Lock()
        self._jump_host = enter(way[:-1], connect_seconds)
        try:
            self._log_in(connect_seconds)
        except BaseException:
            self._leave()
            raise

    def _log_in(self, connect_seconds: float) -> None:
        way = self._way
        through = self._jump_host.control if self._jump_host else None
        argv = master_argv(
            way, connect_seconds, self.control, through=through, persist="no"
        )
        # A file, since nobody reads while the connection lasts.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115  (closed in close)
        try:
            self.pipes = Pipes([*argv, "cat"], stderr=self._complaints)
        except OSError:
            self._complaints.close()
            raise
        try:
            self.round_trip(LOGIN_TIMES * len(way) * connect_seconds)
        except TimeoutError as error:
            words = self.last_words
            self.close()
            raise MasterFailed(way, words, is_silent=True) from error
        except BaseException:
            self.close()
            raise

    @property
    def is_alive(self) -> bool:
        """Tell whether it is connected, as far as is known here."""
        return self.pipes.process.poll() is None and self.control.exists()

    def round_trip(self, limit_seconds: float) -> float:
        """Send a mark to the host and wait for it; return the seconds taken.

        Raises TimeoutError, and MasterFailed at its end.
        """
        with self._talking:
            begun = time.monotonic()
            # What it says at its end is read below.
            with contextlib.suppress(BrokenPipeError):
                self.pipes.write(MARK)
            said = b""
            while MARK not in said:
                received = self.pipes.read(begun + limit_seconds)
                if not received:
                    with contextlib.suppress(TimeoutError):
                        self.pipes.exit_code(END_SECONDS)
                    # A login shell that lets nobody in tells so on stdout.
                    raise MasterFailed(self._way, self.last_words or _text(said))
                said = (said + received)[-READ_BYTES:]
                if time.monotonic() > begun + limit_seconds:
                    raise TimeoutError
            return time.monotonic() - begun

    @property
    def last_words(self) -> str:
        """Return what the master has written to stderr."""
        if self._complaints.closed:
            return ""
        size = os.fstat(self._complaints.fileno()).st_size
        said = os.pread(
            self._complaints.fileno(), READ_BYTES, max(0, size - READ_BYTES)
        )
        return _text(said)

    def close(self) -> None:
        """Log out: its clients end, and its socket goes."""
        self.pipes.process.terminate()
        with contextlib.suppress(TimeoutError):
            self.pipes.exit_code(END_SECONDS)
        self.pipes.close()
        self._complaints.close()
        self.control.unlink(missing_ok=True)
        self._leave()

    def _leave(self) -> None:
        jump_host, self._jump_host = self._jump_host, None
        if jump_host:
            leave(jump_host)


def _text(said: bytes) -> str:
    return said.decode("utf-8", "replace").strip()
