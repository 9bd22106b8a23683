"""SSH errors in words, with remedies."""

from __future__ import annotations

import errno
import os
import re
import shlex
import socket
from pathlib import Path

import paramiko

from ...errors import (
    HostError,
    HostKeyChanged,
    HostKeyUnknown,
    HostUnreachable,
    LoginRefused,
)
from ..host import LAST_WORDS_CHARACTERS
from .config import SshConfig, expanded
from .known_hosts import ChangedKey, RevokedKey, UnverifiedKey
from .login_keys import KeysRefused, LoginKeys, SecondFactorWanted, TooManyKeys

SEE_LOG = "see its log: journalctl -u ssh"
# What OpenSSH says of a connection that ended, beside the reason.
_WITHOUT_A_REASON = (
    "Connection closed by UNKNOWN port",
    "kex_exchange_identification:",
    "banner exchange:",
    "ssh_dispatch_run_fatal:",
)

_BY_ERRNO = {
    errno.ECONNREFUSED: (
        "the connection was refused",
        "is sshd running there, and on this port?",
    ),
    errno.EHOSTUNREACH: ("no route to it", "is the machine on, and in this network?"),
    errno.ENETUNREACH: ("no route to its network", "is this machine online?"),
    errno.ETIMEDOUT: (
        "no answer",
        "is the machine on, and does its firewall let SSH through?",
    ),
    errno.ECONNRESET: (
        "the connection was reset",
        "see the log of sshd there: journalctl -u ssh",
    ),
}
_BY_PARAMIKO = {
    "Error reading SSH protocol banner": "it answers, but not as an SSH server does",
    "No existing session": "it answers, but does not go on with the login",
    "Timeout opening channel": "it takes no more commands",
    "Connect failed": "it takes no more commands",
}


def explained(
    name: str,
    config: SshConfig,
    error: Exception,
    *,
    is_jump_host: bool = False,
    is_behind_one: bool = False,
) -> HostError:
    """Make the HostError of a node for an exception of paramiko or the socket layer.

    `config` is OpenSSH's answer for the host with the error: the node or a jump host before it.
    """
    where = config.place
    if is_jump_host:
        where = f"jump host {where}"
    return (
        _about_host_key(name, where, error)
        or _about_login(name, config, where, error)
        or _about_network(name, config, where, error, is_behind_one=is_behind_one)
    )


def not_started(name: str, error: OSError) -> HostUnreachable:
    """Make the error for an ssh that does not start on this machine."""
    what = f"ssh cannot be started on this machine: {error.strerror}"
    return HostUnreachable(name, what, "see its limits: ulimit -a")


def reasons(said: str) -> list[str]:
    """Return the lines of OpenSSH's last words that give a reason for its end."""
    lines = [line.strip() for line in said.splitlines()]
    return [line for line in lines if line and not line.startswith(_WITHOUT_A_REASON)]


def meant_by_openssh(config: SshConfig, said: str) -> Exception:
    """Return paramiko's or the socket layer's exception for what OpenSSH said at its end."""
    words = "; ".join(reasons(said) or said.splitlines())[-LAST_WORDS_CHARACTERS:]
    denied = re.search(r"Permission denied \(([^)]*)\)", words)
    if denied:
        keys = LoginKeys(config).looked_through()
        methods = denied[1].split(",")
        if keys.offered and "publickey" not in methods:
            # OpenSSH does not tell which.
            what = f"it takes no keys, or wants more: {', '.join(methods)}"
            return paramiko.AuthenticationException(what)
        return KeysRefused(keys, methods)
    if "Too many authentication failures" in words:
        return TooManyKeys(LoginKeys(config).looked_through().offered)
    if "Could not resolve hostname" in words:
        return socket.gaierror(words)
    if "open failed" in words or "Stdio forwarding request failed" in words:
        return paramiko.ChannelException(2, words)
    for number in _BY_ERRNO:
        if os.strerror(number) in words:
            return OSError(number, words)
    return paramiko.SSHException(f"ssh says: {words}") if words else EOFError()


