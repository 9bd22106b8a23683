"""A ProxyCommand as the socket of a connection, run as OpenSSH runs it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
from typing import Any

from ..host import LAST_WORDS_CHARACTERS

# For the command to end by itself once nobody is at the other end.
END_SECONDS = 1.0


class ProxySocket(socket.socket):
    """The near end of a socket pair, with a command at the far end.

    The command has no terminal, so it can ask nobody anything, and Ctrl-C does not end it.
    """

    process: subprocess.Popen[bytes]
    complaints: Any

    @classmethod
    def of(cls, command: str) -> ProxySocket:
        """Start the command in the user's shell; raises OSError."""
        near, far = socket.socketpair()
        complaints = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the socket)
        shell = os.environ.get("SHELL") or "/bin/sh"
        with far:
            try:
                process = subprocess.Popen(
                    [shell, "-c", f"exec {command}"],
                    stdin=far.fileno(),
                    stdout=far.fileno(),
                    stderr=complaints,
                    start_new_session=True,
                )
            except OSError:
                near.close()
                complaints.close()
                raise
        made = cls(fileno=near.detach())
        made.process = process
        made.complaints = complaints
        return made

    def close(self) -> None:
        """Close the socket, and end the command."""
        if self.complaints.closed:
            return
        super().close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)
        self.process.kill()
        self.process.wait()
        self.complaints.close()

    def last_words(self) -> str:
        """Return the last line that the command wrote to stderr, "" without one."""
        if self.complaints.closed:
            return ""
        self.complaints.seek(0)
        lines = self.complaints.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:LAST_WORDS_CHARACTERS] if lines else ""
