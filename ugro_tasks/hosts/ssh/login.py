"""The choice between paramiko and OpenSSH for a login, made from the answer of `ssh -G`."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from ...cluster.model import Node
from ...errors import HostError, LoginRefused
from ..remembered import Remembered
from .config import SshConfig, digest_of
from .openssh_transport import OpenSshTransport
from .paramiko_transport import ABOUT_THE_LOGIN, OpenSshWanted, ParamikoTransport
from .transport import Transport
from .way import way_to

# {setting that paramiko cannot do: the values without a meaning}
ONLY_OPENSSH = {
    "addressfamily": {"any"},
    "bindaddress": set(),
    "bindinterface": set(),
    "certificatefile": set(),
    "hostbasedauthentication": {"no"},
    "knownhostscommand": set(),
    "pkcs11provider": set(),
    "proxyusefdpass": {"no"},
    "verifyhostkeydns": {"no", "false"},
}
# For klist to look for a ticket.
TICKET_SECONDS = 5.0
# For OpenSSH to be tried again where both were refused.
REFUSED_SECONDS = 60.0
# {answer of `ssh -G`: when OpenSSH was refused as paramiko was, by `time.monotonic`}, in this process.
_REFUSED: dict[str, float] = {}


def log_in(node: Node, connect_seconds: float) -> Transport:
    """Log in on a node; raises HostError.

    `transport` of the node decides. With `ssh`, OpenSSH is taken for what only it can do, behind a
    jump host, and for a master of the user's that lives; else paramiko, which is faster. What
    paramiko is refused, OpenSSH tries once; if that works, it is remembered with the answer of
    `ssh -G`.
    """
    way = way_to(node)
    if node.transport == "paramiko":
        return ParamikoTransport.logged_in(node.name, way, connect_seconds)
    shared = OpenSshTransport.of_the_user(node.name, way[-1])
    if shared:
        return shared
    # Nodes behind a jump host share the login on it, which OpenSSH can do for rsync, too.
    if node.transport == "openssh" or len(way) > 1 or needs_openssh(way[-1]):
        return OpenSshTransport.logged_in(node.name, way, connect_seconds)
    return _by_either(node, way, connect_seconds)


def needs_openssh(config: SshConfig) -> bool:
    """Tell whether OpenSSH can do something that this host's settings ask for, and paramiko cannot."""
    for setting, meaningless in ONLY_OPENSSH.items():
        if config.one(setting) not in meaningless | {""}:
            return True
    methods = config.one("preferredauthentications")
    if methods and "publickey" not in methods.split(","):
        return True
    for file in config.identity_files:
        if file.with_name(f"{file.name}-cert.pub").is_file() or _is_security_key(file):
            return True
    return config.one("gssapiauthentication") == "yes" and _has_ticket()


def _by_either(
    node: Node, way: Sequence[SshConfig], connect_seconds: float
) -> Transport:
    """Log in by paramiko, or by OpenSSH if that is remembered, or if paramiko fails."""
    answer = digest_of(way)
    only_openssh = Remembered("only-openssh", answer)
    if only_openssh.holds:
        try:
            return OpenSshTransport.logged_in(node.name, way, connect_seconds)
        except LoginRefused:
            only_openssh.forget()
            raise
    try:
        return ParamikoTransport.logged_in(node.name, way, connect_seconds)
    except HostError as error:
        if isinstance(error.__cause__, OpenSshWanted):
            return OpenSshTransport.logged_in(node.name, way, connect_seconds)
        refused_before = time.monotonic() - _REFUSED.get(answer, -REFUSED_SECONDS)
        is_too_soon = refused_before < REFUSED_SECONDS
        if is_too_soon or not isinstance(error.__cause__, ABOUT_THE_LOGIN):
            raise
        made = _tried_by_openssh(node, way, connect_seconds)
        if made is None:
            raise
        only_openssh.note()
        return made


def _tried_by_openssh(
    node: Node, way: Sequence[SshConfig], connect_seconds: float
) -> Transport | None:
    """Log in by OpenSSH after paramiko; None if it fails, too: paramiko's error knows more."""
    try:
        return OpenSshTransport.logged_in(node.name, way, connect_seconds)
    except LoginRefused:
        _REFUSED[digest_of(way)] = time.monotonic()
    except HostError:
        # It is tried again next time.
        pass
    return None


def _is_security_key(file: Path) -> bool:
    """Tell whether a key needs a security key to be touched or plugged in."""
    public = file if file.suffix == ".pub" else file.with_name(f"{file.name}.pub")
    try:
        return public.read_text("utf-8", "replace").startswith("sk-")
    except OSError:
        return False


def _has_ticket() -> bool:
    """Tell whether the user has a Kerberos ticket that is valid."""
    try:
        done = subprocess.run(
            ["klist", "-s"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=TICKET_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
