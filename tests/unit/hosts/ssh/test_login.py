"""Which transport an answer of `ssh -G` asks for, before anything is contacted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.factories import make_node
from ugro_tasks.errors import HostKeyUnknown, HostUnreachable, LoginRefused
from ugro_tasks.hosts.ssh import login as ssh_login
from ugro_tasks.hosts.ssh.config import SshConfig
from ugro_tasks.hosts.ssh.known_hosts import HostKey, UnknownKey
from ugro_tasks.hosts.ssh.login import log_in, needs_openssh
from ugro_tasks.hosts.ssh.login_keys import KeysRefused, LoginBrokenOff, LoginKeys
from ugro_tasks.hosts.ssh.openssh_transport import OpenSshTransport
from ugro_tasks.hosts.ssh.paramiko_transport import OpenSshWanted, ParamikoTransport

NODE = make_node(address="10.0.0.1", name="gpu1")
# As an OpenSSH without a configuration answers.
DEFAULTS = {
    "addressfamily": "any",
    "gssapiauthentication": "no",
    "hostbasedauthentication": "no",
    "hostname": "gpu1",
    "port": "22",
    "proxyusefdpass": "no",
    "stricthostkeychecking": "ask",
    "user": "me",
    "verifyhostkeydns": "false",
}


def answer(**settings: str) -> SshConfig:
    given = DEFAULTS | settings
    return SshConfig(
        words=("gpu1",), settings={name: [value] for name, value in given.items()}
    )


def test_paramiko_is_enough_where_nothing_else_is_said() -> None:
    assert not needs_openssh(answer())


@pytest.mark.parametrize(
    ("setting", "value", "wanted"),
    [
        ("addressfamily", "inet6", True),
        ("bindaddress", "192.168.1.2", True),
        ("certificatefile", "~/.ssh/lab-cert.pub", True),
        ("hostbasedauthentication", "yes", True),
        ("knownhostscommand", "none", False),
        ("knownhostscommand", "/usr/bin/keys %H", True),
        ("pkcs11provider", "/usr/lib/opensc-pkcs11.so", True),
        ("proxyusefdpass", "yes", True),
        ("verifyhostkeydns", "ask", True),
        ("verifyhostkeydns", "no", False),
        ("preferredauthentications", "gssapi-with-mic,publickey", False),
        ("preferredauthentications", "keyboard-interactive,password", True),
    ],
)
def test_what_only_openssh_can_do(setting: str, value: str, wanted: bool) -> None:
    assert needs_openssh(answer(**{setting: value})) is wanted


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"id": "", "id.pub": "ssh-ed25519 AAAA"}, False),
        ({"id": "", "id.pub": "sk-ssh-ed25519@openssh.com AAAA"}, True),
        ({"id": "", "id-cert.pub": "ssh-ed25519-cert-v01@openssh.com AAAA"}, True),
    ],
)
def test_keys_that_only_openssh_can_use(
    tmp_path: Path, files: dict[str, str], wanted: bool
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert needs_openssh(answer(identityfile=str(tmp_path / "id"))) is wanted


@pytest.mark.parametrize(
    ("klist", "wanted"), [("exit 0", True), ("exit 1", False), ("", False)]
)
def test_kerberos_counts_with_a_ticket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, klist: str, wanted: bool
) -> None:
    """Debian asks for GSSAPI in every configuration; the program here stands for klist."""
    if klist:
        (tmp_path / "klist").write_text(f"#!/bin/sh\n{klist}\n")
        (tmp_path / "klist").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert needs_openssh(answer(gssapiauthentication="yes")) is wanted


# ---- one after the other ----


class Logins:
    """Both transports, and how their logins end: with an exception, or well."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.tried: list[str] = []
        self.paramiko: Exception | None = None
        self.openssh: Exception | None = None
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        monkeypatch.setattr(ssh_login, "way_to", lambda _: [answer()])
        monkeypatch.setattr(ssh_login, "_REFUSED", {})
        for kind, name in (
            (ParamikoTransport, "paramiko"),
            (OpenSshTransport, "openssh"),
        ):
            monkeypatch.setattr(kind, "logged_in", self._login(name))

    def _login(self, name: str) -> object:
        def logged_in(*_: object) -> str:
            self.tried.append(name)
            error = getattr(self, name)
            if isinstance(error, HostUnreachable | HostKeyUnknown | LoginRefused):
                raise error
            if error:
                raise HostUnreachable("gpu1", "it failed") from error
            return name

        return logged_in

    def of(self, transport: str = "ssh") -> list[str]:
        """What one login tries."""
        self.tried.clear()
        node = make_node(address="10.0.0.1", name="gpu1", transport=transport)
        try:
            log_in(node, 1.0)
        except (HostUnreachable, HostKeyUnknown, LoginRefused) as error:
            return [*self.tried, type(error).__name__]
        return [*self.tried]


