"""A login by OpenSSH's own program: one master connection, and a client of it for each command."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence

import paramiko

from ...errors import HostError, NodeFault
from ..pipes import Pipes
from .config import SshConfig
from .errors import explained, meant_by_openssh, not_started, reasons
from .known_hosts import UnverifiedKey, known_keys
from .openssh_client import (
    NO_MASTER,
    OF_THE_MASTER,
    MasterFailed,
    ask_master,
    client_argv,
)
from .openssh_master import Master
from .shown_key import shown_key
from .transport import NotStarted, seconds_left
from .users_master import UsersMaster

# Said by a master that does not trust a host's key.
HOST_KEY_FAILED = "Host key verification failed"
# Said by a client whose master got no session of its own for it.
SESSION_REFUSED = b"Session open refused by peer"
# OpenSSH's exit code if it failed itself, or if a signal ended the command.
OPENSSH_FAILED = 255


class OpenSshTransport:
    """A login by OpenSSH; see the module."""

    def __init__(
        self, name: str, config: SshConfig, master: Master | UsersMaster
    ) -> None:
        self.round_trip_seconds = 0.0
        self._name = name
        self._config = config
        self._master = master

    @classmethod
    def logged_in(
        cls, name: str, way: Sequence[SshConfig], connect_seconds: float
    ) -> OpenSshTransport:
        """Log in with a master of ours; raises HostError."""
        try:
            master = Master(way, connect_seconds)
        except MasterFailed as failed:
            config = failed.way[-1]
            cause = _cause(failed, connect_seconds)
            raise explained(
                name,
                config,
                cause,
                is_jump_host=config is not way[-1],
                is_behind_one=len(failed.way) > 1,
            ) from cause
        except OSError as error:
            raise not_started(name, error) from error
        return cls(name, way[-1], master)

    @classmethod
    def of_the_user(cls, name: str, config: SshConfig) -> OpenSshTransport | None:
        """Return a login over the user's own master; None if there is none to share."""
        master = UsersMaster.of(config)
        return cls(name, config, master) if master else None

    @property
    def is_open(self) -> bool:
        """Tell whether the master lives; see `Transport.is_open`."""
        return self._master.is_alive

    def start(self, argv: Sequence[str], timeout_seconds: float) -> _ClientSession:
        """Start a command by a client of the master; see `Transport.start`."""
        try:
            self.round_trip_seconds = self._master.round_trip(timeout_seconds)
        except (MasterFailed, OSError) as error:
            raise NotStarted(self.lost()) from error
        if isinstance(self._master, UsersMaster):
            # Once it forwarded his ssh-agent, each of its sessions gets that.
            argv = ["env", "-u", "SSH_AUTH_SOCK", *argv]
        shell, host = self.rsync_shell()
        try:
            return _ClientSession(self, [*shell, "--", host, shlex.join(argv)])
        except OSError as error:
            raise not_started(self._name, error) from error

    def rsync_shell(self) -> tuple[list[str], str]:
        """Return a client of the master; see `Transport.rsync_shell`."""
        return client_argv(self._master.control), OF_THE_MASTER

    def rsync_way(self) -> None:
        """Return None: rsync is another client of the master."""

    def lives(self) -> bool:
        """Ask the master whether it is there."""
        return ask_master(self._master.control, "check")

    def lost(self) -> HostError:
        """Make the error for a connection that is gone."""
        words = self._master.last_words
        said = f"the connection broke off; ssh says: {words}" if words else ""
        return explained(self._name, self._config, paramiko.SSHException(said))

    def too_many_sessions(self) -> NodeFault:
        """Make the error for a command that sshd lets nobody start beside the others."""
        what = "its sshd lets no more commands run over one connection"
        fix = "raise MaxSessions in its /etc/ssh/sshd_config: it is 10 by default, and UGRO keeps one"
        return NodeFault(self._name, what, fix)

    def close(self) -> None:
        """End the master if it is ours."""
        self._master.close()


class _ClientSession:
    """A command, run by a client of the master."""

    def __init__(self, transport: OpenSshTransport, argv: Sequence[str]) -> None:
        """Start it; raises OSError."""
        self._transport = transport
        self._pipes = Pipes(argv, stderr=subprocess.PIPE)

    def read(self, deadline: float) -> bytes:
        """Return the next bytes; see `Session.read`."""
        return self._pipes.read(deadline)

    def write(self, data: bytes) -> None:
        """Write to the command's stdin; see `Session.write`."""
        try:
            self._pipes.write(data)
        except OSError as error:
            raise self._transport.lost() from error

    def end_input(self) -> None:
        """Close the command's stdin."""
        self._pipes.end_input()

    def exit_code(self, deadline: float) -> int:
        """Wait for the end; see `Session.exit_code`."""
        code = self._pipes.exit_code(seconds_left(deadline))
        if code != OPENSSH_FAILED:
            return code
        if SESSION_REFUSED in self.last_words:
            raise self._transport.too_many_sessions()
        if NO_MASTER.encode() in self.last_words or not self._transport.lives():
            raise self._transport.lost()
        # The command's own, or that of a signal: OpenSSH does not tell.
        return code

    @property
    def last_words(self) -> bytes:
        """Return the end of the command's stderr."""
        return self._pipes.last_words

    def close(self) -> None:
        """End the command; see `Session.close`."""
        self._pipes.close()


def _cause(failed: MasterFailed, connect_seconds: float) -> Exception:
    """Return what a master failed at, as an exception of paramiko or the socket layer."""
    if failed.is_silent and not reasons(failed.words):
        return TimeoutError()
    if not failed.words:
        return paramiko.SSHException("it closed the connection during the login")
    untrusted = None
    if HOST_KEY_FAILED in failed.words:
        untrusted = _about_host_key(failed.way, connect_seconds)
    return untrusted or meant_by_openssh(failed.way[-1], failed.words)


def _about_host_key(
    way: Sequence[SshConfig], connect_seconds: float
) -> UnverifiedKey | None:
    """Return why the key of the last host is not to be trusted; None if that is unknown."""
    try:
        key = shown_key(way, connect_seconds)
        if key:
            known_keys(way[-1]).verify(way[-1], key)
    except UnverifiedKey as error:
        return error
    except (OSError, paramiko.SSHException):
        # Then OpenSSH's own words have to do.
        return None
    return None
