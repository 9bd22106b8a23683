"""Logins and hosts certified by an authority, and ssh-agents that do not sign: what ssh reaches, UGRO reaches."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab import Lab, LabHost
from lab.lab import LOGIN_PATH
from lab.ssh_agent import ssh_agent
from lab.tools import checked
from tests.hosts.helpers import error_of, ssh_config, sshd_on
from tests.openssh.test_agreement import (
    Login,
    make_key,
    reaches,
    rsync_reaches,
    ssh_reaches,
)
from ugro_tasks.errors import HostKeyUnknown, LoginRefused
from ugro_tasks.hosts.ssh.host import SshHost
from ugro_tasks.hosts.ssh.openssh_transport import OpenSshTransport
from ugro_tasks.hosts.trust import new_key_of

PORT = 2222


@pytest.fixture
def transport() -> str:
    """UGRO chooses."""
    return "ssh"


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where UGRO remembers what worked."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "ugro" / "only-openssh"


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """The key of a certificate authority."""
    make_key(tmp_path / "authority")
    return tmp_path / "authority"


def certify(authority: Path, key: Path, *options: str) -> None:
    """Write the certificate of a key beside it: KEY-cert.pub."""
    checked(
        ["ssh-keygen", "-q", "-s", str(authority), "-I", "test", *options, f"{key}.pub"]
    )


@contextmanager
def host_that_trusts(host: LabHost, authority: Path) -> Iterator[None]:
    """An sshd that lets in whom the authority has certified, and nobody else."""
    public = authority.with_name(f"{authority.name}.pub").read_text()
    host.run(["tee", "/run/lab/authority.pub"], input=public)
    lines = ("TrustedUserCAKeys /run/lab/authority.pub", "AuthorizedKeysFile none")
    with sshd_on(host, PORT, LOGIN_PATH, *lines):
        yield


def configured(home: Lab, host: LabHost, *lines: str) -> None:
    """Make `gpu0` the host's second sshd."""
    with home.known_hosts.open("a") as file:
        file.write(f"[{host.address}]:{PORT} {host.public_key}\n")
    ssh_config(home, "Host gpu0", f"HostName {host.address}", f"Port {PORT}", *lines)


