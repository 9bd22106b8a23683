"""The keys for a login, in OpenSSH's order, without a question to anybody."""

from __future__ import annotations

import contextlib
import io
import os
import socket
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from paramiko.agent import AgentKey, AgentSSH
from paramiko.pkey import PublicBlob, UnknownKeyType

from .config import SshConfig, expanded

# For the ssh-agent's answer; some ask their user first, for each use of a key.
AGENT_SECONDS = 8.0
# The beginning of a private key of OpenSSH's form.
ENVELOPE = b"openssh-key-v1\0"
# Of reading a key file: damaged, encrypted, of a kind unknown here, or not to be read.
UNREADABLE = (
    paramiko.SSHException,
    UnknownKeyType,
    UnsupportedAlgorithm,
    ValueError,
    TypeError,
    OSError,
)


class SecondFactorWanted(paramiko.AuthenticationException):
    """A key was accepted, but the host asks for more than a key."""

    def __init__(self, methods: list[str]) -> None:
        super().__init__(", ".join(methods))
        self.methods = methods


class KeysRefused(paramiko.AuthenticationException):
    """The host accepts none of the keys."""

    def __init__(self, keys: LoginKeys, methods: list[str]) -> None:
        super().__init__(", ".join(methods))
        self.keys = keys
        self.methods = methods
        """What the host accepts; [] if it does not say."""


class TooManyKeys(paramiko.AuthenticationException):
    """The host ended the login after so many keys (MaxAuthTries), before all were tried."""

    def __init__(self, offered: int) -> None:
        super().__init__(f"it ended the login after {offered} keys")
        self.offered = offered


class LoginBrokenOff(paramiko.SSHException):
    """The login broke off while keys were tried, as if an ssh-agent does not sign."""


class LoginKeys:
    """The keys of the user for one host: an authentication strategy of paramiko's client.

    OpenSSH offers the ssh-agent's keys that the configuration names, then its other keys unless
    IdentitiesOnly is set, then the keys in files.
    """

    def __init__(self, config: SshConfig) -> None:
        self.config = config
        self.locked: list[Path] = []
        """Files that need a passphrase."""
        self.offered = 0
        """The number of keys shown to the host."""
        self._agent: _Agent | None = None

    def authenticate(self, transport: paramiko.Transport) -> None:
        """Log in; raises AuthenticationException, or LoginBrokenOff if one side breaks off."""
        user = self.config.user
        try:
            for key in self._keys():
                if not transport.is_active():
                    raise TooManyKeys(self.offered)
                self.offered += 1
                try:
                    more = transport.auth_publickey(user, key)
                except paramiko.BadAuthenticationType as error:
                    raise KeysRefused(self, error.allowed_types) from error
                except paramiko.AuthenticationException:
                    continue
                except (paramiko.SSHException, OSError, EOFError) as error:
                    raise LoginBrokenOff(str(error)) from error
                if more:
                    raise SecondFactorWanted(more)
                return
        finally:
            self.close()
        # A host may let in without any key, and tells else what it accepts.
        methods = _methods_of(transport, user) if transport.is_active() else []
        if not transport.is_authenticated():
            raise KeysRefused(self, methods)

    def looked_through(self) -> LoginKeys:
        """Find the keys without a login, as if each had been offered."""
        try:
            self.offered = sum(1 for _ in self._keys())
        finally:
            self.close()
        return self

    def close(self) -> None:
        """Let go of the ssh-agent."""
        if self._agent:
            self._agent.close()

    def _keys(self) -> Iterator[paramiko.PKey]:
        """Yield the keys in the order of their trial, each once."""
        if self.config.one("pubkeyauthentication") in {"no", "false"}:
            return
        files = self.config.identity_files
        in_agent = self._keys_of_the_agent()
        named = {_public_blob(file) for file in files} if in_agent else set()
        chosen = [key for key in in_agent if key.asbytes() in named]
        if self.config.one("identitiesonly") != "yes":
            chosen += [key for key in in_agent if key.asbytes() not in named]
        yield from chosen
        offered = {key.asbytes() for key in chosen}
        for file in files:
            # One that is offered already need not be read, which may take a passphrase.
            if _public_blob(file) in offered:
                continue
            loaded = self._load(file)
            if loaded and loaded.asbytes() not in offered:
                offered.add(loaded.asbytes())
                yield loaded

    def _load(self, file: Path) -> paramiko.PKey | None:
        if file.suffix == ".pub":
            return None
        try:
            return _private_key(file)
        except TypeError:
            # So the library says that a passphrase is missing.
            self.locked.append(file)
        except UNREADABLE:
            pass
        return None

    def _keys_of_the_agent(self) -> list[AgentKey]:
        """Return the keys of the agent that the configuration or the environment names."""
        told = self.config.one("identityagent") or "SSH_AUTH_SOCK"
        if self.config.settings.get("identityagent", [""])[0] == "none":
            return []
        if told == "SSH_AUTH_SOCK":
            told = os.environ.get("SSH_AUTH_SOCK", "")
        elif told.startswith("$"):
            told = os.environ.get(told[1:].strip("{}"), "")
        if not told:
            return []
        try:
            self._agent = _Agent(expanded(told))
        except (OSError, paramiko.SSHException, ValueError):
            return []
        return list(self._agent.get_keys())


