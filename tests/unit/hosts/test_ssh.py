"""A host over SSH that contacts nothing: what is asked of Fabric's connection, and what of a dead one."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.unit.factories import make_node
from ugro_tasks.cluster.model import Node
from ugro_tasks.errors import HostUnreachable
from ugro_tasks.hosts import ssh
from ugro_tasks.hosts.known_hosts import RejectUnknownKeys
from ugro_tasks.hosts.ssh import SshHost
from ugro_tasks.hosts.transport import UNACKNOWLEDGED_SECONDS, _PromptSocket, hops_to

CONNECT_SECONDS = 3.0
NODE = make_node(address="127.0.0.1", user="x")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without an ssh configuration."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


class Channel:
    """A channel of a command that says nothing and ends well."""

    exit_status = 0

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.status_event = threading.Event()
        self.status_event.set()

    def settimeout(self, seconds: float) -> None: ...

    def exec_command(self, command: str) -> None:
        self.commands.append(command)

    def recv(self, _size: int) -> bytes:
        return b""

    def recv_stderr(self, _size: int) -> bytes:
        return b""

    def sendall(self, data: bytes) -> None: ...

    def shutdown_write(self) -> None: ...

    def close(self) -> None: ...


class Connection:
    """What stands for Fabric's connection and its transport: it counts logins, and is dead as often as told."""

    host = "127.0.0.1"
    user = "x"
    port = 22
    gateway = None
    sock = None

    def __init__(self, dead: int) -> None:
        self.dead = dead
        self.logins = 0
        self.is_connected = False
        self.channel = Channel()

    @property
    def transport(self) -> Connection:
        return self

    def open_session(self, **_: Any) -> Channel:
        if self.dead:
            self.dead -= 1
            raise EOFError
        return self.channel

    def close(self) -> None:
        self.is_connected = False


def host_with(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> SshHost:
    def log_in(hop: Any) -> None:
        hop.logins += 1
        hop.is_connected = True

    monkeypatch.setattr(ssh, "log_in", log_in)
    host = SshHost(NODE, CONNECT_SECONDS)
    host.connection = connection
    return host


def test_a_connection_found_dead_is_opened_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connection = Connection(dead=0)
    host = host_with(connection, monkeypatch)
    assert host.run(["true"]) == b""
    connection.dead = 1
    assert host.run(["echo", "a b"]) == b""
    assert connection.logins == 2
    assert connection.channel.commands == ["true", "echo 'a b'"]


@pytest.mark.parametrize(("warm", "logins"), [(True, 2), (False, 1)])
def test_it_is_opened_anew_once_and_only_where_it_had_been_open(
    monkeypatch: pytest.MonkeyPatch, warm: bool, logins: int
) -> None:
    connection = Connection(dead=0)
    host = host_with(connection, monkeypatch)
    if warm:
        host.open()
    connection.dead = 10
    with pytest.raises(HostUnreachable):
        host.run(["true"])
    assert connection.logins == logins
    assert connection.channel.commands == []


@pytest.mark.parametrize(
    "node", [NODE, make_node(jump="y@127.0.0.2:2200")], ids=["direct", "jump host"]
)
def test_each_hop_verifies_keys_and_has_limits_of_its_own(node: Node) -> None:
    hops = hops_to(SshHost(node, CONNECT_SECONDS).connection)
    assert len(hops) == (2 if node.jump else 1)
    assert len({id(hop.connect_kwargs) for hop in hops}) == len(hops)
    for hop in hops:
        # paramiko has no public way to ask for the policy.
        assert isinstance(hop.client._policy, RejectUnknownKeys)
        assert hop.connect_timeout == CONNECT_SECONDS
        limits = {
            name: hop.connect_kwargs[name]
            for name in hop.connect_kwargs
            if "timeout" in name
        }
        assert limits == dict.fromkeys(
            ("banner_timeout", "auth_timeout", "channel_timeout"), 6.0
        )


def test_a_transport_prefers_a_cipher_that_needs_no_digest() -> None:
    factory = SshHost(NODE, CONNECT_SECONDS).connection.connect_kwargs[
        "transport_factory"
    ]
    made = factory(_NoSocket())
    assert "gcm" in made.get_security_options().ciphers[0]


def test_a_write_to_a_link_that_was_cut_has_a_limit() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        _PromptSocket.to("127.0.0.1", server.getsockname()[1], CONNECT_SECONDS) as made,
    ):
        limit = made.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert limit == 1000 * UNACKNOWLEDGED_SECONDS


class _NoSocket:
    def settimeout(self, seconds: float) -> None: ...

    def close(self) -> None: ...


def test_a_host_is_no_connection_of_fabrics() -> None:
    host = SshHost(NODE, CONNECT_SECONDS)
    assert not hasattr(host, "call")
    assert (host.node, host.connection.host, host.connection.user) == (
        NODE,
        "127.0.0.1",
        "x",
    )
