"""The user's known_hosts: reading the known host keys, and adding new ones."""

from __future__ import annotations

import hashlib
import os
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

import paramiko


def known_hosts() -> Path:
    """Return the path of the user's own known_hosts."""
    return Path("~/.ssh/known_hosts").expanduser()


def load_host_keys(client: paramiko.SSHClient, *files: Path) -> None:
    """Make the keys in these files known to the client, skipping lines unreadable for paramiko.

    A key marked @revoked stays unknown, even if another line lists it.
    """
    lines: list[str] = []
    for file in files:
        if file.is_file():
            lines += file.read_text(errors="replace").splitlines()
    revoked = _revoked(lines)
    for line in lines:
        entry = _entry(line.strip())
        if entry is None or entry.key is None:
            continue
        if entry.key.get_base64() in revoked:
            continue
        for name in entry.hostnames or ():
            client.get_host_keys().add(name, entry.key.get_name(), entry.key)


def _revoked(lines: Sequence[str]) -> set[str]:
    """Collect the keys of lines like `@revoked NAMES TYPE KEY COMMENT`."""
    revoked = set()
    for line in lines:
        words = line.split()
        if len(words) > 3 and words[0] == "@revoked":
            revoked.add(words[3])
    return revoked


def _entry(line: str) -> paramiko.hostkeys.HostKeyEntry | None:
    """Parse a line; return None for a comment, a marked line, or an unreadable one."""
    if line.startswith(("#", "@")):
        return None
    try:
        return paramiko.hostkeys.HostKeyEntry.from_line(line)
    except (paramiko.SSHException, paramiko.hostkeys.InvalidHostKey, ValueError):
        return None


class UnknownKey(paramiko.SSHException):
    """A host showed a key missing from known_hosts."""

    def __init__(self, name: str, key: paramiko.PKey) -> None:
        super().__init__(name)
        self.name = name
        self.key = key


class RejectUnknownKeys(paramiko.MissingHostKeyPolicy):
    """The policy for keys missing from known_hosts: reject all."""

    def missing_host_key(
        self,
        client: paramiko.SSHClient,  # noqa: ARG002
        hostname: str,
        key: paramiko.PKey,
    ) -> None:
        """Raise UnknownKey."""
        raise UnknownKey(hostname, key)


def fingerprint(key: paramiko.PKey) -> str:
    """Format a key as `ssh-keygen -l` does."""
    digest = hashlib.sha256(key.asbytes()).digest()
    encoded = b64encode(digest).decode().rstrip("=")
    return f"{key.get_name()} SHA256:{encoded}"


class NewKey:
    """A host's key, not in known_hosts yet."""

    def __init__(self, name: str, key: paramiko.PKey) -> None:
        self.name = name
        self.fingerprint = fingerprint(key)
        self._line = f"{name} {key.get_name()} {key.get_base64()}\n"

    def trust(self) -> None:
        """Append the key to the user's known_hosts."""
        path = known_hosts()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        with open(descriptor, "r+b") as file:
            before = file.read()
            if before and not before.endswith(b"\n"):
                file.write(b"\n")
            file.write(self._line.encode())
