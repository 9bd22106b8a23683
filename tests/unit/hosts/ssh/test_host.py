"""A host over SSH that contacts nothing: what is asked of Fabric's connection, and what of a dead one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.unit.factories import make_node
from ugro_tasks.cluster.model import Node
from ugro_tasks.errors import HostUnreachable
from ugro_tasks.hosts.ssh import host as ssh
from ugro_tasks.hosts.ssh import login as ssh_login
from ugro_tasks.hosts.ssh import paramiko_transport
from ugro_tasks.hosts.ssh.config import SshConfig
from ugro_tasks.hosts.ssh.host import SshHost
from ugro_tasks.hosts.ssh.paramiko_transport import (
    UNACKNOWLEDGED_SECONDS,
    Hop,
    _OnlyKnownKeys,
    _PromptSocket,
    hops_of,
    log_in,
)
from ugro_tasks.hosts.ssh.transport import NotStarted
from ugro_tasks.hosts.ssh.way import way_to

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
    sock = None

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.status_event = threading.Event()
        self.status_event.set()

    def settimeout(self, seconds: float) -> None: ...

    def get_transport(self) -> Channel:
        return self

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


CONFIG = SshConfig(
    words=("127.0.0.1",),
    settings={"hostname": ["127.0.0.1"], "user": ["x"], "port": ["22"]},
)


def host_with(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> SshHost:
    def log_in(hop: Any) -> None:
        hop.connection.logins += 1
        hop.connection.is_connected = True

    monkeypatch.setattr(paramiko_transport, "log_in", log_in)
    monkeypatch.setattr(ssh_login, "way_to", lambda _: [CONFIG])
    hops = [Hop(CONFIG, connection)]
    monkeypatch.setattr(paramiko_transport, "hops_of", lambda *_: hops)
    return SshHost(NODE, CONNECT_SECONDS)


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


class Transport:
    """A login whose first command finds it dead, if told so, once another thread has logged in anew."""

    round_trip_seconds = 0.0

    def __init__(self) -> None:
        self.is_open = True
        self.when_asked: Callable[[], None] | None = None

    def start(self, _argv: Sequence[str], _timeout_seconds: float) -> Any:
        if self.when_asked:
            self.when_asked()
            raise NotStarted(HostUnreachable("gpu0", "it is dead"))
        return Session()

    def close(self) -> None:
        self.is_open = False


class Session:
    """A command without output."""

    last_words = b""

    def read(self, _deadline: float) -> bytes:
        return b""

    def write(self, data: bytes) -> None: ...

    def end_input(self) -> None: ...

    def exit_code(self, _deadline: float) -> int:
        return 0

    def close(self) -> None: ...


def test_a_thread_that_meets_a_dead_login_leaves_a_newer_one_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = Transport(), Transport()
    waiting = iter((first, second))
    monkeypatch.setattr(ssh, "log_in", lambda *_: next(waiting))
    host = SshHost(NODE, CONNECT_SECONDS)
    host.open()

    def log_in_anew() -> None:
        first.is_open = False
        host.open()

    first.when_asked = log_in_anew
    assert host.run(["true"]) == b""
    assert second.is_open
    assert next(waiting, None) is None, "no third login"


@pytest.mark.parametrize(
    "node", [NODE, make_node(jump="y@127.0.0.2:2200")], ids=["direct", "jump host"]
)
def test_each_hop_verifies_keys_and_has_limits_of_its_own(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    hops = hops_of(way_to(node), CONNECT_SECONDS)
    assert len(hops) == (2 if node.jump else 1)
    assert len({id(hop.connection.connect_kwargs) for hop in hops}) == len(hops)
    monkeypatch.setattr(_PromptSocket, "to", lambda *_: _NoSocket())
    for hop in hops:
        monkeypatch.setattr(hop.connection, "open", lambda: None)
        monkeypatch.setattr(hop.connection, "transport", _NoSocket())
        log_in(hop)
        # paramiko has no public way to ask for the policy.
        assert isinstance(hop.connection.client._policy, _OnlyKnownKeys)
        assert hop.connection.connect_timeout == CONNECT_SECONDS
        given = hop.connection.connect_kwargs
        limits = {name: given[name] for name in given if "timeout" in name}
        assert limits == dict.fromkeys(
            ("banner_timeout", "auth_timeout", "channel_timeout"), 6.0
        )
        made = given["transport_factory"](_NoSocket())
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

    def set_keepalive(self, seconds: int) -> None: ...

    def close(self) -> None: ...
