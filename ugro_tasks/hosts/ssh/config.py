"""OpenSSH's answer to how one host is reached, after every Host, Match, Include and default."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import re
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...files import state_home

# The settings that name the host by themselves, or by a hash.
OF_THE_NAME = frozenset({"host", "hostname", "controlpath"})


@dataclass(frozen=True, kw_only=True, slots=True)
class SshConfig:
    """OpenSSH's settings for one host, after every Host, Match, Include and default."""

    words: tuple[str, ...]
    """The arguments of ssh that lead to the host: options, and its name at the end."""
    settings: Mapping[str, Sequence[str]]
    """{keyword in lower case: its values, one for each line}"""

    def one(self, keyword: str) -> str:
        """Return a setting's only value; "" if it is not set, or set to none."""
        values = self.settings.get(keyword, ())
        if not values or values[0] == "none":
            return ""
        return values[0]

    @property
    def host(self) -> str:
        """Return the name or address to connect to."""
        return self.one("hostname")

    @property
    def user(self) -> str:
        """Return the user to log in as."""
        return self.one("user")

    @property
    def port(self) -> int:
        """Return the port to connect to."""
        return int(self.one("port"))

    @property
    def place(self) -> str:
        """Return the host for a message: user, host and port."""
        return f"{self.user}@{self.host} port {self.port}"

    @property
    def known_host(self) -> str:
        """Return the host's name in known_hosts, without its port."""
        return self.one("hostkeyalias") or self.host

    @property
    def known_name(self) -> str:
        """Return the host's name in known_hosts."""
        if self.port == 22 or self.one("hostkeyalias"):
            return self.known_host
        return f"[{self.host}]:{self.port}"

    @property
    def keeps_known_hosts(self) -> bool:
        """Tell whether the user has a file with host keys of his own."""
        return bool(self._files("userknownhostsfile"))

    @property
    def known_hosts(self) -> Path:
        """Return the file for new host keys: the user's first, else one of UGRO's own."""
        mine = self._files("userknownhostsfile")
        return mine[0] if mine else own_known_hosts()

    @property
    def known_hosts_files(self) -> list[Path]:
        """Return the files with host keys, the user's first."""
        mine = self._files("userknownhostsfile") or [own_known_hosts()]
        return [*mine, *self._files("globalknownhostsfile")]

    @property
    def revoked_host_keys(self) -> Path | None:
        """Return the file with host keys that must not be trusted; OpenSSH expands no ~ in it."""
        name = self.one("revokedhostkeys")
        return Path(name) if name else None

    @property
    def identity_files(self) -> list[Path]:
        """Return the key files to log in with, in the order of their trial."""
        names = self.settings.get("identityfile", ())
        return [expanded(self._filled_in(name)) for name in names if name != "none"]

    @property
    def proxy_jump(self) -> str:
        """Return the jump hosts, with commas in between; "" without one."""
        return self._filled_in(self.one("proxyjump"))

    @property
    def proxy_command(self) -> str:
        """Return the command that leads to the host, for a shell; "" without one."""
        return self._filled_in(self.one("proxycommand"))

    def _filled_in(self, name: str) -> str:
        """Return a setting with ssh_config's tokens and ${variables} filled in, which `ssh -G` leaves."""
        local = pwd.getpwuid(os.getuid())
        tokens = {
            "%": "%",
            "d": local.pw_dir,
            "h": self.host,
            "i": str(local.pw_uid),
            "k": self.known_host,
            "l": socket.gethostname(),
            "L": socket.gethostname().partition(".")[0],
            "n": self.words[-1].rpartition("@")[2],
            "p": str(self.port),
            "r": self.user,
            "u": local.pw_name,
        }
        filled = re.sub("%(.)", lambda found: tokens.get(found[1], found[0]), name)
        return re.sub(
            r"\$\{(\w+)\}", lambda found: os.environ.get(found[1], found[0]), filled
        )

    def _files(self, keyword: str) -> list[Path]:
        # Each path begins with a slash; OpenSSH tells no space within from one between.
        names = re.split(r" (?=[/~])", self.one(keyword))
        return [expanded(name) for name in names if name not in {"", "/dev/null"}]

    def says_more_than(self, other: SshConfig, given: Collection[str]) -> bool:
        """Tell whether the host's own name means something to OpenSSH that the other's does not.

        Settings in `given` come from the cluster file and do not count.
        """
        if self.host.lower() != self.words[-1].lower():
            return True
        names = (self.words[-1], other.words[-1])
        return self._without(names, given) != other._without(names, given)

    def _without(
        self, names: Sequence[str], given: Collection[str]
    ) -> dict[str, list[str]]:
        """Return the settings but for those given, with these names taken out of their values."""
        words = "|".join(re.escape(name) for name in names)
        pattern = re.compile(rf"(?<![a-z0-9])(?:{words})(?![a-z0-9])", re.IGNORECASE)
        rest = {}
        for keyword, values in self.settings.items():
            if keyword not in OF_THE_NAME and keyword not in given:
                rest[keyword] = [pattern.sub("", value) for value in values]
        return rest


def expanded(name: str) -> Path:
    """Return a path as OpenSSH does: ~ is the home in the password file, whatever HOME says."""
    if name.startswith("~/"):
        return Path(pwd.getpwuid(os.getuid()).pw_dir, name[2:])
    return Path(name)


def own_known_hosts() -> Path:
    """Return UGRO's own file of host keys, for users whose configuration keeps none."""
    return state_home() / "ugro" / "known_hosts"


def digest_of(way: Sequence[SshConfig]) -> str:
    """Return a name for these answers, which changes with any of them."""
    answer = [[*config.words, dict(config.settings)] for config in way]
    content = json.dumps(answer, sort_keys=True, default=list)
    return hashlib.sha256(content.encode()).hexdigest()
