"""Clients of OpenSSH's master connections, and what they say."""

from __future__ import annotations

import shlex
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .config import SshConfig
from .openssh_options import as_options, openssh_options

# For a master to log in, in times of the limit on a connection.
LOGIN_TIMES = 4
CHECK_SECONDS = 5.0
# Said by a client that finds no master: it must not connect by itself.
NO_MASTER = "ugro-finds-no-master"
CLIENT_OPTIONS = (
    # No configuration: the master has been told all.
    *("-F", "none"),
    *as_options(
        (
            "ControlMaster=no",
            # In a shell of its own: until it has spoken, its stdout must be open.
            f"ProxyCommand=sh -c 'echo {NO_MASTER} >&2'",
            "BatchMode=yes",
            "LogLevel=ERROR",
        )
    ),
    *("-a", "-x", "-T"),
)
# Nothing is looked up under this name.
OF_THE_MASTER = "node"


class MasterFailed(Exception):
    """A master could not log in."""

    def __init__(
        self, way: Sequence[SshConfig], words: str, *, is_silent: bool = False
    ) -> None:
        super().__init__(words)
        self.way = way
        """The way to the host that it failed at."""
        self.words = words
        """What OpenSSH said."""
        self.is_silent = is_silent
        """Whether the host did not answer in time."""


def client_argv(control: Path) -> list[str]:
    """Return a client of a master, without the host's name and the command."""
    return ["ssh", *at_socket(control), *CLIENT_OPTIONS]


def at_socket(control: Path) -> list[str]:
    """Return OpenSSH's option for a socket; it would replace tokens in the path."""
    return ["-S", str(control).replace("%", "%%")]


def master_argv(
    way: Sequence[SshConfig],
    connect_seconds: float,
    control: Path,
    *flags: str,
    through: Path | None,
    persist: str,
) -> list[str]:
    """Return a master that listens at a socket, without a command to run on the host.

    `through` is the socket of the jump host's master. `persist` is OpenSSH's ControlPersist.
    """
    options = openssh_options(way, connect_seconds, _jump_command(through))
    # Of the paths the last counts, of other settings the first.
    own = as_options(("ControlMaster=yes", f"ControlPersist={persist}"))
    last = [*at_socket(control), "--", way[-1].words[-1]]
    return ["ssh", *flags, *own, *options, *last]


def _jump_command(through: Path | None) -> str:
    """Return the ProxyCommand that goes through the master of a jump host; "" for none."""
    if through is None:
        return ""
    client = shlex.join(client_argv(through)).replace("%", "%%")
    return f"{client} -W '[%h]:%p' {OF_THE_MASTER}"


def listens(control: Path) -> bool:
    """Tell whether a process listens at a socket; one that is halted does not count."""
    with socket.socket(socket.AF_UNIX) as made:
        made.settimeout(CHECK_SECONDS)
        try:
            made.connect(str(control))
        except OSError:
            return False
    return True


def ask_master(control: Path, what: str) -> bool:
    """Send a master a command of OpenSSH's -O; tell whether it obeyed."""
    try:
        done = subprocess.run(
            ["ssh", "-F", "none", *at_socket(control), "-O", what, OF_THE_MASTER],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=CHECK_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
