"""Misfortunes of the way in: keys of hosts and of users."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lab.tools import checked
from tests.hosts.helpers import covered
from tests.preflight.stage import Misfortune, Named, Stage


@contextmanager
def unknown_host_key(stage: Stage) -> Iterator[None]:
    stage.lab.known_hosts.write_text("")
    yield


@contextmanager
def changed_host_key(stage: Stage) -> Iterator[None]:
    stage.hosts[1].new_host_key()
    yield


@contextmanager
def key_with_passphrase(stage: Stage) -> Iterator[None]:
    key = stage.lab.home / ".ssh" / "id_ed25519"
    checked(["ssh-keygen", "-q", "-p", "-P", "", "-N", "a secret", "-f", str(key)])
    try:
        yield
    finally:
        checked(["ssh-keygen", "-q", "-p", "-P", "a secret", "-N", "", "-f", str(key)])


@contextmanager
def key_not_there(stage: Stage) -> Iterator[None]:
    host = stage.hosts[1]
    with covered(host, f"{host.home}/.ssh/authorized_keys", ""):
        yield


@contextmanager
def sshd_down(stage: Stage) -> Iterator[None]:
    stage.hosts[1].stop_sshd()
    try:
        yield
    finally:
        stage.hosts[1].start_sshd()


LOGINS = [
    Misfortune(
        key="unknown-key",
        words="the host keys are not known yet",
        make=unknown_host_key,
        named=Named(
            "lab1", "reachable", "its host key is not in known_hosts", "inv init"
        ),
    ),
    Misfortune(
        key="changed-key",
        words="a host was set up anew and has another key",
        make=changed_host_key,
        named=Named("lab1", "reachable", "its host key has changed", "ssh-keygen -R"),
    ),
    Misfortune(
        key="passphrase",
        words="the user's key has a passphrase, and no agent holds it",
        make=key_with_passphrase,
        named=Named("lab1", "reachable", "has a passphrase", "ssh-add"),
    ),
    Misfortune(
        key="no-key",
        words="a node does not have the user's key",
        make=key_not_there,
        named=Named("lab1", "reachable", "accepts none of your keys", "ssh-copy-id"),
    ),
    Misfortune(
        key="no-sshd",
        words="sshd does not run on a node",
        make=sshd_down,
        named=Named(
            "lab1", "reachable", "the connection was refused", "is sshd running"
        ),
    ),
]