@pytest.mark.parametrize("place", ["beside the key", "named", "in the ssh-agent"])
def test_a_certified_key_lets_in(
    home: Lab,
    hosts: list[LabHost],
    login: Login,
    authority: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    key = home.home / ".ssh" / "id_ed25519"
    configured(home, hosts[0])
    with host_that_trusts(hosts[0], authority), ssh_agent(tmp_path / "agent"):
        refused = error_of(lambda: login(hostname="gpu0", ssh_port=None).run(["true"]))
        assert isinstance(refused, LoginRefused)
        assert not ssh_reaches("gpu0")
        certify(authority, key, "-n", "root")
        if place == "named":
            certificate = home.home / ".ssh" / "certificate"
            key.with_name("id_ed25519-cert.pub").rename(certificate)
            configured(home, hosts[0], f"CertificateFile {certificate}")
        if place == "in the ssh-agent":
            monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
            checked(["ssh-add", "-q", str(key)])
            for file in key.parent.glob("id_ed25519*"):
                file.unlink()
        assert ssh_reaches("gpu0")
        host = login(hostname="gpu0", user=None, ssh_port=None)
        assert reaches(host)
        assert isinstance(host, SshHost)
        # A certificate in a file is seen before the first packet.
        if place != "in the ssh-agent":
            assert isinstance(host.transport, OpenSshTransport)
        (tmp_path / "file").write_text("content")
        assert rsync_reaches(host, tmp_path)


def test_an_expired_certificate_is_refused_in_the_words_of_a_key(
    home: Lab, hosts: list[LabHost], login: Login, authority: Path
) -> None:
    certify(authority, home.home / ".ssh" / "id_ed25519", "-V", "20200101:20200102")
    configured(home, hosts[0])
    with host_that_trusts(hosts[0], authority):
        assert not ssh_reaches("gpu0")
        host = login(hostname="gpu0", user=None, ssh_port=None)
        assert isinstance(error_of(lambda: host.run(["true"])), LoginRefused)


@pytest.mark.parametrize("principal", ["address", "stranger"])
def test_a_certified_host_is_verified(
    home: Lab,
    hosts: list[LabHost],
    login: Login,
    authority: Path,
    tmp_path: Path,
    principal: str,
) -> None:
    host_key = tmp_path / "host"
    make_key(host_key)
    name = hosts[0].address if principal == "address" else "stranger"
    certify(authority, host_key, "-h", "-n", name)
    for file in ("host", "host-cert.pub"):
        content = (tmp_path / file).read_text()
        hosts[0].run(["tee", f"/run/lab/{file}"], input=content)
    hosts[0].run(["chmod", "600", "/run/lab/host"])
    public = authority.with_name(f"{authority.name}.pub").read_text()
    home.known_hosts.write_text(f"@cert-authority {hosts[0].address} {public}\n")
    ssh_config(home, "Host gpu0", f"HostName {hosts[0].address}", f"Port {PORT}")
    lines = ("HostKey /run/lab/host", "HostCertificate /run/lab/host-cert.pub")
    with sshd_on(hosts[0], PORT, LOGIN_PATH, *lines):
        host = login(hostname="gpu0", user=None, ssh_port=None)
        is_reached = ssh_reaches("gpu0")
        assert is_reached is (principal == "address")
        assert reaches(host) is is_reached
        if not is_reached:
            error = error_of(lambda: host.run(["true"]))
            assert isinstance(error, HostKeyUnknown)
        else:
            assert new_key_of(host.node, 5) is None


def test_a_host_without_certificate_is_not_let_pass_for_its_authority(
    home: Lab, hosts: list[LabHost], login: Login, authority: Path
) -> None:
    public = authority.with_name(f"{authority.name}.pub").read_text()
    home.known_hosts.write_text(f"@cert-authority * {public}\n")
    ssh_config(home, "Host gpu0", f"HostName {hosts[0].address}")
    assert not ssh_reaches("gpu0")
    host = login(hostname="gpu0", user=None)
    error = error_of(lambda: host.run(["true"]))
    assert isinstance(error, HostKeyUnknown)
    new = new_key_of(host.node, 5)
    assert new is not None
    assert hosts[0].public_key.split()[1] in new._line
    new.trust()
    assert ssh_reaches("gpu0")
    assert reaches(login(hostname="gpu0", user=None))


# ---- ssh-agents that do not do their work ----


def test_a_key_that_the_agent_does_not_sign_with_is_passed_over(
    home: Lab,
    hosts: list[LabHost],
    login: Login,
    monkeypatch: pytest.MonkeyPatch,
    state: Path,
    tmp_path: Path,
) -> None:
    """`ssh-add -c` asks for each use, and here is nobody to be asked."""
    key = tmp_path / "other"
    make_key(key)
    agent = tmp_path / "agent"
    ssh_config(
        home, "Host gpu0", f"HostName {hosts[0].address}", f"IdentityAgent {agent}"
    )
    with ssh_agent(agent):
        monkeypatch.setenv("SSH_AUTH_SOCK", str(agent))
        checked(["ssh-add", "-q", "-c", str(key)])
        assert ssh_reaches("gpu0")
        for _ in range(2):
            assert reaches(login(hostname="gpu0", user=None))
    # The second login began with what had worked.
    assert len(list(state.iterdir())) == 1


@contextmanager
def silent_agent(path: Path) -> Iterator[None]:
    """Something that takes connections and never answers."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        taken: list[socket.socket] = []

        def take() -> None:
            try:
                while True:
                    taken.append(server.accept()[0])
            except OSError:
                return

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in taken:
                connection.close()


def test_an_agent_that_hangs_is_not_waited_for(
    home: Lab, hosts: list[LabHost], login: Login, tmp_path: Path
) -> None:
    """ssh itself would wait for ever; UGRO takes the keys in files."""
    agent = tmp_path / "agent"
    ssh_config(
        home, "Host gpu0", f"HostName {hosts[0].address}", f"IdentityAgent {agent}"
    )
    with silent_agent(agent):
        assert reaches(login(hostname="gpu0", user=None))