@pytest.fixture
def logins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Logins:
    return Logins(monkeypatch, tmp_path)


def refused() -> LoginRefused:
    error = LoginRefused("gpu1", "it accepts none of your keys")
    error.__cause__ = KeysRefused(LoginKeys(answer()), ["publickey"])
    return error


@pytest.mark.parametrize("error", [refused(), LoginBrokenOff("the agent refused")])
def test_what_paramiko_is_refused_openssh_tries_and_then_does_alone(
    logins: Logins, error: Exception
) -> None:
    logins.paramiko = error
    assert logins.of() == ["paramiko", "openssh"]
    assert logins.of() == ["openssh"]
    logins.openssh = TimeoutError()
    assert logins.of() == ["openssh", "HostUnreachable"]
    assert logins.of() == ["openssh", "HostUnreachable"], "it was not refused"
    logins.openssh = refused()
    assert logins.of() == ["openssh", "LoginRefused"]
    logins.paramiko = None
    assert logins.of() == ["paramiko"], "it is forgotten once it fails"


def test_where_both_are_refused_openssh_is_not_tried_again_for_a_while(
    logins: Logins, monkeypatch: pytest.MonkeyPatch
) -> None:
    logins.paramiko = refused()
    logins.openssh = refused()
    assert logins.of() == ["paramiko", "openssh", "LoginRefused"]
    assert logins.of() == ["paramiko", "LoginRefused"]
    monkeypatch.setattr(ssh_login, "REFUSED_SECONDS", 0.0)
    assert logins.of() == ["paramiko", "openssh", "LoginRefused"]


def test_what_failed_for_another_reason_is_tried_again(logins: Logins) -> None:
    logins.paramiko = refused()
    logins.openssh = TimeoutError()
    for _ in range(2):
        assert logins.of() == ["paramiko", "openssh", "LoginRefused"]


def test_what_paramiko_leaves_to_openssh_is_no_failure(logins: Logins) -> None:
    logins.paramiko = OpenSshWanted("@cert-authority in known_hosts")
    assert logins.of() == ["paramiko", "openssh"]
    assert logins.of() == ["paramiko", "openssh"]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(),
        TimeoutError(),
        UnknownKey(answer(), HostKey("ssh-ed25519", "AAAA")),
    ],
)
def test_a_network_or_a_host_key_is_the_same_to_both(
    logins: Logins, error: Exception
) -> None:
    logins.paramiko = error
    assert logins.of() == ["paramiko", "HostUnreachable"]


def test_the_cluster_file_decides(logins: Logins) -> None:
    assert logins.of("openssh") == ["openssh"]
    logins.paramiko = refused()
    assert logins.of("paramiko") == ["paramiko", "LoginRefused"]


def test_behind_a_jump_host_it_is_openssh(
    logins: Logins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_login, "way_to", lambda _: [answer(), answer()])
    assert logins.of() == ["openssh"]
