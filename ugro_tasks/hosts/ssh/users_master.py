"""A master connection that the user has made, to be shared: a second factor answered there serves."""

from __future__ import annotations

import os
from pathlib import Path

import paramiko

from .config import SshConfig
from .known_hosts import known_keys
from .openssh_client import ask_master, listens

# Settings under which ssh connects to a host whose key nobody verified, and their values for it.
UNVERIFIED = {
    "stricthostkeychecking": {"no", "off", "false"},
    "nohostauthenticationforlocalhost": {"yes", "true"},
}
# Settings by which a key is verified without known_hosts, and their values without a meaning.
OTHERWISE_VERIFIED = {
    "knownhostscommand": {""},
    "verifyhostkeydns": {"", "no", "false"},
}


class UsersMaster:
    """A master connection of the user's own. Nothing of it is ours to end."""

    last_words = ""

    def __init__(self, control: Path) -> None:
        self.control = control

    @classmethod
    def of(cls, config: SshConfig) -> UsersMaster | None:
        """Return the one that lives; None if there is none, or if nobody verified the host's key."""
        told = config.one("controlpath")
        try:
            is_mine = bool(told) and Path(told).lstat().st_uid == os.getuid()
            if not is_mine or not Path(told).is_socket() or not _is_verified(config):
                return None
        except (OSError, paramiko.SSHException):
            return None
        return cls(Path(told)) if ask_master(Path(told), "check") else None

    @property
    def is_alive(self) -> bool:
        """Tell whether it listens."""
        return listens(self.control)

    def round_trip(self, limit_seconds: float) -> float:  # noqa: ARG002
        """Return no time: it has no connection of ours to the host."""
        if not self.is_alive:
            raise TimeoutError
        return 0.0

    def close(self) -> None:
        """Do nothing."""


def _is_verified(config: SshConfig) -> bool:
    """Tell whether ssh verifies the host's key, and has something to verify it by."""
    for setting, values in UNVERIFIED.items():
        if config.one(setting) in values:
            return False
    for setting, meaningless in OTHERWISE_VERIFIED.items():
        if config.one(setting) not in meaningless:
            return True
    known = known_keys(config)
    return bool(known.files or known.at_any_port or known.has_authority)