def _about_host_key(name: str, where: str, error: Exception) -> HostError | None:
    if not isinstance(error, UnverifiedKey):
        return None
    known_name = error.config.known_name
    shown = error.key.fingerprint
    if isinstance(error, ChangedKey):
        return HostKeyChanged(
            name,
            f"its host key has changed ({where}): it shows {shown}, "
            f"{error.file} has {error.expected.fingerprint}",
            f"if the machine was set up anew: {_forget(known_name, error.file)}, then: inv init; "
            "if not, somebody may be in between",
        )
    if isinstance(error, RevokedKey):
        return HostKeyChanged(
            name,
            f"its host key is revoked ({where}): {error.file} says so of {shown}",
            "give the machine another host key, or correct the line",
        )
    return HostKeyUnknown(
        name,
        f"its host key is not in known_hosts: {known_name} shows {shown}",
        "compare it on the machine (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then: inv init",
    )


def _about_login(
    name: str, config: SshConfig, where: str, error: Exception
) -> HostError | None:
    if isinstance(error, SecondFactorWanted):
        what = f"{where} accepts your key, and wants more: {', '.join(error.methods)}"
        fix = "UGRO cannot answer that; ask for an exemption for keys from this machine"
        return LoginRefused(name, what, fix)
    if isinstance(error, TooManyKeys):
        what = f"{where} ended the login after {error.offered} keys"
        fix = (
            "name the right one in ~/.ssh/config: IdentityFile, and IdentitiesOnly yes"
        )
        return LoginRefused(name, what, fix)
    if isinstance(error, KeysRefused):
        return _about_keys(name, config, where, error)
    if isinstance(error, paramiko.AuthenticationException):
        return LoginRefused(name, f"{where} refuses the login: {error}", SEE_LOG)
    return None


def _about_keys(
    name: str, config: SshConfig, where: str, error: KeysRefused
) -> LoginRefused:
    """Tell apart why no key let the user in."""
    keys = error.keys
    if error.methods and "publickey" not in error.methods:
        what = f"{where} takes no keys, only: {', '.join(error.methods)}"
        return LoginRefused(
            name, what, "let its sshd take keys: PubkeyAuthentication yes"
        )
    if keys.locked:
        file = shlex.quote(str(keys.locked[0]))
        what = f"the key for {where} has a passphrase ({keys.locked[0]})"
        return LoginRefused(name, what, f"load it once: ssh-add {file}")
    if not keys.offered:
        what = f"there is no key for {where}: none in a file, none in an ssh-agent"
        fix = f"make one with ssh-keygen, then: {_copy_id(config)}"
        return LoginRefused(name, what, fix)
    what = f"{where} accepts none of your keys"
    return LoginRefused(name, what, f"put one there: {_copy_id(config)}")


def _about_network(
    name: str,
    config: SshConfig,
    where: str,
    error: Exception,
    *,
    is_behind_one: bool,
) -> HostError:
    if isinstance(error, socket.gaierror):
        what = f"the name {config.host} cannot be resolved"
        fix = "check the cluster file, your ssh configuration and DNS"
        return HostUnreachable(name, what, fix)
    if isinstance(error, paramiko.ChannelException) and is_behind_one:
        what = f"the jump host cannot reach {where}"
        fix = "is it on, with sshd running? does the jump host allow it (AllowTcpForwarding)?"
        return HostUnreachable(name, what, fix)
    number = getattr(error, "errno", None)
    if isinstance(error, TimeoutError):
        number = errno.ETIMEDOUT
    if number in _BY_ERRNO:
        what, fix = _BY_ERRNO[number]
        return HostUnreachable(name, f"{where}: {what}", fix)
    said = str(error)[:LAST_WORDS_CHARACTERS] or "the connection broke off"
    for known, words in _BY_PARAMIKO.items():
        if known in said:
            said = words
            break
    return HostUnreachable(name, f"{where}: {said}", SEE_LOG)


def _forget(known_name: str, file: Path) -> str:
    """Return the command to forget a host's key."""
    argv = ["ssh-keygen", "-R", known_name]
    # Without -f it is that of the home in the password file.
    if file != expanded("~/.ssh/known_hosts"):
        argv += ["-f", str(file)]
    return shlex.join(argv)


def _copy_id(config: SshConfig) -> str:
    """Return the command to put a key on a host."""
    argv = ["ssh-copy-id"]
    if config.port != 22:
        argv += ["-p", str(config.port)]
    argv.append(f"{config.user}@{config.host}")
    return shlex.join(argv)
