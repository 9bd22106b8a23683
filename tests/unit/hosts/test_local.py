"""This machine as a host: a command that does not listen is given up."""

from __future__ import annotations

import pytest

from tests.unit.factories import make_node
from ugro_tasks.errors import HostUnreachable
from ugro_tasks.hosts import pipes
from ugro_tasks.hosts.local import LocalHost

MUCH = bytes(1 << 20)  # more than a pipe takes
DEAF = ["sleep", "60"]


@pytest.fixture
def host() -> LocalHost:
    return LocalHost(make_node(transport="local"))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "WRITE_SECONDS", 0.2)


@pytest.mark.usefixtures("impatient")
def test_a_command_that_takes_nothing_of_its_stdin_is_given_up(host: LocalHost) -> None:
    with pytest.raises(HostUnreachable) as error:
        host.stream(DEAF, MUCH)
    assert isinstance(error.value.__cause__, TimeoutError)


@pytest.mark.usefixtures("impatient")
def test_a_command_that_stops_to_listen_is_given_up(host: LocalHost) -> None:
    stream = host.stream(DEAF, None)
    with pytest.raises(HostUnreachable) as error:
        stream.write(MUCH)
    stream.close()
    assert isinstance(error.value.__cause__, TimeoutError)


def test_a_command_need_not_read_its_stdin(host: LocalHost) -> None:
    stream = host.stream(["echo", "hello"], MUCH)
    assert stream.read(30.0) == b"hello\n"
    stream.close()


def test_much_goes_in_piece_by_piece(host: LocalHost) -> None:
    stream = host.stream(["sh", "-c", "sleep 0.2; head -c 2097152 | wc -c"], None)
    stream.write(MUCH)
    stream.write(MUCH)
    assert stream.read(30.0) == b"2097152\n"
    stream.close()
