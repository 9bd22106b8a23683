"""The host keys that the user trusts: asked of ssh-keygen, and new ones written down."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import paramiko

from .config import SshConfig

LOOKUP_SECONDS = 10.0
# What ssh-keygen says after the number of a line that begins with @revoked, and with @cert-authority.
REVOKED = "REVOKED"
AUTHORITY = "CA"
# The beginning of a key revocation list.
KRL = b"SSHKRL\n\0"


class HostKey(NamedTuple):
    """A public key of a host."""

    type: str
    base64: str

    @property
    def fingerprint(self) -> str:
        """Return it as `ssh-keygen -l` shows it."""
        digest = hashlib.sha256(b64decode(self.base64)).digest()
        encoded = b64encode(digest).decode().rstrip("=")
        return f"{self.type} SHA256:{encoded}"

    @classmethod
    def in_words(cls, words: Sequence[str]) -> HostKey | None:
        """Return the key in the words of a line, type first; None if there is none."""
        if len(words) < 2:
            return None
        try:
            content = b64decode(words[1], validate=True)
            type_ = paramiko.Message(content).get_text()
        except ValueError:
            return None
        return cls(type_, words[1]) if type_ == words[0] else None


@dataclass(kw_only=True, slots=True)
class KnownKeys:
    """The keys of one host in the known_hosts files."""

    files: dict[HostKey, Path] = field(default_factory=dict)
    """{key: the first file with it}"""
    revoked: dict[HostKey, Path] = field(default_factory=dict)
    at_any_port: dict[HostKey, Path] = field(default_factory=dict)
    """Keys known without a port, of a host at another port than 22."""
    has_authority: bool = False
    """Whether an authority's key is among the lines, which only OpenSSH can use."""

    @property
    def types(self) -> list[str]:
        """Return the types of the keys, in the order of their lines."""
        known = self.files or self.at_any_port
        return list(dict.fromkeys(key.type for key in known))

    def verify(self, config: SshConfig, key: HostKey) -> None:
        """Raise UnverifiedKey unless the host's key is one of these and not revoked."""
        revoked = config.revoked_host_keys
        if revoked and _is_revoked(revoked, key):
            raise RevokedKey(config, key, revoked)
        if key in self.revoked:
            raise RevokedKey(config, key, self.revoked[key])
        if key in self.files or key in self.at_any_port:
            return
        if self.files:
            raise ChangedKey(config, key, self.files)
        raise UnknownKey(config, key)


def known_keys(config: SshConfig) -> KnownKeys:
    """Look a host up in its known_hosts files: by patterns, hashes and markers, as OpenSSH does.

    Lines without a key are passed over. An authority's key is none of a host's own. A key known for
    the host at no port of its own counts for each port, if none is known for the port.
    """
    known = _known_as(config.known_name, config.known_hosts_files)
    if known.files or config.known_name == config.known_host:
        return known
    at_any_port = _known_as(config.known_host, config.known_hosts_files)
    return KnownKeys(
        files=known.files,
        at_any_port=at_any_port.files,
        revoked=at_any_port.revoked | known.revoked,
        has_authority=known.has_authority or at_any_port.has_authority,
    )


def _known_as(name: str, files: Sequence[Path]) -> KnownKeys:
    known = KnownKeys()
    for file in files:
        if not file.is_file():
            continue
        for marker, entry in _lines_of(name, file):
            if marker == AUTHORITY:
                known.has_authority = True
                continue
            keys = known.revoked if marker == REVOKED else known.files
            # A marker is a word of the line, before the names.
            key = HostKey.in_words(entry.split()[2 if marker else 1 :])
            if key:
                keys.setdefault(key, file)
    return known


def _lines_of(name: str, file: Path) -> list[tuple[str, str]]:
    """Return [(marker, line)] of a host in a known_hosts file."""
    try:
        done = subprocess.run(
            ["ssh-keygen", "-F", name, "-f", str(file)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LOOKUP_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise paramiko.SSHException(f"{file} cannot be read") from error
    found = []
    marker = ""
    for line in done.stdout.decode("utf-8", "replace").splitlines():
        if line.startswith("#"):
            # "# Host NAME found: line NUMBER MARKER"
            _, _, told = line.partition(" found: line ")
            marker = told.partition(" ")[2]
        else:
            found.append((marker, line))
    return found


def _is_revoked(file: Path, key: HostKey) -> bool:
    """Tell whether a file of RevokedHostKeys, a list of keys or a KRL, names a key.

    With a file that cannot be read each key counts as revoked, as it does for OpenSSH.
    """
    try:
        content = file.read_bytes()
    except OSError:
        return True
    if not content.startswith(KRL):
        return key.base64.encode() in content.split()
    with tempfile.NamedTemporaryFile(suffix=".pub") as asked:
        asked.write(f"{key.type} {key.base64}\n".encode())
        asked.flush()
        try:
            done = subprocess.run(
                ["ssh-keygen", "-Q", "-f", str(file), asked.name],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=LOOKUP_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return True
    return done.returncode != 0


class UnverifiedKey(paramiko.SSHException):
    """A host showed a key that must not be trusted."""

    def __init__(self, config: SshConfig, key: HostKey) -> None:
        super().__init__(config.known_name)
        self.config = config
        self.key = key


class UnknownKey(UnverifiedKey):
    """known_hosts has no key of this host."""


class RevokedKey(UnverifiedKey):
    """known_hosts says that this key is revoked."""

    def __init__(self, config: SshConfig, key: HostKey, file: Path) -> None:
        super().__init__(config, key)
        self.file = file


class ChangedKey(UnverifiedKey):
    """known_hosts has other keys of this host."""

    def __init__(
        self,
        config: SshConfig,
        key: HostKey,
        files: Mapping[HostKey, Path],
    ) -> None:
        super().__init__(config, key)
        self.expected, self.file = _likeliest(files, key.type)


def _likeliest(files: Mapping[HostKey, Path], type_: str) -> tuple[HostKey, Path]:
    """Return a known key, of this type if there is one."""
    for known, file in files.items():
        if known.type == type_:
            return known, file
    return next(iter(files.items()))


class NewKey:
    """A host's key, not in known_hosts yet."""

    def __init__(self, unknown: UnknownKey) -> None:
        self.name = unknown.config.known_name
        self.fingerprint = unknown.key.fingerprint
        self._file = unknown.config.known_hosts
        self._line = f"{self.name} {unknown.key.type} {unknown.key.base64}\n"

    def trust(self) -> None:
        """Append the key to the user's known_hosts."""
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        with open(descriptor, "r+b") as file:
            before = file.read()
            if before and not before.endswith(b"\n"):
                file.write(b"\n")
            file.write(self._line.encode())
