"""Jump hosts: each is logged in to once by this process, however many nodes are behind it."""

from __future__ import annotations

import random
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

from ..host import READ_BYTES
from .config import SshConfig, digest_of
from .control_sockets import control_socket
from .errors import reasons
from .openssh_client import (
    LOGIN_TIMES,
    MasterFailed,
    ask_master,
    listens,
    master_argv,
)
from .users_master import UsersMaster

# The pauses before a jump host is tried again that turned us away without a word, as an sshd with
# too many logins at once does (MaxStartups); up to as much again is drawn, since others wait, too.
PAUSES_SECONDS = (0.3, 0.9, 2.0)
# The time that a connection stays when nobody uses it: its user may have been killed.
PERSIST_SECONDS = 15


class JumpMaster:
    """A master connection of ours to a jump host, on which nothing is run.

    It is no child of this process, and ends when nobody has used it for PERSIST_SECONDS. A command,
    which would end with this process, is often forbidden there.
    """

    def __init__(
        self, way: Sequence[SshConfig], connect_seconds: float, through: Path | None
    ) -> None:
        """Log in, through the master of a jump host at this socket; raises MasterFailed and OSError."""
        self.control = control_socket()
        persist = str(PERSIST_SECONDS)
        argv = master_argv(
            way, connect_seconds, self.control, "-N", through=through, persist=persist
        )
        # A file: the process that stays must not hold a pipe.
        with tempfile.TemporaryFile() as complaints:
            try:
                done = subprocess.run(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=complaints,
                    start_new_session=True,
                    timeout=LOGIN_TIMES * len(way) * connect_seconds,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise MasterFailed(way, "", is_silent=True) from error
            if done.returncode == 0:
                return
            complaints.seek(0)
            words = complaints.read(READ_BYTES).decode("utf-8", "replace").strip()
        raise MasterFailed(way, words)

    @property
    def is_alive(self) -> bool:
        """Tell whether it is connected, as far as is known here."""
        return listens(self.control)

    def close(self) -> None:
        """Log out."""
        ask_master(self.control, "exit")
        self.control.unlink(missing_ok=True)


class JumpHost:
    """A login on a jump host, shared by all threads that go through it."""

    def __init__(self, way: Sequence[SshConfig]) -> None:
        self.way = way
        self.users = 0
        self._before: JumpHost | None = None
        self._master: Future[JumpMaster | UsersMaster] = Future()

    def wait(self) -> None:
        """Wait for the login; raises MasterFailed and OSError."""
        self._master.result()

    @property
    def control(self) -> Path:
        """Return the socket of the login, which has come about."""
        return self._master.result().control

    @property
    def has_ended(self) -> bool:
        """Tell whether the login failed, or is known to be gone."""
        if not self._master.done():
            return False
        return bool(self._master.exception()) or not self._master.result().is_alive

    def log_in(self, connect_seconds: float) -> None:
        """Log in; what `control` then returns or raises is the outcome."""
        try:
            master: JumpMaster | UsersMaster | None = UsersMaster.of(self.way[-1])
            if master is None:
                self._before = enter(self.way[:-1], connect_seconds)
                through = self._before.control if self._before else None
                master = self._logged_in(connect_seconds, through)
            self._master.set_result(master)
        # Whoever waits for the outcome raises it.
        except BaseException as error:
            self._master.set_exception(error)

    def _logged_in(self, connect_seconds: float, through: Path | None) -> JumpMaster:
        for pause in PAUSES_SECONDS:
            try:
                return JumpMaster(self.way, connect_seconds, through)
            except MasterFailed as failed:
                if failed.is_silent or reasons(failed.words):
                    raise
            time.sleep(pause * (1 + random.random()))  # noqa: S311
        return JumpMaster(self.way, connect_seconds, through)

    def log_out(self) -> None:
        """End the login, which nobody uses any more."""
        if not self._master.exception():
            self._master.result().close()
        if self._before:
            leave(self._before)


_SHARED: dict[str, JumpHost] = {}
_SHARING = threading.Lock()


def enter(way: Sequence[SshConfig], connect_seconds: float) -> JumpHost | None:
    """Return the login on the last of these hosts, a new one if there is none; None for no host.

    Raises MasterFailed and OSError, the same for all who waited for one login.
    """
    if not way:
        return None
    key = digest_of(way)
    with _SHARING:
        known = _SHARED.get(key)
    # Outside: a master may take its time to say.
    has_ended = known is not None and known.has_ended
    with _SHARING:
        if key not in _SHARED or (has_ended and _SHARED[key] is known):
            _SHARED[key] = JumpHost(way)
        jump_host = _SHARED[key]
        is_first = jump_host.users == 0
        jump_host.users += 1
    if is_first:
        jump_host.log_in(connect_seconds)
    try:
        jump_host.wait()
    except BaseException:
        leave(jump_host)
        raise
    return jump_host


def leave(jump_host: JumpHost) -> None:
    """Go; the last one logs out."""
    key = digest_of(jump_host.way)
    with _SHARING:
        jump_host.users -= 1
        if jump_host.users:
            return
        if _SHARED.get(key) is jump_host:
            del _SHARED[key]
    jump_host.log_out()
