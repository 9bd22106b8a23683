"""Host keys: which are known, and how a new one becomes known."""

from __future__ import annotations

import hashlib
import os
from base64 import b64encode
from pathlib import Path

import paramiko


def known_hosts() -> Path:
    """The user's own file of host keys."""
    return Path("~/.ssh/known_hosts").expanduser()


def load_host_keys(client: paramiko.SSHClient, *files: Path) -> None:
    """Make the keys in these files known to the client; lines that paramiko cannot read are passed over.

    A key that is marked @revoked is unknown, whatever else is said of it.
    """
    lines = [
        line.strip()
        for file in files
        if file.is_file()
        for line in file.read_text(errors="replace").splitlines()
    ]
    revoked = {word for line in lines if line.startswith("@revoked") for word in line.split()[3:4]}
    for line in lines:
        if not line or line[0] in "#@":
            continue
        try:
            entry = paramiko.hostkeys.HostKeyEntry.from_line(line)
        except (paramiko.SSHException, paramiko.hostkeys.InvalidHostKey, ValueError):
            continue
        if entry is not None and entry.key is not None and entry.key.get_base64() not in revoked:
            for name in entry.hostnames or ():
                client.get_host_keys().add(name, entry.key.get_name(), entry.key)


class UnknownKey(paramiko.SSHException):
    """A host showed a key that known_hosts does not hold."""

    def __init__(self, name: str, key: paramiko.PKey) -> None:
        super().__init__(name)
        self.name, self.key = name, key


class Refuse(paramiko.MissingHostKeyPolicy):
    """Raises UnknownKey."""

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:  # noqa: ARG002
        """What paramiko calls."""
        raise UnknownKey(hostname, key)


def fingerprint(key: paramiko.PKey) -> str:
    """As `ssh-keygen -l` shows it."""
    digest = b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")
    return f"{key.get_name()} SHA256:{digest}"


class NewKey:
    """A host's key that known_hosts does not hold yet."""

    def __init__(self, name: str, key: paramiko.PKey) -> None:
        self.name = name
        self.fingerprint = fingerprint(key)
        self._line = f"{name} {key.get_name()} {key.get_base64()}\n"

    def trust(self) -> None:
        """Record it in the user's known_hosts."""
        known_hosts().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(known_hosts(), os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "r+b") as file:
            before = file.read()
            file.write((b"" if before.endswith(b"\n") or not before else b"\n") + self._line.encode())
