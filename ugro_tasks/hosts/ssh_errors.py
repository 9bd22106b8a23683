"""SSH errors in words, with remedies."""

from __future__ import annotations

import errno
import shlex
import socket

import paramiko
from fabric import Connection

from ..errors import (
    HostError,
    HostKeyChanged,
    HostKeyUnknown,
    HostUnreachable,
    LoginRefused,
)
from .host import LAST_WORDS_CHARACTERS
from .known_hosts import UnknownKey, fingerprint

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
    name: str, hop: Connection, error: Exception, *, is_jump_host: bool = False
) -> HostError:
    """Make the HostError for an exception of paramiko or the socket layer.

    `hop` is the connection with the error.
    """
    where = f"{hop.user}@{hop.host} port {hop.port}"
    if is_jump_host:
        where = f"jump host {where}"
    return (
        _about_host_key(name, hop, where, error)
        or _about_login(name, hop, where, error)
        or _about_network(name, hop, where, error)
    )


def _about_host_key(
    name: str, hop: Connection, where: str, error: Exception
) -> HostError | None:
    if isinstance(error, paramiko.BadHostKeyException):
        return HostKeyChanged(
            name,
            f"its host key has changed ({where}): it shows {fingerprint(error.key)}, "
            f"known_hosts has {fingerprint(error.expected_key)}",
            f"if the machine was set up anew: ssh-keygen -R {_known_name(hop)}, then: inv init; "
            "if not, somebody may be in between",
        )
    if isinstance(error, UnknownKey):
        return HostKeyUnknown(
            name,
            f"its host key is not in known_hosts: {error.name} shows {fingerprint(error.key)}",
            "compare it on the machine (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then: inv init",
        )
    return None


def _about_login(
    name: str, hop: Connection, where: str, error: Exception
) -> HostError | None:
    if isinstance(error, paramiko.PasswordRequiredException):
        what = f"the key for {where} has a passphrase"
        return LoginRefused(name, what, "load it once: ssh-add")
    is_refused = isinstance(error, paramiko.AuthenticationException)
    if is_refused or "authentication methods" in str(error):
        what = f"{where} accepts none of your keys"
        return LoginRefused(name, what, f"put one there: {_copy_id(hop)}")
    return None


def _about_network(
    name: str, hop: Connection, where: str, error: Exception
) -> HostError:
    if isinstance(error, socket.gaierror):
        what = f"the name {hop.host} cannot be resolved"
        return HostUnreachable(name, what, "check the cluster file and DNS")
    if isinstance(error, paramiko.ChannelException) and hop.gateway:
        what = f"the jump host cannot reach {where}"
        return HostUnreachable(name, what, "is the machine on, and sshd running?")
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
    return HostUnreachable(name, f"{where}: {said}", "see its log: journalctl -u ssh")


def _known_name(host: Connection) -> str:
    """Return the host's name in known_hosts, quoted for a shell."""
    if host.port == 22:
        return shlex.quote(host.host)
    return shlex.quote(f"[{host.host}]:{host.port}")


def _copy_id(host: Connection) -> str:
    """Return the command to put a key on a host."""
    argv = ["ssh-copy-id"]
    if host.port != 22:
        argv += ["-p", str(host.port)]
    argv.append(f"{host.user}@{host.host}")
    return shlex.join(argv)