class _Agent(AgentSSH):
    """An ssh-agent at a socket; paramiko's own looks only at SSH_AUTH_SOCK."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(AGENT_SECONDS)
        try:
            made.connect(str(path))
            self._connect(made)  # type: ignore[attr-defined]
        except BaseException:
            made.close()
            raise

    def close(self) -> None:
        """Close the socket."""
        self._close()  # type: ignore[attr-defined]


def _methods_of(transport: paramiko.Transport, user: str) -> list[str]:
    """Ask a host for the methods that it accepts; a host that wants none lets us in."""
    try:
        transport.auth_none(user)
    except paramiko.BadAuthenticationType as error:
        methods: list[str] = error.allowed_types
        return methods
    return []


def _private_key(file: Path) -> paramiko.PKey:
    """Read a private key; raises one of UNREADABLE, of which TypeError is a missing passphrase."""
    try:
        return paramiko.PKey.from_path(file)
    except paramiko.SSHException:
        # paramiko reads no PKCS8, which OpenSSH does.
        content = file.read_bytes()
        key = serialization.load_pem_private_key(content, password=None)
        in_openssh_form = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
        for kind in (paramiko.RSAKey, paramiko.ECDSAKey, paramiko.Ed25519Key):
            with contextlib.suppress(paramiko.SSHException):
                return kind.from_private_key(io.StringIO(in_openssh_form.decode()))
        raise


def _public_blob(file: Path) -> bytes | None:
    """Return the public key of a key file, from the file beside it or from the file itself."""
    for path in (file, file.with_name(f"{file.name}.pub")):
        if path.suffix != ".pub":
            continue
        try:
            return bytes(PublicBlob.from_file(str(path)).key_blob)
        except UNREADABLE:
            continue
    try:
        return _public_part(file.read_text("ascii"))
    except (OSError, ValueError):
        return None


def _public_part(text: str) -> bytes | None:
    """Return the public key in a private key of OpenSSH's form, which no passphrase hides.

    Form: https://github.com/openssh/openssh-portable/blob/master/PROTOCOL.key
    """
    first, _, rest = text.partition("\n")
    if first.strip() != "-----BEGIN OPENSSH PRIVATE KEY-----":
        return None
    content = b64decode(rest.partition("-----END")[0])
    if not content.startswith(ENVELOPE):
        return None
    envelope = paramiko.Message(content[len(ENVELOPE) :])
    for _ in ("cipher", "kdf", "its options"):
        envelope.get_binary()
    envelope.get_int()  # the number of keys, which is 1
    return bytes(envelope.get_binary())
